"""`steer make students`: adapters that learn the released packs, what they do on held-out news, and their comparison.

All variants and controls, every rank and seed, in one process. What is fresh is left alone; a variant that fails is
named and the others go on. Packs that nobody has released yet are made first, in the pilot's size; what their gates
stop, a person may release all the same (`steer release promote VARIANT --despite WHY`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import dagster as dg

from steer_pipeline.campaigns.campaign import Campaign, Result, carried_out
from steer_pipeline.campaigns.pilot import REFERENCES, Pilot, chosen
from steer_pipeline.campaigns.progress import Place
from steer_pipeline.catalogue.specs import VariantSpec
from steer_pipeline.partitions import ARMED, BASE
from steer_pipeline.settings import settings

KEEP, RELEASE = "keep_set", "rewrite_release"
CHAIN = ("student_adapter", "student_transfer", "student_mechanism")
ARMS, COMPARISON = "student_arms", "student_comparison"


@dataclass
class Students(Campaign):
    """One pass over students and, where packs are missing, over the pilot before them."""

    variants: dict[str, VariantSpec]

    def run(self) -> dict[str, Any]:
        """Makes what is missing or out of date; numbers by variant and rank, none where the comparison fails."""
        self.driver.observe()
        if self.pilot is not None:
            self.pilot.run()
        for variant in self.variants:
            if self._released(variant):
                self.bring_up(self._chain(variant), variant, stop=False)
            else:
                self.problems.append(f"{variant}: nothing is released of it, so there is nothing to learn")
        if not self.bring_up((COMPARISON,), None, stop=False):
            return {}
        self.problems += self.moved_controls(COMPARISON)
        return self.numbers()

    def places(self) -> list[Place]:
        return [
            *(self.pilot.places() if self.pilot is not None else []),
            *((asset, variant) for variant in self.variants for asset in self._chain(variant)),
            (COMPARISON, None),
        ]

    def why(self, asset: str, partition: str | None) -> list[str]:
        if self.pilot is not None and (asset, partition) in self.pilot.places():
            return self.pilot.why(asset, partition)
        return super().why(asset, partition)

    @cached_property
    def pilot(self) -> Pilot | None:
        """What makes the packs that are missing, beside those that they are compared with; None where none is."""
        missing = {name for name in self.variants if not self._released(name)}
        if not missing:
            return None
        made = {name: spec for name, spec in self.variants.items() if name in missing | set(REFERENCES)}
        return Pilot(self.driver, made, problems=self.problems, say=self.say, started=self.started)

    def numbers(self) -> dict[str, Any]:
        """What the last line shows of the variants that were asked for."""
        from steer_pipeline.lab.students.comparison import read_tables
        from steer_pipeline.lab.students.report import headline

        found = headline(read_tables(self.store.current(COMPARISON, None).path))
        return {name: numbers for name, numbers in found.items() if name in self.variants}

    def _chain(self, variant: str) -> tuple[str, ...]:
        """What is made of a variant; arms only where it or, for base, another variant of this pass has some.

        Of a pack that was released despite its gates nobody has made a keep set yet.
        """
        asked = set(ARMED[1:]) & set(self.variants)
        kept = not self._released(variant) or self._stored(KEEP, variant)
        return (
            *(() if kept else (KEEP,)),
            *CHAIN,
            *((ARMS,) if asked and variant in {BASE, *asked} else ()),
        )

    def _released(self, variant: str) -> bool:
        return self._stored(RELEASE, variant)


def make_students(
    defs: dg.Definitions, only: Sequence[str] = (), *, force: bool = False, dry_run: bool = False, **how: Any
) -> Result:
    """Brings students up to date: their numbers by variant and rank, and what went wrong in sentences.

    Args: as `make_pilot`; `force` trains again and leaves packs alone.
    """
    catalogue = settings()
    controls = ("base", *catalogue.profile.students.controls)
    variants = chosen(catalogue.variants, only, catalogue.broken_variants, controls)
    begin = partial(Students, variants=variants, force=force)
    return carried_out(defs, begin, dry_run=dry_run, **how)
