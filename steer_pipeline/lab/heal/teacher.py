"""A vector as a teacher: at which blocks, by which operator and how strongly it steers. Runs no model.

In: a persona vector, its blocks and an operator. Out: the `SteeringPlan` of any dose, and teachers that differ in
nothing but their random direction. A dose is a multiple of the vector's own length and says the same for one block and
for a band: what is added is divided by the number of blocks, for each direction of a band already holds what the blocks
below it add.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from steer_pipeline.lab.models.sites import ADD, OPERATORS, Site, SteeringPlan, SteeringTerm, resolve_site
from steer_pipeline.lab.vectors.doses import make_term
from steer_pipeline.lab.vectors.vector import PersonaVector

STREAM = "heal"  # all doses draw the same random numbers: what differs between them is the dose
# What a dose is, by operator; |v| is the length of the vector at a block, n the number of blocks.
DOSES = {
    "add": "dose |v| / n is added at each block; 0 is the model as it is",
    "rotate": "each block turns by dose / n of the angle to the vector, at most n in all; 0 is the model as it is",
    "ablate": "the projection becomes dose |v| at each block; 0 removes the direction, no dose is neutral",
    "cap": "the projection is at least dose |v| at each block: a floor, which pushes to the positive pole",
}


class HealError(ValueError):
    """A step of the heal loop cannot be done as asked. The message names field or row, and the cure."""


@dataclass(frozen=True, eq=False)
class Teacher:
    """How a vector steers.

    Attributes:
        blocks: ascending indices; more than one is a band.
        operator: one of `DOSES`.
        scope: "all" positions, or "generated" only.
        version: content hash of the stored vector; None: the vector's digest.
    """

    vector: PersonaVector
    blocks: tuple[int, ...]
    operator: str = ADD
    scope: str = "all"
    version: str | None = None

    @property
    def name(self) -> str:
        return self.vector.persona

    @property
    def max_dose(self) -> float:
        """A larger dose has no meaning."""
        return float(len(self.blocks)) if self.operator == "rotate" else float("inf")

    def alpha(self, dose: float) -> float:
        """What a dose is at a block, as `SteeringTerm.alpha`, averaged over the blocks."""
        return float(np.mean([term.alpha for term in self._terms(dose)]))

    def plan(self, dose: float, variant: str | None = None) -> SteeringPlan:
        """The plan of a dose; one without terms where the dose changes nothing.

        Args:
            variant: its name; default: the teacher's, with operator and dose.

        Raises:
            HealError: the dose is beyond `max_dose`.
        """
        if not abs(dose) <= self.max_dose:
            raise HealError(
                f"teacher {self.name!r}: dose {dose:g} rotates by more than the whole angle; "
                f"{self.max_dose:g} is the largest"
            )
        name = variant or f"{self.name}_{self.operator}_dose{dose:+g}"
        neutral = dose == 0 and self.operator in (ADD, "rotate")
        return SteeringPlan(name, () if neutral else tuple(self._terms(dose)), self.scope, STREAM)

    def randomised(self, seed: int) -> "Teacher":
        """The same with a random direction, uniform on the sphere, of the vector's length at each block.

        A band has one direction at all its blocks, as a vector's own are much the same there; several would weaken
        each other.
        """
        width = self.vector.raw.shape[1]
        drawn = np.random.default_rng(seed).standard_normal(width)
        direction = (drawn / np.linalg.norm(drawn)).astype(np.float32)
        lengths = np.linalg.norm(self.vector.raw, axis=1, keepdims=True).astype(np.float32)
        vector = replace(self.vector, persona=f"random:{self.name}", raw=lengths * direction)
        return replace(self, vector=vector, version=f"random-{seed}")

    def _terms(self, dose: float) -> list[SteeringTerm]:
        return [self._term(block, dose) for block in self.blocks]

    def _term(self, block: int, dose: float) -> SteeringTerm:
        length, n = float(np.linalg.norm(self.vector.at(block))), len(self.blocks)
        alpha = {ADD: dose * length / n, "rotate": dose / n}.get(self.operator, dose * length)
        term = make_term(self.vector, Site(block, self.vector.site), alpha, version=self.version)
        if self.operator == ADD:
            return term
        if self.operator == "cap":  # a floor, see `sites.OPERATORS`
            return replace(term, unit=-term.unit, alpha=-alpha, operator="cap")
        fraction = None if self.operator == "rotate" else term.dose_fraction
        return replace(term, operator=self.operator, dose_fraction=fraction)


def make_teacher(
    vector: PersonaVector,
    blocks: Sequence[int | float] | None = None,
    *,
    operator: str = ADD,
    scope: str = "all",
    version: str | None = None,
) -> Teacher:
    """A teacher at the given blocks.

    Args:
        blocks: indices, negative ones from the end, or fractions of depth; default: the vector's default block.

    Raises:
        HealError: an unknown operator, or none or the same block twice.
        VectorError: the vector has no direction at a block.
    """
    if operator not in OPERATORS:
        raise HealError(f"operator {operator!r}; choose from {', '.join(OPERATORS)}")
    wanted = [vector.default_block] if blocks is None else list(blocks)
    at = sorted(resolve_site(block, vector.n_blocks).block for block in wanted)
    if not at or len(set(at)) < len(at):
        raise HealError(f"blocks {wanted} are blocks {at} of {vector.n_blocks}; name each once")
    for block in at:
        vector.at(block)
    return Teacher(vector, tuple(at), operator, scope, version)


def band(n_blocks: int, low: float, high: float) -> list[int]:
    """The blocks from one fraction of depth up to another; at least the one that `low` is in."""
    return list(range(int(low * n_blocks), max(int(high * n_blocks), int(low * n_blocks) + 1)))
