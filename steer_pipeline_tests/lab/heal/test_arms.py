"""Claims about the arms of healing: one setting each, proven on what was stored, and recipes that say the same."""

from pathlib import Path

import pytest

from steer_pipeline.catalogue.healing import HealArmSpec, HealLossSpec, HealOverride, HealSpec
from steer_pipeline.lab.finetune.data import Example, FinetuneError
from steer_pipeline.lab.heal.arms import (
    BASE_ARM,
    ArmError,
    arms_differ_once,
    configure,
    differences,
    recipe_of,
    references_of,
    shuffled,
)
from steer_pipeline.lab.models.sites import SteeringPlan


def stored(spec=None):
    return {arm: config.model_dump(mode="json") for arm, config in configure(spec or HealSpec()).items()}


def test_the_arms_of_the_issue_are_there_and_differ_in_one_setting_each():
    arms = stored()
    assert {
        *("steered", "prompt_only", "nll", "kl_reverse", "kl_forward", "kl_reverse_rmse", "on_policy"),
        *("base_text_sft", "random_direction", "shuffled", "difference"),
    } <= set(arms)
    verdict = arms_differ_once(arms)
    assert verdict.passed, verdict.message
    assert {one["arm"]: one["differs_in"] for one in verdict.examples}["kl_forward"] == "loss.barrier"


def test_an_arm_of_two_overrides_or_none_is_named():
    arms = stored()
    arms["kl_forward"]["loss"]["rank"] = 32
    arms["spectral"] = arms[BASE_ARM]
    verdict = arms_differ_once(arms)
    assert not verdict.passed
    assert "kl_forward: loss.barrier, loss.rank" in verdict.message
    assert "spectral: nothing" in verdict.message


def test_two_arms_that_are_one_are_named():
    arms = stored()
    arms["again"] = arms["shuffled"]
    assert "again is shuffled" in arms_differ_once(arms).message


def test_without_the_base_arm_nothing_is_proven():
    arms = stored()
    del arms[BASE_ARM]
    assert not arms_differ_once(arms).passed


def test_a_field_that_one_configuration_lacks_is_a_difference():
    arms = stored()
    older = {name: value for name, value in arms["nll"].items() if name != "poles"}
    assert differences(arms["nll"], older) == ["poles"]


@pytest.mark.parametrize(
    ("setting", "value", "told"),
    [
        ("loss.temperature", 1, r"arm odd: no setting 'loss.temperature'; choose from direction"),
        ("loss", {}, "no setting 'loss'"),
        ("texts", "poems", r"arm odd: texts cannot be 'poems'"),
        ("loss.barrier", {"tau": -1}, r"loss.barrier.tau cannot be"),
    ],
)
def test_an_override_that_cannot_be_is_told(setting, value, told):
    with pytest.raises(ArmError, match=told):
        configure(HealSpec(arms={"odd": HealOverride(setting=setting, value=value)}))


def test_nll_is_nobodys_override():
    with pytest.raises(ValueError, match="nll is the base arm"):
        HealSpec(arms={"nll": HealOverride(setting="texts", value="base")})


def test_the_barrier_of_a_recipe_decays_over_rounds():
    loss = HealLossSpec(barrier={"strength": 0.4, "decay": 0.5, "tau": 2.0, "over": "rmse"})
    weights = [recipe_of(loss, heal_round, 1).kl.weight for heal_round in (0, 1, 3)]
    assert weights == pytest.approx([0.4, 0.4 / 2**0.5, 0.2])
    assert recipe_of(HealLossSpec(barrier={}), 3, 1).kl.weight == pytest.approx(0.3)


def test_each_arm_has_the_recipe_that_its_name_says():
    recipes = {arm: recipe_of(config.loss, 0, 71) for arm, config in configure(HealSpec()).items()}
    assert recipes["nll"].kl.weight == 0.0  # measured, not held
    assert recipes["kl_forward"].kl.direction == "forward"
    assert recipes["kl_reverse_p95"].kl.over == "p95"
    assert recipes["on_policy"].nll == 0.0
    assert recipes["on_policy"].on_policy.beta == 1.0
    assert recipes["weight_decay"].weight_decay == 10.0
    assert {recipe.seed for recipe in recipes.values()} == {71}


def test_references_are_base_previous_or_last_good():
    history, plan = [Path("r0"), Path("r1"), Path("r2")], SteeringPlan("teacher")

    def on(reference):
        loss = HealLossSpec(barrier={"reference": reference})
        return references_of(loss, history, 2, plan)["reference"].adapters

    assert on("base") == ()
    assert on("previous") is None
    assert on("last_good") == (Path("r0"), Path("r1"))
    without = references_of(HealArmSpec().loss, history, 2, plan)
    assert [(name, one.adapters, one.plan) for name, one in without.items()] == [("reference", (), None)]
    teacher = references_of(HealLossSpec(objective="on_policy"), history, 2, plan)["teacher"]
    assert (teacher.adapters, teacher.plan) == (None, plan)


def test_shuffled_texts_are_the_same_texts_and_none_answers_its_own_prompt():
    rows = [Example(f"r{i}", (i, 100 + i, 200 + i), 1) for i in range(7)]
    found = shuffled(rows, 5)
    assert sorted(row.ids[1:] for row in found) == [(100 + i, 200 + i) for i in range(7)]
    assert all(row.ids[1] != 100 + row.ids[0] and row.row_id == f"r{row.ids[0]}" for row in found)
    assert found == shuffled(list(reversed(rows)), 5) != shuffled(rows, 6)
    several = [Example(f"r{i}", (i % 3, 100 + i), 1) for i in range(9)]
    assert all(row.ids[0] != (row.ids[1] - 100) % 3 for row in shuffled(several, 5))
    with pytest.raises(FinetuneError, match="at least two"):
        shuffled(rows[:1], 5)
