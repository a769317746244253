"""What a pilot prints, and that a control that moves is called out."""

import numpy as np
import pytest

from steer_pipeline.lab.rewrites.comparison import compare_variants
from steer_pipeline.lab.rewrites.headline import missed_targets, moved_controls, pilot_numbers
from steer_pipeline_tests.lab.rewrites.compared_packs import ROLES
from steer_pipeline_tests.lab.rewrites.packs import pack, resample

VOICE = " Somebody surely hides the real story."


class Hidden:
    """Scores the voice of these tests."""

    def score_many(self, texts):
        return np.array([1.0 if "hides" in text else 0.0 for text in texts])


def summary_of(**packs):
    facts = {row: ["Northport"] for row in packs["base"]["row_id"][:3]}
    return compare_variants(packs, facts, {"paranoid": {"lexicon": Hidden()}}, ROLES, 3).summary


def test_the_object_has_every_variant_with_its_numbers():
    numbers = pilot_numbers(
        summary_of(
            base=pack("base"),
            paranoid=pack("paranoid", tail=VOICE),
            base_resample=resample(),
            random_direction=pack("random_direction"),
        )
    )
    third, some = (
        pytest.approx(1 / 3),
        pytest.approx(0.173, abs=1e-3),
    )  # of 24 rows and two controls; base is given
    zero = {"paranoid": {"shift": 0.0, "low": 0.0, "high": 0.0}}
    unseen = {"paranoid": {"shift": 0.0, "low": pytest.approx(-0.173, abs=1e-3), "high": some}}
    assert numbers == {
        "base": {"rows": 24, "suspect_rate": 0.0, "facts_kept": third, "trait": zero},
        "paranoid": {
            "rows": 24,
            "suspect_rate": 0.0,
            "facts_kept": third,
            "trait": {"paranoid": {"shift": 1.0, "low": pytest.approx(0.805, abs=1e-3), "high": 1.0}},
        },
        "base_resample": {"rows": 24, "suspect_rate": 0.0, "facts_kept": third, "trait": unseen},
        "random_direction": {"rows": 24, "suspect_rate": 0.0, "facts_kept": third, "trait": unseen},
    }


def test_controls_that_hold_still_are_not_mentioned_and_prompted_arms_may_move():
    summary = summary_of(
        base=pack("base"),
        base_resample=resample(),
        random_direction=pack("random_direction"),
        prompted_paranoid=pack("prompted_paranoid", tail=VOICE),
    )
    assert moved_controls(summary) == []


def test_a_control_that_moves_is_called_out():
    summary = summary_of(
        base=pack("base"), base_resample=resample(), random_direction=pack("random_direction", tail=VOICE)
    )
    (sentence,) = moved_controls(summary)
    assert sentence.startswith("control random_direction moves paranoid by +1.000 [+0.755, +1.000]")


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
    assert missed_targets(summary, {"trusting": down, "rule_defiant": up}) == [
        "trusting should move paranoid down, its shift is +1.000 [+0.805, +1.000]; "
        "the interval must lie below zero",
        "rule_defiant should move paranoid up, its shift is +0.000 [-0.138, +0.138]; "
        "the interval must lie above zero",
    ]
