"""Tables of columns: a row schema together with what each column holds, for polars and for readers."""

import polars as pl

Column = tuple[pl.DataType, str]


def described(**columns: Column) -> tuple[pl.Schema, dict[str, str]]:
    """The polars schema of a table, and column -> what it holds."""
    schema = pl.Schema({name: kind for name, (kind, _) in columns.items()})
    return schema, {name: text for name, (_, text) in columns.items() if text}
