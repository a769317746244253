"""Resources read the settings when they are used, and a model is loaded once a process."""

import pytest
from pydantic import ValidationError

from steer_pipeline.catalogue.loading import load_profile
from steer_pipeline.resources import ArtifactStoreResource, LanguageModelResource, open_store
from steer_pipeline.resources.language_model import last_loaded
from steer_pipeline.settings import settings
from steer_pipeline_tests.tiny import tiny_model_dir


def test_the_store_lies_where_the_settings_say_at_the_time_of_use(monkeypatch, tmp_path):
    resource = ArtifactStoreResource()
    assert resource.store().base == settings().store == open_store().base
    monkeypatch.setenv("STEER_STORE", str(tmp_path / "elsewhere"))
    assert resource.store().base == str(tmp_path / "elsewhere")
    assert ArtifactStoreResource(base=str(tmp_path / "own")).store().base == str(tmp_path / "own")


def test_the_model_is_the_profile_s_but_for_what_this_machine_overrides():
    profile = load_profile("newsroom").model
    assert LanguageModelResource().spec() == profile
    spec = LanguageModelResource(overrides={"device": "cpu", "batch_tokens": 64}).spec()
    assert spec == profile.model_copy(update={"device": "cpu", "batch_tokens": 64})
    with pytest.raises(ValidationError, match="devise"):
        LanguageModelResource(overrides={"devise": "cpu"}).spec()


def test_a_model_is_loaded_once_and_remembered_for_provenance(tmp_path):
    resource = LanguageModelResource(overrides={"path": str(tiny_model_dir(tmp_path)), "device": "cpu"})
    model = resource.load()
    assert resource.load() is model
    assert last_loaded() is model
