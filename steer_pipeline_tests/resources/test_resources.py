"""Resources read the settings when they are used, and a model is loaded once a process."""

import shutil

import pytest
from pydantic import ValidationError

from steer_pipeline.catalogue.loading import load_profile
from steer_pipeline.lab.models import loading
from steer_pipeline.resources import ArtifactStoreResource, LanguageModelResource, open_store
from steer_pipeline.settings import settings
from steer_pipeline_tests.tiny import lora, tiny_model_dir


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


def test_a_model_is_loaded_once(tmp_path):
    resource = LanguageModelResource(overrides={"path": str(tiny_model_dir(tmp_path)), "device": "cpu"})
    model = resource.load()
    assert resource.load() is model


def test_adapters_by_path_or_version_share_one_load_of_the_base(tmp_path, monkeypatch):
    loads, load = [], loading._load_torch
    monkeypatch.setattr(loading, "_load_torch", lambda *args: loads.append(1) or load(*args))
    base = tiny_model_dir(tmp_path)
    store = open_store(settings())
    version = store.write(
        "student_adapter",
        "paranoid",
        lambda folder: shutil.copytree(lora(base, tmp_path / "one", seed=1), folder, dirs_exist_ok=True),
        metadata={},
        inputs={},
        code_version="1",
        run_id=None,
    )
    resource = LanguageModelResource(overrides={"path": str(base), "device": "cpu"})
    plain, stored, by_path = resource.load(), resource.load(version), resource.load(tmp_path / "one")
    several = resource.load([version, str(lora(base, tmp_path / "two", seed=2))])
    assert stored.identity == by_path.identity
    assert several.identity.adapters[:1] == stored.identity.adapters
    assert [len(one.identity.adapters) for one in (plain, stored, several)] == [0, 1, 2]
    assert {one.identity.on_base() for one in (plain, stored, several)} == {plain.identity}
    assert loads == [1]


def test_an_adapter_goes_on_top_of_the_one_that_the_profile_has(tmp_path):
    base = tiny_model_dir(tmp_path)
    one, two = (str(lora(base, tmp_path / name, seed)) for seed, name in enumerate(("one", "two")))
    resource = LanguageModelResource(overrides={"path": str(base), "device": "cpu", "adapter": one})
    assert resource.spec(two).adapters == (one, two)
    assert resource.load(two).identity.adapters[:1] == resource.load().identity.adapters
