"""Claims about coherence: only what is more than base's counts, either way where both ways are bad."""

import math

import numpy as np
import pytest

from steer_pipeline.catalogue.specs import CoherenceSpec
from steer_pipeline.lab.quality.coherence import COSTS, beyond, coherence, text_costs

FINE = "The council of Northport voted on Tuesday to rebuild the old bridge."
LOOP = "and then and then and then and then and then and then"
SPEC = CoherenceSpec()


def costs(n=20, *, text=FINE, suspects=0, kept=1.0, nll=0.6):
    broken = [["foreign_digits"]] * suspects + [[]] * (n - suspects)
    return text_costs([text] * n, broken, [kept] * n, [nll] * n)


def test_a_text_like_base_costs_nothing():
    found = coherence(costs(), costs(), SPEC)
    assert set(found) == set(COSTS)
    assert beyond(found) == []
    assert all(cost.difference.estimate == 0 for cost in found.values())


def test_a_poor_base_makes_no_dose_incoherent():
    poor = costs(suspects=5, kept=0.6)
    assert beyond(coherence(poor, poor, SPEC)) == []


@pytest.mark.parametrize(
    ("worse", "cost"),
    [
        ({"suspects": 8}, "suspects"),
        ({"kept": 0.8}, "facts lost"),
        ({"text": LOOP}, "loops"),
        ({"text": "No."}, "length"),
        ({"text": FINE * 3}, "length"),
        ({"nll": 1.3}, "nll"),
        ({"nll": -0.1}, "nll"),
    ],
)
def test_what_is_lost_is_named_with_number_and_limit(worse, cost):
    (first, *_) = [one for one in beyond(coherence(costs(**worse), costs(), SPEC)) if cost in one]
    assert "limit" in first
    assert "[" in first


def test_one_odd_text_among_few_stops_nothing_and_many_do():
    """One suspect among eight is 12.5 points, beyond a limit of 5; nothing tells it from chance."""
    (one,) = [cost for cost in coherence(costs(8, suspects=1), costs(8), SPEC).values() if cost.loss]
    assert one.loss > one.limit
    assert one.within
    assert beyond(coherence(costs(40, suspects=8), costs(40), SPEC))


def test_better_than_base_is_no_loss_where_one_way_is_bad():
    assert beyond(coherence(costs(), costs(suspects=9, kept=0.5), SPEC)) == []


def test_rows_without_facts_or_tokens_are_left_out_of_their_cost_alone():
    found = coherence(costs(kept=None, nll=None), costs(), SPEC)
    assert found["facts_lost"].difference is None
    assert found["nll"].within
    assert found["suspects"].difference.n == 20


def test_intervals_are_of_paired_differences():
    rng = np.random.default_rng(0)
    base = rng.normal(1.0, 0.5, 40)
    own = text_costs([FINE] * 40, [[]] * 40, [1.0] * 40, list(base + rng.normal(0.2, 0.01, 40)))
    other = text_costs([FINE] * 40, [[]] * 40, [1.0] * 40, list(base))
    difference = coherence(own, other, SPEC)["nll"].difference
    assert difference.estimate == pytest.approx(0.2, abs=0.01)
    assert difference.high - difference.low < 0.01


def test_a_limit_of_null_is_not_judged():
    spec = CoherenceSpec(max_extra_nll=None, max_length_ratio=None)
    assert beyond(coherence(costs(text="No.", nll=9.0), costs(), spec)) == []


def test_length_is_a_ratio():
    found = coherence(costs(text=FINE + " " + FINE), costs(), SPEC)["length"]
    assert found.difference.estimate == pytest.approx(math.log(2))
    assert found.within


def test_rows_that_are_not_paired_are_refused():
    with pytest.raises(ValueError, match="20 rows against 19 of base"):
        coherence(costs(), costs(n=19), SPEC)
