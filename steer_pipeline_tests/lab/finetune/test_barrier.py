"""Claims about the verdict on barriers: one that never fires, or always dominates, is told."""

import polars as pl
import pytest

from steer_pipeline.lab.finetune.barrier import barrier_works
from steer_pipeline.lab.finetune.recipe import KlRecipe
from steer_pipeline.lab.finetune.training import HISTORY_SCHEMA


def curves(fired, ratios, kl=0.4):
    rows = [
        {"step": i + 1, "split": "train", "kl": kl, "barrier": f, "gradient_ratio": r}
        for i, (f, r) in enumerate(zip(fired, ratios, strict=True))
    ]
    return pl.DataFrame(
        [*rows, {"step": 2, "split": "selection", "kl": 9.0, "barrier": 1.0}], schema=HISTORY_SCHEMA
    )


def test_a_barrier_that_never_fired_is_told_with_the_tau_at_which_it_would_have():
    verdict = barrier_works(curves([0, 0, 0], [0.0, None, 0.0]), KlRecipe(tau=1.0))
    assert not verdict.passed
    assert not verdict.blocking
    assert "never fired" in verdict.message
    assert "below 0.4" in verdict.cure


def test_a_barrier_that_always_dominates_is_told_whatever_its_first_step_says():
    verdict = barrier_works(curves([0, 1, 1, 1], [0.0, None, 2.0, 5.0]), KlRecipe(weight=7))
    assert not verdict.passed
    assert "always dominates" in verdict.message
    assert verdict.numbers["gradient_ratio_median"] == pytest.approx(3.5)


def test_one_that_fires_and_gives_way_works():
    verdict = barrier_works(curves([0, 1, 1, 0], [0.0, 0.2, 2.0, 0.0]), KlRecipe(tau=0.3))
    assert verdict.passed
    assert verdict.numbers["fired"] == pytest.approx(0.5)
