"""The history of releases, read from Dagster's log: each materialisation of `rewrite_release` is an entry.

The log is written before the pointer moves, so that no pointer has moved without an entry. It is apart from the
assets because the command reads it too, and apart from the lab because it needs the instance.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from steer_pipeline.io.store import ArtifactStore
from steer_pipeline.keys import key
from steer_pipeline.lab.rewrites.release import RELEASE, UNKNOWN, Entry, Overruled, released_or_unknown


def history(
    instance: dg.DagsterInstance, store: ArtifactStore, variant: str | None = None, limit: int = 1000
) -> list[Entry]:
    """Releases in this store, newest first; other stores of the instance have histories of their own."""
    wanted = dg.AssetRecordsFilter(asset_key=key(RELEASE), asset_partitions=[variant] if variant else None)
    entries: list[Entry] = []
    after: dict[str, str] = {}  # variant -> what the pointer was at when the next newer entry was made
    cursor, more = None, True
    while more and len(entries) < limit:
        page = instance.fetch_materializations(wanted, limit=1000, cursor=cursor)
        cursor, more = page.cursor, page.has_more
        for record in page.records:
            metadata = {name: entry.value for name, entry in record.asset_materialization.metadata.items()}
            if metadata.get("store") == store.address:
                entry = _entry(record, metadata)
                then = after.get(entry.variant) or released_or_unknown(store, entry.variant)
                entries.append(replace(entry, carried_out=then in (entry.version, UNKNOWN)))
                after[entry.variant] = entry.previous
    return entries[:limit]


def _entry(record: Any, metadata: Mapping[str, Any]) -> Entry:
    return Entry(
        when=datetime.fromtimestamp(record.timestamp, UTC),
        variant=record.partition_key or "",
        action=str(metadata["action"]),
        version=str(metadata["version"]),
        previous=str(metadata["previous"]),
        rows=int(metadata["rows"]),
        run_id=record.run_id,
        overruled=Overruled(str(metadata["despite"]), tuple(metadata["failed"]))
        if "despite" in metadata
        else None,
    )
