"""Claims about `make null`: a test that keeps its level is told from one that does not; what is planted is found."""

import numpy as np
import pytest

from benchmarks import null
from steer_pipeline.lab.behaviour.schema import NONE, UP

TRAIT = "trait_paranoid_minilm"
ROLES = {"base": "base", "paranoid": "steered", "base_resample": "control"}
RUNS = 40


def draw(effect=0.3, sampling_noise=0.0, share=0.5):
    """Scores of 20 samplings of 60 news: each news item has its own level, each text its noise."""
    rng = np.random.default_rng(0)
    news = rng.normal(0, 0.3, 60)
    base = news + rng.normal(0, 0.1, (20, 60)) + rng.normal(0, sampling_noise, (20, 1))
    steered = news + effect + rng.normal(0, 0.1, (6, 60))
    scores = null.Scores({TRAIT: base}, {TRAIT: steered}, ROLES, "paranoid", {TRAIT: UP}, share)
    return null.Draw(scores, news=30, seeds=3, n_boot=400)


def test_rows_of_one_model_reject_no_more_than_the_level_allows():
    found = null.level(draw(), RUNS)
    assert found["holds"]
    assert found["rejected"][TRAIT]["low"] <= null.LEVEL


def test_a_test_that_rejects_too_often_is_told(monkeypatch):
    """With the intervals over seeds taken out, what a sampling happens to do on all news is taken for an effect."""

    def over_rows_alone(values, roles, **how):
        means = (values[:, :, 1:] - values[:, :, :1]).mean(axis=1)
        sure = abs(means.mean(axis=0)) > 2 * means.std(axis=0) / np.sqrt(len(means))
        return {
            name: {"verdict": UP if one else NONE} for name, one in zip(list(roles)[1:], sure, strict=True)
        }

    noisy = draw(sampling_noise=0.2)
    assert null.level(noisy, RUNS)["holds"]
    monkeypatch.setattr(null, "judge_family", over_rows_alone)
    found = null.level(noisy, RUNS)
    assert not found["holds"]
    assert found["any_metric"]["rate"] > 0.5


def test_a_planted_share_of_steered_rows_is_found_and_none_is_not():
    found = null.power(draw(), RUNS)
    assert found["holds"]
    assert found["found"][TRAIT]["rate"] >= null.POWER
    assert found["found"][TRAIT]["shift"] == pytest.approx(0.15, abs=0.02)
    assert not null.power(draw(effect=0.0), RUNS)["holds"]


def test_runs_are_seeded():
    assert draw().verdicts(3, planted=True) == draw().verdicts(3, planted=True)


def test_rates_have_exact_intervals():
    assert null.rate(0, 100) == {"rate": 0.0, "low": 0.0, "high": 0.0362}
    assert null.rate(5, 100)["high"] == pytest.approx(0.1128, abs=1e-4)
