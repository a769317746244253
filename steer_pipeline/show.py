"""What a person sees of an asset in the UI: previews, tables, numbers with sensible digits, small plots as data: URIs.

In: frames and numbers. Out: Dagster metadata. Texts are cut and rows are few, because all of it
lies in the event log and not in the store.
"""

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import dagster as dg
import polars as pl

PREVIEW_ROWS = 5
PREVIEW_CHARS = 120
IN_PLACE, OPENS_IN_A_BOX = (
    3,
    1000,
)  # columns that fit beside the name; characters from which the UI opens a box
MAX_IMAGE_BYTES = 50_000
DIGITS = 4
WIDTH, HEIGHT, MARGIN = 520, 220, 44
COLOURS = ("#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df", "#57606a", "#bf3989", "#0a7ea4")
_PLURALS = {"string": "strings", "int": "ints", "float": "floats", "bool": "bools", "record": "records"}


class PlotError(ValueError):
    """A plot that cannot be drawn, or would be too large for the event log."""


# ----------------------------------------------------------------------------------------- tables


def preview(
    frame: pl.DataFrame,
    descriptions: Mapping[str, str] | None = None,
    *,
    rows: int = PREVIEW_ROWS,
    seed: int = 0,
) -> dg.MarkdownMetadataValue:
    """A few rows drawn by a fixed seed, in their order, with long texts cut.

    Args:
        descriptions: column -> what it holds.
    """
    if frame.height > rows:
        drawn = pl.Series(range(frame.height)).sample(rows, seed=seed).sort()
        frame = frame[drawn.to_list()]
    return markdown_table(frame, descriptions, chars=PREVIEW_CHARS)


def column_schema(
    frame: pl.DataFrame | pl.LazyFrame,
    descriptions: Mapping[str, str] | None = None,
) -> dg.TableSchema:
    """Names and types of a frame's columns, in words.

    Args:
        descriptions: column -> what it holds.
    """
    columns = [
        dg.TableColumn(
            name,
            _type_name(kind),
            description=(descriptions or {}).get(name),
        )
        for name, kind in frame.collect_schema().items()
    ]
    return dg.TableSchema(columns)


def markdown_table(
    frame: pl.DataFrame,
    descriptions: Mapping[str, str] | None = None,
    *,
    digits: int = 3,
    chars: int | None = None,
) -> dg.MarkdownMetadataValue:
    """All rows of a small frame as a Markdown table; numbers have `digits` digits that matter.

    The UI shows tables of Dagster's own kind, and Markdown of fewer than 1,000 characters, in a column that cuts them
    off on the right; longer Markdown opens in a box that scrolls. So a table of more than a few columns is filled up.

    Args:
        descriptions: column -> what it holds, told below the table.
        chars: longest text of a cell; None: all of it.
    """
    lines = ["| " + " | ".join(frame.columns) + " |", "|" + "---|" * frame.width]
    lines += [
        "| " + " | ".join(_markdown_cell(value, digits, chars) for value in row) + " |"
        for row in frame.rows()
    ]
    notes = [f"- `{name}`: {descriptions[name]}" for name in frame.columns if name in (descriptions or {})]
    text = "\n".join([*lines, *(["", *notes] if notes else [])])
    return dg.MetadataValue.md(text if frame.width <= IN_PLACE else text.ljust(OPENS_IN_A_BOX))


def samples(rows: Sequence[Mapping[str, str]], *, chars: int = 400) -> dg.MarkdownMetadataValue:
    """Texts side by side: one table row a mapping, one column a key; for before and after."""
    if not rows:
        return dg.MetadataValue.md("nothing to show")
    frame = pl.DataFrame([{name: cut(str(text), chars) for name, text in row.items()} for row in rows])
    return markdown_table(frame)


def cut(text: str, chars: int = PREVIEW_CHARS) -> str:
    """At most `chars` characters, the last of them an ellipsis where something is missing."""
    return text if len(text) <= chars else text[: chars - 1] + "…"


