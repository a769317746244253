"""SQL over the artifact store: a table an asset, over the current version of all its partitions.

In: one SELECT in DuckDB's dialect. Out: rows, as a table, JSON records or CSV. The columns `_partition` and `_version`
say where a row is from. Of an asset that stores several tables, the main one has the asset's name and the others are
called `<asset>__<table>`; what is stored as JSON alone (vectors, releases) is a table too. Only reads.
"""

import json
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePath

import duckdb
import polars as pl
from polars import selectors as cs

from steer_pipeline.io.store import ArtifactStore, StoreError, Version

# Which of an asset's tables has its name: the first of these that it stores, else the first by name.
MAIN = ("data", "arms", "summary", "table", "sweep", "seeds")
READERS = {".parquet": "read_parquet({}, hive_partitioning = false)", ".json": "read_json({})"}
ROWS_SHOWN = 100
NARROWEST = 8  # characters a column, borders included, in which something can be read
# PIVOT is two statements to DuckDB: it lists the values first.
READING = (duckdb.StatementType.SELECT, duckdb.StatementType.MULTI)


class QueryError(ValueError):
    """The store or the query cannot give an answer; the message says why and what there is to ask."""


@dataclass(frozen=True)
class View:
    """A table: the same file of every partition of an asset.

    Attributes:
        parts: (partition or None, version, file within the version).
        damage: why it cannot be read.
    """

    name: str
    parts: tuple[tuple[str | None, Version, str], ...] = ()
    damage: StoreError | None = None

    def sql(self) -> str:
        """The SELECT that the view stands for; remote versions are downloaded here.

        Raises:
            StoreError: a part is damaged.
        """
        if self.damage:
            raise self.damage
        return " UNION ALL BY NAME ".join(
            f"SELECT {_literal(partition)} AS _partition, {_literal(version.sha)} AS _version, * "
            f"FROM {READERS[PurePath(file).suffix].format(_literal(str(version.path / file)))}"
            for partition, version, file in self.parts
        )


@dataclass(frozen=True)
class Listed:
    """A view as `--list` shows it; `columns` maps names to DuckDB types, `damage` says why there are none."""

    name: str
    rows: int | None
    columns: dict[str, str]
    damage: str = ""


def views(store: ArtifactStore) -> list[View]:
    """The tables of the store's current versions, sorted by name; files are not opened."""
    found: list[View] = []
    for asset in store.assets():
        try:
            found += _views_of(store, asset)
        except StoreError as error:
            found.append(View(asset.replace("/", "_"), damage=error))
    return sorted(found, key=lambda view: view.name)


def _views_of(store: ArtifactStore, asset: str) -> list[View]:
    """
    Raises:
        StoreError: a manifest is damaged.
    """
    parts = defaultdict(list)
    for partition in store.partitions(asset) or [None]:
        version = store.current(asset, partition)
        for file in version.manifest["files"] if version else ():
            parts[file].append((partition, version, file))
    tables = [file for file in parts if file.endswith(".parquet")]
    tables = tables or [file for file in parts if file.endswith(".json") and "/" not in file]
    main = min(tables, key=_rank, default=None)
    whole = asset.replace("/", "_")
    return [View(whole if file == main else f"{whole}__{_stem(file)}", tuple(parts[file])) for file in tables]


def _rank(file: str) -> tuple[int, str]:
    stem = _stem(file)
    return (MAIN.index(stem) if stem in MAIN else len(MAIN), stem)


def _stem(file: str) -> str:
    return str(PurePath(file).with_suffix("")).replace("/", "_")


def query(store: ArtifactStore, sql: str) -> pl.DataFrame:
    """The rows that one SELECT gives. Sums of integers come as Int64, decimals as Float64.

    Raises:
        QueryError: the store has no tables, the statement does more than read, or DuckDB refuses it; then
            with DuckDB's message and the names of the tables.
        StoreError: a table that it names is damaged.
    """
    known = _some_views(store)
    mentioned = [view for view in known if re.search(rf"\b{re.escape(view.name)}\b", sql, re.IGNORECASE)]
    try:
        with _database(mentioned) as database:
            statements = database.extract_statements(sql)
            if len(statements) != 1 or statements[0].type not in READING:
                raise QueryError("this only reads: give it one SELECT (or FROM, DESCRIBE, SUMMARIZE, PIVOT)")
            frame = database.sql(sql).pl()
    except duckdb.Error as error:
        raise QueryError(
            f"{str(error).rstrip()}\n\ntables: {', '.join(view.name for view in known)}"
        ) from error
    return frame.with_columns(
        pl.col(name).cast(pl.Int64 if kind.scale == 0 else pl.Float64)
        for name, kind in frame.schema.items()
        if isinstance(kind, pl.Decimal)
    )


def listing(store: ArtifactStore) -> list[Listed]:
    """Every table with its number of rows and its columns; a damaged one says so, and the others go on.

    Raises:
        QueryError: the store has no tables.
    """
    return [_listed(view) for view in _some_views(store)]


def _listed(view: View) -> Listed:
    try:
        with _database([view]) as database:
            (rows,) = database.sql(f'SELECT count(*) FROM "{view.name}"').fetchall()[0]
            described = database.sql(f'DESCRIBE "{view.name}"').fetchall()
    except (StoreError, duckdb.Error) as error:
        return Listed(view.name, None, {}, str(error))
    return Listed(view.name, rows, {name: kind for name, kind, *_ in described})


def _some_views(store: ArtifactStore) -> list[View]:
    if known := views(store):
        return known
    raise QueryError(
        f"there are no tables in the store {store.base}: run `steer make pilot` first, or name another by --store"
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
    if frame.width * NARROWEST > width:
        return _one_below_the_other(frame, width)
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
    return f"{shown}\n{_counted(frame)}"


def _counted(frame: pl.DataFrame) -> str:
    rest = f"; the first {ROWS_SHOWN} are shown, --json and --csv print all"
    return (
        f"{frame.height} {'row' if frame.height == 1 else 'rows'}{rest if frame.height > ROWS_SHOWN else ''}"
    )


def _one_below_the_other(frame: pl.DataFrame, width: int) -> str:
    """Rows of many columns, a line a column: side by side no cell could be read."""
    names = max(map(len, frame.columns))
    blocks = [
        "\n".join(f"{name:<{names}}  {_cut(str(value), width - names - 2)}" for name, value in row.items())
        for row in frame.head(ROWS_SHOWN).iter_rows(named=True)
    ]
    return "\n\n".join([*blocks, _counted(frame)])


def _cut(text: str, width: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else f"{text[: max(width, 20) - 2]} …"


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
    """Tables for people."""
    return "\n".join(
        (f"{view.name}  DAMAGED: {view.damage}\n" if view.damage else _heading(view))
        + "".join(f"    {name:<24} {kind}\n" for name, kind in view.columns.items())
        for view in listed
    )


def _heading(view: Listed) -> str:
    return f"{view.name}  ({view.rows} {'row' if view.rows == 1 else 'rows'})\n"


def columns(listed: Sequence[Listed]) -> pl.DataFrame:
    """One row a column of each table; of a damaged one, one row that says so."""
    return pl.DataFrame(
        [
            {"table": view.name, "rows": view.rows, "column": name, "type": kind, "damage": view.damage}
            for view in listed
            for name, kind in (view.columns or {None: None}).items()
        ],
        schema={
            "table": pl.String,
            "rows": pl.Int64,
            "column": pl.String,
            "type": pl.String,
            "damage": pl.String,
        },
    )
