"""Claims about the sweep over barriers: every strength of each, and a word where strength did not order the KL."""

import polars as pl
import pytest

from steer_pipeline.catalogue.healing import HealSpec, HealSweepSpec, swept_arms, swept_places
from steer_pipeline.lab.heal.arms import configure, recipe_of
from steer_pipeline.lab.heal.sweep import SWEEP_SCHEMA, strength_orders_kl


def table(*kls):
    rows = [
        {"barrier": "one", "strength": strength, "seed": seed, "kl": kl + 0.001 * seed}
        for strength, kl in zip((0.1, 0.3, 1.0), kls, strict=True)
        for seed in (1, 2)
    ]
    return pl.DataFrame(rows, schema=SWEEP_SCHEMA).sample(fraction=1.0, shuffle=True, seed=0)


def test_every_strength_of_every_barrier_and_nothing_else_changes():
    spec = HealSpec()
    arms = {
        arm: config for arm, config in configure(spec, swept_arms(spec)).items() if arm in swept_arms(spec)
    }
    assert len(arms) == 15
    assert swept_places(spec)["forward_mean_3"] == ("forward_mean", 3.0)
    recipe = recipe_of(arms["forward_mean_3"].loss, 0, 71)
    assert (recipe.kl.direction, recipe.kl.weight) == ("forward", 3.0)
    base = spec.base_arm.loss.model_dump(exclude={"barrier"})
    assert all(arm.loss.model_dump(exclude={"barrier"}) == base for arm in arms.values())


def test_a_kl_that_falls_with_strength_is_in_order():
    verdict = strength_orders_kl(table(0.5, 0.3, 0.3))
    assert verdict.passed
    assert verdict.numbers == {"steps": 2, "rises": 0}


@pytest.mark.parametrize("last", [0.4, float("nan")])
def test_where_it_rises_is_said(last):
    verdict = strength_orders_kl(table(0.5, 0.3, last))
    assert not verdict.passed
    assert "one from 0.3 to 1" in verdict.message
    assert verdict.examples[0]["from"] == 0.3


def test_strengths_that_do_not_rise_are_refused():
    with pytest.raises(ValueError, match="rising"):
        HealSweepSpec(strengths=[0.3, 0.1])
