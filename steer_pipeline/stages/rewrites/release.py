"""Which pack version is released, and which may be: a pointer, never a copy.

In: the store. Out: a pointer `release.json` under `rewrite_release`, equal bytes for equal versions, so that a
roll-back points at the very artefact of the earlier release. The log of releases is the asset's materialisations.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from steer_pipeline.io.store import ArtifactStore, Version
from steer_pipeline.stages.rewrites import verdicts
from steer_pipeline.stages.rewrites.making import Refused, read_rows

RELEASE = "rewrite_release"
POINTER = "release.json"


@dataclass(frozen=True)
class Choice:
    """The version to release, what was released before, and what that makes of it."""

    version: Version
    previous: str | None
    action: str  # "promote", "rollback" or "keep"


def released(store: ArtifactStore, variant: str) -> str | None:
    """Version of `rewrite_pack` that is released now, or None."""
    pointer = store.current(RELEASE, variant)
    return None if pointer is None else str(json.loads((pointer.path / POINTER).read_text())["version"])


def choose(store: ArtifactStore, variant: str, wanted: str | None) -> Choice:
    """The version `wanted` (a hash or its beginning), or the newest pack.

    Without `wanted`, a pilot pack does not take the place of a released full one.

    Raises:
        Refused: no such version, or its gates did not pass and it was never released.
    """
    previous = released(store, variant)
    newest = store.current(verdicts.PACK, variant)
    if newest is None:
        raise Refused(f"there is no {verdicts.PACK} of {variant}: materialise it first")
    if wanted:
        found = [v for v in store.versions(verdicts.PACK, variant) if v.sha.startswith(wanted)]
        if len(found) != 1:
            what = "no version" if not found else f"{len(found)} versions"
            raise Refused(f"{what} of {variant} begin with {wanted!r}; {_available(store, variant)}")
        version = found[0]
    else:
        version = newest
        if (
            previous
            and size_of(store, variant, previous) == "full"
            and size_of(store, variant, newest.sha) == "pilot"
        ):
            version = store.version(verdicts.PACK, variant, previous)
    if not verdicts.releasable(store, variant, version.sha):
        gates = store.annotation(verdicts.PACK, variant, version.sha, verdicts.GATES)
        raise Refused(
            f"version {version.sha} of {variant} may not be released: {'; '.join(verdicts.failing(gates))}; "
            f"{_available(store, variant)}"
        )
    if version.sha == previous:
        return Choice(version, previous, "keep")
    return Choice(version, previous, "rollback" if was_released(store, variant, version.sha) else "promote")


def point(store: ArtifactStore, variant: str, choice: Choice, run_id: str, code_version: str) -> None:
    """Makes the choice the released version."""

    def write(folder: Path) -> None:
        pointer = {"asset": verdicts.PACK, "variant": variant, "version": choice.version.sha}
        (folder / POINTER).write_text(json.dumps(pointer, indent=1) + "\n")

    store.write(
        RELEASE,
        variant,
        write,
        metadata={},
        inputs={verdicts.PACK: choice.version.sha},
        code_version=code_version,
        run_id=run_id,
    )
    if not was_released(store, variant, choice.version.sha):
        store.annotate(verdicts.PACK, variant, choice.version.sha, verdicts.RELEASED, {"run_id": run_id})


def available(store: ArtifactStore, variant: str) -> list[str]:
    """Versions that may be released."""
    return [
        v.sha for v in store.versions(verdicts.PACK, variant) if verdicts.releasable(store, variant, v.sha)
    ]


def was_released(store: ArtifactStore, variant: str, sha: str) -> bool:
    return store.annotation(verdicts.PACK, variant, sha, verdicts.RELEASED) is not None


def size_of(store: ArtifactStore, variant: str, sha: str) -> str | None:
    """`pilot` or `full`, as the version's rows say."""
    rows = pl.scan_parquet(store.version(verdicts.PACK, variant, sha).path / "data.parquet")
    sizes = rows.select("size").head(1).collect()["size"].to_list()
    return sizes[0] if sizes else None


def difference(store: ArtifactStore, variant: str, choice: Choice) -> Mapping[str, Any]:
    """What a promoter wants to see: rows added, dropped and changed against the version released before."""
    now = read_rows(choice.version.path).select("row_id", "output")
    if choice.previous is None:
        return {"rows": now.height, "rows_added": now.height, "rows_dropped": 0, "rows_changed": 0}
    before = read_rows(store.version(verdicts.PACK, variant, choice.previous).path).select(
        "row_id", old="output"
    )
    both = now.join(before, on="row_id", how="inner")
    return {
        "rows": now.height,
        "rows_added": now.height - both.height,
        "rows_dropped": before.height - both.height,
        "rows_changed": both.filter(pl.col("output") != pl.col("old")).height,
    }


def _available(store: ArtifactStore, variant: str) -> str:
    shas = available(store, variant)
    return f"versions that may be released: {', '.join(shas) or 'none'}"
