"""`steer make behaviour`: the behaviour lab in one process, from scored dialogues to the table of all personas.

For every trait and role: learns vectors, compares them with prompting, averaged and random ones, lets all of
them speak and scores it. What is fresh is left alone. A persona that fails is named and the others go on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import dagster as dg
import polars as pl

from steer_pipeline.campaigns.campaign import Campaign, Result, carried_out
from steer_pipeline.campaigns.errors import NoSuchName
from steer_pipeline.campaigns.progress import Place
from steer_pipeline.partitions import TRAIT_OR_ROLE

CHAIN = (
    "behaviour_set",
    "lr_sweep",
    "trained_vector",
    "vector_comparison",
    "rollouts",
    "minilm_scores",
    "judge_scores",
)
TABLE = "behaviour_table"


@dataclass
class Behaviour(Campaign):
    """One pass over the behaviour lab."""

    personas: Sequence[str]

    def run(self) -> dict[str, Any]:
        self.driver.observe()
        for persona in self.personas:
            self.bring_up(CHAIN, persona, stop=False)
        if self.bring_up((TABLE,), None, stop=False):
            self.problems += self.moved_controls(TABLE)
        return self.numbers()

    def places(self) -> list[Place]:
        return [*((asset, persona) for persona in self.personas for asset in CHAIN), (TABLE, None)]

    def numbers(self) -> dict[str, dict[str, float | None]]:
        """What the last line shows of every persona that was asked for and has been compared."""
        from steer_pipeline.lab.behaviour.table import minilm_headline
        from steer_pipeline.lab.likelihood.tables import headline

        compared = {name: self.store.current("vector_comparison", name) for name in self.personas}
        scored = {name: self.store.current("minilm_scores", name) for name in self.personas}
        aucs = minilm_headline(
            {name: pl.read_parquet(v.path / "data.parquet") for name, v in scored.items() if v}
        )
        return {
            name: {**headline(version.path), "minilm_auc": aucs.get(name)}
            for name, version in compared.items()
            if version
        }


def chosen(only: Sequence[str]) -> list[str]:
    """The personas named, or all traits and roles.

    Raises:
        NoSuchName: a name is not one of them.
    """
    known = TRAIT_OR_ROLE.get_partition_keys()
    if unknown := [name for name in only if name not in known]:
        raise NoSuchName(f"no trait or role {', '.join(unknown)}; the catalogue has {', '.join(known)}")
    return [name for name in known if not only or name in only]


def make_behaviour(
    defs: dg.Definitions, only: Sequence[str] = (), *, force: bool = False, dry_run: bool = False, **how: Any
) -> Result:
    """Brings the behaviour lab up to date: its numbers by persona, and what went wrong in sentences.

    Args: as `make_pilot`, `only` being personas.
    """
    personas = chosen(only)
    begin = partial(Behaviour, personas=personas, force=force)
    return carried_out(defs, begin, dry_run=dry_run, **how)
