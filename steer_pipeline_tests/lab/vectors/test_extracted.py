"""Vectors find the direction that separates the poles, say how sure they are, and know a null when they see one."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from steer_pipeline.catalogue.loading import load_profile
from steer_pipeline.catalogue.specs import ContrastSpec, ModelSpec, VectorSpec
from steer_pipeline.lab.models.hidden import HiddenRequest, collect_means, residual_norms
from steer_pipeline.lab.models.loading import load_model
from steer_pipeline.lab.models.sites import Site
from steer_pipeline.lab.personas.contexts import general_contexts, split_contexts
from steer_pipeline.lab.personas.contrast import build_contrast_prompts, complete_contrast
from steer_pipeline.lab.personas.dose import steered_cells
from steer_pipeline.lab.stats import auc
from steer_pipeline.lab.vectors.extracted import (
    Candidate,
    PairedStates,
    auc_columns,
    choose,
    collect_states,
    extract_vector,
    fit_directions,
    judge_imported,
    pairwise_cosine,
    readouts_of,
    separation,
    split_half_cosine,
)
from steer_pipeline.lab.vectors.vector import (
    PersonaVector,
    VectorError,
    best_block,
    load_vector,
    save_vector,
)
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


def test_pairwise_cosine_is_the_mean_over_pairs_of_pairs_of_unlike_groups():
    rows, groups = differences(planted(4.0, pairs=12)[0]), np.array([0, 0, 0, 1, 1, 1, 2, 2, 2])
    unit = rows / np.linalg.norm(rows, axis=2, keepdims=True)
    expected = [
        np.mean([unit[i, b] @ unit[j, b] for i in range(9) for j in range(9) if groups[i] != groups[j]])
        for b in range(BLOCKS)
    ]
    np.testing.assert_allclose(pairwise_cosine(rows, groups), expected, rtol=1e-4)
    many = differences(planted(6.0)[0])
    found = pairwise_cosine(many, np.arange(len(many)))
    assert found[1] > 0.3
    assert abs(found[0]) < 0.05


# ------------------------------------------------------------------------------ the choice by evidence


def candidate(
    source: str,
    auc: float,
    pairwise: float,
    halves: float = 0.5,
    null: float = 0.7,
    readout: str = "response_tokens",
) -> Candidate:
    facts = {
        "held_out_auc": [0.5, auc],
        "auc_null_95th": [0.6, 0.6],
        "auc_max_null_95th": null,
        "pairwise_cosine": [0.9, pairwise],
        "split_half_cosine": [0.9, halves],
        "n_train": 12,
        "n_held_out": 4,
    }
    return Candidate(source, readout, np.ones((2, 4), np.float32), np.ones((3, 2)), facts)


def chosen(*candidates: Candidate) -> list[str]:
    return [one.source for one in choose(candidates)]


def test_above_the_null_the_agreement_of_pairs_decides_and_below_it_nothing_helps():
    """Given texts reach AUC 1 with any source that works, so AUC cannot rank."""
    weak, strong = candidate("pairs", 1.0, 0.1), candidate("prefill", 0.99, 0.4)
    noise = candidate("generated", 0.69, 0.8)
    assert chosen(noise, weak, strong) == ["prefill", "pairs", "generated"]
    assert chosen(candidate("pairs", 1.0, 0.4, 0.9), strong) == ["pairs", "prefill"], "halves break ties"
    assert chosen(candidate("pairs", 0.98, 0.4), strong) == ["pairs", "prefill"], "then the order asked for"
    assert chosen(candidate("prefill", 0.9, 0.8), weak) == ["pairs", "prefill"], "a lower AUC is no tie"
    assert chosen(candidate("pairs", 0.6, 0.9), noise) == ["generated", "pairs"], "of noise, the largest AUC"
    last = candidate("last", 1.0, 0.8, readout="last_token")
    assert chosen(last, weak) == ["pairs", "last"], "cosines of single tokens do not compare"
    assert chosen(last, candidate("pairs", 0.9, 0.1)) == ["last", "pairs"]
    assert [one.stands for one in (weak, noise)] == [True, False]


def test_a_source_reads_only_where_its_sides_differ():
    every = VectorSpec(readout="auto").readout
    assert readouts_of("generated", every) == every
    assert readouts_of("pairs", every) == ("response_tokens", "last_token")
    assert readouts_of("prefill", ("response_tokens",)) == ("last_token",)


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


@pytest.mark.parametrize("readout", ["response_tokens", "last_prompt_token", "last_token"])
def test_a_read_out_covers_exactly_the_response_or_one_last_token(model, contrast, readout):
    states = collect_states(model, contrast, readout)
    rows = contrast.sort("context_id").filter(pl.col("side") == "negative").row(5, named=True)
    prompt, completion = rows["prompt_ids"], rows["completion_ids"]
    ids = prompt if readout == "last_prompt_token" else prompt + completion
    first = len(prompt) if readout == "response_tokens" else len(ids) - 1
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
        "pairwise_cosine",
    ):
        assert len(facts[name]) == model.n_blocks, name
    assert facts["n_shuffles"] >= 100
    assert (facts["n_train"], facts["n_held_out"]) == (18, 6)
    assert (facts["weights_sha"], facts["dtype"]) == (model.weights_sha, "float32")
    assert facts["method"] == method
    save_vector(vector, tmp_path)
    assert load_vector(tmp_path).metadata == facts


def test_contexts_with_the_same_texts_are_averaged_so_that_every_pair_counts_once(model, contrast):
    pairs = contrast["context_id"].unique(maintain_order=True).to_list()
    named = dict(zip(pairs, [f"p{number // 2:02}" for number in range(len(pairs))], strict=True))
    split = pl.when(pl.col("pair_id") < "p04").then(pl.lit("held_out")).otherwise(pl.lit("train"))
    two = contrast.with_columns(pair_id=pl.col("context_id").replace_strict(named)).with_columns(split=split)
    apart, together = (
        collect_states(model, rows, "response_tokens")
        for rows in (contrast.with_columns(split=two["split"]), two)
    )
    assert together.positive.shape[0] == 12
    assert together.held_out.sum() == 4
    at = sorted(pairs)
    expected = (apart.positive[at.index(pairs[6])] + apart.positive[at.index(pairs[7])]) / 2
    np.testing.assert_allclose(together.positive[3], expected, rtol=1e-5)
    few = two.with_columns(pair_id=pl.lit("p"))
    with pytest.raises(VectorError, match="1 pairs in split train"):
        collect_states(model, few, "response_tokens")


def test_pairs_that_were_dropped_do_not_count(model, contrast):
    gone = contrast["context_id"].unique(maintain_order=True).to_list()[1]
    marked = contrast.with_columns(dropped=pl.when(pl.col("context_id") == gone).then(pl.lit("because")))
    without = contrast.filter(pl.col("context_id") != gone)
    found, expected = (extract_vector(model, rows, "paranoid", VectorSpec()) for rows in (marked, without))
    np.testing.assert_array_equal(found.raw, expected.raw)
    assert found.metadata == expected.metadata


def test_a_vector_of_what_attention_adds_is_collected_there_and_swept_there(model, contrast):
    vector = extract_vector(model, contrast, "paranoid", VectorSpec(site="attention"))
    states = collect_states(model, contrast, "response_tokens", "attention")
    train = ~states.held_out
    expected = (states.positive[train] - states.negative[train]).mean(axis=0)
    np.testing.assert_allclose(vector.raw, expected, rtol=1e-4, atol=1e-5)
    assert vector.site == "attention"
    (cell,) = steered_cells(vector, [1], [0.2], "all")
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


def test_one_source_and_read_out_have_the_direction_and_null_of_that_one_alone(model, contrast):
    """What the newsroom's profile asks for, and every profile from before there was a choice."""
    newsroom = load_profile("newsroom")
    assert (newsroom.contrast.source, newsroom.contrast.filter) == (("generated",), False)
    assert newsroom.vector.readout == ("response_tokens",)
    vector = extract_vector(model, contrast, "paranoid", newsroom.vector)
    states, seed = collect_states(model, contrast, "response_tokens"), newsroom.vector.seed
    np.testing.assert_array_equal(vector.raw, fit_directions(differences(states), "mean_difference"))
    alone = separation(states, "mean_difference", seed).as_metadata()
    assert {name: vector.metadata[name] for name in alone} == alone
    assert [one["readout"] for one in vector.metadata["candidates"]] == ["response_tokens"]


