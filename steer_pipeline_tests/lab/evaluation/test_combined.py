"""Claims about the combined score: no part can be bought with another."""

import numpy as np
import polars as pl
import pytest

from steer_pipeline.lab.evaluation.combined import combined_interval, combined_scores


def score(trait, kept, nll=0.6, base=0.6):
    return float(combined_scores([trait], [kept], [nll], [base])[0])


def test_all_parts_at_their_best_give_two_and_one_at_zero_gives_zero():
    assert score(1, 1) == pytest.approx(2)
    assert score(0, 1) == 0
    assert score(1, 0) == 0


def test_it_is_the_harmonic_mean_of_the_three():
    expected = 3 / (1 / (2 * 0.5) + 1 / (2 * 0.8) + 1 / (2 * np.exp(-0.4)))
    assert score(0.5, 0.8, nll=1.0) == pytest.approx(expected)


def test_a_text_likelier_than_base_is_no_more_fluent_than_base():
    assert score(0.5, 0.8, nll=0.1) == score(0.5, 0.8, nll=0.6)


def test_rows_without_facts_are_scored_on_the_rest_and_rows_without_likelihood_are_not():
    assert score(0.5, np.nan) == pytest.approx(2 / (1 / 1.0 + 1 / 2.0))
    assert np.isnan(score(0.5, 0.8, nll=np.nan))


def test_a_variant_is_the_mean_of_its_scored_rows():
    rows = pl.DataFrame(
        {
            "trait": [1.0, 0.5, 0.5],
            "facts_kept": [1.0, 1.0, 1.0],
            "nll": [0.6, 0.6, None],
            "base_nll": [0.6] * 3,
        }
    )
    found = combined_interval(rows)
    assert found.n == 2
    assert found.estimate == pytest.approx((2 + 3 / (1 + 0.5 + 0.5)) / 2)
    assert combined_interval(rows.filter(pl.col("nll").is_null())) is None
