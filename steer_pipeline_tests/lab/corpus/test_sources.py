import gzip
import hashlib
import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import polars as pl
import pytest

from steer_pipeline.catalogue.specs import NewsSource
from steer_pipeline.lab.corpus import sources
from steer_pipeline.lab.corpus.identity import row_id
from steer_pipeline.lab.corpus.sources import QUARANTINE_SCHEMA, ROW_SCHEMA, SourceError, read_news

GOOD = {
    "title": "Bridge",
    "description": "Vote",
    "text": "The city voted on Tuesday.",
    "domain": "a.example",
    "date": "2017-10-11 05:30:00",
    "authors": ["Ana Ruiz"],
    "url": "https://a.example/1",
}


def line(**changes):
    return json.dumps({**GOOD, **changes})


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = b"\n".join(each if isinstance(each, bytes) else each.encode() for each in lines) + b"\n"
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def read(source, home, **kwargs):
    batches = list(read_news(source, home, **kwargs))
    return pl.concat([b.rows for b in batches]), pl.concat([b.quarantine for b in batches])


def files(path):
    return NewsSource(kind="files", path=str(path))


HOSTILE = [
    line(url="u/0"),
    "",
    "{not json",
    "   ",
    '["a list"]',
    line(url="u/1", text=7),
    line(url="u/2", text=None),
    json.dumps({"url": "u/3", "title": "no text"}),
    line(url="u/4", text=" \n"),
    b'{"text": "caf\xe9"}',
    line(url="u/5", authors="Ana Ruiz"),
    line(url="u/6", text="half a \ud83d pair"),
    line(url="u/7", title={"en": "x"}),
    '{"text": ' + "9" * 5000 + "}",
    "[" * 100_000,
    line(url="u/8", text="Short."),
    '{"text": "Only a text, which is all that is needed."}',
    '{"text": "torn off in the mid',
]


def test_every_line_that_is_not_blank_ends_as_a_row_or_in_quarantine(tmp_path):
    write(tmp_path / "hostile.jsonl", HOSTILE)
    source = NewsSource(kind="files", path="hostile.jsonl", min_chars=10)
    rows, quarantine = read(source, tmp_path, batch_rows=3)
    assert rows.height + quarantine.height == sum(1 for each in HOSTILE if each.strip())
    assert rows["url"].to_list() == ["u/0", "u/5", "u/7", ""]
    assert rows.schema == ROW_SCHEMA
    assert quarantine.schema == QUARANTINE_SCHEMA


def test_quarantine_names_file_line_reason_and_shows_the_line(tmp_path):
    write(tmp_path / "in" / "hostile.jsonl", HOSTILE)
    _, quarantine = read(NewsSource(kind="files", path="in/hostile.jsonl", min_chars=10), tmp_path)
    assert set(quarantine["file"]) == {"in/hostile.jsonl"}
    reasons = dict(quarantine.select("line", "reason").iter_rows())
    assert reasons == {
        3: "not JSON: Expecting property name enclosed in double quotes at column 2",
        5: "not an object: list",
        6: "wrong type: text is int, expected a string",
        7: "missing text",
        8: "missing text",
        9: "empty text",
        10: "not UTF-8: byte 14",
        12: "not Unicode: unpaired surrogate '\\ud83d' in text",
        14: reasons[14],
        15: reasons[15],
        16: "short text: fewer than 10 characters",
        18: "not JSON: Unterminated string starting at at column 10",
    }
    assert reasons[14].startswith("not JSON: ")
    assert reasons[15].startswith("not JSON: ")
    assert quarantine["excerpt"][0] == "{not json"
    assert quarantine["excerpt"].str.len_chars().max() <= 160


def test_source_index_counts_lines_that_parse(tmp_path):
    write(tmp_path / "a.jsonl", [line(url="0"), "broken", "", line(url="1", text=""), line(url="2")])
    write(tmp_path / "b.jsonl", ["[]", line(url="3")])
    rows, _ = read(files("*.jsonl"), tmp_path)
    assert rows.select("source_index", "url").rows() == [(0, "0"), (2, "2"), (3, "3")]


def test_row_ids_do_not_depend_on_file_position_or_batch(tmp_path):
    lines = [line(url=str(i)) for i in range(7)]
    write(tmp_path / "a.jsonl", lines)
    write(tmp_path / "b.jsonl.gz", ["broken", *reversed(lines)])
    one, _ = read(files("a.jsonl"), tmp_path, batch_rows=2)
    other, _ = read(files("b.jsonl.gz"), tmp_path)
    assert dict(one.select("url", "row_id").rows()) == dict(other.select("url", "row_id").rows())


