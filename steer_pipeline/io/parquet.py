"""`parquet_io`: tables. An asset returns a polars DataFrame or LazyFrame, the next one is given a LazyFrame.

A LazyFrame is streamed to disk, so a table may be larger than memory. Equal rows give equal bytes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from steer_pipeline import show
from steer_pipeline.io.store import Version
from steer_pipeline.io.versioned import COLUMN_SCHEMA, ROW_COUNT, VersionedIO

DATA = "data.parquet"
ROWS_A_GROUP = 50_000


class ParquetIO(VersionedIO):
    """Tables as `data.parquet`."""

    def dump(self, value: Any, folder: Path) -> Mapping[str, Any]:
        path = folder / DATA
        if isinstance(value, pl.LazyFrame):
            value.sink_parquet(path, row_group_size=ROWS_A_GROUP, maintain_order=True)
        elif isinstance(value, pl.DataFrame):
            value.write_parquet(path, row_group_size=ROWS_A_GROUP)
        else:
            raise TypeError(
                f"parquet_io stores polars frames, not {type(value).__name__}; return a DataFrame or "
                "LazyFrame, or use bundle_io for a directory"
            )
        rows = pq.ParquetFile(path).metadata.num_rows
        return {"rows": rows, ROW_COUNT: rows, COLUMN_SCHEMA: show.column_schema(pl.scan_parquet(path))}

    def load(self, version: Version) -> pl.LazyFrame:
        return pl.scan_parquet(version.path / DATA)
