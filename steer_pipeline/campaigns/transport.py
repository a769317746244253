"""`steer make transport`: persona vectors carried to the model that the profile's `transport` names.

What is fresh is left alone; contrast sets and vectors that are missing are made first. A persona that fails is named
and the others go on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import dagster as dg

from steer_pipeline.campaigns.campaign import Campaign, Result, carried_out
from steer_pipeline.campaigns.errors import NoSuchName
from steer_pipeline.campaigns.pilot import CORPUS
from steer_pipeline.campaigns.progress import Place
from steer_pipeline.partitions import CARRIED
from steer_pipeline.settings import settings

VECTOR = ("contrast_set", "persona_vector")
CARRY = "vector_transport"


@dataclass
class Transport(Campaign):
    """One pass over carried vectors and what they are made of."""

    personas: Sequence[str]

    def run(self) -> dict[str, Any]:
        """Makes what is missing or out of date; numbers by persona.

        Raises:
            Stopped: there are no news.
        """
        self.driver.observe()
        self.bring_up(CORPUS, None)
        # Maps are also fitted on the answers of the other personas, so that all of them come first.
        able = [name for name in CARRIED if self.bring_up(VECTOR, name, stop=False)]
        for persona in self.personas:
            if persona in able:
                self.bring_up((CARRY,), persona, stop=False)
        return self.numbers()

    def places(self) -> list[Place]:
        return [
            *((asset, None) for asset in CORPUS),
            *((asset, persona) for persona in CARRIED for asset in VECTOR),
            *((CARRY, persona) for persona in self.personas),
        ]

    def forced(self, asset: str) -> bool:
        """It carries again and makes no vector anew."""
        return asset == CARRY

    def numbers(self) -> dict[str, Any]:
        """What the last line shows of the personas that were asked for."""
        from steer_pipeline.lab.transport.measuring import read_summary

        found = {name: self.store.current(CARRY, name) for name in self.personas}
        return {name: read_summary(version.path) for name, version in found.items() if version}


def chosen(only: Sequence[str]) -> list[str]:
    """The personas named, or all of the profile's `transport.personas`.

    Raises:
        NoSuchName: a name is not one of them, or the profile carries nothing.
    """
    if not CARRIED:
        raise NoSuchName(
            f"profile {settings().profile.name} names no model to carry vectors to; give it "
            "`transport: {model: {path: ...}}`"
        )
    if unknown := [name for name in only if name not in CARRIED]:
        raise NoSuchName(
            f"{', '.join(unknown)}: not carried; the profile's transport.personas are {', '.join(CARRIED)}"
        )
    return [name for name in CARRIED if not only or name in only]


def make_transport(
    defs: dg.Definitions, only: Sequence[str] = (), *, force: bool = False, dry_run: bool = False, **how: Any
) -> Result:
    """Brings carried vectors up to date: their numbers by persona, and what went wrong in sentences.

    Args: as `make_pilot`, `only` being personas; `force` carries again and leaves vectors alone.
    """
    personas = chosen(only)
    begin = partial(Transport, personas=personas, force=force)
    return carried_out(defs, begin, dry_run=dry_run, **how)
