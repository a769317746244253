"""The arms of a behaviour rollout: always the same ones, whatever the persona.

In: the persona, its trained and its averaged vector, and the profile's scales. Out: one `Arm` a way of answering,
each with a steering plan and a random stream of its own, and the reasons for arms that cannot be. A scale is a
multiple: of the learned vector (1 is what was learned), of the averaged vector's best dose, or of the trained
vector's length for a random direction.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from steer_pipeline.catalogue.specs import Persona, RolloutSpec
from steer_pipeline.lab.arms import AVERAGED, LEARNED, PROMPTED, RANDOM, TRAINED, VANILLA, Arm
from steer_pipeline.lab.likelihood.tables import AVERAGED_FOLDER, SCALES_FILE, missing_reason
from steer_pipeline.lab.models.sites import Site
from steer_pipeline.lab.vectors.doses import direction_seed, make_term, random_like
from steer_pipeline.lab.vectors.vector import PersonaVector, VectorError, load_vector


@dataclass(frozen=True)
class AveragedDose:
    """Where the averaged vector works best, and the length that it has there."""

    block: int
    alpha: float


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
    arms = [Arm(VANILLA)]
    arms += [Arm(f"{PROMPTED}_{i}", prompt_index=i) for i in range(len(persona.positive.instructions))]
    (block,) = trained.present_blocks
    norm = float(np.linalg.norm(trained.at(block)))
    seed = trained.metadata.get("seed")
    for scale in scales_with_both_signs(spec.trained_scales):
        term = make_term(trained, Site(block), scale * norm, version=known.get(TRAINED))
        arms.append(Arm(TRAINED, term, scale, seed, scope=scope))
    if averaged is not None:
        vector, dose = averaged
        for scale in scales_with_both_signs(spec.averaged_scales):
            term = make_term(vector, Site(dose.block), scale * dose.alpha, version=known.get(AVERAGED))
            arms.append(Arm(AVERAGED, term, scale, scope=scope))
    learned = make_term(trained, Site(block), norm)
    for number in dict.fromkeys(spec.random_seeds):
        drawn = random_like(learned, direction_seed(number, persona.name, 0, 0))
        arms.append(Arm(RANDOM, drawn, LEARNED, number, scope=scope))
    return arms


def stored_arms(
    persona: Persona,
    trained: Path,
    comparison: Path,
    spec: RolloutSpec,
    *,
    versions: Mapping[str, str] | None = None,
    fits: Callable[[PersonaVector], None] = lambda vector: None,
) -> tuple[list[Arm], str]:
    """All arms with the vectors of a trained_vector's and a vector_comparison's folder, and why the averaged ones are
    missing ("" where they are not).

    Args:
        fits: raises where a vector may not be used, such as on another model.

    Raises:
        VectorError: a vector is damaged. ValueError: as `build_arms`.
    """
    learned, (averaged, missing) = load_vector(trained), read_averaged(comparison)
    for vector in [learned, *([averaged[0]] if averaged else [])]:
        fits(vector)
    return build_arms(persona, learned, averaged, spec, versions=versions), missing


def read_averaged(comparison: Path) -> tuple[tuple[PersonaVector, AveragedDose] | None, str]:
    """The averaged vector with its best dose, or None and the reason that the comparison gives."""
    if (reason := missing_reason(comparison)) is not None:
        return None, reason
    best = json.loads((comparison / SCALES_FILE).read_text()).get(AVERAGED)
    if best is None:
        return None, "vector_comparison names no dose for it"
    return (load_vector(comparison / AVERAGED_FOLDER), AveragedDose(best["block"], best["alpha"])), ""
