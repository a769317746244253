"""Arms of healing as data: one configuration, `nll`, and others that differ from it in exactly one setting.

In: the profile's `heal`. Out: the configuration of every arm, its recipe and reference in a round, and a verdict on
stored configurations. Knows no texts but how to shuffle them; it trains nothing.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from steer_pipeline.catalogue.healing import HealArmSpec, HealLossSpec, HealOverride, HealSpec
from steer_pipeline.lab.finetune.data import Example, FinetuneError
from steer_pipeline.lab.finetune.recipe import KlRecipe, LoraRecipe, OnPolicyRecipe, Recipe
from steer_pipeline.lab.finetune.references import Reference
from steer_pipeline.lab.models.sites import SteeringPlan
from steer_pipeline.lab.verdict import Verdict

BASE_ARM = "nll"
CLAIM = "heal_arms_differ_once"
_LOSS = "loss"


class ArmError(ValueError):
    """An arm cannot be configured. The message names it, its setting and the cure."""


def configure(spec: HealSpec, more: Mapping[str, HealOverride] | None = None) -> dict[str, HealArmSpec]:
    """Arm -> all that it does, `nll` first.

    Args:
        more: arms beside the profile's, such as those of a sweep.

    Raises:
        ArmError: an override of a setting that does not exist, or with a value that it cannot have.
    """
    return {BASE_ARM: spec.base_arm} | {
        arm: _overridden(spec.base_arm, arm, override.setting, override.value)
        for arm, override in {**spec.arms, **(more or {})}.items()
    }


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Settings in which two stored configurations (`model_dump(mode="json")`) differ, as `loss.barrier`.

    A barrier is one setting, whatever it is made of.
    """
    mine, theirs = _settings(one), _settings(other)
    return sorted(name for name in {*mine, *theirs} if mine.get(name, ...) != theirs.get(name, ...))


def arms_differ_once(stored: Mapping[str, Mapping[str, Any]]) -> Verdict:
    """Every stored arm is the base arm but for exactly one setting, and no two arms are the same.

    Args:
        stored: arm -> its configuration as it was trained with, `nll` among them.
    """
    if BASE_ARM not in stored:
        return Verdict(CLAIM, False, f"no arm {BASE_ARM}, which the others are compared with; run it first")
    found = {arm: differences(stored[BASE_ARM], config) for arm, config in stored.items() if arm != BASE_ARM}
    wrong = {arm: names for arm, names in found.items() if len(names) != 1}
    seen: dict[str, str] = {}
    twins = []
    for arm, config in stored.items():
        first = seen.setdefault(repr(sorted(_settings(config).items())), arm)
        if first != arm:
            twins.append(f"{arm} is {first}")
    told = [f"{arm}: {', '.join(names) or 'nothing'}" for arm, names in sorted(wrong.items())]
    message = f"{len(found)} arms differ from {BASE_ARM} in one setting each"
    if told or twins:
        message = f"not one setting beside {BASE_ARM}'s: {'; '.join([*told, *twins])}"
    examples = [{"arm": arm, "differs_in": ", ".join(names)} for arm, names in sorted(found.items())]
    numbers: dict[str, float | int | str] = {"arms": len(found), "wrong": len(wrong), "twins": len(twins)}
    return Verdict(CLAIM, not told and not twins, message, numbers, examples)


def recipe_of(loss: HealLossSpec, heal_round: int, seed: int) -> Recipe:
    """How the student of one round and seed is trained."""
    on_policy = loss.objective == "on_policy"
    return Recipe(
        lora=LoraRecipe(rank=loss.rank, depth=loss.depth),
        nll=0.0 if on_policy else 1.0,
        kl=_barrier(loss, heal_round),
        on_policy=OnPolicyRecipe(**loss.on_policy.model_dump()) if on_policy else None,
        spectral=loss.spectral,
        weight_decay=loss.weight_decay,
        learning_rate=loss.learning_rate,
        epochs=loss.epochs,
        max_steps=loss.max_steps,
        batch_rows=loss.batch_rows,
        rows_at_once=min(loss.rows_at_once, loss.batch_rows),
        seed=seed,
    )


def references_of(
    loss: HealLossSpec, history: Sequence[Path], last_good: int, plan: SteeringPlan
) -> dict[str, Reference]:
    """The keywords `reference` and `teacher` of `finetune`; without a barrier, the reference is the base.

    Args:
        history: adapters of the rounds before, oldest first, which the student's spec names, too.
        last_good: how many of them the last good student has; 0: it is the base.
        plan: what steers the teacher. It lies on the student of the round before, without the new adapter.
    """
    adapters = {"base": (), "previous": None, "last_good": tuple(history[:last_good])}
    found = {"reference": Reference(adapters[loss.barrier.reference if loss.barrier else "base"])}
    if loss.objective == "on_policy":
        found["teacher"] = Reference(None, plan)
    return found


def shuffled(examples: Sequence[Example], seed: int) -> list[Example]:
    """Every completion under another prompt, by a keyed rotation: the texts stay, what they answer goes.

    Raises:
        FinetuneError: one prompt has more than half of the rows.
    """

    def key(*parts: object) -> bytes:
        return hashlib.blake2b("\x1f".join(map(str, (seed, *parts))).encode()).digest()

    order = sorted(examples, key=lambda one: (key(one.ids[: one.start]), key(one.row_id)))
    most = max(Counter(one.ids[: one.start] for one in order).values(), default=0)
    if 2 * most > len(order) or not order:
        raise FinetuneError(
            f"{len(examples)} rows, {most} of one prompt: there are too few other prompts to put its texts under; keep "
            "texts of more prompts (heal.filter.max_per_cell), at least two"
        )
    givers = [*order[most:], *order[:most]]  # those of one prompt lie side by side
    return [
        replace(one, ids=one.ids[: one.start] + giver.ids[giver.start :])
        for one, giver in zip(order, givers, strict=True)
    ]


def _barrier(loss: HealLossSpec, heal_round: int) -> KlRecipe:
    """Without a barrier the divergence is measured all the same, so that arms compare."""
    barrier = loss.barrier
    if barrier is None:
        return KlRecipe(weight=0.0)
    weight = barrier.strength / (1 + heal_round) ** barrier.decay
    return KlRecipe(weight=weight, direction=barrier.direction, over=barrier.over, tau=barrier.tau)


def _overridden(base: HealArmSpec, arm: str, setting: str, value: Any) -> HealArmSpec:
    config = base.model_dump(mode="json")
    known = sorted(_settings(config))
    if setting not in known:
        raise ArmError(f"arm {arm}: no setting {setting!r}; choose from {', '.join(known)}")
    holder = config[_LOSS] if setting.startswith(f"{_LOSS}.") else config
    holder[setting.removeprefix(f"{_LOSS}.")] = value
    try:
        return HealArmSpec.model_validate(config)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArmError(f"arm {arm}: {where} cannot be {value!r}: {first['msg']}") from error


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Setting -> value: the fields of HealArmSpec, and those of its loss as `loss.rank`."""
    flat = {name: value for name, value in config.items() if name != _LOSS}
    return flat | {f"{_LOSS}.{name}": value for name, value in config.get(_LOSS, {}).items()}
