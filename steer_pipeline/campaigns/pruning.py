"""Frees the store of what nothing needs: leftovers of killed writers, old versions that nothing refers to, and rows of
journals that no run will take.

Kept are current versions, every release and what was ever released, all that these were made from, step by step, and
what is younger than a number of days. Of a journal, the rows that the last finished run of a variant used are kept,
however old: with them the same version is made again at once. Meant for when no run writes: a running one may read what
it makes outdated; its journal is left alone.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from steer_pipeline.io.journals import journals, open_journal
from steer_pipeline.io.store import ArtifactStore, Version, label
from steer_pipeline.lab.generation.journal import JournalError, Spare
from steer_pipeline.lab.rewrites.release import POINTER
from steer_pipeline.lab.rewrites.verdicts import RELEASED

KEEP_DAYS = 14.0
LEFTOVER_AGE_S = 24 * 3600.0


@dataclass(frozen=True)
class Old:
    """A version that nothing refers to."""

    asset: str
    partition: str | None
    version: Version


@dataclass(frozen=True)
class Leftover:
    """What a killed writer left in the store's staging folder."""

    path: Path
    bytes: int


@dataclass(frozen=True)
class Idle:
    """Lines of a journal that no run will take; None where a run is writing it."""

    asset: str
    name: str
    spare: Spare | None


@dataclass(frozen=True)
class Waste:
    """What may go; of journals, what no run has used since `unused_since` (seconds since the epoch)."""

    versions: tuple[Old, ...]
    leftovers: tuple[Leftover, ...]
    journals: tuple[Idle, ...]
    unused_since: float

    @property
    def bytes(self) -> int:
        idle = sum(each.spare.bytes for each in self.journals if each.spare)
        return sum(old.version.bytes for old in self.versions) + sum(e.bytes for e in self.leftovers) + idle


def find_waste(store: ArtifactStore, keep_days: float = KEEP_DAYS) -> Waste:
    """Versions that nothing refers to and that are older than `keep_days`, leftovers older than a day, and lines of
    journals that no run has used for `keep_days`.
    """
    every = list(_versions(store))
    needed = _needed(store, every)
    limit = datetime.now(UTC) - timedelta(days=keep_days)
    return Waste(
        tuple(old for old in every if old.version.sha not in needed and _written(old.version) < limit),
        tuple(Leftover(path, _bytes(path)) for path in store.leftovers(LEFTOVER_AGE_S)),
        tuple(_idle(store, limit.timestamp())),
        limit.timestamp(),
    )


def remove(store: ArtifactStore, waste: Waste) -> None:
    """Deletes it.

    Raises:
        StoreError: a version has become current meanwhile.
        JournalError: a run has begun to write a journal meanwhile.
    """
    for old in waste.versions:
        store.remove(old.asset, old.partition, old.version.sha)
    for leftover in waste.leftovers:
        if leftover.path.is_dir():
            shutil.rmtree(leftover.path)
        else:
            leftover.path.unlink(missing_ok=True)
    for idle in waste.journals:
        if idle.spare:
            with open_journal(store, idle.asset, idle.name) as journal:
                journal.compact(waste.unused_since, write=True)


def _idle(store: ArtifactStore, unused_since: float) -> Iterator[Idle]:
    for asset, name in journals(store):
        try:
            with open_journal(store, asset, name) as journal:
                spare = journal.compact(unused_since, write=False)
        except JournalError:
            yield Idle(asset, name, None)
        else:
            if spare.lines:
                yield Idle(asset, name, spare)


def _versions(store: ArtifactStore) -> Iterator[Old]:
    for asset in store.assets():
        for partition in store.partitions(asset) or [None]:
            for version in store.versions(asset, partition):
                yield Old(asset, partition, version)


def _needed(store: ArtifactStore, every: Sequence[Old]) -> set[str]:
    """Hashes of versions to keep. A hash stands for its content wherever it lies, so no place is looked at."""
    inputs: dict[str, set[str]] = {}
    for old in every:
        inputs.setdefault(old.version.sha, set()).update(old.version.manifest["inputs"].values())
    rest = {sha for old in every for sha in _roots(store, old)}
    needed: set[str] = set()
    while rest:
        needed |= rest
        rest = {source for sha in rest for source in inputs.get(sha, ())} - needed
    return needed


def _roots(store: ArtifactStore, old: Old) -> list[str]:
    """What is needed because of one version itself."""
    asset, partition, version = old.asset, old.partition, old.version
    if (
        POINTER in version.manifest["files"]
    ):  # an entry of a history of releases; what it points at is its input
        return [version.sha]
    if store.annotation(asset, partition, version.sha, RELEASED) is not None:
        return [version.sha]
    return [version.sha] if store.current_sha(asset, partition) == version.sha else []


def _written(version: Version) -> datetime:
    return datetime.fromisoformat(version.manifest["created"])


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def readable(size: int) -> str:
    """Bytes in decimal units."""
    amount, unit = float(size), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if amount < 1000:
            break
        amount, unit = amount / 1000, larger
    return f"{size} bytes" if unit == "bytes" else f"{amount:.1f} {unit}"


def shown(waste: Waste, *, removed: bool) -> Iterator[str]:
    """Lines for people."""
    for old in waste.versions:
        name = label(old.asset, old.partition)
        written = f"{_written(old.version):%Y-%m-%d}"
        yield f"{name:<48} {old.version.sha}  {written}  {readable(old.version.bytes):>12}"
    for leftover in waste.leftovers:
        yield f"{f'leftover {leftover.path.name}':<78}  {readable(leftover.bytes):>12}"
    for idle in waste.journals:
        what = f"journal {label(idle.asset, idle.name)}"
        if idle.spare:
            yield f"{f'{what}, {idle.spare.lines} lines':<78}  {readable(idle.spare.bytes):>12}"
        else:
            yield f"{what}: a run is writing it; left alone"
    counts = f"{len(waste.versions)} versions and {len(waste.leftovers)} leftovers, {readable(waste.bytes)}"
    hint = "; --yes does it" if waste.bytes and not removed else ""
    yield f"{'removed' if removed else 'would remove'} {counts}{hint}"