def number(value: float, digits: int = 3) -> str:
    """For a table: 0.123, 1.235, 12.35, 1235, 0.00012."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    if abs(value) < 10**-digits:
        return f"{value:.2g}"
    return f"{value:.{max(0, digits - max(0, math.floor(math.log10(abs(value)))))}f}"


def _type_name(kind: pl.DataType) -> str:
    """`list of records` rather than `List(Struct({'name': String, …`."""
    if isinstance(kind, pl.List | pl.Array):
        inner = _type_name(kind.inner)
        return f"list of {_PLURALS.get(inner, inner)}"
    if isinstance(kind, pl.Struct):
        return "record"
    return _shown_type(kind) if kind.is_numeric() or kind in (pl.Boolean, pl.String) else str(kind).lower()


def _shown_type(kind: pl.DataType) -> str:
    if kind.is_integer():
        return "int"
    if kind.is_float():
        return "float"
    return "bool" if kind == pl.Boolean else "string"


def _markdown_cell(value: Any, digits: int, chars: int | None = None) -> str:
    if isinstance(value, float):
        return number(value, digits)
    text = "" if value is None else str(value)
    text = text if chars is None else cut(text, chars)
    return html.escape(text, quote=False).replace("|", "\\|").replace("\n", " ")


# ---------------------------------------------------------------------------------------- numbers


def rounded(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata whose floats have four significant digits, large ones one after the point; the rest as it is."""
    return {name: significant(value) for name, value in numbers.items()}


def significant(value: Any) -> Any:
    """A finite float without the digits that mean nothing; anything else as it is."""
    if not isinstance(value, float) or not math.isfinite(value):
        return value
    return round(value, 1) if abs(value) >= 10**DIGITS else float(f"{value:.{DIGITS}g}")