@pytest.fixture(scope="module")
def several(model, contrast):
    """Generated rows, and the same as if they were given texts under one prompt."""
    prompt = contrast["prompt_ids"][0].to_list()
    given = contrast.with_columns(
        source=pl.lit("pairs"),
        context_id="g" + pl.col("context_id"),
        pair_id="g" + pl.col("context_id"),
        system=pl.lit(None, dtype=pl.String),
        instruction_index=pl.lit(None, dtype=pl.Int32),
        prompt_ids=pl.lit(prompt, dtype=pl.List(pl.Int32)),
    )
    return pl.concat([contrast, given])


def test_every_source_and_read_out_is_measured_against_the_null_of_all_of_them(model, contrast, several):
    vector = extract_vector(model, several, "paranoid", VectorSpec(readout="auto"))
    facts = vector.metadata
    candidates = facts["candidates"]
    assert {(one["source"], one["readout"]) for one in candidates} == {
        ("generated", "response_tokens"),
        ("generated", "last_prompt_token"),
        ("generated", "last_token"),
        ("pairs", "response_tokens"),
        ("pairs", "last_token"),
    }
    first = candidates[0]
    assert (facts["contrast_source"], facts["readout"]) == (first["source"], first["readout"])
    assert facts["held_out_auc"] == first["held_out_auc"]
    assert best_block(facts) == first["best_block"]
    alone = [
        extract_vector(
            model, several.filter(source=one["source"]), "paranoid", VectorSpec(readout=one["readout"])
        ).metadata
        for one in candidates
    ]
    for one, by_itself in zip(candidates, alone, strict=True):
        assert one["pairwise_cosine"] == by_itself["pairwise_cosine"]
        assert one["held_out_auc"] == by_itself["held_out_auc"]
    assert facts["auc_max_null_95th"] >= max(by_itself["auc_max_null_95th"] for by_itself in alone)
    np.testing.assert_allclose(
        vector.raw,
        extract_vector(
            model, several.filter(source=first["source"]), "paranoid", VectorSpec(readout=first["readout"])
        ).raw,
        atol=1e-6,
    )


def test_a_source_with_too_few_pairs_is_left_out_where_there_is_another(model, several):
    few = several.with_columns(
        dropped=pl.when((pl.col("source") == "generated") & (pl.col("split") == "held_out")).then(
            pl.lit("because")
        )
    )
    facts = extract_vector(model, few, "paranoid", VectorSpec()).metadata
    assert facts["contrast_source"] == "pairs"
    assert facts["candidates"][1]["source"] == "generated"
    assert "0 pairs in split held_out" in facts["candidates"][1]["skipped"]
    with pytest.raises(VectorError, match="0 pairs in split held_out, at least 4"):
        extract_vector(model, few.filter(source="generated"), "paranoid", VectorSpec())
    with pytest.raises(VectorError, match="reads nothing in which the sides of pairs differ"):
        extract_vector(
            model, several.filter(source="pairs"), "paranoid", VectorSpec(readout="last_prompt_token")
        )


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
