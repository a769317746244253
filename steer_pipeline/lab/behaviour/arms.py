"""The arms of a behaviour rollout: always the same ones, whatever the persona.

In: the persona, its trained and its averaged vector, and the profile's scales. Out: one `Arm` a way of answering,
each with a steering plan and a random stream of its own, and the reasons for arms that cannot be. A scale is a
multiple: of the learned vector (1 is what was learned), of the averaged vector's best dose, or of the trained
vector's length for a random direction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from steer_pipeline.catalogue.specs import Persona, RolloutSpec
from steer_pipeline.lab.models.sites import Site, SteeringPlan, SteeringTerm
from steer_pipeline.lab.vectors.doses import make_term, random_like
from steer_pipeline.lab.vectors.vector import PersonaVector, VectorError

VANILLA, PROMPTED, TRAINED, AVERAGED, RANDOM = "vanilla", "prompted", "trained", "averaged", "random"
LEARNED = 1.0


@dataclass(frozen=True, eq=False)
class Arm:
    """One way of answering every question.

    Attributes:
        name: unique among the arms, and name of the random stream: `trained@0.5`, `random@51`, `prompted_0`.
        arm: vanilla, prompted_<i>, trained, averaged or random.
        scale: multiple of the vector; None where nothing is added.
        seed: of a random direction, or the one that the trained vector was learned with.
        prompt_index: which positive instruction stands in the system turn; None for none.
    """

    name: str
    arm: str
    plan: SteeringPlan
    scale: float | None = None
    seed: int | None = None
    prompt_index: int | None = None

    @property
    def term(self) -> SteeringTerm | None:
        return self.plan.terms[0] if self.plan.terms else None


@dataclass(frozen=True)
class AveragedDose:
    """Where the averaged vector works best, and the length that it has there."""

    block: int
    alpha: float


def family_of(arm: str) -> str:
    """`prompted` of `prompted_3`; every other arm is its own family."""
    return PROMPTED if arm.startswith(f"{PROMPTED}_") else arm


def scales_with_both_signs(scales: Sequence[float]) -> list[float]:
    """Ascending, each once, always with the learned scale and with a negative one.

    Raises:
        ValueError: a scale is zero, which is vanilla, or not finite.
    """
    bad = [scale for scale in scales if not np.isfinite(scale) or scale == 0]
    if bad:
        raise ValueError(f"scale {bad[0]}: give finite scales other than 0, which is the vanilla arm")
    wanted = {float(scale) for scale in scales} | {LEARNED}
    if min(wanted) > 0:
        wanted.add(-LEARNED)
    return sorted(wanted)


def build_arms(
    persona: Persona,
    trained: PersonaVector,
    averaged: tuple[PersonaVector, AveragedDose] | None,
    spec: RolloutSpec,
    *,
    versions: Mapping[str, str] | None = None,
) -> list[Arm]:
    """All arms: vanilla, every positive instruction, trained, averaged (if there is one) and random.

    Args:
        trained: one direction, at its natural magnitude.
        averaged: the averaged vector with its best block and length there; None leaves its arms out.
        versions: content hashes of the stored vectors under `trained` and `averaged`.

    Raises:
        VectorError: the trained vector has more than one block, or the averaged one none where it is used.
        ValueError: the persona has no positive instruction, or a scale is zero.
    """
    if not persona.positive.instructions:
        raise ValueError(
            f"persona {persona.name}: positive.instructions is empty; the prompted arm needs one"
        )
    if len(trained.present_blocks) != 1:
        raise VectorError(
            f"trained vector {trained.persona!r} has {len(trained.present_blocks)} blocks; one site is needed"
        )
    known, scope = versions or {}, trained.metadata.get("scope") or "all"
    arms = [_plain(VANILLA, None)]
    arms += [_plain(f"{PROMPTED}_{i}", i) for i in range(len(persona.positive.instructions))]
    (block,) = trained.present_blocks
    norm = float(np.linalg.norm(trained.at(block)))
    seed = trained.metadata.get("seed")
    for scale in scales_with_both_signs(spec.trained_scales):
        term = make_term(trained, Site(block), scale * norm, version=known.get(TRAINED))
        arms.append(_steered(TRAINED, scale, term, scope, seed))
    if averaged is not None:
        vector, dose = averaged
        for scale in scales_with_both_signs(spec.averaged_scales):
            term = make_term(vector, Site(dose.block), scale * dose.alpha, version=known.get(AVERAGED))
            arms.append(_steered(AVERAGED, scale, term, scope, None))
    learned = make_term(trained, Site(block), norm)
    for number in dict.fromkeys(spec.random_seeds):
        arm = f"{RANDOM}@{number}"
        plan = SteeringPlan(arm, (random_like(learned, number),), scope, arm)
        arms.append(Arm(arm, RANDOM, plan, LEARNED, number))
    return arms


def _plain(name: str, prompt_index: int | None) -> Arm:
    return Arm(name, name, SteeringPlan(name, stream=name), prompt_index=prompt_index)


def _steered(arm: str, scale: float, term: SteeringTerm, scope: str, seed: int | None) -> Arm:
    name = f"{arm}@{scale:g}"
    return Arm(name, arm, SteeringPlan(name, (term,), scope, name), scale, seed)
