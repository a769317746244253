"""Records of JSONL and Parquet files, one after the other, each with the place that messages name."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from steer_pipeline.lab.attribution.rows import AttributionError


def records(path: str, home: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, record) of every record, in order.

    Args:
        path: JSONL, gzipped JSONL or Parquet; relative paths start at `home`.

    Raises:
        AttributionError: no such file, another suffix, or a line that is no JSON object.
    """
    file = Path(path) if Path(path).is_absolute() else home / path
    if not file.is_file():
        raise AttributionError(f"{file}: no such file; put the rows there, or correct attribution.sources")
    if file.suffix == ".parquet":
        for number, record in enumerate(pl.read_parquet(file).iter_rows(named=True), 1):
            yield f"{file.name}:{number}", record
        return
    if not file.name.endswith((".jsonl", ".jsonl.gz")):
        raise AttributionError(f"{file}: unknown kind of file; give .jsonl, .jsonl.gz or .parquet")
    with (
        gzip.open(file, "rt", encoding="utf-8")
        if file.suffix == ".gz"
        else file.open(encoding="utf-8") as lines
    ):
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise AttributionError(
                    f"{file.name}:{number}: no JSON ({error}); mend or drop the line"
                ) from error
            if not isinstance(record, dict):
                raise AttributionError(
                    f"{file.name}:{number}: a {type(record).__name__}, not an object; drop the line"
                )
            yield f"{file.name}:{number}", record


def required(record: dict[str, Any], name: str, where: str) -> Any:
    """A field of a record.

    Raises:
        AttributionError: it is not there.
    """
    if record.get(name) is None:
        raise AttributionError(
            f"{where}: no field {name!r}; is the file in the layout that the source names?"
        )
    return record[name]
