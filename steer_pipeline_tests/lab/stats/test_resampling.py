"""Resamples and sign flips: whole clusters, the same numbers from the same seed, and the level of the test."""

import itertools

import numpy as np
import pytest

from steer_pipeline.lab.stats import (
    bootstrap_means,
    cluster_bootstrap,
    percentiles,
    resampling,
    sign_flip_test,
    sign_flip_tests,
)


def test_same_seed_same_numbers_and_chunks_do_not_matter(monkeypatch):
    values = np.random.default_rng(4).normal(size=300)
    whole = bootstrap_means(values[:, None], seed=9, n_boot=500), sign_flip_test(values, seed=9)
    monkeypatch.setattr(resampling, "CHUNK_CELLS", 4_000)
    again = bootstrap_means(values[:, None], seed=9, n_boot=500), sign_flip_test(values, seed=9)
    assert again[0] == pytest.approx(whole[0])
    assert again[1] == whole[1]
    assert bootstrap_means(values[:, None], seed=10, n_boot=500) != pytest.approx(whole[0])


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


def test_cluster_bootstrap_covers_where_row_bootstrap_is_too_sure():
    rng = np.random.default_rng(9)
    keys = np.repeat(np.arange(25), 8)
    by_row = by_cluster = 0
    for trial in range(60):
        values = rng.normal(size=25)[keys] + 0.3 * rng.normal(size=200)
        by_row, by_cluster = (
            count
            + cluster_bootstrap(
                lambda rows, v=values: v[rows].mean(), units, seed=trial, n_boot=100
            ).includes_zero
            for count, units in ((by_row, np.arange(200)), (by_cluster, keys))
        )
    assert by_cluster / 60 >= 0.87
    assert by_row / 60 < 0.7


def test_percentiles_of_few_units_are_expanded_and_skip_what_is_undefined():
    drawn = np.r_[np.random.default_rng(1).normal(size=20_000), np.nan]
    few, many = percentiles(drawn, 12), percentiles(drawn, 10_000)
    assert many[1] == pytest.approx(1.96, abs=0.05)
    # Hesterberg: the t quantile of 11 degrees of freedom, times sqrt(12 / 11).
    assert few[1] == pytest.approx(2.201 * np.sqrt(12 / 11), abs=0.08)
    assert np.isnan(percentiles([np.nan], 12)).all()


def test_clusters_draw_whole_groups():
    means = bootstrap_means(
        np.array([[0.0], [0.0], [1.0], [1.0]]), seed=1, n_boot=200, clusters=["a", "a", "b", "b"]
    )
    assert set(np.unique(means)) == {0.0, 0.5, 1.0}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sign_flip_test([1.0], seed=1, alternative="two"), "two-sided, greater or less"),
        (lambda: cluster_bootstrap(np.mean, ["a", "a"], seed=1), "at least two"),
        (lambda: percentiles([1.0], 12, level=95), "between 0 and 1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
