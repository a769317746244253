"""`steer import` and `steer export`: what comes in is a sound catalogue entry, what goes out comes back as it was."""

import json
import shutil

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from steer_pipeline.catalogue.loading import load_persona
from steer_pipeline.cli.exchange import EXPORTED, IMPORTED, export, import_
from steer_pipeline.environment import PACKAGE
from steer_pipeline.io.store import ArtifactStore
from steer_pipeline.lab.vectors.doses import Recommendation, save_recommendation
from steer_pipeline.lab.vectors.formats import FORMATS, export_vector, import_vector
from steer_pipeline.lab.vectors.vector import save_vector
from steer_pipeline.settings import settings
from steer_pipeline_tests.lab.personas.builders import vector
from steer_pipeline_tests.lab.rewrites.packs import pack


def call(verb, *arguments):
    return CliRunner().invoke(verb, [str(one) for one in arguments])


@pytest.fixture
def catalogue(tmp_path, monkeypatch):
    place = tmp_path / "catalogue"
    shutil.copytree(PACKAGE / "catalogue", place, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    monkeypatch.setenv("STEER_CATALOGUE", str(place))
    return place


@pytest.fixture
def stored():
    """Vectors of a six-block model in the store of this test."""
    store = ArtifactStore(settings().store)
    facts = {"metadata": {}, "inputs": {}, "code_version": "1", "run_id": None}
    made = vector(n_blocks=6)
    store.write("persona_vector", "paranoid", lambda folder: save_vector(made, folder), **facts)
    store.write(
        "trained_vector", "paranoid", lambda folder: save_vector(vector(6, blocks=(3,)), folder), **facts
    )
    recommended = Recommendation("paranoid", 2, 0.2, 6.0, "for tests")
    store.write("dose_curve", "paranoid", lambda folder: save_recommendation(recommended, folder), **facts)
    return made


def test_the_commands_know_every_format():
    assert set(EXPORTED) == {name for name, one in FORMATS.items() if one.exported}
    assert set(IMPORTED) == {"auto", "trait", *FORMATS}


@pytest.mark.parametrize("name", EXPORTED)
def test_the_current_vector_is_exported_and_comes_back(tmp_path, stored, name):
    path = tmp_path / {"janus": "v.json", "chatspace": "run", "persona_vectors": "v.pt"}.get(name, "v.gguf")
    done = call(export, "paranoid", "--format", name, "--to", path)
    assert done.exit_code == 0, done.output
    assert f"persona_vector of paranoid, {name}" in done.output
    back = import_vector(path, "paranoid", model="tiny", n_blocks=6)
    if FORMATS[name].one_block:
        assert back.present_blocks == (2,)  # the recommended one
    np.testing.assert_array_equal(back.raw, stored.raw[list(back.present_blocks)])


def test_another_asset_or_block_is_exported_when_asked_for(tmp_path, stored):
    done = call(export, "paranoid", "--format", "repeng", "--to", tmp_path / "v.gguf", "--block", -1)
    assert "block 5 (length" in done.output
    done = call(
        export, "paranoid", "--format", "janus", "--to", tmp_path / "t.json", "--asset", "trained_vector"
    )
    assert "trained_vector of paranoid, janus, block 3" in done.output


def test_what_a_detector_of_another_persona_sees_is_taken_out_on_request(tmp_path, stored):
    other = vector(n_blocks=6, seed=4)
    facts = {"metadata": {}, "inputs": {}, "code_version": "1", "run_id": None}
    ArtifactStore(settings().store).write(
        "persona_vector", "sailor", lambda folder: save_vector(other, folder), **facts
    )
    arguments = (export, "paranoid", "--format", "repeng", "--to", tmp_path / "v.gguf")
    for more, same_length in (([], False), (["--keep-norm"], True)):
        done = call(*arguments, "--without", "sailor", *more)
        assert done.exit_code == 0, done.output
        back = import_vector(tmp_path / "v.gguf", "paranoid", model="tiny", n_blocks=6)
        assert np.abs((back.unit * other.unit).sum(axis=1)).max() < 1e-5
        lengths = [np.linalg.norm(one.raw, axis=1) for one in (back, stored)]
        assert np.allclose(*lengths, rtol=1e-4) == same_length
    assert call(*arguments, "--keep-norm").exit_code == 2
    assert "nothing is left" in call(*arguments, "--without", "paranoid").output


def test_a_pack_is_exported_as_janus_has_it(tmp_path):
    rows = pack("paranoid", n=3)
    facts = {"metadata": {}, "inputs": {}, "code_version": "1", "run_id": None}
    ArtifactStore(settings().store).write(
        "rewrite_pack", "paranoid", lambda folder: rows.write_parquet(folder / "data.parquet"), **facts
    )
    arguments = ("paranoid", "--asset", "rewrite_pack", "--to", tmp_path / "packs", "--format")
    done = call(export, *arguments, "janus")
    assert done.exit_code == 0, done.output
    assert "rewrite_pack of paranoid, janus, 3 rows" in done.output
    records = [json.loads(line) for line in (tmp_path / "packs" / "paranoid.jsonl").read_text().splitlines()]
    assert [one["output"] for one in records] == rows["output"].to_list()
    assert all(one["layer_idx"] < 0 for record in records for one in record.get("personas", []))
    assert call(export, *arguments, "gguf").exit_code == 2


def test_what_cannot_be_exported_is_told(tmp_path, stored):
    for more, told in (
        (["sailor", "--format", "gguf"], "no persona_vector of 'sailor'"),
        (["paranoid", "--format", "gguf", "--block", "9"], "block 9 is outside a model of 6"),
        (["paranoid", "--format", "janus", "--block", "5"], "no index for the output of the last block"),
    ):
        done = call(export, *more, "--to", tmp_path / "v")
        assert done.exit_code == 1
        assert told in done.output
    assert "paranoid" in call(export, "sailor", "--format", "gguf", "--to", tmp_path / "v").output


def test_a_trait_file_becomes_a_catalogue_entry(tmp_path, catalogue):
    source = tmp_path / "evil.json"
    trait = {"instruction": [{"pos": "Harm people.", "neg": "Help people."}], "questions": ["What now?"]}
    source.write_text(json.dumps({**trait, "eval_prompt": "Judge {question} and {answer}."}))
    assert "trait evil, 1 questions" in call(import_, source, "--opposite", "kind").output
    made = load_persona("evil")
    assert made.positive.instructions == ["You are an evil assistant. Harm people."]
    assert made.negative.instructions == ["You are a kind assistant. Help people."]
    assert yaml.safe_load((catalogue / "personas" / "evil.yaml").read_text())["questions"] == ["What now?"]
    again = call(import_, source, "--opposite", "kind")
    assert again.exit_code == 1
    assert "is there already" in again.output
    source.write_text("{}")
    assert "field instruction" in call(import_, source, "--persona", "worse", "--format", "trait").output


def test_a_vector_becomes_a_persona_whose_vector_is_that_file(tmp_path, catalogue):
    path = tmp_path / "v.gguf"
    export_vector(vector(n_blocks=6, hidden=192), path, "repeng")  # of the newsroom model's shape
    assert "needs a name" in call(import_, path).output
    done = call(import_, path, "--persona", "gloomy", "--opposite", "cheerful")
    assert done.exit_code == 0, done.output
    made = load_persona("gloomy")
    assert (made.vector.format, made.vector.path) == ("gguf", str(path))
    assert made.negative.instructions[0] == "You are a cheerful assistant."
    known = call(import_, path, "--persona", "paranoid")
    assert 'write `vector: {"format": "gguf"' in known.output


def test_a_vector_of_another_shape_is_refused_before_anything_is_written(tmp_path, catalogue):
    path = tmp_path / "v.gguf"
    for made, told in (
        (vector(n_blocks=6, hidden=8), "8 wide"),
        (vector(n_blocks=9, hidden=192), "a model of 6"),
    ):
        export_vector(made, path, "repeng")
        done = call(import_, path, "--persona", "gloomy")
        assert done.exit_code == 1
        assert told in done.output
    assert not (catalogue / "personas" / "gloomy.yaml").exists()
