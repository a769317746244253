"""What `python -m steer_pipeline.tools.query` promises to someone with a question about the store."""

import json

import polars as pl
import pytest

from steer_pipeline.io.query import main
from steer_pipeline.resources import open_store


def put(asset, partition=None, **tables):
    """Makes `tables` (file name without ending -> rows) the current version of an asset partition."""

    def write(folder):
        for name, rows in tables.items():
            pl.DataFrame(rows).write_parquet(folder / f"{name}.parquet")
        (folder / "about.json").write_text("{}")

    return open_store().write(asset, partition, write, metadata={}, inputs={}, code_version="1", run_id=None)


@pytest.fixture
def store():
    put("rewrite_pack", "base", data={"row_id": ["old"], "n": [0]})
    put("rewrite_pack", "base", data={"row_id": ["a", "b"], "n": [1, 2]})
    put("rewrite_pack", "paranoid", data={"row_id": ["a"], "n": [5], "personas": [[{"name": "paranoid"}]]})
    put("comparison", summary={"metric": ["length"]}, rows={"row_id": ["a", "b", "c"]})
    put("cc_news", data={"text": ["x"]}, quarantine={"line": [7]})


def asked(capsys, *arguments):
    assert main(arguments) == 0
    return capsys.readouterr().out


def refused(capsys, *arguments):
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    return printed.err


def test_a_view_holds_the_current_version_of_every_partition(store, capsys):
    version = put("rewrite_pack", "base", data={"row_id": ["a", "b"], "n": [1, 2]})
    rows = json.loads(asked(capsys, "select * from rewrite_pack order by all", "--json"))
    assert [(row["_partition"], row["row_id"], row["n"]) for row in rows] == [
        ("base", "a", 1),
        ("base", "b", 2),
        ("paranoid", "a", 5),
    ]
    assert rows[0]["_version"] == version.sha
    assert rows[0]["personas"] is None  # a column that only the other partition has
    assert rows[2]["personas"] == [{"name": "paranoid"}]


def test_a_version_of_several_files_has_a_view_a_file(store, capsys):
    assert json.loads(asked(capsys, "select count(*) as n from comparison_rows", "--json")) == [{"n": 3}]
    assert json.loads(asked(capsys, "select _partition, metric from comparison_summary", "--json")) == [
        {"_partition": None, "metric": "length"}
    ]
    assert json.loads(asked(capsys, "select text from cc_news", "--json")) == [{"text": "x"}]
    assert json.loads(asked(capsys, "select line from cc_news_quarantine", "--json")) == [{"line": 7}]


def test_sums_are_numbers_and_pivots_are_reading(store, capsys):
    assert json.loads(asked(capsys, "select sum(n) as n from rewrite_pack", "--json")) == [{"n": 8}]
    pivot = (
        "pivot (select _partition, row_id, n from rewrite_pack) on _partition using max(n) order by row_id"
    )
    assert json.loads(asked(capsys, pivot, "--json"))[0] == {"row_id": "a", "base": 1, "paranoid": 5}


def test_csv_keeps_lists_as_json(store, capsys):
    text = asked(capsys, "select n, personas from rewrite_pack where n > 1 order by n", "--csv")
    assert text == 'n,personas\n2,\n5,"[{""name"": ""paranoid""}]"\n'


def test_the_table_says_how_many_rows_there_are(store, capsys):
    text = asked(capsys, "select row_id from rewrite_pack")
    assert "row_id" in text
    assert text.endswith("3 rows\n")
    text = asked(capsys, "select * from range(150)")
    assert "150 rows; the first 100 are shown" in text


def test_the_list_names_views_columns_and_rows(store, capsys):
    text = asked(capsys, "--list")
    assert "rewrite_pack  (3 rows)" in text
    assert "comparison_summary  (1 row)" in text
    assert "    row_id                   VARCHAR" in text
    columns = json.loads(asked(capsys, "--list", "--json"))
    assert {"view": "cc_news_quarantine", "rows": 1, "column": "line", "type": "BIGINT"} in columns


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("select * from rewrite_packs", "rewrite_packs does not exist"),
        ("select outputs from rewrite_pack", '"outputs" not found'),
        ("selec 1", "syntax error"),
        ("select * from store", "store does not exist"),  # a variable of the program is no table
    ],
)
def test_what_is_unknown_is_answered_with_the_views(store, capsys, sql, reason):
    message = refused(capsys, sql)
    assert reason in message
    assert "views: cc_news, cc_news_quarantine, comparison_rows, comparison_summary, rewrite_pack" in message


@pytest.mark.parametrize(
    "sql",
    [
        "copy rewrite_pack to '{path}'",
        "explain analyze copy rewrite_pack to '{path}'",
        "attach '{path}' as other",
        "select 1; copy rewrite_pack to '{path}'",
        "drop view rewrite_pack",
        "",
    ],
)
def test_only_reading_is_allowed(store, capsys, tmp_path, sql):
    assert "only reads" in refused(capsys, sql.format(path=tmp_path / "stolen"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["--list"], ["select 1"]])
def test_an_empty_store_says_how_to_fill_it(capsys, arguments):
    assert "run `make pilot` first" in refused(capsys, *arguments)


def test_a_store_without_tables_is_empty_too(capsys):
    put("persona_vector", "paranoid")
    assert "there are no tables" in refused(capsys, "--list")


def test_a_damaged_file_is_not_read_but_named(store, capsys):
    version = open_store().current("rewrite_pack", "paranoid")
    path = version.path / "data.parquet"
    path.write_bytes(path.read_bytes().replace(b"paranoid", b"paranoiX"))
    message = refused(capsys, "select row_id from rewrite_pack")
    assert f"FAILED: {path}: damaged file of rewrite_pack[paranoid], version {version.sha}" in message
    assert json.loads(asked(capsys, "select text from cc_news", "--json")) == [
        {"text": "x"}
    ]  # the others go on
