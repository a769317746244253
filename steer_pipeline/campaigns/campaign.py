"""What `steer make pilot` and `steer make behaviour` share: bringing chains of assets up to date in one process.

Drives the real asset graph in topological order with one model load. What is fresh by Dagster's own account, and passed
its checks, is left alone.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from steer_pipeline.campaigns.driver import Driver, Outcome
from steer_pipeline.io.store import ArtifactStore, StoreError
from steer_pipeline.resources import open_store
from steer_pipeline.settings import settings


class Stopped(Exception):
    """A step that the rest stands on has failed; the message says which and why."""


@dataclass
class Campaign:
    """One pass over a part of the graph.

    `problems` gathers what must make the command fail without stopping it.
    """

    driver: Driver
    force: bool = field(default=False, kw_only=True)
    problems: list[str] = field(default_factory=list, kw_only=True)
    started: float = field(default_factory=time.monotonic, kw_only=True)

    def gates(self, selected: Sequence[str]) -> list[tuple[str, str]]:
        """Checks (asset, name) of assets that are not made now, to run before these."""
        return []

    @cached_property
    def store(self) -> ArtifactStore:
        return open_store(settings())

    def bring_up(self, chain: Sequence[str], partition: str | None, *, stop: bool = True) -> bool:
        """Makes what is out of date in a chain of assets of one partition; whether all of it stands now.

        Staleness looks one edge up, so an asset below a remade one is asked again: equal content spares it.

        Raises:
            Stopped: something failed and `stop` is set; without it, it is kept in `problems`.
        """
        remaining = list(chain)
        while stale := [name for name in remaining if self.is_stale(name, partition)]:
            rest = remaining[remaining.index(stale[0]) :]
            selected = rest if rest == stale else rest[:1]
            remaining = rest[len(selected) :]
            outcome = self.materialize(selected, partition=partition, checks=self.gates(selected))
            if stop:
                self.require(outcome)
            elif not outcome.success:
                self.problems += [*outcome.stopped_by, *outcome.errors]
                return False
        return True

    def is_stale(self, asset: str, partition: str | None) -> bool:
        """Not in this store; changed in code or inputs (Dagster's answer); or stopped by its checks last time."""
        if self.force or not self._stored(asset, partition):
            return True
        return bool(self.driver.stale(asset, [partition])) or self.driver.ungated(asset, partition)

    def _stored(self, asset: str, partition: str | None) -> bool:
        try:
            return self.store.current(asset, partition) is not None
        except StoreError:  # damaged: made again, it is whole
            return False

    def materialize(self, assets: Sequence[str], **what: Any) -> Outcome:
        """One run, with a line on stdout; `what` as `Driver.materialize` takes it."""
        partitions = self._partitions(assets[0], what)
        begun = time.monotonic()
        outcome = self.driver.materialize(assets, **what)
        now = time.monotonic()
        where = f" [{', '.join(p for p in partitions if p)}]" if partitions != [None] else ""
        state = "" if outcome.success else "   FAILED"
        label = f"{' + '.join(assets)}{where}"
        print(f"{now - self.started:7.1f} s  {label} ({now - begun:.1f} s){state}", flush=True)
        return outcome

    @staticmethod
    def require(outcome: Outcome) -> None:
        """Raises Stopped with what failed."""
        if not outcome.success:
            raise Stopped("\n".join([*outcome.stopped_by, *outcome.errors]) or f"run {outcome.run_id} failed")

    def _partitions(self, asset: str, what: dict[str, Any]) -> list[str | None]:
        if not what.get("span"):
            return [what.get("partition")]
        first, last = what["span"]
        keys = self.driver.partitions(asset)
        return list(keys[keys.index(first) : keys.index(last) + 1])