def test_batches_are_small(tmp_path):
    write(tmp_path / "a.jsonl", [line(url=str(i)) for i in range(10)])
    assert [b.rows.height for b in read_news(files("a.jsonl"), tmp_path, batch_rows=4)] == [4, 4, 2]


def test_limit_counts_accepted_rows(tmp_path):
    write(
        tmp_path / "a.jsonl", ["broken", line(url="0"), line(text=""), line(url="1"), line(url="2"), "late"]
    )
    rows, quarantine = read(NewsSource(kind="files", path="a.jsonl", limit=2), tmp_path)
    assert rows["url"].to_list() == ["0", "1"]
    assert quarantine["line"].to_list() == [1, 3]


def test_byte_order_mark_and_windows_line_ends_are_no_problem(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + line().encode() + b"\r\n\r\n" + line().encode())
    rows, quarantine = read(files("a.jsonl"), tmp_path)
    assert (rows.height, quarantine.height) == (2, 0)


NAN = float("nan")
ODD = [  # a field of a sound article, what is read, and what is said of it
    ({"title": None}, {"title": ""}, {}),
    ({"title": NAN}, {"title": ""}, {}),
    ({"title": 1984}, {"title": "1984"}, {"title_coerced": 1}),
    ({"title": ["Two", "lines"]}, {"title": "Two, lines"}, {"title_coerced": 1}),
    ({"title": {"en": "x"}}, {"title": ""}, {"title_blanked": 1}),
    ({"title": "half a \ud83d pair"}, {"title": "half a ? pair"}, {"title_coerced": 1}),
    ({"title": "Smith &amp; <b>Sons</b>"}, {"title": "Smith & Sons"}, {}),
    ({"description": True, "domain": NAN}, {"description": "True", "domain": ""}, {"description_coerced": 1}),
    ({"date": NAN}, {"date": ""}, {}),
    ({"date": "NaT"}, {"date": ""}, {"date_coerced": 1}),
    ({"title": "NaT"}, {"title": "NaT"}, {}),
    ({"date": "Tuesday, 2 Jan."}, {"date": "Tuesday, 2 Jan."}, {}),
    ({"date": "2018-01-01T00:00:00Z"}, {"date": "2018-01-01T00:00:00Z"}, {}),
    ({"date": "20180101"}, {"date": "20180101"}, {}),
    ({"date": 1514764800}, {"date": "2018-01-01 00:00:00"}, {"date_coerced": 1}),
    ({"date": 1514764800000}, {"date": "2018-01-01 00:00:00"}, {"date_coerced": 1}),
    ({"date": "1514764800.5"}, {"date": "2018-01-01 00:00:00"}, {"date_coerced": 1}),
    ({"date": {"$date": 1514764800000}}, {"date": "2018-01-01 00:00:00"}, {"date_coerced": 1}),
    ({"date": float("inf")}, {"date": ""}, {"date_blanked": 1}),
    ({"date": 1e300}, {"date": ""}, {"date_blanked": 1}),
    ({"date": {"y": 1, "m": 2}}, {"date": ""}, {"date_blanked": 1}),
    ({"authors": "A. Writer, B. Writer"}, {"authors": ["A. Writer", "B. Writer"]}, {"authors_coerced": 1}),
    ({"authors": "Poe, Ada; Lee, Ben"}, {"authors": ["Poe, Ada", "Lee, Ben"]}, {"authors_coerced": 1}),
    ({"authors": '["A", "B"]'}, {"authors": ["A", "B"]}, {"authors_coerced": 1}),
    ({"authors": "[unknown"}, {"authors": ["[unknown"]}, {"authors_coerced": 1}),
    ({"authors": ""}, {"authors": []}, {"authors_coerced": 1}),
    ({"authors": NAN}, {"authors": []}, {}),
    ({"authors": ["A", None, NAN]}, {"authors": ["A"]}, {"authors_coerced": 1}),
    ({"authors": [{"name": "A"}, "B"]}, {"authors": ["A", "B"]}, {"authors_coerced": 1}),
    ({"authors": {"name": "A"}}, {"authors": ["A"]}, {"authors_coerced": 1}),
    ({"authors": [{"id": 1}]}, {"authors": []}, {"authors_blanked": 1}),
    ({"authors": 7}, {"authors": []}, {"authors_blanked": 1}),
    ({"url": NAN}, {"url": ""}, {}),
    ({"image_url": {"x": [1]}, "source": NAN, "anything": [[]]}, {}, {}),
]


