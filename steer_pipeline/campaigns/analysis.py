"""`steer make analysis`: what tuning changed in the weights of the profile's pairs, within nulls.

What is fresh is left alone. Adapters that pairs and their null stand on are made first where they are missing, and
packs before them, in the pilot's size; students' transfer is not needed and not made. A pair that fails is named and
the others go on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import dagster as dg

from steer_pipeline.campaigns.campaign import Campaign, Result, carried_out
from steer_pipeline.campaigns.errors import NoSuchName
from steer_pipeline.campaigns.heal import DATA
from steer_pipeline.campaigns.pilot import CORPUS
from steer_pipeline.campaigns.progress import Place
from steer_pipeline.campaigns.students import KEEP, Students
from steer_pipeline.partitions import ANALYSIS, CLEAN, DICTIONARY, EXPERIMENTS, HEAL
from steer_pipeline.settings import settings

VECTOR = ("contrast_set", "persona_vector")
STUDENT, ARM = "student_adapter", "heal_adapter"
BASIS, CLEANNESS = "analysis_basis", "clean_students"
OF_PAIR = (
    "model_pair",
    "weight_susceptibility",
    "mlp_interpretation",
    "attention_patterns",
    "activation_difference",
    "pair_report",
)
AUDIT, SCREENING, PREVENTION = "checkpoint_audit", "data_screening", "preventative_steering"
ANALYSED = (BASIS, CLEANNESS, *OF_PAIR, *EXPERIMENTS)


@dataclass
class Analysis(Campaign):
    """One pass over pairs and what they are made of."""

    pairs: Sequence[str]

    def run(self) -> dict[str, Any]:
        """Makes what is missing or out of date; the numbers of the last line.

        Raises:
            Stopped: there are no news, or no dictionary.
        """
        self.driver.observe()
        self.bring_up(CORPUS, None)
        if self.students.pilot is not None:
            self.students.pilot.run()
        for persona in self._personas():
            self.bring_up(VECTOR, persona)
        for variant in self.variants:
            self.bring_up(self._learning(variant), variant, stop=False)
        if self.arms:
            self.bring_up(DATA, None)
            for arm in self.arms:
                self.bring_up((ARM,), arm, stop=False)
        self.bring_up((BASIS,), None)
        self.bring_up((CLEANNESS,), None)
        for pair in self.pairs:
            self.bring_up(OF_PAIR, pair, stop=False)
        for asset in EXPERIMENTS:
            self.bring_up((asset,), None, stop=False)
        return self.numbers()

    def places(self) -> list[Place]:
        pilot = self.students.pilot
        return [
            *((asset, None) for asset in CORPUS),
            *(pilot.places() if pilot is not None else []),
            *((asset, persona) for persona in self._personas() for asset in VECTOR),
            *((asset, variant) for variant in self.variants for asset in self._learning(variant)),
            *((asset, None) for asset in (DATA if self.arms else ())),
            *((ARM, arm) for arm in self.arms),
            (BASIS, None),
            (CLEANNESS, None),
            *((asset, pair) for pair in self.pairs for asset in OF_PAIR),
            *((asset, None) for asset in EXPERIMENTS),
        ]

    def forced(self, asset: str) -> bool:
        """It analyses again and makes no vector and no student anew."""
        return asset in ANALYSED

    def why(self, asset: str, partition: str | None) -> list[str]:
        if self.students.pilot is not None and (asset, partition) in self.students.pilot.places():
            return self.students.pilot.why(asset, partition)
        return super().why(asset, partition)

    @cached_property
    def variants(self) -> list[str]:
        """Whose students are analysed, the clean ones first, where any are asked for."""
        asked = [ANALYSIS.pairs[pair].student for pair in self.pairs]
        clean = CLEAN if ANALYSIS.clean_pairs else []
        return list(dict.fromkeys([*clean, *(name for name in asked if name is not None)]))

    @cached_property
    def arms(self) -> list[str]:
        """Arms of the heal loop whose students are analysed."""
        asked = [ANALYSIS.pairs[pair].heal for pair in self.pairs]
        return list(dict.fromkeys(name for name in asked if name is not None))

    @cached_property
    def students(self) -> Students:
        """What makes the packs that are missing."""
        variants = {name: settings().variants[name] for name in self.variants}
        return Students(self.driver, variants, problems=self.problems, say=self.say, started=self.started)

    def numbers(self) -> dict[str, Any]:
        """Findings by pair, how often the rule finds something in pairs of two clean students, and what came of audit,
        screening and prevention.
        """
        import json

        import polars as pl

        from steer_pipeline.lab.analysis.audit_steps import experiments_headline
        from steer_pipeline.lab.analysis.report import FINDINGS, headline
        from steer_pipeline.lab.analysis.steps import RATE

        found: dict[str, Any] = {}
        for pair in self.pairs:
            if (version := self.store.current("pair_report", pair)) is not None:
                found[pair] = headline(pl.read_parquet(version.path / FINDINGS))
        if (version := self.store.current(CLEANNESS, None)) is not None:
            found["clean_pairs"] = json.loads((version.path / RATE).read_text())
        stored = {name: self.store.current(name, None) for name in (AUDIT, SCREENING, PREVENTION)}
        return found | experiments_headline(
            {name: one.path for name, one in stored.items() if one is not None}
        )

    def _personas(self) -> list[str]:
        return list(dict.fromkeys([*DICTIONARY, *([HEAL.persona] if self.arms else [])]))

    def _learning(self, variant: str) -> tuple[str, ...]:
        """What is made of a variant; of a pack that was released despite its gates nobody has made a keep set yet."""
        kept = not self._stored("rewrite_release", variant) or self._stored(KEEP, variant)
        return (STUDENT,) if kept else (KEEP, STUDENT)


def chosen(only: Sequence[str]) -> list[str]:
    """The pairs named, or all of the profile's.

    Raises:
        NoSuchName: a name is no pair, or the profile has none.
    """
    if not ANALYSIS.pairs:
        raise NoSuchName(
            f"profile {settings().profile.name} has no pairs to analyse; give it "
            "`analysis: {pairs: {NAME: {student: VARIANT}}}`"
        )
    if unknown := [name for name in only if name not in ANALYSIS.pairs]:
        raise NoSuchName(f"{', '.join(unknown)}: no pair; the profile has {', '.join(ANALYSIS.pairs)}")
    return [name for name in ANALYSIS.pairs if not only or name in only]


def make_analysis(
    defs: dg.Definitions, only: Sequence[str] = (), *, force: bool = False, dry_run: bool = False, **how: Any
) -> Result:
    """Brings the analysis up to date: findings by pair, and what went wrong in sentences.

    Args: as `make_pilot`, `only` being pairs; `force` analyses again and leaves vectors and students alone.
    """
    pairs = chosen(only)
    begin = partial(Analysis, pairs=pairs, force=force)
    return carried_out(defs, begin, dry_run=dry_run, **how)
