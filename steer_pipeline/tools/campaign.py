"""What `make pilot` and `make behaviour` share: bringing chains of assets up to date in one process.

Drives the real asset graph in topological order with one model load. What is already made from the same
code, inputs, profile, catalogue and weights is left alone. A subclass says what an asset is made of.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from steer_pipeline.io.store import ArtifactStore
from steer_pipeline.resources import open_store
from steer_pipeline.settings import settings
from steer_pipeline.tools.driver import Driver, Outcome

NOTE = "pilot"  # beside each version that a campaign made: what it was made of


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

    def says(self, asset: str, partition: str | None) -> list[Any]:
        """What profile, catalogue and files outside the graph say about one partition; JSON values."""
        raise NotImplementedError

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
        """Never made; code or inputs changed (Dagster's answer); stopped by its checks when they last ran; or
        the catalogue says otherwise than then.
        """
        version = self.store.current(asset, partition)
        if self.force or version is None or self.driver.stale(asset, [partition]):
            return True
        if self.driver.ungated(asset, partition):
            return True
        note = self.store.annotation(asset, partition, version.sha, NOTE)
        return note is not None and note["made_of"] != self._made_of(asset, partition)

    def materialize(self, assets: Sequence[str], **what: Any) -> Outcome:
        """One run, with a line on stdout; `what` as `Driver.materialize` takes it."""
        partitions = self._partitions(assets[0], what)
        begun = time.monotonic()
        outcome = self.driver.materialize(assets, **what)
        for asset in set(assets) & set(outcome.materialised):
            for partition in partitions:
                self._note(asset, partition)
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

    @cached_property
    def weights(self) -> str | None:
        """Identity of the model's files where it is a directory; a hub id has its revision in the profile."""
        from steer_pipeline.lab.models.identity import adapter_folders, adapter_identity, model_identity

        model, home = settings().profile.model, settings().home
        if (home / model.path).is_dir():
            return str(model_identity(model, home))
        return " ".join(map(adapter_identity, adapter_folders(model, home))) or None

    def _partitions(self, asset: str, what: dict[str, Any]) -> list[str | None]:
        if not what.get("span"):
            return [what.get("partition")]
        first, last = what["span"]
        keys = self.driver.partitions(asset)
        return list(keys[keys.index(first) : keys.index(last) + 1])

    def _made_of(self, asset: str, partition: str | None) -> str:
        """Hash of what Dagster does not know an asset partition to be made of."""
        told = [asset, *self.says(asset, partition)]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]

    def _note(self, asset: str, partition: str | None) -> None:
        version = self.store.current(asset, partition)
        if version is not None:
            note = {"made_of": self._made_of(asset, partition)}
            self.store.annotate(asset, partition, version.sha, NOTE, note)


def rounded(value: Any) -> Any:
    """Numbers of nested dictionaries to four digits."""
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    return round(value, 4) if isinstance(value, float) else value
