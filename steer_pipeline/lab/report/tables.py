"""A table as a list of columns applied to rows, and the notation of numbers that all reports share.

In: columns and rows (mappings, or whatever the columns' values read). Out: a `Table` of the document. What is not
known, None or not a number, is a dash; an interval is `[low, high]` with the digits of its estimate.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from steer_pipeline.lab.report.document import Table

NOTHING = "–"
Format = Callable[[Any], str]


# ----------------------------------------------------------------------------------------- formats


def text(value: Any) -> str:
    """As it is."""
    return NOTHING if value is None else str(value)


def code(value: Any) -> str:
    """A name or a hash."""
    return NOTHING if not value else f"`{value}`"


def short_code(value: Any) -> str:
    """The first 16 characters of a hash."""
    return code(str(value)[:16] if value else None)


def share(value: float | None) -> str:
    """A fraction, in percent."""
    return NOTHING if not _known(value) else f"{value:.1%}"


def p_value(value: float | None) -> str:
    if value is None or not _known(value):
        return NOTHING
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def number(digits: int = 3, *, signed: bool = False) -> Format:
    """A number with so many digits after the point; zero has no sign."""

    def shown(value: float | None) -> str:
        if not _known(value):
            return NOTHING
        rendered = f"{value:{'+' if signed else ''}.{digits}f}"
        return rendered.lstrip("+-") if float(rendered) == 0 else rendered

    return shown


def interval(digits: int = 3, *, signed: bool = True) -> Format:
    """(low, high) as `[low, high]`."""
    bound = number(digits, signed=signed)

    def shown(bounds: Sequence[float | None]) -> str:
        low, high = bounds
        return NOTHING if low is None or high is None else f"[{bound(low)}, {bound(high)}]"

    return shown


def estimate(digits: int = 3, *, signed: bool = True) -> Format:
    """(value, low, high) as `value [low, high]`."""
    point, bounds = number(digits, signed=signed), interval(digits, signed=signed)

    def shown(values: Sequence[float | None]) -> str:
        return NOTHING if values[0] is None else f"{point(values[0])} {bounds(values[1:])}"

    return shown


def of(*names: str) -> Callable[[Any], tuple]:
    """Reads several fields of a row: what `interval` and `estimate` are given."""
    return lambda row: tuple(row[name] for name in names)


def _known(value: Any) -> bool:
    return value is not None and math.isfinite(value)


# ------------------------------------------------------------------------------------------ tables


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        value: name of a field of the row, or a function of the row.
        description: what it holds; shown where a reader points at the title.
    """

    title: str
    value: str | Callable[[Any], Any]
    format: Format = text
    description: str = ""

    def cell(self, row: Any) -> str:
        return self.format(self.value(row) if callable(self.value) else row[self.value])


def table(columns: Sequence[Column], rows: Iterable[Any], caption: str = "") -> Table:
    """`columns` applied to each of `rows`."""
    return Table(
        [column.title for column in columns],
        [[column.cell(row) for column in columns] for row in rows],
        caption,
        [column.description for column in columns],
    )
