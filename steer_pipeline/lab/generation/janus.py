"""Reads and writes Janus rewrite packs: a folder with one `<variant>.jsonl` a variant.

In: a pack of ours (columns of `REWRITE_SCHEMA`) or a folder of theirs. Out: theirs or ours. A Janus record is
`{model, source_index, domain, date, url, variant, personas?, prompt, output}`; `personas`, absent for base, lists
`{path, layer_idx, alpha}` with blocks counted from the end. It knows no seed, token count or finish reason: imported
rows have null there.
"""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import polars as pl

from steer_pipeline.lab.generation.schema import REWRITE_SCHEMA

_FIELDS = ("model", "source_index", "domain", "date", "url", "variant", "prompt", "output")
_PROMPT = re.compile(r"\ARewrite: (.*)\n\nRewritten text:\n?\Z", re.DOTALL)
_SUFFIX = re.compile(r"^persona_|(_for_[^_]+)?_L-?\d+.*$")


class JanusPackError(ValueError):
    """A record is not a Janus record. The message names file, line, field and cure."""


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


def import_pack(folder: Path, n_blocks: int) -> pl.DataFrame:
    """All variants of a Janus pack as one frame with the columns of `REWRITE_SCHEMA`.

    `row_id` is made as for our corpora, from url and the text inside the prompt (Janus had cut it to 380 tokens).

    Raises:
        JanusPackError: no files, a line that is no JSON, a missing or wrong field, a source index twice in a file.
    """
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise JanusPackError(f"{folder}: no *.jsonl; give the folder with one file a variant")
    rows: list[dict[str, Any]] = []
    for path in files:
        lines: dict[int, int] = {}
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                row = _from_janus(line, f"{path}, line {number}", n_blocks)
                first = lines.setdefault(row["source_index"], number)
                if first != number:
                    raise JanusPackError(
                        f"{path}, line {number}: source_index {row['source_index']} is on line {first} too "
                        "(a resumed Janus run writes rows twice); drop one"
                    )
                rows.append(row)
    return pl.DataFrame(rows, schema=REWRITE_SCHEMA)


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


def _from_janus(line: str, where: str, n_blocks: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise JanusPackError(f"{where}: not JSON ({error}); mend or drop the line") from error
    for name in _FIELDS:
        wanted = int if name == "source_index" else str
        if not isinstance(record.get(name), wanted):
            raise JanusPackError(
                f"{where}: {name} is {record.get(name)!r}, not {wanted.__name__}; mend the record"
            )
    personas = []
    for one in record.get("personas") or []:
        name, _, version = str(one["path"]).partition("@")
        block = int(one["layer_idx"]) % n_blocks
        personas.append(
            {
                "name": _SUFFIX.sub("", Path(name).stem) if not version else name,
                "version": version or None,
                "block": block,
                "alpha": float(one["alpha"]),
                "dose_fraction": None,
            }
        )
    match = _PROMPT.match(record["prompt"])
    text = match.group(1) if match else record["prompt"]
    row_id = hashlib.sha256(f"{record['url']}\n{text}".encode()).hexdigest()[:16]
    known = {name: record[name] for name in _FIELDS}
    return dict.fromkeys(REWRITE_SCHEMA) | known | {"row_id": row_id, "personas": personas}
