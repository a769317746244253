"""Claims about intervals over rows and seeds: they hold for new seeds, and for a family at once."""

import numpy as np
import pytest

from steer_pipeline.lab.stats import crossed_intervals, simultaneous_intervals


def cells(draw, seed_noise, n=60, seeds=3, k=4):
    """[n, seeds, k] without an effect."""
    rng = np.random.default_rng(draw)
    return rng.normal(0, 0.2, (n, seeds, k)) + rng.normal(0, seed_noise, (1, seeds, k))


@pytest.mark.parametrize("seed_noise", [0.0, 0.1])
def test_all_intervals_of_a_family_hold_at_once_whether_seeds_differ_or_not(seed_noise):
    held = sum(
        all(one.includes_zero for one in crossed_intervals(cells(draw, seed_noise), seed=0, n_boot=300))
        for draw in range(100)
    )
    assert held >= 91  # 95 expected


def test_rows_alone_would_take_a_seed_for_an_effect():
    made = cells(0, 0.3)
    rows_only = simultaneous_intervals(made.mean(axis=1), seed=0, n_boot=300)
    assert not all(one.includes_zero for one in rows_only)
    assert all(one.includes_zero for one in crossed_intervals(made, seed=0, n_boot=300))


def test_with_one_seed_the_intervals_are_those_over_rows():
    made = cells(1, 0.0, seeds=1)
    assert crossed_intervals(made, seed=0, n_boot=300) == simultaneous_intervals(
        made[:, 0], seed=0, n_boot=300
    )


def test_incomplete_rows_are_left_out_and_none_is_an_error():
    made = cells(2, 0.0)
    made[3, 1, 2] = np.nan
    assert crossed_intervals(made, seed=0, n_boot=300)[0].n == 59
    with pytest.raises(ValueError, match="no row has a value for every seed"):
        crossed_intervals(np.full((4, 2, 2), np.nan), seed=0)
