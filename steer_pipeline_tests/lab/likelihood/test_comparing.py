"""Claims about a whole comparison: its files on three architectures, its tables follow from its rows."""

import json

import numpy as np
import polars as pl
import pytest

from steer_pipeline.lab.likelihood.claims import judge_comparison
from steer_pipeline.lab.likelihood.comparing import compare_vectors, tabulate
from steer_pipeline.lab.likelihood.cosines import COSINE_SCHEMA
from steer_pipeline.lab.likelihood.tables import comparison_table, headline, summary
from steer_pipeline.lab.vectors.vector import VectorError, load_vector
from steer_pipeline_tests.lab.generation.reference import loaded
from steer_pipeline_tests.lab.likelihood.builders import (
    behaviour_rows,
    persona,
    profile,
    question_keys,
    stored_rows,
    trained,
)

TABLES = {"rows.parquet", "table.parquet", "seeds.parquet", "cosines.parquet", "classifier.parquet"}


@pytest.mark.parametrize(("arch", "kind"), [("qwen3", "trait"), ("llama", "role"), ("gemma", "trait")])
def test_a_comparison_on_each_architecture(tmp_path, arch, kind):
    model, rows, folder = loaded(tmp_path, arch), behaviour_rows(kind), tmp_path / "out"
    table = compare_vectors(model, rows, trained(model), persona(kind), profile(model), folder)
    assert {path.name for path in folder.iterdir()} == TABLES | {
        "selection.parquet",
        "averaged",
        "scales.json",
        "nll_gap_closed.png",
        "cosines.png",
    }
    assert table["arm"].to_list() == ["vanilla", "prompted", "trained", "averaged", "random"]
    assert table["n_seeds"].to_list() == [None, None, 3, None, 10]
    assert table["n_tokens"].n_unique() == 1
    stored = pl.read_parquet(folder / "rows.parquet")
    assert table.equals(comparison_table(stored, seed=31))
    assert set(stored.filter(arm="prompted")["split"]) == {"test"}

    averaged, scales = load_vector(folder / "averaged"), json.loads((folder / "scales.json").read_text())
    assert averaged.present_blocks == (0, 1, 2, 3)
    assert averaged.metadata["weights_sha"] == model.weights_sha
    chosen = pl.read_parquet(folder / "selection.parquet").row(0, named=True)
    assert scales["averaged"] == {key: chosen[key] for key in ("block", "scale", "alpha")}
    assert scales["trained"] == {"block": 2, "norm": pytest.approx(2.0, rel=1e-5)}
    assert scales["random"] == {"block": 2, "norm": pytest.approx(2.0, rel=1e-5), "seeds": [*range(51, 61)]}
    used = table.row(by_predicate=pl.col("arm") == "averaged", named=True)
    assert (used["block"], used["scale"]) == (chosen["block"], chosen["scale"])
    fraction = table.row(by_predicate=pl.col("arm") == "trained", named=True)["norm_fraction"]
    assert fraction == pytest.approx(2.0 / averaged.residual_norm(2), rel=1e-4)

    cosines = pl.read_parquet(folder / "cosines.parquet")
    assert cosines.filter("same_site")["block"].to_list() == [2]
    assert summary(folder)["cosine"] == cosines["cosine"][2]
    classifier = pl.read_parquet(folder / "classifier.parquet")
    assert classifier["arm"].to_list() == ["trained"] * 3 + ["random"] * 10 + ["averaged"]
    assert classifier["auc"].is_not_null().all()
    verdicts = {verdict.claim: verdict.passed for verdict in judge_comparison(folder)}
    assert verdicts["same_tokens_in_every_arm"]
    assert verdicts["averaged_exists"]
    assert verdicts["at_least_three_seeds"]
    assert set(headline(folder)) == {"nll_gap_closed", "low", "high", "random_gap", "random_gap_low"}


def test_without_an_averaged_vector_the_rest_stands(tmp_path):
    model, folder = loaded(tmp_path), tmp_path / "out"
    table = compare_vectors(
        model, behaviour_rows(), trained(model, (41,)), persona(), profile(model, min_count=99), folder
    )
    assert table["arm"].to_list() == ["vanilla", "prompted", "trained", "random"]
    reason = json.loads((folder / "averaged" / "MISSING.json").read_text())["reason"]
    assert reason.startswith("16 matched pairs of train questions")
    assert not (folder / "averaged" / "vector.safetensors").exists()
    assert json.loads((folder / "scales.json").read_text())["averaged"] is None
    assert pl.read_parquet(folder / "cosines.parquet").is_empty()
    assert summary(folder)["averaged_gap"] is None
    assert summary(folder)["cosine"] is None
    verdicts = {verdict.claim: verdict for verdict in judge_comparison(folder)}
    assert not verdicts["averaged_exists"].passed
    assert verdicts["averaged_exists"].message == reason
    assert not verdicts["at_least_three_seeds"].passed


