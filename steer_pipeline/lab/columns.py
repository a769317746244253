"""Tables of columns: a row schema together with what each column holds, for polars and for readers."""

from collections.abc import Mapping

import polars as pl

Column = tuple[pl.DataType, str]


def completed(
    frame: pl.DataFrame, schema: pl.Schema | Mapping[str, pl.DataType | type[pl.DataType]]
) -> pl.DataFrame:
    """`frame` in the columns of `schema`, null where a table that was stored earlier lacks one; its others follow."""
    lacking = [
        pl.lit(None, dtype=kind).alias(name) for name, kind in schema.items() if name not in frame.columns
    ]
    return frame.with_columns(lacking).select(*schema, pl.exclude(*schema)) if lacking else frame


def described(**columns: Column) -> tuple[pl.Schema, dict[str, str]]:
    """The polars schema of a table, and column -> what it holds."""
    schema = pl.Schema({name: kind for name, (kind, _) in columns.items()})
    return schema, {name: text for name, (_, text) in columns.items() if text}