def as_texts(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata whose numbers are texts, so that Dagster draws no line through them; everything else as it is."""
    return {
        name: f"{value:g}" if isinstance(value, float) else str(value) if type(value) is int else value
        for name, value in numbers.items()
    }


# ------------------------------------------------------------------------------------------ plots


def histogram(values: Sequence[float], label: str, *, bins: int = 30) -> dg.MarkdownMetadataValue:
    """How often values fall into each of `bins` equal ranges.

    Args:
        label: of the horizontal axis.
    """
    finite = _finite(values, label)
    low, high = min(finite), max(finite)
    step = (high - low) / bins or 1.0
    counts = [0] * bins
    for value in finite:
        counts[min(int((value - low) / step), bins - 1)] += 1
    plane = _Plane.around([low, low + step * bins], [0, max(counts)])
    bars = "".join(
        f'<rect x="{plane.x(low + step * index):.1f}" y="{plane.y(count):.1f}" '
        f'width="{(plane.right - plane.left) / bins - 1:.1f}" '
        f'height="{plane.bottom - plane.y(count):.1f}" fill="{COLOURS[0]}"/>'
        for index, count in enumerate(counts)
        if count
    )
    return _svg(plane, bars, label, f"count of {len(finite)}", alt=label)


def curves(
    series: Mapping[str, Sequence[tuple[float, float]]], x_label: str, y_label: str
) -> dg.MarkdownMetadataValue:
    """One line a name through its (x, y) points."""
    points = {name: _finite_points(line) for name, line in series.items()}
    everything = [point for line in points.values() for point in line]
    _finite([y for _, y in everything], y_label)
    plane = _Plane.around([x for x, _ in everything], [y for _, y in everything])
    shapes = ""
    for index, (name, line) in enumerate(points.items()):
        colour = COLOURS[index % len(COLOURS)]
        path = " ".join(f"{plane.x(x):.1f},{plane.y(y):.1f}" for x, y in line)
        shapes += f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
        shapes += "".join(
            f'<circle cx="{plane.x(x):.1f}" cy="{plane.y(y):.1f}" r="2.5" fill="{colour}"/>' for x, y in line
        )
        shapes += _text(plane.right - 4, 16 + 13 * index, name, anchor="end", colour=colour)
    return _svg(plane, shapes, x_label, y_label, alt=f"{y_label} over {x_label}")


def intervals(rows: Mapping[str, tuple[float, float, float]], label: str) -> dg.MarkdownMetadataValue:
    """One row a name: estimate as a dot, low to high as a line, and zero as a dashed line.

    Args:
        rows: name -> (estimate, low, high).
    """
    _finite([value for row in rows.values() for value in row], label)
    left = 12 + 7 * max(len(name) for name in rows)
    plane = _Plane.around(
        [0.0, *(value for row in rows.values() for value in row)],
        [0, 1],
        left=left,
        height=40 + 20 * len(rows) + MARGIN,
    )
    zero = plane.x(0.0)
    shapes = (
        f'<line x1="{zero:.1f}" y1="10" x2="{zero:.1f}" y2="{plane.bottom}" stroke="#888" '
        'stroke-dasharray="4 3"/>'
    )
    for index, (name, (estimate, low, high)) in enumerate(rows.items()):
        y, colour = 24 + 20 * index, COLOURS[0]
        shapes += _text(left - 6, y + 4, name, anchor="end")
        shapes += (
            f'<line x1="{plane.x(low):.1f}" y1="{y}" x2="{plane.x(high):.1f}" y2="{y}" stroke="{colour}" '
            f'stroke-width="2"/><circle cx="{plane.x(estimate):.1f}" cy="{y}" r="4" fill="{colour}"/>'
        )
    return _svg(plane, shapes, label, "", alt=label, y_ticks=False)


def figure(plot: Any, alt: str) -> dg.MarkdownMetadataValue:
    """A matplotlib figure as PNG, at the finest resolution that the event log should bear.

    Raises:
        PlotError: even a coarse one has more than 50 kB.
    """
    for dpi in (110, 80, 60, 40):
        buffer = io.BytesIO()
        plot.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight")
        if len(data := base64.b64encode(buffer.getvalue())) <= MAX_IMAGE_BYTES:
            return _image(f"data:image/png;base64,{data.decode()}", alt)
    raise PlotError(
        f"{alt}: more than {MAX_IMAGE_BYTES // 1000} kB at 40 dpi; draw less, or put it in a file"
    )


@dataclass(frozen=True)
class _Plane:
    """Maps data to pixels."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    left: float = MARGIN
    height: float = HEIGHT

    @classmethod
    def around(cls, xs: Sequence[float], ys: Sequence[float], **size: float) -> "_Plane":
        return cls(_spread(xs), _spread(ys), **size)

    @property
    def right(self) -> float:
        return WIDTH - 12

    @property
    def bottom(self) -> float:
        return self.height - MARGIN + 8

    def x(self, value: float) -> float:
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.bottom - (value - low) / (high - low) * (self.bottom - 10)


def _spread(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _finite(values: Sequence[float], label: str) -> list[float]:
    finite = [float(value) for value in values if value is not None and math.isfinite(value)]
    if not finite:
        raise PlotError(f"{label}: no finite value to draw; leave the plot out when there is no data")
    return finite


def _finite_points(line: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in line if y is not None and math.isfinite(y)]


def _svg(
    plane: _Plane, shapes: str, x_label: str, y_label: str, *, alt: str, y_ticks: bool = True
) -> dg.MarkdownMetadataValue:
    axes = (
        f'<path d="M{plane.left} 10V{plane.bottom}H{plane.right}" fill="none" stroke="#888"/>'
        + _text(plane.left, plane.bottom + 14, _number(plane.x_range[0]))
        + _text(plane.right, plane.bottom + 14, _number(plane.x_range[1]), anchor="end")
        + _text((plane.left + plane.right) / 2, plane.bottom + 28, x_label, anchor="middle")
        + _text(plane.left + 4, 16, y_label)
    )
    if y_ticks:
        axes += _text(plane.left - 4, plane.bottom, _number(plane.y_range[0]), anchor="end")
        axes += _text(plane.left - 4, 18, _number(plane.y_range[1]), anchor="end")
    text = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{plane.height:.0f}" '
        f'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="#fff"/>'
        f"{shapes}{axes}</svg>"
    )
    source = "data:image/svg+xml," + quote(text, safe="=:/,;!?")
    if len(source) > MAX_IMAGE_BYTES:
        raise PlotError(f"{alt}: {len(source)} bytes, more than {MAX_IMAGE_BYTES}; draw fewer points")
    return _image(source, alt)


def _text(x: float, y: float, text: str, *, anchor: str = "start", colour: str = "#444") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{html.escape(text)}</text>'


def _number(value: float) -> str:
    return f"{value:.4g}"


def _image(source: str, alt: str) -> dg.MarkdownMetadataValue:
    return dg.MetadataValue.md(f"![{alt.replace('[', '(').replace(']', ')')}]({source})")
