"""Writes rewrite packs as Janus has them: a folder with one `<variant>.jsonl` a variant.

In: packs of ours (columns of `REWRITE_SCHEMA`). Out: records `{model, source_index, domain, date, url, variant,
personas?, prompt, output}`; `personas`, absent for base, lists `{path, layer_idx, alpha}`, blocks counted from the end.
"""

import json
import os
from pathlib import Path
from typing import Any

import polars as pl


def export_pack(rows: pl.DataFrame, folder: Path, n_blocks: int) -> list[Path]:
    """Writes one file a variant, rows by source index, each file atomically; returns the paths.

    A persona's `path` is `<name>@<version>`; `layer_idx` is negative, as Janus writes it (block - n_blocks).
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for (variant,), part in rows.sort("source_index").group_by("variant", maintain_order=True):
        path = folder / f"{variant}.jsonl"
        partial = path.with_suffix(".part")
        with partial.open("w", encoding="utf-8") as file:
            for row in part.iter_rows(named=True):
                file.write(json.dumps(_to_janus(row, n_blocks), ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        paths.append(path)
    return sorted(paths)


def _to_janus(row: dict[str, Any], n_blocks: int) -> dict[str, Any]:
    record = {name: row[name] for name in ("model", "source_index", "domain", "date", "url", "variant")}
    if row["personas"]:
        record["personas"] = [
            {
                "path": one["name"] if one["version"] is None else f"{one['name']}@{one['version']}",
                "layer_idx": one["block"] - n_blocks,
                "alpha": one["alpha"],
            }
            for one in row["personas"]
        ]
    return record | {"prompt": row["prompt"], "output": row["output"]}
