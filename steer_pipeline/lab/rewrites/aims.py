"""What variants aim at, and on which scale it is told whether they reach it.

In: variants of the catalogue and the metrics of a comparison. Out: aims with their trait columns.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from steer_pipeline.catalogue.specs import VariantSpec

SIGNS = {"up": 1, "down": -1}
# Of a persona's scales the first that a comparison has: a lexicon is exact about what was planted, and where it was.
SCALES = ("lexicon", "minilm")
TRAIT = "trait_"


@dataclass(frozen=True)
class Aim:
    """One trait that a variant is meant to move.

    Attributes:
        wanted: `up` or `down`.
    """

    persona: str
    wanted: str
    scale: str

    @property
    def column(self) -> str:
        return trait_column(self.persona, self.scale)


def trait_column(persona: str, scale: str) -> str:
    """`trait_paranoid_lexicon`."""
    return f"{TRAIT}{persona}_{scale}"


def headline_scales(metrics: Iterable[str]) -> dict[str, str]:
    """persona -> the scale that its numbers are told on: its lexicon's where the comparison has it, else MiniLM's.

    Args:
        metrics: of a summary, or columns of its rows; what is no trait is passed over.
    """
    found: dict[str, str] = {}
    for metric in metrics:
        if not metric.startswith(TRAIT):
            continue
        persona, _, scale = metric.removeprefix(TRAIT).rpartition("_")
        before = found.get(persona)
        if before is None or (scale in SCALES and SCALES.index(scale) < SCALES.index(before)):
            found[persona] = scale
    return found


def aims_of(
    variants: Mapping[str, VariantSpec], scales: Mapping[str, str], *, prompted: bool = True
) -> dict[str, list[Aim]]:
    """variant -> its aims on scales that there are, in the catalogue's order; variants without an aim are left out.

    Args:
        scales: of `headline_scales`.
        prompted: a prompted variant aims at the persona that it is prompted for.
    """
    found = {}
    for name, variant in variants.items():
        wanted = dict(variant.targets)
        if prompted and variant.prompted_by:
            wanted.setdefault(variant.prompted_by, "up")
        aims = [Aim(persona, way, scales[persona]) for persona, way in wanted.items() if persona in scales]
        if aims:
            found[name] = aims
    return found
