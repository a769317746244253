"""Claims about the rule for controls and the rule for the band of random directions."""

import numpy as np
import pytest

from steer_pipeline.lab.controls import (
    MOVED,
    NOTHING,
    OPEN,
    Controls,
    controls_verdict,
    judge_controls,
    moved_controls,
    place_among,
    told_of_controls,
)
from steer_pipeline.lab.limits import MAX_CONTROL_SHIFT

NOISE = 0.1


def judged(differences, directions=False, noise=NOISE, parts=("",)):
    cells = np.asarray(differences, dtype=np.float64)
    names = [("control", part, "trait_x_minilm") for part in parts]
    cells = cells.reshape(len(cells), -1, len(parts))
    return judge_controls(
        [Controls(names, cells, np.full(len(parts), noise), 0 if directions else None)], seed=1, n_boot=800
    )


def rows(shift, n, seed=0, sd=NOISE):
    drawn = np.random.default_rng(seed).normal(0, sd, n)
    return drawn - drawn.mean() + shift


def test_a_tiny_shift_that_a_thousand_rows_see_is_no_movement():
    """-0.0128 on 1,000 rows: zero is left out of its interval, and it is a tenth of what one more sampling does."""
    table = judged(rows(-0.0128, 1_000))
    assert table["high"][0] < 0
    assert table["state"][0] != MOVED
    assert moved_controls(table) == []


def test_the_same_rows_prove_a_shift_of_none_to_be_none_and_a_large_one_to_be_one():
    assert judged(rows(0.0, 1_000))["state"][0] == NOTHING
    assert judged(rows(0.1, 1_000))["state"][0] == MOVED
    assert judged(rows(0.1, 1_000))["margin"][0] == pytest.approx(MAX_CONTROL_SHIFT * NOISE)


def test_few_rows_leave_it_open_and_say_what_they_would_see():
    table = judged(rows(0.0, 12))
    assert table["state"][0] == OPEN
    assert table["detectable"][0] > table["margin"][0]
    assert f"{table['detectable'][0]:.3f}" in told_of_controls(table)
    assert controls_verdict("c", table).passed


def test_intervals_hold_for_all_ranks_and_metrics_together():
    """One of 24 looks like an effect by itself; among the 24 it does not."""
    alone = rows(0.049, 50)
    others = np.random.default_rng(3).normal(0, NOISE, (50, 23))
    parts = [f"rank {i}" for i in range(24)]
    together = judged(np.column_stack([alone, others]), parts=parts)
    assert judged(alone)["state"][0] == MOVED
    assert together["state"][0] != MOVED
    assert together["low"][0] < judged(alone)["low"][0]


def test_what_seeds_happen_to_do_is_part_of_the_interval():
    seeds = np.array([0.3, -0.1, 0.25])
    cells = rows(0.0, 60)[:, None] + seeds
    table = judged(cells)
    assert table["difference"][0] == pytest.approx(0.15)
    assert table["state"][0] != MOVED
    assert judged(rows(0.15, 60))["state"][0] == MOVED


def test_random_directions_are_judged_by_their_own_spread():
    """Ten directions that go either way are no effect, however sure each of them is; ten that go one way are."""
    either = np.array([0.3, -0.25, 0.2, -0.3, 0.1, -0.1, 0.25, -0.2, 0.15, 0.05])
    table = judged(either, directions=True)
    assert table["margin"][0] == pytest.approx(either.std(ddof=1))
    assert (table["n"][0], table["unit"][0]) == (10, "directions")
    assert table["state"][0] != MOVED
    assert judged(np.abs(either) * 0.1 + 0.5, directions=True)["state"][0] == MOVED


def test_without_controls_the_claim_fails_and_a_moved_one_is_named():
    assert not controls_verdict("c", judge_controls([], seed=1)).passed
    verdict = controls_verdict("c", judged(rows(0.3, 50)))
    assert not verdict.passed
    assert verdict.message.startswith("control moves trait_x_minilm by +0.300")
    assert verdict.numbers["controls_moved"] == 1


def test_a_row_without_a_value_is_left_out_and_one_that_nothing_moved_in_is_no_movement():
    table = judged([0.0, np.nan, 0.0, 0.0], noise=0.0)
    assert table["n"][0] == 3
    assert table["state"][0] == OPEN, "three rows without an event do not prove that there are none"
    apart = np.array([[1.0, np.nan], [np.nan, 1.0]])
    assert judged(apart, parts=("a", "b"))["n"].to_list() == [1, 1]


def test_random_rows_are_called_moved_in_at_most_five_of_a_hundred_runs():
    moved = sum(
        judged(np.random.default_rng(run).normal(0, NOISE, (30, 6)), parts=list("abcdef"))["state"]
        .eq(MOVED)
        .any()
        for run in range(100)
    )
    assert moved <= 5


# ------------------------------------------------------------------------------------ the band


def test_a_shift_beyond_all_directions_and_their_spread_is_beyond():
    band = [0.0, 0.02, -0.02, 0.01, -0.01, 0.03, -0.03, 0.015, -0.015, 0.0]
    place = place_among(0.2, band, 1)
    assert place.rank_p == pytest.approx(1 / 11)
    assert place.spread_p < 0.001
    assert place.beyond
    assert not place_among(0.2, band, -1).beyond


def test_the_first_of_eleven_is_not_beyond_where_the_directions_differ_as_much():
    """Rank alone would let one direction in eleven pass."""
    band = [0.0, 0.2, -0.2, 0.1, -0.1, 0.3, -0.3, 0.15, -0.15, 0.0]
    place = place_among(0.31, band, 1)
    assert place.rank_p == pytest.approx(1 / 11)
    assert not place.beyond


def test_directions_pass_for_effects_in_at_most_five_of_a_hundred_cases():
    rng = np.random.default_rng(0)
    draws = rng.normal(0.1, 0.05, (20_000, 11))  # all of them disturb upwards
    places = [place_among(one[0], one[1:], 1) for one in draws]
    assert 0.02 < np.mean([place.beyond for place in places]) < 0.05
    assert np.mean([place.spread_p < 0.05 for place in places]) == pytest.approx(0.05, abs=0.005)


def test_directions_that_all_do_the_same_have_no_spread():
    assert place_among(0.1, np.zeros(10), 1).beyond
    assert not place_among(0.0, np.zeros(10), 1).beyond
    assert not place_among(0.1, [0.0], 1).beyond