@pytest.mark.parametrize(("given", "read_as", "mended"), ODD, ids=str)
def test_an_optional_field_never_costs_the_article(tmp_path, given, read_as, mended):
    write(tmp_path / "a.jsonl", [line(**given)])
    (batch,) = read_news(files("a.jsonl"), tmp_path)
    assert batch.quarantine.is_empty()
    assert batch.rows.row(0, named=True).items() >= {**GOOD, **read_as}.items()
    assert batch.mended == mended


@pytest.mark.parametrize("given", [{"url": 7}, {"url": "\ud83d"}, {"text": NAN}, {"text": ["x"]}])
def test_text_and_url_do_cost_the_article(tmp_path, given):
    write(tmp_path / "a.jsonl", [line(**given)])
    (batch,) = read_news(files("a.jsonl"), tmp_path)
    assert (batch.rows.height, batch.quarantine.height) == (0, 1)


def test_the_row_id_is_that_of_the_text_as_mended(tmp_path):
    write(
        tmp_path / "a.jsonl", [line(text="A &amp; B met.<br>They left."), line(text="A & B met.\nThey left.")]
    )
    (batch,) = read_news(files("a.jsonl"), tmp_path)
    assert batch.rows["text"].to_list() == ["A & B met.\nThey left."] * 2
    assert batch.rows["row_id"].to_list() == [row_id(GOOD["url"], "A & B met.\nThey left.")] * 2
    assert batch.mended == {"html_entities": 1, "html_tags": 1}


def test_a_text_of_nothing_but_html_is_empty(tmp_path):
    write(tmp_path / "a.jsonl", [line(text="<p>&nbsp;</p>")])
    (batch,) = read_news(files("a.jsonl"), tmp_path)
    assert batch.quarantine["reason"].to_list() == ["empty text"]


def test_the_shipped_news_are_read_as_they_are():
    """Mending must not touch a sound text, or every row id that was ever given changes."""
    home = Path(__file__).parents[3]
    given = pl.read_parquet(home / "assets_data" / "newsroom" / "news.parquet")
    rows, quarantine = read(NewsSource(), home)
    assert quarantine.is_empty()
    assert rows.select(given.columns).equals(given)
    ids = [row_id(url, text) for url, text in given.select("url", "text").rows()]
    assert rows["row_id"].to_list() == ids
    digest = hashlib.sha256("".join(rows["row_id"]).encode()).hexdigest()
    assert digest.startswith("894abcc1e85785c7")


def test_a_line_without_end_does_not_fill_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_LINE_BYTES", 400)
    write(tmp_path / "a.jsonl", [line(), "x" * 5000, line(url="after")])
    rows, quarantine = read(files("a.jsonl"), tmp_path)
    assert rows["url"].to_list() == [GOOD["url"], "after"]
    assert quarantine.select("line", "reason").rows() == [(2, "long line: over 400 bytes")]


def test_parquet_gives_the_same_rows_as_jsonl(tmp_path):
    write(tmp_path / "a.jsonl", [line(url=str(i)) for i in range(5)])
    pl.DataFrame([{**GOOD, "url": str(i), "extra": i} for i in range(5)]).write_parquet(
        tmp_path / "a.parquet"
    )
    json_rows, _ = read(files("a.jsonl"), tmp_path)
    parquet_rows, _ = read(files("a.parquet"), tmp_path)
    assert parquet_rows.equals(json_rows)


def test_parquet_dates_become_text_and_bad_cells_are_quarantined_by_row(tmp_path):
    frame = pl.DataFrame({"text": ["Good text.", None, ""], "date": [datetime(2017, 10, 11, 5, 30)] * 3})
    frame.write_parquet(tmp_path / "a.parquet")
    rows, quarantine = read(files("a.parquet"), tmp_path)
    assert rows["date"].to_list() == ["2017-10-11 05:30:00"]
    assert quarantine.select("line", "reason").rows() == [(2, "missing text"), (3, "empty text")]


