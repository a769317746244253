"""Which pack version is released, which may be, and what was released before: a pointer, never a copy.

In: the store, and the history of a variant as entries. Out: a pointer `release.json` under `rewrite_release`, equal
bytes for equal versions, so that a rollback points at the very artefact of the earlier release. Knows nothing of
where the history is kept.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import polars as pl

from steer_pipeline.io.reader import read_rows
from steer_pipeline.io.store import ArtifactStore, StoreError, Version
from steer_pipeline.lab.rewrites import Refused, verdicts

RELEASE = "rewrite_release"
POINTER = "release.json"
# In the log, for the version before: the first release; a pointer that was damaged.
NONE, UNKNOWN = "none", "unknown"
Action = Literal["promote", "rollback"]


@dataclass(frozen=True)
class Choice:
    """The version to release, what was released before, and how the log calls that.

    Attributes:
        previous: a version, `none` or `unknown`.
        action: what was asked, or `keep` where the version is released already.
        overruled: gates that the version fails and is released despite.
    """

    version: Version
    previous: str
    action: str
    overruled: "Overruled | None" = None


@dataclass(frozen=True)
class Overruled:
    """A decision to release a pack that gates stop.

    Attributes:
        despite: why, in the words of whoever decided.
        failed: `gate: message` for each gate that it fails.
    """

    despite: str
    failed: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """As JSON, for the log and for the note beside the pack."""
        return {"despite": self.despite, "failed": list(self.failed)}

    def __str__(self) -> str:
        return f"despite {'; '.join(self.failed)} – because: {self.despite}"


@dataclass(frozen=True)
class Entry:
    """One line of the history.

    Attributes:
        carried_out: False where the run ended after this was logged and before the pointer moved.
    """

    when: datetime
    variant: str
    action: str
    version: str
    previous: str
    rows: int
    run_id: str
    carried_out: bool = True
    overruled: Overruled | None = None


# ------------------------------------------------------------------------------------- the pointer


def released(store: ArtifactStore, variant: str) -> str | None:
    """Version of `rewrite_pack` that is released now, or None.

    Raises:
        StoreError: the pointer is damaged.
    """
    pointer = store.current(RELEASE, variant)
    return None if pointer is None else pointed_at(pointer)


def released_or_unknown(store: ArtifactStore, variant: str) -> str:
    """`released`, in the words of the log."""
    try:
        return released(store, variant) or NONE
    except StoreError:
        return UNKNOWN


def pointed_at(pointer: Version) -> str:
    """The version that a version of `rewrite_release` points at, as its manifest says."""
    return pointer.manifest["inputs"][verdicts.PACK]


def prepare(store: ArtifactStore, variant: str, version: str, run_id: str, code_version: str) -> str:
    """Stores the pointer to `version` without moving to it; what `move` wants.

    Raises:
        StoreError: it cannot be written.
    """

    def write(folder: Path) -> None:
        pointer = {"asset": verdicts.PACK, "variant": variant, "version": version}
        (folder / POINTER).write_text(json.dumps(pointer, indent=1) + "\n")

    return store.write(
        RELEASE,
        variant,
        write,
        metadata={},
        inputs={verdicts.PACK: version},
        code_version=code_version,
        run_id=run_id,
        live=False,
    ).sha


def move(
    store: ArtifactStore, variant: str, pointer: str, run_id: str, overruled: Overruled | None = None
) -> None:
    """Releases what a prepared pointer points at; `overruled` is noted beside the pack, for all who use it."""
    version = pointed_at(store.version(RELEASE, variant, pointer))
    if overruled is not None or not was_released(store, variant, version):
        decided = {} if overruled is None else overruled.record()
        store.annotate(verdicts.PACK, variant, version, verdicts.RELEASED, {"run_id": run_id, **decided})
    store.point(RELEASE, variant, pointer)


# -------------------------------------------------------------------------------- what is released


def choose(
    store: ArtifactStore, variant: str, action: Action, wanted: str | None, despite: str | None = None
) -> Choice:
    """The version `wanted` (a hash or its beginning), or the newest pack.

    Without `wanted`, a pilot pack does not take the place of a released full one. That the former pointer is
    damaged stands in no one's way.

    Args:
        despite: why a version is released although gates fail that are a matter of judgement.

    Raises:
        Refused: no such version; its gates did not pass and it was never released; or it is released already and
            its gates fail now. With `despite`: it was not judged, or fails a gate that nobody may overrule.
    """
    previous = released_or_unknown(store, variant)
    version = _version(store, variant, wanted) if wanted else _newest(store, variant, previous)
    gates = store.annotation(verdicts.PACK, variant, version.sha, verdicts.GATES)
    action_taken = "keep" if version.sha == previous else action
    if despite is not None:
        return Choice(version, previous, action_taken, _overruled(variant, version.sha, gates, despite))
    if version.sha == previous and gates and not gates["passed"]:
        raise Refused(
            f"version {version.sha} of {variant} is released and stays so, but its gates fail now: "
            f"{'; '.join(verdicts.failing(gates))}. Roll back (action `rollback`), or mend the pack and promote it"
        )
    if not verdicts.releasable(store, variant, version.sha):
        raise Refused(
            f"version {version.sha} of {variant} may not be released: {'; '.join(verdicts.failing(gates))}; "
            f"{_available(store, variant)}"
        )
    return Choice(version, previous, action_taken)


def _overruled(variant: str, version: str, gates: Mapping[str, Any] | None, despite: str) -> Overruled | None:
    """What a decision overrules; None where all gates passed.

    Raises:
        Refused: no reason is given, or it may not be decided.
    """
    if not despite.strip():
        raise Refused(f"{variant}: say why version {version} is to be released although its gates fail")
    if problems := verdicts.beyond_judgement(gates):
        raise Refused(
            f"version {version} of {variant} may not be released whatever the reason: {'; '.join(problems)}"
        )
    failed = tuple(reason.partition(verdicts.TO_GO_ON)[0] for reason in verdicts.failing(gates))
    return Overruled(despite.strip(), failed) if failed else None


def available(store: ArtifactStore, variant: str) -> list[str]:
    """Versions that may be released."""
    return [sha for sha in store.shas(verdicts.PACK, variant) if verdicts.releasable(store, variant, sha)]


def was_released(store: ArtifactStore, variant: str, sha: str) -> bool:
    return store.annotation(verdicts.PACK, variant, sha, verdicts.RELEASED) is not None


def overruled_of(store: ArtifactStore, variant: str, sha: str) -> Overruled | None:
    """The decision that released a version despite its gates; None where there was none."""
    note = store.annotation(verdicts.PACK, variant, sha, verdicts.RELEASED) or {}
    return Overruled(note["despite"], tuple(note["failed"])) if "despite" in note else None


def size_of(store: ArtifactStore, variant: str, sha: str) -> str | None:
    """`pilot` or `full`, as the gates noted or the version's rows say; None for an empty pack."""
    if gates := store.annotation(verdicts.PACK, variant, sha, verdicts.GATES):
        return gates["size"]
    rows = pl.scan_parquet(store.version(verdicts.PACK, variant, sha).path / "data.parquet")
    sizes = rows.select("size").head(1).collect()["size"].to_list()
    return sizes[0] if sizes else None


