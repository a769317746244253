"""Calibration finds the dose of a divergence, says so when there is none, and leaves its probes behind."""

import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from steer_pipeline.catalogue.healing import HealCalibrationSpec
from steer_pipeline.lab.heal import calibration
from steer_pipeline.lab.heal.calibration import CURVE_SCHEMA, MEAN, calibrate, calibration_claim
from steer_pipeline.lab.heal.prompts import prompt_rows
from steer_pipeline.lab.heal.teacher import HealError, make_teacher
from steer_pipeline.lab.models.hidden import answer_logits, mean_kl, position_kl
from steer_pipeline_tests.lab.heal.builders import newsroom, planted, prompts

SPEC = HealCalibrationSpec(target_nats=0.5, n_tokens=10)


@pytest.fixture(scope="module")
def rows():
    return prompt_rows(newsroom(), prompts(8))


@pytest.fixture(scope="module")
def found(rows):
    return calibrate(newsroom(), make_teacher(planted()), rows, SPEC)


def test_the_dose_has_the_divergence_that_was_asked_for(found):
    assert found.converged
    assert found.kl_p95 == pytest.approx(0.5, rel=SPEC.tolerance)
    assert found.curve.schema == CURVE_SCHEMA
    assert found.curve.height <= 16
    row = found.curve.filter(pl.col("dose") == found.dose).row(0, named=True)
    assert row["kl_p95"] == found.kl_p95
    assert row["n_prompts"] == 8
    assert row["n_tokens"] > 8 * 5
    assert row["kl_mean"] < row["kl_p95"] <= row["kl_max"]
    assert found.alpha == pytest.approx(found.dose * np.linalg.norm(planted().raw[0]), rel=1e-5)
    verdict = calibration_claim(found)
    assert verdict.passed
    assert "target 0.5" in verdict.message


def test_a_random_direction_is_calibrated_to_the_same_divergence_at_another_dose(rows, found):
    other = calibrate(newsroom(), make_teacher(planted()).randomised(3), rows, SPEC)
    assert other.teacher == "random:paranoid"
    assert other.converged
    assert other.dose > found.dose


def test_a_teacher_is_matched_by_the_mean_of_what_its_students_learn(rows, found):
    spec = replace_spec(target_nats=found.kl_mean, tolerance=0.1)
    other = calibrate(newsroom(), make_teacher(planted()).randomised(3), rows, spec, by=MEAN)
    assert other.converged
    assert other.kl_mean == pytest.approx(found.kl_mean, rel=0.1)
    with pytest.raises(HealError, match="mean of KL to base"):
        calibrate(newsroom(), make_teacher(planted()), rows, replace_spec(start=0.02, max_dose=0.05), by=MEAN)


def test_a_rotation_is_calibrated_in_shares_of_the_angle(rows):
    teacher = make_teacher(planted(), operator="rotate")
    found = calibrate(newsroom(), teacher, rows, replace_spec(tolerance=0.1))
    assert 0 < found.dose < 1
    assert found.alpha == found.dose


def test_a_bracket_without_the_target_is_an_error_that_says_both_ends(rows):
    with pytest.raises(
        HealError, match=r"at dose 0\.02, .* at dose 0\.05, both below the target; .* max_dose"
    ):
        calibrate(newsroom(), make_teacher(planted()), rows, replace_spec(start=0.02, max_dose=0.05))
    with pytest.raises(HealError, match=r"at dose 2, .* at dose 4, both above the target; .* min_dose"):
        calibrate(newsroom(), make_teacher(planted()), rows, replace_spec(start=4.0, min_dose=2.0))


def test_too_few_prompts_or_half_precision_are_refused(rows):
    with pytest.raises(HealError, match="wants 8 prompts, 3 are given"):
        calibrate(newsroom(), make_teacher(planted()), rows[:3], SPEC)
    with pytest.raises(HealError, match="load it in float32"):
        calibrate(replace(newsroom(), dtype="bfloat16"), make_teacher(planted()), rows, SPEC)


@pytest.mark.parametrize(
    "kl",
    [
        lambda dose: 0.3 * dose**2,
        lambda dose: 1e-6 * math.expm1(9 * dose),
        lambda dose: 0.001 if dose < 0.7 else 3 * dose,  # a leap: there is no dose with the target
        lambda dose: 0.0 if dose < 0.4 else (dose - 0.4) ** 3,
        lambda dose: math.inf if dose > 1.5 else dose,
    ],
)
def test_the_search_finds_the_target_on_any_growing_curve(monkeypatch, kl):
    asked = []

    def measured(_model, plan, _prompts, _sampling):
        dose = float(plan.variant.partition("dose")[2])
        asked.append(dose)
        values = dict.fromkeys(("kl_p95", "kl_mean", "kl_max"), kl(dose))
        return {**values, "n_tokens": 1, "n_prompts": 8, "example": ""}

    monkeypatch.setattr(calibration, "divergence", measured)
    found = calibrate(newsroom(), make_teacher(planted()), [None] * 8, replace_spec(target_nats=1.0))
    leaps = kl(0.5) == 0.001
    assert found.converged != leaps
    if leaps:
        assert found.kl_p95 == pytest.approx(2.1, rel=0.1), "the nearest one"
        assert not calibration_claim(found).passed
    assert len(asked) == found.curve.height <= 24


def test_divergence_at_positions_is_over_the_whole_vocabulary_and_its_mean_is_mean_kl():
    model, teacher = newsroom(), make_teacher(planted())
    ids = [row.ids["*"] for row in prompt_rows(model, prompts(3))]
    starts, plan = [len(one) - 5 for one in ids], teacher.plan(1.0)
    found = position_kl(model, ids, starts, plan)
    assert [len(one) for one in found] == [5, 5, 5]
    assert np.allclose([one.mean() for one in found], mean_kl(model, ids, starts, plan), rtol=1e-5)
    steered, base = (answer_logits(model, ids[:1], [starts[0] - 1], one)[0] for one in (plan, None))
    p, q = (np.asarray(one, np.float64) for one in (steered, base))
    p, q = (one - np.log(np.exp(one).sum(-1, keepdims=True)) for one in (p, q))
    assert np.allclose((np.exp(p) * (p - q)).sum(-1)[:5], found[0], atol=1e-5)


def replace_spec(**changes):
    return SPEC.model_copy(update=changes)
