"""Which rows an arm learns: ranks, windows, matched rows within their token budget, overlap only where allowed."""

import numpy as np
import polars as pl
import pytest

from steer_pipeline.catalogue.attribution import AttributionSpec, SubsetSpec
from steer_pipeline.lab.attribution.rows import AttributionError
from steer_pipeline.lab.attribution.subsets import budgets, draw_subsets, matched_random, subset_verdicts
from steer_pipeline_tests.lab.attribution.builders import pool_of

N = 60
POOL = pool_of(
    [20 + (7 * number) % 23 for number in range(N)],
    ["failure" if number % 3 == 0 else "success" for number in range(N)],
)
SCORES = {"gradient": {f"r{number:02d}": float(number) for number in range(N)}}
ARMS = {
    "top": SubsetSpec(pick="top", ranking="gradient"),
    "few": SubsetSpec(pick="top", ranking="gradient", k=4),
    "bottom": SubsetSpec(pick="bottom", ranking="gradient"),
    "window": SubsetSpec(pick="window", ranking="gradient", ranks=(31, 50)),
    "matched": SubsetSpec(pick="matched", like="top"),
    "matched_any": SubsetSpec(pick="matched", like="top", overlap=True),
    "random": SubsetSpec(pick="random"),
    "apart": SubsetSpec(pick="random", like="top"),
}


def spec(**more):
    return AttributionSpec.model_construct(arms=ARMS, k=10, seeds=[1, 2, 3], token_budget=0.01, **more)


def only(*arms):
    return spec().model_copy(update={"arms": {name: ARMS[name] for name in arms}})


def of(table, arm, seed):
    return table.row(by_predicate=(pl.col("arm") == arm) & (pl.col("seed") == seed), named=True)


@pytest.fixture(scope="module")
def drawn():
    return draw_subsets(spec(), POOL, SCORES)


def rows(drawn, arm, seed=1):
    return drawn.filter(arm=arm, seed=seed)["row_id"].to_list()


def test_ranks_count_from_the_highest_score_and_windows_hold_both_ends(drawn):
    assert rows(drawn, "top") == [f"r{number:02d}" for number in range(59, 49, -1)]
    assert rows(drawn, "few") == rows(drawn, "top")[:4]
    assert rows(drawn, "bottom") == [f"r{number:02d}" for number in range(9, -1, -1)]
    window = drawn.filter(arm="window", seed=2)
    assert (window["rank"][0], window["rank"][-1], window.height) == (31, 50, 20)
    assert rows(drawn, "top", 1) == rows(drawn, "top", 3)
    assert rows(drawn, "random", 1) != rows(drawn, "random", 2), "random rows are drawn anew by seed"
    assert draw_subsets(spec(), POOL.reverse(), SCORES).equals(drawn), "whatever the order of the pool"


def test_matched_rows_have_the_outcomes_and_tokens_of_others_and_are_none_of_them(drawn):
    table = budgets(drawn, POOL, ARMS)
    for seed in (1, 2, 3):
        own, other = (of(table, arm, seed) for arm in ("matched", "top"))
        assert (own["rows"], own["lost"]) == (other["rows"], other["lost"])
        assert abs(own["tokens"] / other["tokens"] - 1) <= 0.01
        assert own["shared"] == 0
    assert {one.claim: one.passed for one in subset_verdicts(table, spec())} == {
        "token_budgets_match": True,
        "subsets_are_apart": True,
    }
    assert set(rows(drawn, "apart")) & set(rows(drawn, "top")) == set()


def test_overlap_is_counted_where_it_is_allowed_and_an_error_where_it_is_not(drawn):
    narrow = POOL.tail(12)
    allowed = draw_subsets(only("top", "matched_any"), narrow, SCORES)
    table = budgets(allowed, narrow, ARMS)
    assert table.filter(arm="matched_any")["shared"].min() > 0
    smuggled = table.with_columns(arm=pl.col("arm").replace("matched_any", "matched"))
    assert not {one.claim: one.passed for one in subset_verdicts(smuggled, spec())}["subsets_are_apart"]
    with pytest.raises(AttributionError, match="10 rows are to be matched and 2 are free"):
        draw_subsets(only("top", "matched"), narrow, SCORES)


def test_a_budget_that_no_swap_can_keep_is_refused_and_one_that_is_broken_is_seen():
    pool = pool_of([100] * 5 + [10] * 20, ["success"] * 25)
    with pytest.raises(AttributionError, match=r"tokens differ by -90\.0%"):
        matched_random(pool.tail(20), pool.head(5), pool, 0.01, np.random.default_rng(0), "matched")
    table = pl.DataFrame({"arm": ["matched"], "seed": [1], "token_difference": [0.2], "shared": [0]})
    assert not subset_verdicts(table, spec())[0].passed


def test_what_a_stratum_lacks_comes_from_its_outcome_then_from_anywhere():
    pool = pool_of([10, 10, 10, 40, 40, 40, 11, 41], ["failure"] * 2 + ["success"] * 6)
    like, free = pool.head(2), pool.tail(6)
    found = matched_random(free, like, pool, 0.2, np.random.default_rng(0), "matched")
    assert found == ["r02", "r06"], "no lost game is free: the shortest won ones keep the budget"


def test_a_ranking_that_is_missing_or_too_short_is_named():
    with pytest.raises(AttributionError, match="arm top: there is no ranking gradient"):
        draw_subsets(spec(), POOL, {})
    few = {"gradient": dict(list(SCORES["gradient"].items())[:6])}
    with pytest.raises(AttributionError, match="rank 10 is wanted and 6 rows are ranked"):
        draw_subsets(spec(), POOL, few)
