"""What a newcomer writes first is valid at once but for its blanks, which are named; a model comes by one command."""

import re
import shutil

import pytest
import yaml

from steer_pipeline.catalogue.loading import (
    CatalogueError,
    load_persona,
    load_profile,
    load_variants,
    read_personas,
)
from steer_pipeline.environment import PACKAGE
from steer_pipeline.lab.models import installing
from steer_pipeline.lab.models.identity import ModelLoadError
from steer_pipeline_tests.cli.running import printed, refused


@pytest.fixture
def catalogue(tmp_path, monkeypatch):
    place = tmp_path / "catalogue"
    shutil.copytree(PACKAGE / "catalogue", place, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    monkeypatch.setenv("STEER_CATALOGUE", str(place))
    return place


def filled(path) -> None:
    """Every blank of a file, each with a text of its own."""
    number = iter(range(1000))
    path.write_text(re.sub(r'"TODO[^"]*"', lambda _: f"Written {next(number)}.", path.read_text()))


@pytest.mark.parametrize("kind", ["axis", "trait", "role"])
def test_a_new_persona_is_sound_once_its_blanks_are_filled(catalogue, kind):
    path = catalogue / "personas" / "wistful.yaml"
    lines = printed("new", "persona", "wistful", "--kind", kind).splitlines()
    assert lines[0] == str(path)
    assert "steer new variant wistful" in lines[1]
    blanks = refused("check").splitlines()
    assert f"{path}: summary: still begins with TODO; write it" in blanks
    assert f"{path}: positive.instructions: 3 texts still begin with TODO (0, 1, 2); write them" in blanks
    assert any(
        "examples.held_out: 16 texts still begin with TODO (0.positive, 0.neg" in line for line in blanks
    )
    assert blanks[-1] == "5 problems"
    with pytest.raises(CatalogueError, match="still begin"):
        load_persona("wistful")
    assert list(read_personas()[1]) == ["wistful"], "the others go on"
    filled(path)
    assert load_persona("wistful").kind == kind
    assert "12 personas" in printed("check")
    assert yaml.safe_load(path.read_text())["negative"]["name"] == (
        "plain" if kind == "role" else "not_wistful"
    )


def test_a_new_variant_is_sound_at_once_and_leaves_the_others_as_they_were(catalogue):
    file = catalogue / "variants.yaml"
    before = file.read_text()
    printed("new", "variant", "glad", "--persona", "cheerful")
    printed("new", "variant", "formal")
    assert file.read_text().startswith(before)
    assert list(load_variants())[-2:] == ["glad", "formal"]
    assert load_variants()["glad"].targets == {"cheerful": "up"}
    printed("check")
    assert "there is a variant glad" in refused("new", "variant", "glad", "--persona", "cheerful")
    assert "no persona nobody; the catalogue has" in refused("new", "variant", "nobody", status=2)


def test_a_new_profile_lacks_its_model_or_is_given_one(catalogue):
    printed("new", "profile", "mine-1", "--model", "models/mine: a.gguf")
    assert load_profile("mine-1").model.path == "models/mine: a.gguf"
    assert load_profile("mine-1").corpus.source.kind == "news_en"
    printed("new", "profile", "blank")
    assert "blank.yaml: model.path: still begins with TODO" in refused("check")


@pytest.mark.parametrize("what", ["persona", "profile"])
def test_nothing_is_overwritten(catalogue, what):
    printed("new", what, "mine")
    path = catalogue / f"{what}s" / "mine.yaml"
    path.write_text("my own")
    assert "is there already" in refused("new", what, "mine")
    assert path.read_text() == "my own"


@pytest.mark.parametrize("what", ["persona", "profile", "variant"])
def test_a_name_that_the_catalogue_would_refuse_is_refused_at_once(catalogue, what):
    assert "is no name" in refused(
        "new", what, "../Mine", *["--persona", "cheerful"] * (what == "variant"), status=2
    )


def test_a_catalogue_that_may_not_be_written_to_is_said_with_the_cure(catalogue, monkeypatch):
    def forbidden(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("steer_pipeline.cli.new.os.replace", forbidden)
    assert "set STEER_CATALOGUE" in refused("new", "profile", "mine")
    assert not list((catalogue / "profiles").glob("mine*"))


# ------------------------------------------------------------------------------------------ models


def test_a_model_is_installed_where_profiles_look_for_it_and_listed(tmp_path, monkeypatch):
    monkeypatch.setenv("STEER_HOME", str(tmp_path))
    assert "no models in" in printed("model", "list")

    def convert(_, part):
        (part / "config.json").write_text("{}")
        (part / "model.safetensors").write_bytes(b"0" * 3_000_000)

    monkeypatch.setattr(installing, "_download", lambda folder: folder)
    monkeypatch.setattr(installing, "_unpack", lambda *_: None)
    monkeypatch.setattr(installing, "convert", convert)
    path, following = printed("model", "install", "smollm2").splitlines()
    assert path == str(tmp_path / installing.FOLDER)
    assert following.startswith("next: steer ")
    assert printed("model", "list") == f"{installing.FOLDER}  3 MB\n"
    assert "no model gpt; there is smollm2" in refused("model", "install", "gpt", status=2)


def test_what_cannot_be_installed_is_one_paragraph(tmp_path, monkeypatch):
    monkeypatch.setenv("STEER_HOME", str(tmp_path))

    def fails(_):
        raise ModelLoadError("no index")

    monkeypatch.setattr(installing, "install_smollm2", fails)
    assert refused("model", "install", "smollm2") == "Error: no index\n"
