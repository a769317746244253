"""The rule for means: intervals hold for few rows, skewed, tied, rare and clustered ones, and agree with the test."""

import numpy as np
import pytest
from scipy.stats import binom

from steer_pipeline.lab.stats import (
    mean_interval,
    mean_intervals,
    mean_test,
    mean_tests,
    paired_difference,
    sign_flip_tests,
    simultaneous_intervals,
)

RUNS = 4000  # columns that are judged at once; the Monte Carlo error is 0.0035


def coverage(values: np.ndarray, mean: float, **options) -> float:
    return float(np.mean([one.low <= mean <= one.high for one in mean_intervals(values, **options)]))


@pytest.mark.parametrize("n", [12, 20, 50])
def test_student_alone_would_fail_skewed_rows_and_the_correction_alone_heavy_tails(n):
    rng = np.random.default_rng(n)
    assert 0.94 <= coverage(rng.normal(size=(n, RUNS)), 0.0) <= 0.97
    # Hall's correction alone: 0.93 and less.
    assert 0.945 <= coverage(rng.standard_t(3, size=(n, RUNS)), 0.0) <= 0.97
    # Student's interval alone: 0.87 at 12 and 20 rows, 0.90 at 50; percentiles 0.82.
    assert coverage(rng.lognormal(size=(n, RUNS)), np.exp(0.5)) >= 0.91
    assert 0.94 <= coverage(rng.exponential(size=(n, RUNS)), 1.0) <= 0.97


@pytest.mark.parametrize("n", [12, 20, 50, 200])
def test_a_rare_event_is_never_excluded_because_it_was_not_seen(n):
    rng = np.random.default_rng(n)
    assert (
        coverage((rng.random((n, RUNS)) < 0.02).astype(float), 0.02) >= 0.945
    )  # percentiles: 0.21 at 12 rows
    sizes = rng.uniform(0.2, 1.0, size=(n, RUNS)) * (rng.random((n, RUNS)) < 0.1)
    assert coverage(sizes, 0.06) >= 0.945  # by the spread alone: 0.72 at 12 rows


def test_nothing_seen_leaves_room_for_a_few_in_a_hundred():
    found = mean_interval(np.zeros(50))
    assert (found.low, found.high) == pytest.approx((-0.0713, 0.0713), abs=1e-4)  # z^2 / (50 + z^2)
    shares = mean_interval(np.zeros(50), bounds=(0.0, 1.0))
    assert (shares.low, shares.high) == pytest.approx((0.0, 1 - 0.025 ** (1 / 50)))
    tenth = mean_interval(np.r_[np.zeros(49), 0.1])
    assert tenth.high < 0.02  # what was seen says how large a departure is


def test_equal_rows_have_the_width_of_what_was_not_seen():
    found = paired_difference(np.arange(200) % 7 + 1.0, np.arange(200) % 7 + 0.0)
    assert (found.estimate, found.high, found.n) == (1.0, 1.0, 200)
    assert 0.95 < found.low < 1.0
    assert mean_test(np.ones(200)) < 1e-6


@pytest.mark.parametrize("n", [6, 12, 30])
def test_paired_events_keep_their_level_whatever_their_rates(n):
    ups, downs = (axis.ravel() for axis in np.meshgrid(np.arange(n + 1), np.arange(n + 1)))
    ups, downs = ups[ups + downs <= n], downs[ups + downs <= n]
    columns = np.stack(
        [np.r_[np.ones(u), -np.ones(d), np.zeros(n - u - d)] for u, d in zip(ups, downs, strict=True)], axis=1
    )
    found = mean_intervals(columns)
    for up, down in ((0.02, 0.0), (0.1, 0.05), (0.3, 0.3), (0.5, 0.5), (0.6, 0.2)):
        share = down / (1 - up)
        weights = binom.pmf(ups, n, up) * binom.pmf(downs, n - ups, share)
        held = [one.low - 1e-9 <= up - down <= one.high + 1e-9 for one in found]
        assert weights[held].sum() >= (0.935 if n > 6 else 0.915), (up, down)


def test_shares_have_the_exact_interval():
    found = mean_interval(np.r_[np.ones(3), np.zeros(47)], bounds=(0.0, 1.0))
    assert (found.low, found.high) == pytest.approx((0.01255, 0.16548), abs=1e-5)
    unbounded = mean_interval(np.r_[np.ones(3), np.zeros(47)])
    assert unbounded.low < 0  # as a difference it may have been a fall
    assert mean_interval([0.2, 0.9, 1.0, 1.0], bounds=(0.0, 1.0)).high == 1.0
    skewed = np.random.default_rng(1).exponential(size=12) ** 3
    assert mean_interval(skewed, bounds=(0.0, np.inf)).low == max(0.0, mean_interval(skewed).low)
    assert mean_interval(skewed, bounds=(0.0, np.inf)).high == mean_interval(skewed).high


