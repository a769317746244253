"""Vectors find the direction that separates the poles, say how sure they are, and know a null when they see one."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from steer_pipeline.catalogue.specs import ContrastSpec, ModelSpec, VectorSpec
from steer_pipeline.lab.models.hidden import HiddenRequest, collect_means, residual_norms
from steer_pipeline.lab.models.loading import load_model
from steer_pipeline.lab.models.sites import Site
from steer_pipeline.lab.personas.contexts import general_contexts, split_contexts
from steer_pipeline.lab.personas.contrast import build_contrast_prompts, complete_contrast
from steer_pipeline.lab.personas.dose import steered_cells
from steer_pipeline.lab.stats import auc
from steer_pipeline.lab.vectors.extracted import (
    PairedStates,
    auc_columns,
    collect_states,
    extract_vector,
    fit_directions,
    judge_imported,
    separation,
    split_half_cosine,
)
from steer_pipeline.lab.vectors.vector import PersonaVector, VectorError, load_vector, save_vector
from steer_pipeline_tests.lab.personas.builders import persona
from steer_pipeline_tests.tiny import tiny_model_dir

HIDDEN, BLOCKS, PAIRS = 24, 3, 80


def planted(strength: float, seed: int = 0, pairs: int = PAIRS) -> tuple[PairedStates, np.ndarray]:
    """Pairs that share a strong context part and differ along one axis in block 1 alone."""
    rng = np.random.default_rng(seed)
    axis = rng.standard_normal(HIDDEN)
    axis /= np.linalg.norm(axis)
    shared = 5 * rng.standard_normal((pairs, BLOCKS, HIDDEN))
    positive, negative = (shared + rng.standard_normal(shared.shape) for _ in range(2))
    positive[:, 1] += strength * axis
    held_out = np.arange(pairs) % 4 == 0
    return PairedStates(positive.astype(np.float32), negative.astype(np.float32), held_out), axis


def differences(states: PairedStates) -> np.ndarray:
    return (states.positive - states.negative)[~states.held_out]


@pytest.mark.parametrize("method", ["mean_difference", "pca"])
def test_both_methods_find_the_planted_axis_with_its_sign_and_magnitude(method):
    states, axis = planted(6.0)
    raw = fit_directions(differences(states), method)
    assert raw.dtype == np.float32
    assert raw.shape == (BLOCKS, HIDDEN)
    assert raw[1] @ axis == pytest.approx(6.0, rel=0.1)
    assert raw[1] @ axis / np.linalg.norm(raw[1]) > 0.95
    assert (fit_directions(-differences(states), method)[1] @ axis) < -5


def test_pca_is_the_leading_component_about_the_origin_and_points_to_the_positive_pole():
    states, _ = planted(6.0)
    rows = differences(states)
    component = fit_directions(rows, "pca")[1].astype(np.float64)
    unit = component / np.linalg.norm(component)
    expected = np.linalg.svd(rows[:, 1], full_matrices=False)[2][0]
    assert abs(unit @ expected) == pytest.approx(1, abs=1e-5)
    assert np.linalg.norm(component) == pytest.approx((rows[:, 1] @ unit).mean(), rel=1e-4)


def test_the_null_is_at_chance_and_the_planted_block_beats_it():
    states, _ = planted(3.0)
    found = separation(states, "mean_difference", seed=1)
    np.testing.assert_allclose(found.null_mean, 0.5, atol=0.04)
    assert found.auc[1] > found.null_95th[1]
    assert found.auc[1] > found.auc_max_null_95th
    assert found.p[1] < 0.02
    assert found.auc_max_p < 0.02
    assert (found.null_95th > 0.5).all()


@pytest.mark.parametrize("method", ["mean_difference", "pca"])
def test_labels_that_mean_nothing_are_rarely_significant(method):
    p_values = [
        separation(planted(0.0, seed)[0], method, seed, n_shuffles=100).auc_max_p for seed in range(40)
    ]
    assert np.mean(np.array(p_values) <= 0.1) < 0.25
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.15)


def test_the_observed_auc_is_that_of_the_projection_on_the_direction_fitted_on_train_pairs():
    states, _ = planted(1.0)
    direction = fit_directions(differences(states), "mean_difference")[1]
    test = states.held_out
    scores = np.concatenate([states.positive[test, 1], states.negative[test, 1]]) @ direction
    labels = np.repeat([1, 0], test.sum())
    assert separation(states, "mean_difference", 0).auc[1] == pytest.approx(auc(scores, labels), abs=1e-9)


def test_a_given_direction_is_scored_and_not_refitted():
    states, axis = planted(10.0)
    given = np.tile(-axis, (BLOCKS, 1))
    assert separation(states, "mean_difference", 0, directions=given).auc[1] < 0.2


def test_auc_of_columns_counts_ties_half():
    positive, negative = np.array([[1.0, 2], [1, 3]]), np.array([[1.0, 1], [0, 2]])
    np.testing.assert_allclose(auc_columns(positive, negative), [0.75, 0.875])


def test_split_halves_agree_where_something_is_planted_and_not_elsewhere():
    cosines = split_half_cosine(differences(planted(6.0)[0]), "mean_difference", seed=3)
    assert cosines[1] > 0.9
    assert abs(cosines[0]) < 0.3
    again = split_half_cosine(differences(planted(6.0)[0]), "mean_difference", seed=3)
    np.testing.assert_array_equal(cosines, again)


# ---------------------------------------------------------------------------------------- on a model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return load_model(ModelSpec(path=str(tiny_model_dir(folder))), folder)


@pytest.fixture(scope="module")
def contrast(model):
    contexts = split_contexts(general_contexts(24, seed=1), 0.25, seed=2)
    spec = ContrastSpec(n_contexts=24, max_new_tokens=6)
    return complete_contrast(model, build_contrast_prompts(persona(), spec, contexts), spec)


@pytest.mark.parametrize("readout", ["response_tokens", "last_prompt_token"])
def test_a_read_out_covers_exactly_the_response_or_the_last_prompt_token(model, contrast, readout):
    states = collect_states(model, contrast, readout)
    rows = contrast.sort("context_id").filter(pl.col("side") == "negative").row(5, named=True)
    prompt, completion = rows["prompt_ids"], rows["completion_ids"]
    ids = prompt + completion if readout == "response_tokens" else prompt
    first = len(prompt) if readout == "response_tokens" else len(prompt) - 1
    each = [collect_means(model, [HiddenRequest(ids, k, k + 1)])[0] for k in range(first, len(ids))]
    np.testing.assert_allclose(states.negative[5], np.mean(each, axis=0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["mean_difference", "pca"])
def test_a_vector_has_every_block_and_its_evidence_and_survives_storage(model, contrast, method, tmp_path):
    vector = extract_vector(model, contrast, "paranoid", VectorSpec(method=method))
    facts = vector.metadata
    assert vector.raw.shape == (model.n_blocks, model.hidden_size)
    assert vector.present_blocks == tuple(range(model.n_blocks))
    for name in (
        "residual_norms",
        "raw_norms",
        "split_half_cosine",
        "held_out_auc",
        "auc_null_mean",
        "auc_null_95th",
        "auc_p",
    ):
        assert len(facts[name]) == model.n_blocks, name
    assert facts["n_shuffles"] >= 100
    assert (facts["n_train"], facts["n_held_out"]) == (18, 6)
    assert (facts["weights_sha"], facts["dtype"]) == (model.weights_sha, "float32")
    assert facts["method"] == method
    save_vector(vector, tmp_path)
    assert load_vector(tmp_path).metadata == facts


def test_a_vector_of_what_attention_adds_is_collected_there_and_swept_there(model, contrast):
    vector = extract_vector(model, contrast, "paranoid", VectorSpec(site="attention"))
    states = collect_states(model, contrast, "response_tokens", "attention")
    train = ~states.held_out
    expected = (states.positive[train] - states.negative[train]).mean(axis=0)
    np.testing.assert_allclose(vector.raw, expected, rtol=1e-4, atol=1e-5)
    assert vector.site == "attention"
    (cell,) = steered_cells(vector, [1], [0.2])
    assert [term.site for term in cell.plan.terms] == [Site(1, "attention")]
    assert (
        vector.metadata["residual_norms"]
        == extract_vector(model, contrast, "paranoid", VectorSpec()).metadata["residual_norms"]
    )


def test_residual_norms_are_those_of_the_contrast_sequences(model, contrast):
    vector = extract_vector(model, contrast, "paranoid", VectorSpec())
    sequences = [p + c for p, c in contrast.select("prompt_ids", "completion_ids").iter_rows()]
    np.testing.assert_allclose(vector.metadata["residual_norms"], residual_norms(model, sequences), rtol=1e-4)


def test_extraction_is_deterministic_and_does_not_depend_on_row_order(model, contrast):
    first = extract_vector(model, contrast, "paranoid", VectorSpec())
    again = extract_vector(model, contrast.sample(fraction=1, shuffle=True, seed=4), "paranoid", VectorSpec())
    np.testing.assert_allclose(first.raw, again.raw, atol=1e-5)
    assert first.metadata["held_out_auc"] == again.metadata["held_out_auc"]


def test_sides_that_do_not_differ_give_an_error_and_not_a_zero_vector(model, contrast):
    positive = contrast.filter(pl.col("side") == "positive")
    twins = pl.concat([positive, positive.with_columns(side=pl.lit("negative"))])
    with pytest.raises(VectorError, match="block 0 is zero; the two sides do not differ"):
        extract_vector(model, twins, "paranoid", VectorSpec())


def test_too_few_pairs_and_empty_completions_are_named(model, contrast):
    train_only = contrast.filter(pl.col("split") == "train")
    with pytest.raises(VectorError, match="0 pairs in split held_out, at least 4"):
        extract_vector(model, train_only, "paranoid", VectorSpec())
    emptied = contrast.with_columns(completion_ids=pl.lit([], dtype=pl.List(pl.Int32)))
    with pytest.raises(VectorError, match="no tokens to read"):
        extract_vector(model, emptied, "paranoid", VectorSpec())


def test_an_imported_vector_is_judged_at_the_blocks_it_has(model, contrast):
    computed = extract_vector(model, contrast, "paranoid", VectorSpec())
    imported = PersonaVector(
        "paranoid", computed.raw[[1, 3]], {"n_blocks": 4, "hidden_size": 64, "model": model.name}, (1, 3)
    )
    judged = judge_imported(imported, model, contrast, VectorSpec())
    measured = judged.metadata["held_out_auc"]
    assert [value is None for value in measured] == [True, False, True, False]
    assert measured[3] > judged.metadata["auc_null_95th"][3]
    assert len(judged.metadata["residual_norms"]) == 4
    flipped = judge_imported(replace(imported, raw=-imported.raw), model, contrast, VectorSpec())
    assert flipped.metadata["held_out_auc"][3] == pytest.approx(1 - measured[3], abs=1e-6)


def test_an_imported_vector_of_another_width_is_refused(model, contrast):
    narrow = PersonaVector("p", np.ones((1, 32), np.float32), {"n_blocks": 4, "hidden_size": 32}, (2,))
    with pytest.raises(VectorError, match="hidden_size 32 against 64"):
        judge_imported(narrow, model, contrast, VectorSpec())
