"""`steer make attribution`: rows, rankings by all methods, adapters that learn a part of the rows, games, one table.

All methods, arms and seeds of the profile's `attribution` in one process. What is fresh is left alone; a method or arm
that fails is named and the others go on. Methods that need Bergson are left out where it is not installed. A profile
without arms gets rankings, their sanity tests and what features tell of them, and nothing is trained on the ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import dagster as dg
import polars as pl

from steer_pipeline.campaigns.campaign import Campaign, Result, carried_out
from steer_pipeline.campaigns.errors import NoSuchName
from steer_pipeline.campaigns.heal import VECTOR
from steer_pipeline.campaigns.pilot import CORPUS
from steer_pipeline.campaigns.progress import Place
from steer_pipeline.catalogue.attribution import UNTRAINED, compared
from steer_pipeline.partitions import ATTRIBUTION, LEARNER, METHOD

ROWS = ("word_games", "sft_manifest", "base_adapter")
RANKING, SANITY = "attribution_ranking", "attribution_sanity"
PREDICTOR = ("sae", "sae_features", "rank_predictor")
SUBSETS, LOSSES, QUALITY, TABLE = (
    "attribution_subsets",
    "subset_losses",
    "attribution_quality",
    "attribution_table",
)
ADAPTER, EVAL = "continuation_adapter", "word_eval"


@dataclass
class Attribution(Campaign):
    """One pass over attribution.

    Attributes:
        arms: to be trained and to play.
    """

    arms: Sequence[str]

    def run(self) -> dict[str, Any]:
        """Makes what is missing or out of date; the numbers of the last line.

        Raises:
            Stopped: there are no rows, no base adapter, or no subsets.
        """
        self.driver.observe()
        if ATTRIBUTION.direction:
            self.bring_up(CORPUS, None)
            self.bring_up(VECTOR, ATTRIBUTION.direction)
        self.bring_up(ROWS, None)
        for method in self.methods:
            self.bring_up((RANKING,), method, stop=False)
        for asset in _tests():
            self.bring_up((asset,), None, stop=False)
        self.bring_up(PREDICTOR, None, stop=False)
        if not ATTRIBUTION.arms:
            return self.numbers()
        self.bring_up((SUBSETS,), None)
        for player in (*UNTRAINED, *self.arms):
            # One by one: more play than are trained, so that both have no partitions in common for Dagster.
            all(self.bring_up((asset,), player, stop=False) for asset in _chain(player))
        for table in (LOSSES, QUALITY, TABLE):
            if not self.bring_up((table,), None, stop=False):
                break
        return self.numbers()

    def places(self) -> list[Place]:
        aimed: list[Place] = []
        if ATTRIBUTION.direction:
            aimed = [
                *((asset, None) for asset in CORPUS),
                *((asset, ATTRIBUTION.direction) for asset in VECTOR),
            ]
        ranked: list[Place] = [
            *aimed,
            *((asset, None) for asset in ROWS),
            *((RANKING, method) for method in self.methods),
            *((asset, None) for asset in (*_tests(), *PREDICTOR)),
        ]
        if not ATTRIBUTION.arms:
            return ranked
        return [
            *ranked,
            (SUBSETS, None),
            *((asset, player) for player in (*UNTRAINED, *self.arms) for asset in _chain(player)),
            *((table, None) for table in (LOSSES, QUALITY, TABLE)),
        ]

    def forced(self, asset: str) -> bool:
        """It trains arms and plays again, and leaves rows, rankings and trainings without rows alone."""
        return asset in (ADAPTER, EVAL, TABLE)

    @cached_property
    def methods(self) -> list[str]:
        """Methods that can be run here; the others are named."""
        from steer_pipeline.lab.attribution.scoring import bergson
        from steer_pipeline.lab.attribution.scoring.methods import needs_bergson

        lacking = [
            name
            for name, method in ATTRIBUTION.scoring.methods.items()
            if needs_bergson(method) and not bergson.installed()
        ]
        if lacking:
            self.say(f"left out: {', '.join(lacking)}, which need Bergson; `make bergson` installs it")
        return [name for name in METHOD.get_partition_keys() if name not in lacking]

    def numbers(self) -> dict[str, Any]:
        """Accuracy an arm, quality and gain a method, agreement of back ends, what features tell; as far as made."""
        from steer_pipeline.lab.attribution import table
        from steer_pipeline.lab.attribution.soundness import SOUND, headline
        from steer_pipeline.lab.attribution.stage import agreements, read_ranking
        from steer_pipeline.lab.sae.stage import read_predictor

        found: dict[str, Any] = {}
        if (version := self.store.current(TABLE, None)) is not None:
            found |= table.headline(table.read_results(version.path))
        rankings = {name: self.store.current(RANKING, name) for name in self.methods}
        read = {name: read_ranking(name, one.path) for name, one in rankings.items() if one is not None}
        if agreed := agreements(read, ATTRIBUTION.scoring):
            found["back_ends"] = agreed
        if not ATTRIBUTION.arms:
            keys = ("seconds", "coverage")
            found["rankings"] = {
                name: {key: one.numbers.get(key) for key in keys} for name, one in read.items()
            }
        if (version := self.store.current(SANITY, None)) is not None:
            found["sanity"] = headline(pl.read_parquet(version.path / SOUND))
        if (version := self.store.current(PREDICTOR[-1], None)) is not None:
            own, *rivals = read_predictor(version.path).quality.iter_rows(named=True)
            found["predictor"] = {name: own[name] for name in ("spearman", "low", "high", "overlap")}
            found["predictor"] |= {"rivals": {row["predictor"]: row["spearman"] for row in rivals}}
        return found


def _tests() -> tuple[str, ...]:
    return (SANITY,) if ATTRIBUTION.sanity is not None else ()


def _chain(player: str) -> tuple[str, ...]:
    return (EVAL,) if player in UNTRAINED else (ADAPTER, EVAL)


def chosen(only: Sequence[str]) -> list[str]:
    """The arms named and those that every other is compared with, or all of the profile.

    Raises:
        NoSuchName: a name is no arm.
    """
    arms = LEARNER.get_partition_keys()
    if unknown := [name for name in only if name not in arms]:
        raise NoSuchName(f"{', '.join(unknown)}: no arm; the profile's attribution has {', '.join(arms)}")
    return [arm for arm in arms if not only or arm in only or arm in compared(ATTRIBUTION)]


def make_attribution(
    defs: dg.Definitions, only: Sequence[str] = (), *, force: bool = False, dry_run: bool = False, **how: Any
) -> Result:
    """Brings attribution up to date: numbers by arm and method, and what went wrong in sentences.

    Args: as `make_pilot`, `only` being arms; `force` trains arms again and leaves rows and rankings alone.
    """
    arms = chosen(only)
    begin = partial(Attribution, arms=arms, force=force)
    return carried_out(defs, begin, dry_run=dry_run, **how)
