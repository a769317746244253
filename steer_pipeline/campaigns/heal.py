"""`steer make heal` and `steer make barrier_sweep`: a trait steered, filtered, learned and judged, and learned again.

All arms and seeds of the profile's `heal` in one process, then the stage table, then rounds with the best arm. What is
fresh is left alone; an arm that fails is named and the others go on. The contrast set and vector of the persona are
made first where they are missing. The sweep trains on the kept texts that there are, under other strengths.
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
from steer_pipeline.partitions import ARM, HEAL, HEALED, SWEPT, TRAINED_ARM
from steer_pipeline.settings import settings

VECTOR = ("contrast_set", "persona_vector")
DATA = ("heal_dose", "heal_samples", "heal_keep_set")
ADAPTER, EVALUATION, TABLE, SWEEP = (
    "heal_adapter",
    "heal_evaluation",
    "heal_stage_table",
    "heal_barrier_sweep",
)
ROUNDS = tuple(f"heal_round_{number}" for number in range(1, HEAL.rounds + 1))
TRAJECTORY = "heal_trajectory"
TABLES = (TABLE, *ROUNDS, TRAJECTORY) if ROUNDS else (TABLE,)
NEEDED = ("base", "steered", "nll")  # beside which every other arm stands


@dataclass
class Heal(Campaign):
    """One pass over the heal loop.

    Attributes:
        arms: to be trained and evaluated.
        tables: what is made of their evaluations, in order.
    """

    arms: Sequence[str]
    tables: Sequence[str]

    def run(self) -> dict[str, Any]:
        """Makes what is missing or out of date; the numbers of the last line.

        Raises:
            Stopped: there are no texts to learn from.
        """
        self.driver.observe()
        self.bring_up(CORPUS, None)
        self.bring_up(VECTOR, HEAL.persona)
        self.bring_up(DATA, None)
        for arm in self.arms:
            # One by one: more arms are evaluated than trained, so that both have no partitions in common for Dagster.
            all(self.bring_up((asset,), arm, stop=False) for asset in _chain(arm))
        for table in self.tables:
            if not self.bring_up((table,), None, stop=False):
                break
        if TABLE in self.tables:
            self.problems += self.moved_controls(TABLE)
        return self.numbers()

    def places(self) -> list[Place]:
        return [
            *((asset, None) for asset in CORPUS),
            *((asset, HEAL.persona) for asset in VECTOR),
            *((asset, None) for asset in DATA),
            *((asset, arm) for arm in self.arms for asset in _chain(arm)),
            *((table, None) for table in self.tables),
        ]

    def forced(self, asset: str) -> bool:
        """It heals again and makes neither vector nor samples anew."""
        return asset in (ADAPTER, EVALUATION, *self.tables)

    def numbers(self) -> dict[str, Any]:
        """Stage table, rounds and sweep, as far as this pass makes and the store has them."""
        import polars as pl

        from steer_pipeline.lab.heal import rounds, stage, sweep

        found: dict[str, Any] = {}
        stored = {table: self.store.current(table, None) for table in self.tables}
        if (version := stored.get(TABLE)) is not None:
            found["arms"] = stage.headline(stage.read_stage(version.path))
        if (version := stored.get(TRAJECTORY)) is not None:
            rows = pl.read_parquet(version.path / rounds.TRAJECTORY)
            found["rounds"] = rows.select(
                "number", "difference", "coherence", "cosine", "dose", "kept", "verdict", "stopped"
            ).to_dicts()
            found["last_good_round"] = rounds.last_good(rows)
        if (version := stored.get(SWEEP)) is not None:
            table = pl.read_parquet(version.path / sweep.TABLE)
            found["sweep"] = table.select("barrier", "strength", "difference", "coherence", "kl").to_dicts()
            found["monotone"] = sweep.strength_orders_kl(pl.read_parquet(version.path / sweep.SEEDS)).passed
        return found


def _chain(arm: str) -> tuple[str, ...]:
    return (ADAPTER, EVALUATION) if arm in TRAINED_ARM.get_partition_keys() else (EVALUATION,)


def chosen(only: Sequence[str]) -> list[str]:
    """The arms named and those that every other stands beside, or all of the profile.

    Raises:
        NoSuchName: a name is no arm, or the profile heals nothing.
    """
    if not HEALED:
        raise NoSuchName(
            f"profile {settings().profile.name} does without persona {HEAL.persona}, whom its `heal` is about; name "
            "another in heal.persona"
        )
    arms = [arm for arm in ARM.get_partition_keys() if arm not in SWEPT]
    if unknown := [name for name in only if name not in arms]:
        raise NoSuchName(f"{', '.join(unknown)}: no arm; the profile's heal has {', '.join(arms)}")
    return [arm for arm in arms if not only or arm in only or arm in NEEDED]


def make_heal(
    defs: dg.Definitions, only: Sequence[str] = (), *, force: bool = False, dry_run: bool = False, **how: Any
) -> Result:
    """Brings the heal loop up to date: numbers by arm and round, and what went wrong in sentences.

    Args: as `make_pilot`, `only` being arms; `force` heals again and leaves vectors and samples alone.
    """
    return _made(defs, chosen(only), TABLES, force=force, dry_run=dry_run, **how)


def make_sweep(defs: dg.Definitions, *, force: bool = False, dry_run: bool = False, **how: Any) -> Result:
    """Brings the barrier sweep up to date: numbers by strength, and whether they are monotone. Args: as `make_heal`."""
    arms = [arm for arm in chosen(()) if arm in NEEDED]
    return _made(defs, [*arms, *SWEPT], (SWEEP,), force=force, dry_run=dry_run, **how)


def _made(
    defs: dg.Definitions,
    arms: Sequence[str],
    tables: Sequence[str],
    *,
    force: bool,
    dry_run: bool,
    **how: Any,
) -> Result:
    begin = partial(Heal, arms=arms, tables=tables, force=force)
    return carried_out(defs, begin, dry_run=dry_run, **how)
