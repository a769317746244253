"""What counts leave open, how many rows a limit needs, and how small an effect is found."""

import numpy as np
import pytest

from steer_pipeline.lab.stats import detectable, mean_tests, minimum_detectable
from steer_pipeline.lab.stats.shares import at_most, passes, rows_to_exclude, share_interval, told


def test_nothing_seen_is_said_with_what_it_allows():
    assert told(0, 50) == "0 of 50, at most 5.8%"
    assert told(3, 50) == "3 of 50, 6.0% [1.3%, 16.5%]"
    assert at_most(0, 50) == pytest.approx(1 - 0.05 ** (1 / 50))
    assert at_most(0, 0) == 1.0
    assert (share_interval(0, 0).low, share_interval(0, 0).high) == (0.0, 1.0)


def test_a_limit_of_one_percent_needs_three_hundred_clean_rows():
    needed = rows_to_exclude(0.01)
    assert needed == 299
    assert at_most(0, needed) <= 0.01 < at_most(0, needed - 1)
    assert passes(0.02, 50, 0.01) == pytest.approx(0.98**50)  # 36%: no row of 50 may be suspect
    assert passes(0.02, 1000, 0.01) < 0.02
    assert rows_to_exclude(1.0) == 1


def test_the_detectable_difference_is_found_in_four_runs_of_five():
    rng = np.random.default_rng(1)
    size = float(np.median(detectable(rng.normal(size=(30, 500)))))
    assert 0.76 <= (mean_tests(rng.normal(size, 1.0, size=(30, 4000))) < 0.05).mean() <= 0.84


@pytest.mark.parametrize("n", [12, 50, 200])
def test_what_no_row_showed_is_found_only_where_it_is_frequent(n):
    rate = float(detectable(np.zeros((n, 1)))[0])
    rows = (np.random.default_rng(n).random((n, 4000)) < rate).astype(float)
    assert 0.77 <= (mean_tests(rows) < 0.05).mean() <= 0.83
    assert rate * n > 5


def test_seeds_add_their_part_and_too_few_rows_find_nothing():
    cells = np.random.default_rng(2).normal(size=(40, 3))
    apart = cells + np.array([-1.0, 0.0, 1.0])
    assert minimum_detectable(apart) > 2 * minimum_detectable(cells)
    assert np.isnan(minimum_detectable([[1.0]]))
    assert np.isnan(detectable(np.zeros((4, 1)))[0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: share_interval(3, 2), "3 of 2 rows"),
        (lambda: at_most(-1, 2), "-1 of 2 rows"),
        (lambda: rows_to_exclude(0.0), "above 0"),
    ],
)
def test_bad_counts_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
