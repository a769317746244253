"""Columns give cells in one notation: the same digits, one form of an interval, a dash for what is unknown."""

import math

from steer_pipeline.lab.report.document import to_html
from steer_pipeline.lab.report.tables import (
    Column,
    code,
    estimate,
    interval,
    number,
    of,
    p_value,
    share,
    short_code,
    table,
)


def test_a_table_is_columns_applied_to_rows():
    columns = [
        Column("variant", "name", code, "Whose."),
        Column("rows", lambda row: row["n"] * 2),
        Column("shift", of("d", "low", "high"), estimate(2)),
    ]
    rows = [{"name": "base", "n": 3, "d": None, "low": None, "high": None}]
    rows.append({"name": "paranoid", "n": 4, "d": 0.574, "low": -0.001, "high": 0.6})
    made = table(columns, rows, "What moved.")
    assert made.columns == ["variant", "rows", "shift"]
    assert made.rows == [["`base`", "6", "–"], ["`paranoid`", "8", "+0.57 [0.00, +0.60]"]]
    page = to_html("T", [made])
    assert '<th title="Whose.">variant</th><th class="n">rows</th>' in page
    assert '<p class="caption">What moved.</p>' in page


def test_numbers_have_one_notation():
    assert (number()(0.12345), number(1, signed=True)(3.0), number(signed=True)(-0.0001)) == (
        "0.123",
        "+3.0",
        "0.000",
    )
    assert interval(2, signed=False)((0.5, 1.0)) == "[0.50, 1.00]"
    assert (share(0.1234), p_value(0.00009999000099990002), p_value(0.05)) == ("12.3%", "<0.001", "0.050")
    assert short_code("0123456789abcdefff") == "`0123456789abcdef`"


def test_what_is_unknown_is_a_dash():
    for shown in (
        share(None),
        share(math.nan),
        p_value(None),
        number()(math.inf),
        interval()((None, 1.0)),
        code(""),
    ):
        assert shown == "–"
