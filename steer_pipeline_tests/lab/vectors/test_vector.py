"""A vector is finite, non-zero, of the right width, stored whole, and used on its own model only."""

import json

import numpy as np
import pytest

from steer_pipeline.lab.vectors.vector import (
    PersonaVector,
    VectorError,
    best_block,
    load_vector,
    require_same_model,
    save_vector,
)
from steer_pipeline_tests.lab.personas.builders import model_like, vector


def test_a_saved_vector_comes_back_with_directions_blocks_and_metadata(tmp_path):
    original = vector(blocks=(1, 3), source={"kind": "janus"})
    save_vector(original, tmp_path)
    loaded = load_vector(tmp_path)
    np.testing.assert_array_equal(loaded.raw, original.raw)
    assert loaded.present_blocks == (1, 3)
    assert loaded.metadata == original.metadata
    assert loaded.digest == original.digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["vector.json", "vector.safetensors"]


def test_unit_form_has_norm_one_and_the_raw_form_keeps_its_magnitude():
    v = vector()
    np.testing.assert_allclose(np.linalg.norm(v.unit, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(v.at(2), v.unit_at(2) * np.linalg.norm(v.at(2)), rtol=1e-5)


def test_a_missing_block_is_an_error_and_never_zeros():
    v = vector(blocks=(1, 2))
    with pytest.raises(VectorError, match=r"no direction at block 3; it has blocks 1-2"):
        v.at(3)
    np.testing.assert_array_equal(v.at(2), v.raw[1])


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda raw: raw.__setitem__((2, 5), np.nan), "block 2 has 1 values that are not finite"),
        (lambda raw: raw.__setitem__(1, 0), "block 1 is zero"),
    ],
)
def test_a_broken_direction_is_refused_with_its_block(damage, told):
    raw = vector().raw.copy()
    damage(raw)
    with pytest.raises(VectorError, match=told):
        PersonaVector("paranoid", raw, vector().metadata)


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (np.ones((4, 9), np.float32), "9 wide, the model is 8"),
        (np.ones((4, 8), np.float64), "float64"),
        (np.ones((5, 8), np.float32), "blocks 0-4 in a model of 4"),
        (np.ones(8, np.float32), r"\[8\]"),
    ],
)
def test_a_wrong_shape_or_type_is_refused(raw, told):
    with pytest.raises(VectorError, match=told):
        PersonaVector("paranoid", raw, vector().metadata)


def test_tensors_and_sidecar_of_different_vectors_are_refused(tmp_path):
    save_vector(vector(seed=1), tmp_path / "a")
    save_vector(vector(seed=2), tmp_path / "b")
    (tmp_path / "a" / "vector.json").replace(tmp_path / "b" / "vector.json")
    with pytest.raises(VectorError, match="not of one vector"):
        load_vector(tmp_path / "b")


@pytest.mark.parametrize("name", ["vector.json", "vector.safetensors"])
def test_a_damaged_or_missing_file_is_named(tmp_path, name):
    save_vector(vector(), tmp_path)
    (tmp_path / name).write_text("{")
    with pytest.raises(VectorError, match="damaged"):
        load_vector(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(VectorError, match=name):
        load_vector(tmp_path)


def test_the_sidecar_is_plain_json_without_nan(tmp_path):
    save_vector(vector(blocks=(2,), held_out_auc=[None, None, 0.9, None]), tmp_path)
    sidecar = json.loads((tmp_path / "vector.json").read_text())
    assert sidecar["held_out_auc"] == [None, None, 0.9, None]
    assert sidecar["present_blocks"] == [2]


@pytest.mark.parametrize(
    "change",
    [{"n_blocks": 5}, {"weights_sha": "w2"}, {"weights_sha": "w2", "name": "other"}],
)
def test_a_vector_of_another_model_is_refused_by_name_unless_allowed(change):
    model = model_like(**change)
    with pytest.raises(VectorError, match=rf"on 'tiny', this is '{model.name}'; .* against "):
        require_same_model(vector(), model)
    require_same_model(vector(), model, allow_other_model=True)


def test_the_weights_decide_and_not_the_name_where_a_vector_knows_them():
    require_same_model(vector(revision="r1"), model_like(name="moved/elsewhere", revision="main"))


@pytest.mark.parametrize(
    ("said", "here", "same"),
    [
        ("Qwen/Qwen3-32B", "Qwen/Qwen3-32B", True),
        ("Qwen/Qwen3-32B", "/cache/models--Qwen--Qwen3-32B/snapshots/0123abcd", True),
        ("/cache/models--Qwen--Qwen3-32B/snapshots/0123abcd", "qwen/qwen3-32b", True),
        ("Qwen/Qwen3-32B", "/models/Qwen3-32B", True),
        ("qwen-3-32b", "/models/Qwen3-32B/", True),
        ("Qwen/Qwen3-32B", "unsloth/Qwen3-32B", False),
        ("Qwen/Qwen3-32B", "/cache/models--Qwen--Qwen3-4B/snapshots/0123abcd", False),
        ("Qwen/Qwen3-32B", "/models/merged", False),
        ("mine/model", "/models/model", False),
    ],
)
def test_one_rule_says_which_names_are_of_one_model(said, here, same):
    imported = vector(weights_sha=None, model=said)
    if same:
        require_same_model(imported, model_like(name=here))
    else:
        with pytest.raises(VectorError, match="names of different models"):
            require_same_model(imported, model_like(name=here))


def test_another_width_is_refused_even_where_other_models_are_allowed():
    with pytest.raises(VectorError, match="hidden_size 8 against 16"):
        require_same_model(vector(), model_like(hidden_size=16), allow_other_model=True)


def test_what_an_imported_file_does_not_say_is_not_held_against_it():
    imported = vector(weights_sha=None, revision=None)
    require_same_model(imported, model_like(weights_sha="anything", revision="any"))


def test_the_best_block_is_one_and_ties_go_to_the_steadiest_direction():
    """Ties at AUC 1.0 made it block 0 in the UI and block 5 in the report."""
    tied = {"held_out_auc": [1.0, 0.9, 1.0, 1.0], "split_half_cosine": [0.5, 0.99, 0.9, 0.9]}
    norms = {"raw_norms": [1.0, 1.0, 2.0, 3.0], "residual_norms": [10.0, 10.0, 10.0, 10.0]}
    assert best_block(tied | norms) == 3  # the longest of the two steadiest
    assert best_block(tied) == 2  # the lowest, where nothing else tells
    assert best_block({"held_out_auc": [None, 0.6, None, 0.7]}) == 3
    assert best_block({}) is None