def test_the_same_inputs_give_the_same_bytes_and_test_rows_choose_nothing(tmp_path):
    model, rows = loaded(tmp_path), behaviour_rows()
    answers = pl.when(pl.col("split") == "test").then(pl.lit("Be loud.")).otherwise("instruction")
    for name, frame in (("a", rows), ("b", rows.reverse()), ("c", rows.with_columns(instruction=answers))):
        compare_vectors(model, frame, trained(model), persona(), profile(model), tmp_path / name)
    for file in ("scales.json", "table.parquet", "cosines.parquet", "averaged/vector.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
    for file in ("scales.json", "selection.parquet", "averaged/vector.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "c" / file).read_bytes(), file


def test_vectors_of_another_model_and_sets_without_test_rows_are_refused(tmp_path):
    model, rows = loaded(tmp_path), behaviour_rows()
    vectors = trained(model)
    vectors[42] = type(vectors[42])(
        "analytical", vectors[42].raw, {**vectors[42].metadata, "weights_sha": "other"}, (2,)
    )
    with pytest.raises(VectorError, match="was made on another model"):
        compare_vectors(model, rows, vectors, persona(), profile(model), tmp_path / "out")
    with pytest.raises(VectorError, match="no test row counts"):
        compare_vectors(
            model,
            rows.filter(pl.col("split") != "test"),
            trained(model),
            persona(),
            profile(model),
            tmp_path / "out",
        )
    assert not (tmp_path / "out").exists()


def gained(folder, prompted, trained_gain, random_gain):
    """Stored rows in which each arm is so many nats a token better than vanilla, the tables and the verdicts."""
    questions, tokens = question_keys(12, 3)
    varied = 1 + 0.05 * (questions % 3)
    gains = {("prompted", None): prompted * varied, ("averaged", None): 0.3 * varied}
    gains |= {("trained", seed): trained_gain * varied for seed in (41, 42, 43)}
    gains |= {("random", seed): random_gain * varied for seed in (51, 52, 53)}
    stored_rows(gains, questions, tokens).write_parquet(folder / "rows.parquet")
    pl.DataFrame(schema=COSINE_SCHEMA).write_parquet(folder / "cosines.parquet")
    tabulate(folder, "analytical", 0)
    return {verdict.claim: verdict for verdict in judge_comparison(folder)}


def test_verdicts_say_what_the_rows_say(tmp_path):
    folder = tmp_path
    good = gained(folder, 0.8, 0.6, -0.1)
    assert all(verdict.passed for verdict in good.values())
    assert headline(folder)["nll_gap_closed"] == pytest.approx(0.75)
    assert "trained closes 0.750" in good["trained_closes_half_of_the_gap"].message

    poor = gained(folder, 0.8, 0.3, 0.2)
    failed = {name for name, verdict in poor.items() if not verdict.passed}
    assert failed == {"trained_closes_half_of_the_gap", "random_closes_none"}

    slight = gained(folder, 0.8, 0.6, 0.04)["random_closes_none"]
    assert slight.numbers["low"] > 0, "surely more than nothing"
    assert slight.passed, "and a twentieth of the gap is none"

    dumb = gained(folder, -0.2, 0.3, 0.0)
    failed = {name for name, verdict in dumb.items() if not verdict.passed}
    assert failed == {"prompting_has_an_effect", "trained_closes_half_of_the_gap"}
    assert "there is no gap to close" in dumb["trained_closes_half_of_the_gap"].message
    assert headline(folder) == dict.fromkeys(
        ("nll_gap_closed", "low", "high", "random_gap", "random_gap_low")
    )

    rows = pl.read_parquet(folder / "rows.parquet")
    other = rows.with_columns(
        n_tokens=pl.col("n_tokens") + ((pl.col("arm") == "random") & (pl.col("seed") == 52)).cast(pl.Int64)
    )
    other.write_parquet(folder / "rows.parquet")
    verdict = next(judge_comparison(folder))
    assert verdict.claim == "same_tokens_in_every_arm"
    assert not verdict.passed
    assert "random, row r0: other response tokens than vanilla" in verdict.message
    assert np.isfinite(verdict.numbers["unequal_measurements"])
