"""Whether rows are complete, unique and well formed. In: frames, JSONL files. Out: named problems.

Rows are matched by `row_id`, never by position or line count.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import BaseModel, ValidationError


@dataclass(frozen=True)
class Alignment:
    """How a pack's row ids compare with base's. All tuples are sorted."""

    missing: tuple[str, ...]
    extra: tuple[str, ...]
    duplicated: tuple[str, ...]

    @property
    def aligned(self) -> bool:
        return not (self.missing or self.extra or self.duplicated)

    def describe(self, limit: int = 5) -> str:
        """One sentence that names at most `limit` ids of each kind."""
        if self.aligned:
            return "every row of base once"
        parts = [
            f"{len(ids)} {kind} ({', '.join(ids[:limit])}{', …' if len(ids) > limit else ''})"
            for kind, ids in (
                ("missing", self.missing),
                ("extra", self.extra),
                ("duplicated", self.duplicated),
            )
            if ids
        ]
        return "; ".join(parts)


def alignment(pack: pl.DataFrame, base: pl.DataFrame) -> Alignment:
    """Compares `row_id` of two frames."""
    for name, frame in (("pack", pack), ("base", base)):
        if "row_id" not in frame.columns:
            raise ValueError(f"{name}: no column 'row_id'; the frame has {', '.join(frame.columns)}")
    own, reference = set(pack["row_id"]), set(base["row_id"])
    repeated = pack.group_by("row_id").len().filter(pl.col("len") > 1)["row_id"]
    return Alignment(
        missing=tuple(sorted(map(str, reference - own))),
        extra=tuple(sorted(map(str, own - reference))),
        duplicated=tuple(sorted(map(str, repeated))),
    )


@dataclass(frozen=True)
class Problem:
    """What is wrong with one field of one row. `row` counts from 0 (frames) or is a 1-based line (files)."""

    row: int
    row_id: str | None
    field: str
    message: str

    def __str__(self) -> str:
        return f"row {self.row} (row_id {self.row_id or 'unknown'}): {self.field}: {self.message}"


def _row_problems(number: int, row: Mapping[str, Any], model: type[BaseModel]) -> list[Problem]:
    try:
        model.model_validate(dict(row))
    except ValidationError as error:
        row_id = row.get("row_id")
        return [
            Problem(
                number,
                None if row_id is None else str(row_id),
                ".".join(map(str, item["loc"])) or "(row)",
                f"{item['msg']} (got {_short(item.get('input'))})",
            )
            for item in error.errors()
        ]
    return []


def _short(value: object, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[:limit] + "…"


def frame_problems(frame: pl.DataFrame, model: type[BaseModel]) -> list[Problem]:
    """Every field of every row that `model` (such as `RewriteRow`) does not accept, in row order."""
    return [
        p for number, row in enumerate(frame.iter_rows(named=True)) for p in _row_problems(number, row, model)
    ]


def jsonl_problems(path: Path, model: type[BaseModel]) -> list[Problem]:
    """The same for a JSONL file; a line that is no JSON object is a problem of the field `(line)`."""
    problems = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8"))
            except (ValueError, UnicodeDecodeError) as error:
                problems.append(
                    Problem(number, None, "(line)", f"no valid JSON: {error}; write the row again")
                )
                continue
            if isinstance(row, dict):
                problems += _row_problems(number, row, model)
            else:
                problems.append(Problem(number, None, "(line)", f"expected an object, got {_short(row)}"))
    return problems
