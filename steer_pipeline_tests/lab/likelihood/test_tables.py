"""Claims about tables of stored rows: token-weighted means, the same tokens, no gap where there is none."""

import numpy as np
import polars as pl
import pytest

from steer_pipeline.lab.likelihood.tables import (
    TableError,
    comparison_table,
    seed_table,
    selection_table,
    unequal_tokens,
)
from steer_pipeline.lab.stats import expanded
from steer_pipeline_tests.lab.likelihood.builders import question_gains, question_keys, stored_rows

QUESTIONS, TOKENS = question_keys()
N = len(TOKENS)


def arm(table, name):
    return table.row(by_predicate=pl.col("arm") == name, named=True)


def rows_with(mean=0.5, **changes):
    """Prompting gains 0.8, trained seeds `mean`, random seeds nothing."""
    gains = {("prompted", None): question_gains(1, 0.8)}
    gains |= {("trained", seed): question_gains(2, mean) + 0.01 * i for i, seed in enumerate((41, 42, 43))}
    gains |= {("random", seed): question_gains(3 + seed, -0.3) for seed in (51, 52, 53)}
    return stored_rows(gains | changes, QUESTIONS, TOKENS)


def test_the_mean_is_over_tokens_and_perplexity_is_its_exponential():
    tokens = np.array([1, 100, 1, 100])
    gain = np.array([1.0, 0.1, 1.0, 0.1])
    rows = stored_rows({("prompted", None): gain}, np.array([0, 0, 1, 1]), tokens)
    found = arm(comparison_table(rows), "prompted")
    nll = 2.0 - (1.0 * 2 + 0.1 * 200) / 202  # a mean over rows, or over batches of rows, would be 1.45
    assert found["nll"] == pytest.approx(nll)
    assert found["perplexity"] == pytest.approx(np.exp(nll))
    assert (found["n_rows"], found["n_questions"], found["n_tokens"]) == (4, 2, 202)


def test_the_fraction_is_a_ratio_of_sums_and_lies_in_its_interval():
    gains = {("prompted", None): question_gains(1, 0.8), ("trained", 41): question_gains(2, 0.5)}
    found = arm(comparison_table(stored_rows(gains, QUESTIONS, TOKENS)), "trained")
    sums = [float((gains[key] * TOKENS).sum()) for key in (("trained", 41), ("prompted", None))]
    assert found["nll_gap_closed"] == pytest.approx(sums[0] / sums[1])
    assert found["gain"] == pytest.approx(sums[0] / TOKENS.sum())
    assert found["nll_gap_low"] < found["nll_gap_closed"] < found["nll_gap_high"]
    assert (found["norm"], found["norm_fraction"], found["block"]) == (3.0, 0.5, 2)


def test_identical_answers_close_all_and_zero_vectors_nothing():
    prompted = question_gains(1, 0.8)
    same = {("prompted", None): prompted, ("trained", 1): prompted, ("averaged", None): np.zeros(N)}
    table = comparison_table(stored_rows(same, QUESTIONS, TOKENS))
    assert [
        arm(table, "trained")[key] for key in ("nll_gap_closed", "nll_gap_low", "nll_gap_high")
    ] == pytest.approx([1, 1, 1])
    assert [arm(table, "averaged")[key] for key in ("nll_gap_closed", "nll_gap_low", "nll_gap_high")] == [
        0,
        0,
        0,
    ]


def test_seeds_are_averaged_and_their_spread_widens_the_interval():
    alike, apart = (
        rows_with().vstack(pl.DataFrame(schema=rows_with().schema)),
        stored_rows(
            {("prompted", None): question_gains(1, 0.8)}
            | {
                ("trained", seed): question_gains(2, mean) for seed, mean in ((41, 0.2), (42, 0.5), (43, 0.8))
            },
            QUESTIONS,
            TOKENS,
        ),
    )
    narrow, wide = (arm(comparison_table(rows), "trained") for rows in (alike, apart))
    assert narrow["n_seeds"] == wide["n_seeds"] == 3
    assert wide["nll_gap_high"] - wide["nll_gap_low"] > 2 * (narrow["nll_gap_high"] - narrow["nll_gap_low"])
    by_seed = seed_table(apart).sort("seed")
    assert by_seed["seed"].to_list() == [41, 42, 43]
    assert by_seed["nll_gap_closed"].mean() == pytest.approx(wide["nll_gap_closed"])
    assert by_seed["nll_gap_closed"].is_sorted()


@pytest.mark.parametrize("gain", [0.0, -0.4])
def test_where_prompting_gains_nothing_there_is_no_fraction_and_no_big_number(gain):
    rows = rows_with().filter(pl.col("arm") != "prompted")
    bare = stored_rows(
        {("prompted", None): question_gains(7, gain) - question_gains(7, 0.0).mean()}, QUESTIONS, TOKENS
    )
    table = comparison_table(pl.concat([rows, bare.filter(arm="prompted")]))
    for name in ("trained", "random"):
        found = arm(table, name)
        assert found["nll_gap_closed"] is None
        assert found["nll_gap_low"] is None
        assert found["nll_gap_high"] is None
        assert "includes 0: there is no gap to close" in found["reason"]
        assert found["gain_low"] is not None
    assert seed_table(pl.concat([rows, bare.filter(arm="prompted")]))["nll_gap_closed"].is_null().all()