def test_clusters_are_units_and_rows_are_not():
    rng = np.random.default_rng(9)
    for n in (12, 50):
        keys = np.repeat(np.arange(n), rng.integers(1, 9, size=n))
        values = rng.normal(size=(n, RUNS))[keys] + 0.3 * rng.normal(size=(len(keys), RUNS))
        assert 0.93 <= coverage(values, 0.0, clusters=keys) <= 0.97
        assert coverage(values, 0.0) < 0.75
    events = (rng.random((20, RUNS)) < 0.03)[np.repeat(np.arange(20), 4)].astype(float)
    assert coverage(events, 0.03, clusters=np.repeat(np.arange(20), 4)) >= 0.95
    assert mean_interval([1.0, 2.0, 4.0], clusters=["a", "a", "b"]).n == 2


def test_a_family_holds_at_once_and_single_intervals_do_not():
    rng = np.random.default_rng(8)
    together = single = rare = 0
    for trial in range(200):
        matrix = rng.normal(size=(12, 6)) + rng.normal(size=(12, 1))
        together += all(one.includes_zero for one in simultaneous_intervals(matrix, seed=trial, n_boot=400))
        single += all(one.includes_zero for one in mean_intervals(matrix))
        events = (rng.random((20, 6)) < 0.02).astype(float)
        rare += all(
            one.low <= 0.02 <= one.high for one in simultaneous_intervals(events, seed=trial, n_boot=400)
        )
    assert together / 200 >= 0.91
    assert single < together
    assert rare / 200 >= 0.93  # with the spread of what was seen: 0.00


def test_a_family_pays_less_than_bonferroni_where_its_members_go_together():
    rng = np.random.default_rng(4)
    alike = rng.normal(size=(40, 1)) + 0.05 * rng.normal(size=(40, 10))
    apart = simultaneous_intervals(alike, seed=1)
    bonferroni = mean_intervals(alike, level=1 - 0.05 / 10)
    assert all(
        one.high - one.low < 0.85 * other.high - 0.85 * other.low
        for one, other in zip(apart, bonferroni, strict=True)
    )


def test_the_test_of_the_mean_and_the_interval_say_the_same():
    rng = np.random.default_rng(2)
    skewed = rng.exponential(size=(15, 300)) - 0.6
    events = rng.choice([-1.0, 0.0, 1.0], p=[0.05, 0.65, 0.3], size=(15, 300))
    for matrix in (skewed, events):
        two, greater, less = (
            mean_tests(matrix, alternative=side) for side in ("two-sided", "greater", "less")
        )
        excludes = np.array([not one.includes_zero for one in mean_intervals(matrix)])
        assert 20 < excludes.sum() < 280
        assert ((two < 0.05) == excludes).all()
        assert ((greater < 0.025) == np.array([one.low > 0 for one in mean_intervals(matrix)])).all()
        moves = matrix.mean(axis=0) != 0
        assert greater[moves] + less[moves] == pytest.approx(np.ones(moves.sum()))


def test_skewed_rows_of_mean_zero_are_not_called_an_effect():
    rng = np.random.default_rng(3)
    for n, worst in ((20, 0.085), (50, 0.065)):
        rows = rng.lognormal(size=(n, 2000)) - np.exp(0.5)
        assert (mean_tests(rows) < 0.05).mean() <= worst
        assert (sign_flip_tests(rows, seed=1, n=499) <= 0.05).mean() > worst  # symmetry is another null


def test_p_of_few_events_is_that_of_mcnemar_and_nothing_is_no_effect():
    for ups, rejected in ((4, False), (5, True)):
        assert (mean_test(np.r_[np.ones(ups), np.zeros(45)]) < 0.05) == rejected
    assert mean_test(np.zeros(50)) == 1.0
    assert mean_tests(np.array([[1.0, np.nan], [1.0, 2.0]]))[1] == 1.0
    assert (
        mean_test(np.random.default_rng(1).normal(3, 1, 200)) < 1e-9
    )  # no floor: Holm over many still works


def test_missing_cells_are_left_out_of_their_column_only():
    rng = np.random.default_rng(5)
    matrix = rng.normal(size=(60, 4))
    matrix[3:9, 1] = np.nan
    whole = mean_intervals(matrix)
    for column in (1, 2):
        alone = mean_interval(matrix[np.isfinite(matrix[:, column]), column])
        assert (alone.low, alone.high) == pytest.approx((whole[column].low, whole[column].high))
    empty = mean_intervals(np.full((4, 1), np.nan))[0]
    assert (empty.n, np.isnan(empty.low)) == (0, True)
    alone = mean_intervals(np.array([[1.0], [np.nan]]))[0]
    assert (alone.low, alone.high) == (-np.inf, np.inf)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paired_difference([1.0], [1.0, 2.0]), "pair them by row_id"),
        (lambda: paired_difference([1.0, np.nan], [1.0, 2.0]), "row 1 is nan"),
        (lambda: mean_interval([]), "non-empty"),
        (lambda: mean_interval([1.0, 2.0], level=95), "between 0 and 1"),
        (lambda: mean_test([1.0], alternative="two"), "two-sided, greater or less"),
        (lambda: simultaneous_intervals([[1.0, np.nan]], seed=1), "row 0, column 1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
