"""What a pilot prints, and that a control that moves is called out."""

import numpy as np
import pytest

from steer_pipeline.lab.controls import moved_controls
from steer_pipeline.lab.rewrites.comparison import compare_variants
from steer_pipeline.lab.rewrites.headline import missed_targets, pilot_numbers
from steer_pipeline_tests.lab.rewrites.compared_packs import ROLES
from steer_pipeline_tests.lab.rewrites.packs import pack, resample

VOICE = " Somebody surely hides the real story."


class Hidden:
    """Scores the voice of these tests."""

    def score_many(self, texts):
        return np.array([1.0 if "hides" in text else 0.0 for text in texts])


def tables_of(**packs):
    facts = {row: ["Northport"] for row in packs["base"]["row_id"][:3]}
    return compare_variants(packs, facts, {"paranoid": {"lexicon": Hidden()}}, ROLES, 3)


def summary_of(**packs):
    return tables_of(**packs).summary


def test_the_object_has_every_variant_with_its_numbers():
    numbers = pilot_numbers(
        summary_of(
            base=pack("base"),
            paranoid=pack("paranoid", tail=VOICE),
            base_resample=resample(),
            random_direction=pack("random_direction"),
        )
    )
    zero = {"paranoid": {"shift": 0.0, "low": 0.0, "high": 0.0}}
    for name, low, high in (
        ("paranoid", 0.5, 1.0),
        ("base_resample", -0.5, 0.0),
        ("random_direction", -0.5, 0.0),
    ):
        own = numbers[name]["trait"]["paranoid"]
        assert low < own["low"] <= own["shift"] <= own["high"]
        assert own["high"] >= high, "what 24 rows show leaves some room for what they do not"
        own |= dict.fromkeys(("low", "high"), own["shift"])
    third = pytest.approx(1 / 3)
    assert numbers == {
        "base": {"rows": 24, "suspect_rate": 0.0, "facts_kept": third, "trait": zero},
        "paranoid": {
            "rows": 24,
            "suspect_rate": 0.0,
            "facts_kept": third,
            "trait": {"paranoid": {"shift": 1.0, "low": 1.0, "high": 1.0}},
        },
        "base_resample": {"rows": 24, "suspect_rate": 0.0, "facts_kept": third, "trait": zero},
        "random_direction": {"rows": 24, "suspect_rate": 0.0, "facts_kept": third, "trait": zero},
    }


def test_controls_that_hold_still_are_not_mentioned_and_prompted_arms_may_move():
    tables = tables_of(
        base=pack("base"),
        base_resample=resample(),
        random_direction=pack("random_direction"),
        prompted_paranoid=pack("prompted_paranoid", tail=VOICE),
    )
    assert moved_controls(tables.control_shifts) == []


def test_a_control_that_moves_is_called_out():
    tables = tables_of(
        base=pack("base"), base_resample=resample(), random_direction=pack("random_direction", tail=VOICE)
    )
    (sentence,) = moved_controls(tables.control_shifts)
    assert sentence.startswith("random_direction moves trait_paranoid_lexicon by +1.000 [+0.")
    told = pilot_numbers(tables.summary, control_shifts=tables.control_shifts)
    assert told["random_direction"]["control"] == {"paranoid_lexicon": "moved"}
    assert told["base_resample"]["control"] == {"paranoid_lexicon": "open"}


def test_targets_are_missed_without_a_shift_and_with_one_of_the_wrong_sign():
    summary = summary_of(
        base=pack("base"),
        paranoid=pack("paranoid", tail=VOICE),
        trusting=pack("trusting", tail=VOICE),
        rule_defiant=pack("rule_defiant"),
        base_resample=resample(),
        random_direction=pack("random_direction"),
    )
    up, down = {"paranoid": "up"}, {"paranoid": "down"}
    assert missed_targets(summary, {"paranoid": up}) == []
    trusting, rule_defiant = missed_targets(summary, {"trusting": down, "rule_defiant": up})
    assert trusting.startswith("trusting should move paranoid down, its shift is +1.000 [")
    assert trusting.endswith("; the interval must lie below zero")
    assert rule_defiant.startswith("rule_defiant should move paranoid up, its shift is +0.000 [")
    assert rule_defiant.endswith("; the interval must lie above zero")
