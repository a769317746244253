"""What the UI is given is small, repeatable and true."""

import base64
import math
import re
from urllib.parse import unquote
from xml.etree import ElementTree

import polars as pl
import pytest

from steer_pipeline import show

LONG = pl.DataFrame({"text": ["word " * 200] * 100, "x": range(100), "tags": [["a", "b"]] * 100})


def drawing(metadata) -> ElementTree.Element:
    found = re.fullmatch(r"!\[[^\]]*\]\(data:image/svg\+xml,([^)\s]+)\)", metadata.value)
    assert found, "one Markdown image whose address holds no blank and no parenthesis"
    assert len(metadata.value) < 50_000
    return ElementTree.fromstring(unquote(found[1]))


def texts(svg: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in svg.iter("{http://www.w3.org/2000/svg}text")]


def test_a_preview_is_five_short_rows_and_always_the_same():
    first, again = show.preview(LONG), show.preview(LONG)
    assert first == again
    header, _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in first.value.splitlines()
    )
    assert header == ["text", "x", "tags"]
    assert len(rows) == 5
    assert [int(x) for _, x, _ in rows] == sorted(int(x) for _, x, _ in rows)
    assert all(len(text) == 120 and text.endswith("…") for text, _, _ in rows)
    assert rows[0][2] == "['a', 'b']"


def test_a_preview_of_few_rows_shows_all_of_them():
    frame = pl.DataFrame({"x": [1.5, math.nan, None], "ok": [True, False, None]})
    assert show.preview(frame).value.splitlines()[2:] == ["| 1.500 | True |", "| nan | False |", "|  |  |"]
    assert show.preview(frame.clear()).value.splitlines() == ["| x | ok |", "|---|---|"]


def test_a_wide_table_opens_in_a_box_of_its_own():
    """In place it would be cut off on the right: the UI does that below 1,000 characters."""
    wide = pl.DataFrame({name: [0.5] for name in "abcd"})
    assert len(show.markdown_table(wide).value) >= 1000
    assert len(show.markdown_table(wide.select("a", "b")).value) < 100


def test_a_schema_says_what_columns_hold():
    schema = show.column_schema(LONG.lazy(), {"x": "a number"})
    assert {column.name: column.description for column in schema.columns} == {
        "text": None,
        "x": "a number",
        "tags": None,
    }


def test_types_are_words():
    frame = pl.DataFrame({"personas": [[{"name": "x", "alpha": 1.0}]], "tags": [["a"]], "x": [1.5]})
    assert {column.name: column.type for column in show.column_schema(frame).columns} == {
        "personas": "list of records",
        "tags": "list of strings",
        "x": "float",
    }


def test_numbers_have_sensible_digits_and_are_texts_where_no_line_may_join_them():
    numbers = {"p": 0.00009999000099990002, "rate": 1234567.891, "n": 12, "ok": True, "nan": math.nan}
    rounded = show.rounded(numbers)
    assert (rounded["p"], rounded["rate"], rounded["n"], rounded["ok"]) == (9.999e-05, 1234567.9, 12, True)
    assert show.as_texts(show.rounded({"p": 0.25, "n": 12, "ok": True})) == {
        "p": "0.25",
        "n": "12",
        "ok": True,
    }


def test_tables_and_samples_cannot_break_out_of_their_cells():
    table = show.markdown_table(pl.DataFrame({"a": ["x|y\n<script>"], "b": [0.12345]})).value
    assert table.splitlines() == ["| a | b |", "|---|---|", "| x\\|y &lt;script&gt; | 0.123 |"]
    assert show.samples([{"before": "b" * 500, "after": "a"}]).value.count("b") < 450
    assert show.samples([]).value == "nothing to show"


def test_a_histogram_counts_every_value():
    svg = drawing(show.histogram([*range(100), 5.0, math.nan], "tokens (of an article)"))
    bars = [element for element in svg.iter("{http://www.w3.org/2000/svg}rect") if element.get("x")]
    assert len(bars) == 30
    assert {"tokens (of an article)", "count of 101", "0", "99"} <= set(texts(svg))


def test_a_histogram_of_one_value_is_drawn():
    assert drawing(show.histogram([3.0, 3.0], "same")) is not None


def test_curves_name_their_lines_and_leave_gaps_where_nothing_was_measured():
    svg = drawing(show.curves({"a<b": [(0, 0.0), (1, 2.0)], "c": [(0, math.nan), (1, 1.0)]}, "dose", "trait"))
    assert {"a<b", "c", "dose", "trait"} <= set(texts(svg))
    assert len(list(svg.iter("{http://www.w3.org/2000/svg}circle"))) == 3


def test_intervals_show_where_zero_is():
    svg = drawing(show.intervals({"paranoid": (0.5, 0.4, 0.6), "random": (0.0, -0.1, 0.1)}, "shift"))
    (dashed,) = (line for line in svg.iter() if line.get("stroke-dasharray"))
    dots = [float(dot.get("cx")) for dot in svg.iter("{http://www.w3.org/2000/svg}circle")]
    assert dots[1] == pytest.approx(float(dashed.get("x1")), abs=0.1)
    assert dots[0] > dots[1]


def test_a_plot_without_data_or_too_large_for_the_log_is_refused():
    with pytest.raises(show.PlotError, match="scores: no finite value"):
        show.histogram([math.nan], "scores")
    with pytest.raises(show.PlotError, match="draw fewer points"):
        show.curves({"a": [(x, x) for x in range(5000)]}, "x", "y")


def test_a_figure_is_a_png_that_the_event_log_can_bear():
    from matplotlib.figure import Figure

    plot = Figure()
    plot.subplots().plot([0, 1], [0, 1])
    address = re.fullmatch(r"!\[line\]\(data:image/png;base64,(.+)\)", show.figure(plot, "line").value)
    assert base64.b64decode(address[1]).startswith(b"\x89PNG")
    assert len(address[1]) <= 50_000


def test_numbers_have_the_digits_that_matter():
    shown = [show.number(value) for value in (0.12345, 1.23456, 12.3456, 1234.56, 0.00009999, 0.0, -2.5)]
    assert shown == ["0.123", "1.235", "12.35", "1235", "0.0001", "0", "-2.500"]
    assert show.significant(0.00009999000099990002) == 0.00009999
    assert (show.significant(7), show.significant(math.inf)) == (7, math.inf)


def test_a_preview_says_what_its_columns_hold():
    assert show.preview(LONG, {"x": "a number", "other": ""}).value.endswith("\n\n- `x`: a number")
