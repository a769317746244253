"""Intervals cover what they claim, tests reject a true null at their level and no more."""

import itertools

import numpy as np
import pytest

from steer_pipeline.lab.stats import (
    bootstrap_means,
    cluster_bootstrap,
    mean_interval,
    mean_intervals,
    paired_difference,
    resampling,
    sign_flip_test,
    sign_flip_tests,
    simultaneous_intervals,
)


def test_paired_difference_of_known_values():
    a, b = np.arange(200) % 7 + 1.0, np.arange(200) % 7 + 0.0
    interval = paired_difference(a, b, seed=1)
    assert (interval.estimate, interval.low, interval.high, interval.n) == (1.0, 1.0, 1.0, 200)


def test_interval_agrees_with_the_normal_formula_on_a_large_sample():
    values = np.random.default_rng(3).normal(2.0, 3.0, 2000)
    interval = mean_interval(values, seed=1)
    half = 1.96 * values.std(ddof=1) / np.sqrt(2000)
    assert interval.low == pytest.approx(values.mean() - half, abs=0.02)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.02)


def test_same_seed_same_numbers_and_chunks_do_not_matter(monkeypatch):
    values = np.random.default_rng(4).normal(size=300)
    whole = mean_interval(values, seed=9), sign_flip_test(values, seed=9)
    monkeypatch.setattr(resampling, "CHUNK_CELLS", 4_000)
    assert (mean_interval(values, seed=9), sign_flip_test(values, seed=9)) == whole
    assert mean_interval(values, seed=10) != whole[0]


def test_a_column_has_the_same_interval_alone_and_in_a_family():
    matrix = np.random.default_rng(5).normal(size=(60, 4))
    family = mean_intervals(matrix, seed=2)
    alone = mean_intervals(matrix[:, 2:3], seed=2)[0]
    assert (alone.low, alone.high) == pytest.approx((family[2].low, family[2].high), rel=1e-9)


def test_interval_coverage_is_near_its_level():
    rng = np.random.default_rng(6)
    hits = 0
    for trial in range(400):
        interval = mean_interval(rng.normal(0.3, 1.0, 50), seed=trial, n_boot=500)
        hits += interval.low <= 0.3 <= interval.high
    assert 0.90 <= hits / 400 <= 0.98


def test_sign_flip_rejects_a_true_null_in_five_percent():
    rng = np.random.default_rng(7)
    # Skewed but symmetric under the null: differences of two exponentials.
    null = rng.exponential(size=(40, 800)) - rng.exponential(size=(40, 800))
    p = sign_flip_tests(null, seed=1, n=999)
    assert 0.03 <= (p <= 0.05).mean() <= 0.075
    one_sided = sign_flip_tests(null, seed=1, n=999, alternative="greater")
    assert 0.03 <= (one_sided <= 0.05).mean() <= 0.075


def test_sign_flip_p_is_never_zero_and_has_the_known_floor():
    assert sign_flip_test(np.ones(100), seed=1, n=4999) == pytest.approx(1 / 5000)
    assert sign_flip_test(np.ones(100), seed=1, n=4999, alternative="less") == 1.0


def test_sign_flip_enumerates_when_rows_are_few():
    values = np.array([1.2, 0.4, -0.3, 2.0, 0.8])
    flips = [abs(np.dot(s, values)) for s in itertools.product((-1, 1), repeat=5)]
    expected = np.mean([f >= abs(values.sum()) - 1e-12 for f in flips])
    assert sign_flip_test(values, seed=1) == pytest.approx(expected)


def test_no_difference_at_all_is_not_significant():
    assert sign_flip_test(np.zeros(50), seed=1) == 1.0
    assert paired_difference(np.zeros(50), np.zeros(50), seed=1).includes_zero


def test_missing_cells_are_left_out_of_their_column_only():
    matrix = np.array([[1.0, 5.0], [3.0, np.nan], [5.0, 7.0]])
    first, second = mean_intervals(matrix, seed=1)
    assert (first.estimate, first.n, second.estimate, second.n) == (3.0, 3, 6.0, 2)
    assert 5.0 <= second.low <= second.high <= 7.0
    empty = mean_intervals(np.full((4, 1), np.nan), seed=1)[0]
    assert empty.n == 0
    assert np.isnan(empty.low)


def test_simultaneous_intervals_cover_the_whole_family():
    rng = np.random.default_rng(8)
    together, single = 0, 0
    for trial in range(300):
        matrix = rng.normal(size=(50, 6)) + rng.normal(size=(50, 1))
        intervals = simultaneous_intervals(matrix, seed=trial, n_boot=600)
        together += all(i.includes_zero for i in intervals)
        single += all(i.includes_zero for i in mean_intervals(matrix, seed=trial, n_boot=600))
    assert together / 300 >= 0.92
    assert single < together  # one-at-a-time intervals do not cover a family


def test_simultaneous_intervals_of_constant_columns_have_no_width():
    matrix = np.column_stack([np.zeros(30), np.random.default_rng(1).normal(size=30)])
    flat, wide = simultaneous_intervals(matrix, seed=1)
    assert (flat.low, flat.high) == (0.0, 0.0)
    assert wide.low < wide.high


def test_a_rare_event_in_one_row_of_fifty_is_no_effect():
    column = np.zeros((50, 1))
    column[7] = 1.0
    assert simultaneous_intervals(column, seed=1)[0].includes_zero
    assert mean_interval(column[:, 0], seed=1).includes_zero


def test_cluster_bootstrap_covers_where_row_bootstrap_is_too_sure():
    rng = np.random.default_rng(9)
    keys = np.repeat(np.arange(25), 8)
    by_row = by_cluster = generic = 0
    for trial in range(200):
        values = rng.normal(size=25)[keys] + 0.3 * rng.normal(size=200)
        by_row += mean_interval(values, seed=trial, n_boot=300).includes_zero
        by_cluster += mean_interval(values, seed=trial, n_boot=300, clusters=keys).includes_zero
        if trial < 40:
            generic += cluster_bootstrap(
                lambda rows, v=values: v[rows].mean(), keys, seed=trial, n_boot=200
            ).includes_zero
    assert by_cluster / 200 >= 0.87
    assert by_row / 200 < 0.7
    assert generic / 40 >= 0.8


def test_clusters_draw_whole_groups():
    means = bootstrap_means(
        np.array([[0.0], [0.0], [1.0], [1.0]]), seed=1, n_boot=200, clusters=["a", "a", "b", "b"]
    )
    assert set(np.unique(means)) == {0.0, 0.5, 1.0}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paired_difference([1.0], [1.0, 2.0], seed=1), "pair them by row_id"),
        (lambda: paired_difference([1.0, np.nan], [1.0, 2.0], seed=1), "row 1 is nan"),
        (lambda: mean_interval([], seed=1), "non-empty"),
        (lambda: sign_flip_test([1.0], seed=1, alternative="two"), "two-sided, greater or less"),
        (lambda: simultaneous_intervals([[1.0, np.nan]], seed=1), "row 0, column 1"),
        (lambda: cluster_bootstrap(np.mean, ["a", "a"], seed=1), "at least two"),
        (lambda: mean_interval([1.0, 2.0], seed=1, level=95), "between 0 and 1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
