"""What `steer query` promises to someone with a question about the store."""

import json

import polars as pl
import pytest

from steer_pipeline.resources import open_store
from steer_pipeline_tests.cli.running import printed, refused


def put(asset, partition=None, **tables):
    """Makes `tables` (file name without ending -> rows) the current version of an asset partition."""

    def write(folder):
        for name, rows in tables.items():
            pl.DataFrame(rows).write_parquet(folder / f"{name}.parquet")
        (folder / "about.json").write_text('{"about": 1}')

    return open_store().write(asset, partition, write, metadata={}, inputs={}, code_version="1", run_id=None)


@pytest.fixture
def store():
    put("rewrite_pack", "base", data={"row_id": ["old"], "n": [0]})
    put("rewrite_pack", "base", data={"row_id": ["a", "b"], "n": [1, 2]})
    put("rewrite_pack", "paranoid", data={"row_id": ["a"], "n": [5], "personas": [[{"name": "paranoid"}]]})
    put("comparison", summary={"metric": ["length"]}, rows={"row_id": ["a", "b", "c"]})
    put("cc_news", data={"text": ["x"]}, quarantine={"line": [7]})


def test_a_view_holds_the_current_version_of_every_partition(store):
    version = put("rewrite_pack", "base", data={"row_id": ["a", "b"], "n": [1, 2]})
    rows = json.loads(printed("query", "select * from rewrite_pack order by all", "--json"))
    assert [(row["_partition"], row["row_id"], row["n"]) for row in rows] == [
        ("base", "a", 1),
        ("base", "b", 2),
        ("paranoid", "a", 5),
    ]
    assert rows[0]["_version"] == version.sha
    assert rows[0]["personas"] is None  # a column that only the other partition has
    assert rows[2]["personas"] == [{"name": "paranoid"}]


def test_the_main_table_of_several_has_the_asset_s_name_and_the_others_stand_behind_it(store):
    assert json.loads(printed("query", "select count(*) as n from comparison__rows", "--json")) == [{"n": 3}]
    assert json.loads(printed("query", "select _partition, metric from comparison", "--json")) == [
        {"_partition": None, "metric": "length"}
    ]
    assert json.loads(printed("query", "select text from cc_news", "--json")) == [{"text": "x"}]
    assert json.loads(printed("query", "select line from cc_news__quarantine", "--json")) == [{"line": 7}]


def test_sums_are_numbers_and_pivots_are_reading(store):
    assert json.loads(printed("query", "select sum(n) as n from rewrite_pack", "--json")) == [{"n": 8}]
    pivot = (
        "pivot (select _partition, row_id, n from rewrite_pack) on _partition using max(n) order by row_id"
    )
    assert json.loads(printed("query", pivot, "--json"))[0] == {"row_id": "a", "base": 1, "paranoid": 5}


def test_csv_keeps_lists_as_json(store):
    text = printed("query", "select n, personas from rewrite_pack where n > 1 order by n", "--csv")
    assert text == 'n,personas\n2,\n5,"[{""name"": ""paranoid""}]"\n'


def test_the_table_says_how_many_rows_there_are(store):
    text = printed("query", "select row_id from rewrite_pack")
    assert "row_id" in text
    assert text.endswith("3 rows\n")
    text = printed("query", "select * from range(150)")
    assert "150 rows; the first 100 are shown" in text


def test_the_list_names_views_columns_and_rows(store):
    text = printed("query", "--list")
    assert "rewrite_pack  (3 rows)" in text
    assert "comparison  (1 row)" in text
    assert "    row_id                   VARCHAR" in text
    columns = json.loads(printed("query", "--list", "--json"))
    assert {
        "table": "cc_news__quarantine",
        "rows": 1,
        "column": "line",
        "type": "BIGINT",
        "damage": "",
    } in columns


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("select * from rewrite_packs", "rewrite_packs does not exist"),
        ("select outputs from rewrite_pack", '"outputs" not found'),
        ("selec 1", "syntax error"),
        ("select * from store", "store does not exist"),  # a variable of the program is no table
    ],
)
def test_what_is_unknown_is_answered_with_the_views(store, sql, reason):
    message = refused("query", sql)
    assert reason in message
    assert "tables: cc_news, cc_news__quarantine, comparison, comparison__rows, rewrite_pack" in message


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
def test_only_reading_is_allowed(store, tmp_path, sql):
    assert "only reads" in refused("query", sql.format(path=tmp_path / "stolen"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["--list"], ["select 1"]])
def test_an_empty_store_says_how_to_fill_it(arguments):
    assert "run `steer make pilot` first" in refused("query", *arguments)


def test_a_store_without_tables_is_empty_too():
    open_store().write(
        "notes",
        None,
        lambda folder: (folder / "notes.txt").write_text("."),
        metadata={},
        inputs={},
        code_version="1",
        run_id=None,
    )
    assert "there are no tables" in refused("query", "--list")


def test_a_damaged_file_is_not_read_but_named(store):
    version = open_store().current("rewrite_pack", "paranoid")
    path = version.path / "data.parquet"
    path.write_bytes(path.read_bytes().replace(b"paranoid", b"paranoiX"))
    message = refused("query", "select row_id from rewrite_pack")
    assert f"Error: {path}: damaged file of rewrite_pack[paranoid], version {version.sha}" in message
    assert json.loads(printed("query", "select text from cc_news", "--json")) == [
        {"text": "x"}
    ]  # the others go on


def test_one_damaged_table_does_not_refuse_the_whole_list(store):
    version = open_store().current("rewrite_pack", "paranoid")
    (version.path / "MANIFEST.json").write_text("{")
    path = open_store().current("comparison", None).path / "rows.parquet"
    path.write_bytes(b"X" * path.stat().st_size)
    text = printed("query", "--list")
    assert "rewrite_pack  DAMAGED: " in text
    assert "comparison__rows  DAMAGED: " in text
    assert "cc_news  (1 row)" in text


def test_what_is_stored_as_json_alone_is_a_table_too():
    """`vector` and `release` had no view."""
    put("rewrite_release", "base")
    put("rewrite_release", "paranoid")
    rows = json.loads(printed("query", "select * from rewrite_release order by all", "--json"))
    assert [row["_partition"] for row in rows] == ["base", "paranoid"]


def test_many_columns_stand_one_below_the_other(store):
    columns = ", ".join(f"{i} as column_{i}" for i in range(60))
    assert "column_59  59" in printed("query", f"select {columns}").splitlines()


@pytest.mark.parametrize("arguments", [[], ["--list", "select 1"]])
def test_either_a_query_or_the_list(arguments):
    assert "give one SELECT, or --list" in refused("query", *arguments, status=2)
