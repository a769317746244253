"""SQL over the artifact store: one view a table of each asset, over the current version of all partitions.

    python -m steer_pipeline.tools.query --list
    python -m steer_pipeline.tools.query "select _partition, avg(n_new_tokens) from rewrite_pack group by all"

In: one SELECT in DuckDB's dialect. Out: a table, JSON records or CSV. The columns `_partition` and `_version` say
where a row is from. An asset that stores several Parquet files has a view for each, `<asset>_<file>`. Only reads.
"""

import argparse
import json
import re
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import duckdb
import polars as pl
from polars import selectors as cs

from steer_pipeline.cli.console import readers_may_leave
from steer_pipeline.io.store import ArtifactStore, StoreError, Version
from steer_pipeline.resources import open_store

MAIN_FILE = "data.parquet"
PARQUET = ".parquet"
ROWS_SHOWN = 100
# PIVOT is two statements to DuckDB: it lists the values first.
READING = (duckdb.StatementType.SELECT, duckdb.StatementType.MULTI)


class QueryError(ValueError):
    """The store or the query cannot give an answer; the message says why and what there is to ask."""


@dataclass(frozen=True)
class View:
    """A table: the same Parquet file of every partition of an asset.

    `parts` are (partition or None, version, file within the version).
    """

    name: str
    parts: tuple[tuple[str | None, Version, str], ...]

    def sql(self) -> str:
        """The SELECT that the view stands for; remote versions are downloaded here."""
        return " UNION ALL BY NAME ".join(
            f"SELECT {_literal(partition)} AS _partition, {_literal(version.sha)} AS _version, * "
            f"FROM read_parquet({_literal(str(version.path / file))}, hive_partitioning = false)"
            for partition, version, file in self.parts
        )


@dataclass(frozen=True)
class Listed:
    """A view as `--list` shows it; `columns` maps names to DuckDB types."""

    name: str
    rows: int
    columns: dict[str, str]


def views(store: ArtifactStore) -> list[View]:
    """The tables of the store's current versions, sorted by name; files are not opened."""
    found = []
    for asset in store.assets():
        versions = {partition: store.current(asset, partition) for partition in store.partitions(asset)}
        versions = versions or {None: store.current(asset, None)}
        parts = defaultdict(list)
        for partition, version in versions.items():
            for file in version.manifest["files"] if version else ():
                if file.endswith(PARQUET):
                    parts[file].append((partition, version, file))
        whole = asset.replace("/", "_")
        for file, entries in parts.items():
            is_only = len(parts) == 1 or file == MAIN_FILE
            part = file.removesuffix(PARQUET).replace("/", "_")
            found.append(View(whole if is_only else f"{whole}_{part}", tuple(entries)))
    return sorted(found, key=lambda view: view.name)


def query(store: ArtifactStore, sql: str) -> pl.DataFrame:
    """The rows that one SELECT gives. Sums of integers come as Int64, decimals as Float64.

    Raises:
        QueryError: the store has no tables, the statement does more than read, or DuckDB refuses it; then
            with DuckDB's message and the names of the views.
    """
    known = _some_views(store)
    mentioned = [view for view in known if re.search(rf"\b{re.escape(view.name)}\b", sql, re.IGNORECASE)]
    try:
        with _database(mentioned or known) as database:
            statements = database.extract_statements(sql)
            if len(statements) != 1 or statements[0].type not in READING:
                raise QueryError(
                    "this tool only reads: give it one SELECT (or FROM, DESCRIBE, SUMMARIZE, PIVOT)"
                )
            frame = database.sql(sql).pl()
    except duckdb.Error as error:
        raise QueryError(
            f"{str(error).rstrip()}\n\nviews: {', '.join(view.name for view in known)}"
        ) from error
    return frame.with_columns(
        pl.col(name).cast(pl.Int64 if kind.scale == 0 else pl.Float64)
        for name, kind in frame.schema.items()
        if isinstance(kind, pl.Decimal)
    )