def test_directory_reads_its_news_files_in_name_order(tmp_path):
    write(tmp_path / "inbox" / "b.jsonl.gz", [line(url="b")])
    write(tmp_path / "inbox" / "a.jsonl", [line(url="a")])
    pl.DataFrame([{**GOOD, "url": "c"}]).write_parquet(tmp_path / "inbox" / "c.parquet")
    (tmp_path / "inbox" / "notes.txt").write_text("not news")
    rows, _ = read(NewsSource(kind="directory", path="inbox"), tmp_path)
    assert rows["url"].to_list() == ["a", "b", "c"]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_sample_is_the_shipped_newsroom_file(tmp_path, suffix):
    write(tmp_path / "assets_data" / "newsroom" / f"news{suffix}", [line()])
    rows, _ = read(NewsSource(), tmp_path)
    assert rows.height == 1


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (NewsSource(), ["assets_data/newsroom", "git checkout"]),
        (NewsSource(kind="files"), ["corpus.source.path", "files"]),
        (NewsSource(kind="files", path="none/*.jsonl"), ["none/*.jsonl", "corpus.source.path"]),
        (NewsSource(kind="files", path="inbox"), ["is a directory", "kind directory"]),
        (NewsSource(kind="files", path="news.csv"), ["news.csv", ".jsonl"]),
        (NewsSource(kind="directory", path="empty"), ["empty", ".parquet"]),
        (NewsSource(kind="files", path="no_text.parquet"), ["no column `text`", "body"]),
        (NewsSource(kind="files", path="torn.parquet"), ["torn.parquet", "damaged"]),
        (NewsSource(kind="files", path="blank.jsonl"), ["blank.jsonl: empty", "corpus.source.path"]),
        (NewsSource(kind="news_en"), ["assets_data/news_en", "git checkout"]),
        (NewsSource(kind="files", path="torn.jsonl.gz"), ["torn.jsonl.gz", "damaged after line"]),
    ],
)
def test_a_source_that_cannot_be_read_names_itself_and_the_cure(tmp_path, source, words):
    (tmp_path / "inbox").mkdir()
    write(tmp_path / "blank.jsonl", ["", " "])
    (tmp_path / "news.csv").write_text("text\nx\n")
    pl.DataFrame({"body": ["x"]}).write_parquet(tmp_path / "no_text.parquet")
    pl.DataFrame([GOOD] * 50).write_parquet(tmp_path / "torn.parquet")
    gz = write(tmp_path / "torn.jsonl.gz", [line(url=str(i)) for i in range(1000)])
    for torn in (tmp_path / "torn.parquet", gz):
        torn.write_bytes(torn.read_bytes()[: -len(torn.read_bytes()) // 3])
    with pytest.raises(SourceError) as caught:
        list(read_news(source, tmp_path))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_hub_sources_stream_through_the_datasets_package(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    write(tmp_path / "hub" / "train.jsonl", [line(url="0"), line(url="1", text=""), line(url="2")])
    rows, quarantine = read(NewsSource(kind="hub", path="hub"), tmp_path)
    assert rows.select("source_index", "url").rows() == [(0, "0"), (2, "2")]
    assert quarantine.select("file", "line", "reason").rows() == [("hub[train]", 2, "empty text")]


def test_hub_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SourceError, match=r"pip install '\.\[hub\]'"):
        list(read_news(NewsSource(kind="hub"), tmp_path))


STREAM = """
import resource, sys
from pathlib import Path
from steer_pipeline.catalogue.specs import NewsSource
from steer_pipeline.lab.corpus.sources import read_news
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before, rows = 0, 0
for batch in read_news(NewsSource(kind="files", path=sys.argv[1]), Path.cwd()):
    rows += batch.rows.height
    before = before or peak()
print(rows, peak() - before)
"""


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_memory_does_not_grow_with_the_source(tmp_path, suffix):
    """After the first batch, 40,000 more rows (80 MB) may add 32 MB at most."""
    path = tmp_path / f"news{suffix}"
    body = "The city voted on Tuesday to rebuild the bridge. " * 40
    if suffix == ".jsonl":
        path.write_text("".join(line(url=str(i), text=f"{i} {body}") + "\n" for i in range(40_000)))
    else:
        frame = pl.DataFrame({"text": [f"{i} {body}" for i in range(40_000)]})
        frame.write_parquet(path, row_group_size=4_000)
    command = [sys.executable, "-c", STREAM, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows, kilobytes = map(int, done.stdout.split())
    assert rows == 40_000
    assert kilobytes < 32 * 1024