@pytest.mark.parametrize("kind", ["zeros", "noise"])
def test_a_null_vector_has_no_effect_in_95_of_100_runs_and_a_real_one_has(kind):
    said, seen = 0, 0
    for run in range(100):
        noise = question_gains(1000 + run, 0.0) if kind == "noise" else np.zeros(N)
        gains = {
            ("prompted", None): question_gains(run, 0.8),
            ("averaged", None): noise,
            ("trained", 1): question_gains(2000 + run, 0.4),
        }
        table = comparison_table(stored_rows(gains, QUESTIONS, TOKENS), seed=run)
        said += arm(table, "averaged")["nll_gap_low"] <= 0
        seen += arm(table, "trained")["nll_gap_low"] > 0
    assert said >= 95
    assert seen == 100


@pytest.mark.parametrize("n_seeds", [3, 8])
def test_what_a_few_random_directions_happen_to_do_is_no_effect(n_seeds):
    """Random directions that really gain or lose a quarter of the gap each, and nothing on average."""
    said = 0
    for run in range(100):
        luck = np.random.default_rng(5000 + run).normal(0, 0.2, n_seeds)
        gains = {("prompted", None): question_gains(run, 0.8)}
        gains |= {("random", seed): question_gains(9 * run + seed, mean) for seed, mean in enumerate(luck)}
        found = arm(comparison_table(stored_rows(gains, QUESTIONS, TOKENS), seed=run), "random")
        said += found["nll_gap_low"] <= 0
    assert said >= 95


def test_intervals_of_few_questions_hold_as_often_as_they_say():
    inside = 0
    for run in range(200):
        questions, tokens = question_keys(8, 2)
        gains = {("prompted", None): question_gains(run, 0.8, 8, 2)}
        found = arm(comparison_table(stored_rows(gains, questions, tokens), seed=run), "prompted")
        inside += found["gain_low"] <= 0.8 <= found["gain_high"]
    assert inside >= 182  # 190 expected; plain percentiles hold in about 176
    assert expanded(0.95, 8) > expanded(0.95, 30) > 0.95


BROKEN = {
    "not measured": lambda rows: rows.filter(~((pl.col("arm") == "trained") & (pl.col("row_id") == "r3"))),
    "not among vanilla's rows": lambda rows: rows.with_columns(
        row_id=pl.when((pl.col("arm") == "random") & (pl.col("row_id") == "r3"))
        .then(pl.lit("new"))
        .otherwise("row_id")
    ),
    "measured more than once": lambda rows: pl.concat(
        [rows, rows.filter(arm="trained", row_id="r3", seed=42)]
    ),
    "other response tokens than vanilla": lambda rows: rows.with_columns(
        n_tokens=pl.col("n_tokens") + ((pl.col("arm") == "prompted") & (pl.col("row_id") == "r3"))
    ),
}


@pytest.mark.parametrize("problem", BROKEN)
def test_arms_on_other_tokens_make_no_table(problem):
    rows = rows_with()
    assert unequal_tokens(rows).is_empty()
    broken = BROKEN[problem](rows)
    assert problem in set(unequal_tokens(broken)["problem"])
    with pytest.raises(TableError, match="materialise vector_comparison again"):
        comparison_table(broken)


def test_as_many_tokens_are_not_the_same_tokens():
    rows = rows_with().with_columns(
        response_sha=pl.when(pl.col("arm") == "prompted").then(pl.lit("x")).otherwise("response_sha")
    )
    assert unequal_tokens(rows)["problem"].unique().to_list() == ["other response tokens than vanilla"]
    assert set(unequal_tokens(rows)["arm"]) == {"prompted"}


def test_what_is_lacking_is_named():
    with pytest.raises(TableError, match="no rows of arm prompted"):
        comparison_table(rows_with().filter(pl.col("arm") != "prompted"))
    one = rows_with().filter(question_index=0)
    with pytest.raises(TableError, match="1 question with rows"):
        comparison_table(one)


def test_choices_are_tabulated_from_validation_rows_only():
    rows = stored_rows({("averaged", None): question_gains(2, 0.3)}, QUESTIONS, TOKENS)
    better = rows.filter(arm="averaged").with_columns(
        scale=pl.lit(2.0), alpha=pl.lit(6.0), nll_sum=pl.col("nll_sum") - 1
    )
    chosen = pl.concat([rows, better]).with_columns(split=pl.lit("validation"))
    table = selection_table(pl.concat([chosen, rows]))
    assert table["scale"].to_list() == [2.0, 1.0]
    assert table["gain"][0] == pytest.approx(table["gain"][1] + N / TOKENS.sum())