def listing(store: ArtifactStore) -> list[Listed]:
    """Every view with its number of rows and its columns.

    Raises:
        QueryError: the store has no tables.
    """
    known = _some_views(store)
    with _database(known) as database:
        return [
            Listed(
                view.name,
                database.sql(f'SELECT count(*) FROM "{view.name}"').fetchall()[0][0],
                {name: kind for name, kind, *_ in database.sql(f'DESCRIBE "{view.name}"').fetchall()},
            )
            for view in known
        ]


def _some_views(store: ArtifactStore) -> list[View]:
    if known := views(store):
        return known
    raise QueryError(
        f"there are no tables in the store {store.base}: run `make pilot` first, or name another store by STEER_STORE"
    )


@contextmanager
def _database(wanted: Sequence[View]) -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as database:
        # Else a misspelt view that is the name of a variable of this program would be answered.
        database.execute("SET python_enable_replacements = false")
        for view in wanted:
            database.execute(f'CREATE VIEW "{view.name}" AS {view.sql()}')
        yield database


def _literal(text: str | None) -> str:
    return "NULL::VARCHAR" if text is None else "'" + text.replace("'", "''") + "'"


def as_table(frame: pl.DataFrame) -> str:
    """Rows for people, the first hundred of them, as wide as the terminal."""
    width = shutil.get_terminal_size((160, 40)).columns
    with pl.Config(
        tbl_rows=ROWS_SHOWN,
        tbl_cols=-1,
        tbl_width_chars=width,
        fmt_str_lengths=60,
        fmt_table_cell_list_len=4,
        tbl_hide_column_data_types=True,
        tbl_hide_dataframe_shape=True,
        tbl_formatting="UTF8_FULL_CONDENSED",
    ):
        shown = str(frame.head(ROWS_SHOWN))
    rest = (
        ""
        if frame.height <= ROWS_SHOWN
        else f"; the first {ROWS_SHOWN} are shown, --json and --csv print all"
    )
    return f"{shown}\n{frame.height} {'row' if frame.height == 1 else 'rows'}{rest}"


def as_csv(frame: pl.DataFrame) -> str:
    """Rows with a header; lists and structs as JSON."""
    nested = frame.select(cs.nested()).columns
    texts = [
        pl.Series(
            name,
            [None if value is None else json.dumps(value, default=str) for value in frame[name].to_list()],
        )
        for name in nested
    ]
    return frame.with_columns(texts).write_csv()


def as_list(listed: Sequence[Listed]) -> str:
    """Views for people."""
    return "\n".join(
        f"{view.name}  ({view.rows} {'row' if view.rows == 1 else 'rows'})\n"
        + "".join(f"    {name:<24} {kind}\n" for name, kind in view.columns.items())
        for view in listed
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m steer_pipeline.tools.query",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("sql", nargs="?", help="one SELECT")
    what.add_argument("--list", action="store_true", help="views with their columns and numbers of rows")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="records as a JSON list")
    form.add_argument("--csv", action="store_true", help="comma-separated values with a header")
    options = parser.parse_args(arguments)
    with readers_may_leave():
        try:
            print(_answer(options), end="")
        except (QueryError, StoreError) as error:
            print(f"FAILED: {error}", file=sys.stderr)
            return 1
    return 0


def _answer(options: argparse.Namespace) -> str:
    store = open_store()
    if options.list:
        listed = listing(store)
        if not (options.json or options.csv):
            return as_list(listed)
        frame = pl.DataFrame(
            [
                {"view": view.name, "rows": view.rows, "column": name, "type": kind}
                for view in listed
                for name, kind in view.columns.items()
            ]
        )
    else:
        frame = query(store, options.sql)
    if options.json:
        return frame.write_json() + "\n"
    return as_csv(frame) if options.csv else as_table(frame) + "\n"


if __name__ == "__main__":
    sys.exit(main())