def difference(store: ArtifactStore, variant: str, choice: Choice) -> Mapping[str, Any]:
    """What a promoter wants to see: rows added, dropped and changed against the version released before.

    Raises:
        StoreError: the chosen version is damaged; of a damaged former one only that is noted.
    """
    rows = read_rows(choice.version.path).select("row_id", "output")
    if choice.previous == NONE:
        return {"rows": rows.height, "rows_added": rows.height, "rows_dropped": 0, "rows_changed": 0}
    if choice.previous == UNKNOWN:
        return {"rows": rows.height, "not_compared": "the former pointer is damaged"}
    try:
        before = read_rows(store.version(verdicts.PACK, variant, choice.previous).path)
    except StoreError as error:
        return {"rows": rows.height, "not_compared": f"the former version is damaged: {error}"}
    both = rows.join(before.select("row_id", old="output"), on="row_id", how="inner")
    return {
        "rows": rows.height,
        "rows_added": rows.height - both.height,
        "rows_dropped": before.height - both.height,
        "rows_changed": both.filter(pl.col("output") != pl.col("old")).height,
    }


# ------------------------------------------------------------------------------------- the history


def log_entry(store: ArtifactStore, variant: str, choice: Choice) -> dict[str, Any]:
    """What the log says of a release; an `Entry` is read from it.

    Raises:
        StoreError: the chosen version is damaged.
    """
    return {
        "version": choice.version.sha,
        "previous": choice.previous,
        "action": choice.action,
        "store": store.address,
        "size": size_of(store, variant, choice.version.sha) or "empty",
        **({} if choice.overruled is None else choice.overruled.record()),
        **difference(store, variant, choice),
    }


def former(entries: Sequence[Entry], variant: str) -> str:
    """The version to roll back to, from one variant's `history`.

    Promotions are a stack: each rollback takes one off, and so on to the first.

    Raises:
        LookupError: there is no earlier release.
    """
    stack: list[str] = []
    for entry in reversed(entries):
        if not entry.carried_out:
            continue
        if not stack and entry.previous not in (NONE, UNKNOWN):
            stack.append(entry.previous)
        if entry.action == "rollback" and entry.version in stack:
            while stack[-1] != entry.version:
                stack.pop()
        elif not stack or stack[-1] != entry.version:
            stack.append(entry.version)
    if len(stack) < 2:
        raise LookupError(f"{variant} has no earlier release to go back to; the history shows what there is")
    return stack[-2]


# ------------------------------------------------------------------------------------------ details


def _version(store: ArtifactStore, variant: str, wanted: str) -> Version:
    shas = [sha for sha in store.shas(verdicts.PACK, variant) if sha.startswith(wanted)]
    if len(shas) != 1:
        what = "no version" if not shas else f"{len(shas)} versions"
        raise Refused(f"{what} of {variant} begin with {wanted!r}; {_available(store, variant)}")
    return store.version(verdicts.PACK, variant, shas[0])


def _newest(store: ArtifactStore, variant: str, previous: str) -> Version:
    newest = store.current(verdicts.PACK, variant)
    if newest is None:
        raise Refused(f"there is no {verdicts.PACK} of {variant}: materialise it first")
    if previous in (NONE, UNKNOWN, newest.sha) or size_of(store, variant, newest.sha) != "pilot":
        return newest
    is_full = size_of(store, variant, previous) == "full"
    return store.version(verdicts.PACK, variant, previous) if is_full else newest


def _available(store: ArtifactStore, variant: str) -> str:
    shas = available(store, variant)
    return f"versions that may be released: {', '.join(shas) or 'none'}"
