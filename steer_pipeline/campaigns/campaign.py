"""What `steer make pilot` and `steer make behaviour` share: bringing chains of assets up to date in one process.

Drives the real asset graph in topological order with one model load. What is fresh by Dagster's own account, and passed
its checks, is left alone.
"""

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import dagster as dg

from steer_pipeline.campaigns.driver import Driver, Outcome, open_driver
from steer_pipeline.campaigns.errors import Stopped
from steer_pipeline.campaigns.progress import Place, Progress, say
from steer_pipeline.io.store import ArtifactStore, StoreError, label
from steer_pipeline.keys import key
from steer_pipeline.resources import open_store
from steer_pipeline.settings import settings


@dataclass(frozen=True)
class Result:
    """What a campaign has come to: numbers by name, what went wrong in sentences, or what it would make and why."""

    numbers: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    plan: dict[Place, str] = field(default_factory=dict)


@dataclass
class Campaign(ABC):
    """One pass over a part of the graph.

    `problems` gathers what must make the command fail without stopping it.
    """

    driver: Driver
    force: bool = field(default=False, kw_only=True)
    problems: list[str] = field(default_factory=list, kw_only=True)
    started: float = field(default_factory=time.monotonic, kw_only=True)
    say: Callable[[str], None] = field(default=say, kw_only=True)
    progress: Progress = field(default_factory=lambda: Progress({}), kw_only=True)

    @abstractmethod
    def run(self) -> dict[str, Any]:
        """Makes what is missing or out of date; the numbers that the last line shows."""

    @abstractmethod
    def places(self) -> list[Place]:
        """All that this pass looks at, upstream first."""

    def forced(self, asset: str) -> bool:
        """Whether `force` makes it again, fresh or not."""
        return True

    def gates(self, selected: Sequence[str]) -> list[tuple[str, str]]:
        """Checks (asset, name) of assets that are not made now, to run before these."""
        return []

    @cached_property
    def store(self) -> ArtifactStore:
        return open_store(settings())

    def plan(self) -> dict[Place, str]:
        """What would be made, and why; some of it only if what is made above it does not stay equal."""
        self.driver.observe()
        found: dict[Place, str] = {}
        for asset, partition in self.places():
            if why := self.why(asset, partition):
                found[asset, partition] = "; ".join(why)
            elif above := self._above(asset, partition, found):
                found[asset, partition] = f"if {above} does not stay equal"
        return found

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Meanwhile a bar shows how far this pass has come, where there is a terminal to show it on.

        Raises:
            NotHere: see `Driver.require_lasting`.
        """
        self.driver.require_lasting()
        if sys.stderr.isatty():
            self.progress = Progress({place: self.driver.seconds(place[0]) for place in self.plan()})
        try:
            yield
        finally:
            self.progress.close()

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
        self.progress.done((name, partition) for name in chain)
        return True

    def moved_controls(self, asset: str) -> list[str]:
        """Sentences on controls that moved in a table: its report and check say so, and the command fails by it."""
        from steer_pipeline.lab.controls import moved_controls, read_controls

        version = self.store.current(asset, None)
        found = [] if version is None else moved_controls(read_controls(version.path))
        return [f"{asset}: {sentence}" for sentence in found]

    def is_stale(self, asset: str, partition: str | None) -> bool:
        """Whether there is a reason to make it."""
        return bool(self.why(asset, partition))

    def why(self, asset: str, partition: str | None) -> list[str]:
        """Not in this store; changed in code or inputs (Dagster's answer); or stopped by its checks last time."""
        if self.force and self.forced(asset):
            return ["--force"]
        stale = self.driver.stale(asset, [partition])
        if stale:
            return stale[partition]
        if not self._stored(asset, partition):
            return ["is not in this store, or damaged"]
        return ["its checks have not passed"] if self.driver.ungated(asset, partition) else []

    def _stored(self, asset: str, partition: str | None) -> bool:
        try:
            version = self.store.current(asset, partition)
            if version and "://" not in self.store.address:  # asking a remote one would download it
                _ = version.path
        except StoreError:  # damaged: made again, it is whole
            return False
        return version is not None

    def _above(self, asset: str, partition: str | None, found: dict[Place, str]) -> str | None:
        """One of the places `found` that this one is made of."""
        parents = self.driver.asset_graph.get(key(asset)).parent_keys
        for parent, above in found:
            if key(parent) in parents and above in self.driver.staleness.reads(
                key(parent), key(asset), partition
            ):
                return label(parent, above)
        return None

    def materialize(self, assets: Sequence[str], **what: Any) -> Outcome:
        """One run, with a line on stdout; `what` as `Driver.materialize` takes it."""
        partitions = self._partitions(assets[0], what)
        where = f" [{', '.join(p for p in partitions if p)}]" if partitions != [None] else ""
        name = f"{' + '.join(assets)}{where}"
        self.progress.begins(name)
        begun = time.monotonic()
        outcome = self.driver.materialize(assets, **what)
        now = time.monotonic()
        state = "" if outcome.success else "   FAILED"
        self.say(f"{now - self.started:7.1f} s  {name} ({now - begun:.1f} s){state}")
        self.progress.done((asset, partition) for asset in assets for partition in partitions)
        return outcome

    @staticmethod
    def require(outcome: Outcome) -> None:
        """Raises Stopped with what failed."""
        if not outcome.success:
            raise Stopped("\n".join([*outcome.stopped_by, *outcome.errors]))

    def _partitions(self, asset: str, what: dict[str, Any]) -> list[str | None]:
        if not what.get("span"):
            return [what.get("partition")]
        first, last = what["span"]
        keys = self.driver.partitions(asset)
        return list(keys[keys.index(first) : keys.index(last) + 1])


def carried_out(
    defs: dg.Definitions,
    begin: Callable[..., Campaign],
    *,
    dry_run: bool,
    instance: dg.DagsterInstance | None = None,
    **how: Any,
) -> Result:
    """Runs the campaign that `begin` makes, or plans it; what stopped it is one more problem beside those gathered.

    Args:
        begin: makes it of a driver and `how`.
    """
    problems: list[str] = []
    try:
        with open_driver(defs, settings().home, instance) as driver:
            campaign = begin(driver, **how)
            problems = campaign.problems
            if dry_run:
                return Result(plan=campaign.plan(), problems=problems)
            with campaign.shown():
                return Result(campaign.run(), problems)
    except Stopped as error:
        return Result(problems=[*problems, str(error)])
