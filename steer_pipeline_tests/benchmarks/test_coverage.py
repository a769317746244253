"""The coverage table tells intervals that hold from those that do not, and says where none can."""

from argparse import Namespace

import pytest

from benchmarks.coverage import DISCRETE, KINDS, judged, measured

OPTIONS = Namespace(runs=400, families=8, seed=3)


def test_few_rows_are_held_by_the_rule_and_not_by_percentiles():
    normal, rare = (measured(name, KINDS[name], 12, OPTIONS) for name in ("normal", "rare event"))
    assert normal["before"] < 0.93 < normal["after"] < 0.98
    assert normal["width"] > 1.1
    assert rare["before"] < 0.3 < 0.97 < rare["after"]
    assert (rare["outside"], rare["why"]) == (True, DISCRETE)
    clustered = measured("clustered", KINDS["clustered"], 20, OPTIONS)
    assert clustered["before"] < clustered["after"]


@pytest.mark.parametrize(
    ("cell", "outside"),
    [
        ({"kind": "normal", "n": 50, "after": 0.95, "family_after": 1.0}, False),
        ({"kind": "normal", "n": 50, "after": 0.90}, True),
        ({"kind": "normal", "n": 50, "after": 0.999}, True),
        ({"kind": "normal", "n": 50, "after": 0.95, "family_after": 0.7}, True),
    ],
)
def test_what_does_not_hold_is_not_excused(cell, outside):
    assert judged(cell, OPTIONS) == {"outside": outside, "why": ""}
