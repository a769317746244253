import json
import subprocess
import sys

import polars as pl
import pytest

from steer_pipeline.catalogue.specs import CorpusSpec, NewsSource
from steer_pipeline.lab.corpus.snapshots import (
    DROPPED_SCHEMA,
    NEWS_SCHEMA,
    originals,
    snapshot_news,
    snapshot_truncated,
)
from steer_pipeline.lab.corpus.sources import QUARANTINE_SCHEMA, SourceError
from steer_pipeline.lab.corpus.truncation import TRUNCATED_SCHEMA
from steer_pipeline_tests.lab.corpus.test_duplicates import article, edited


def corpus(tmp_path, texts, junk=()):
    lines = [json.dumps({"text": text, "url": f"u/{i}"}) for i, text in enumerate(texts)]
    (tmp_path / "news.jsonl").write_text("\n".join([*lines, *junk]) + "\n")
    return CorpusSpec(source=NewsSource(kind="files", path="news.jsonl"), max_tokens=40)


def test_a_snapshot_holds_every_line_marked_and_counted(tmp_path):
    base = article(1)
    spec = corpus(
        tmp_path, [base, article(2), base.upper(), edited(base, 3)], ["broken", '{"text": ""}', "[]"]
    )
    snapshot = snapshot_news(spec, tmp_path, tmp_path / "staged")
    rows, quarantine = snapshot.rows.collect(), snapshot.quarantine.collect()
    assert rows.schema == NEWS_SCHEMA
    assert quarantine.schema == QUARANTINE_SCHEMA
    assert (snapshot.n_rows, snapshot.n_quarantined) == (rows.height, quarantine.height) == (4, 3)
    assert (snapshot.n_duplicates, snapshot.n_near_duplicates) == (1, 1)
    assert snapshot.reasons == {"not JSON": 1, "empty text": 1, "not an object": 1}
    assert originals(snapshot.rows).collect()["source_index"].to_list() == [0, 1]


def test_an_unusable_source_still_gives_both_tables(tmp_path):
    snapshot = snapshot_news(corpus(tmp_path, [], ["broken"]), tmp_path, tmp_path / "staged")
    assert snapshot.rows.collect().schema == NEWS_SCHEMA
    assert (snapshot.n_rows, snapshot.n_quarantined) == (0, 1)


def test_truncation_keeps_originals_in_order_and_says_what_it_dropped(tmp_path, tokenizer):
    texts = ["It rained. It stopped.", "no stop", "It RAINED. It stopped.", "The sun rose." + " It set." * 60]
    news = snapshot_news(corpus(tmp_path, texts), tmp_path, tmp_path / "a").rows
    result = snapshot_truncated(news, tokenizer, corpus(tmp_path, texts), tmp_path / "b")
    rows, dropped = result.rows.collect(), result.dropped.collect()
    assert rows.schema == TRUNCATED_SCHEMA
    assert dropped.schema == DROPPED_SCHEMA
    assert rows["source_index"].to_list() == [0, 3]
    assert dropped.select("source_index", "reason").rows() == [(1, "no whole sentence within 40 tokens")]
    assert (result.n_rows, result.n_duplicates, result.n_dropped, result.n_cut) == (2, 1, 1, 1)


def test_a_snapshot_is_the_same_bytes_when_made_again(tmp_path):
    spec = corpus(tmp_path, [article(i % 30) for i in range(60)])
    first = snapshot_news(spec, tmp_path, tmp_path / "a").rows.collect()
    assert first.equals(snapshot_news(spec, tmp_path, tmp_path / "b").rows.collect())
    assert isinstance(first, pl.DataFrame)


MANY = """
import json, random, resource, sys
from pathlib import Path
from steer_pipeline.catalogue.specs import CorpusSpec, NewsSource
from steer_pipeline.lab.corpus.snapshots import snapshot_news
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
home, rng, words = Path(sys.argv[1]), random.Random(1), [f"w{i}" for i in range(5000)]
def snapshot(n):
    with (home / f"{n}.jsonl").open("w") as file:
        for i in range(n):
            article = " ".join(rng.choices(words, k=20)) + " " + "z" * int(sys.argv[3])
            file.write(json.dumps({"url": f"u/{i}", "text": article}) + "\\n")
    source = NewsSource(kind="files", path=f"{n}.jsonl")
    rows = snapshot_news(CorpusSpec(source=source), home, home / f"parts-{n}")
    rows.rows.sink_parquet(home / f"{n}.parquet", row_group_size=1024)
    return rows.n_rows
snapshot(4000)
before = peak()
print(snapshot(int(sys.argv[2])), peak() - before)
"""


def kilobytes_for(folder, n_articles, n_chars):
    """What the process grows by between 4,000 articles and so many."""
    command = [sys.executable, "-c", MANY, str(folder), str(n_articles), str(n_chars)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows, kilobytes = map(int, done.stdout.split())
    assert rows == n_articles
    return kilobytes


def test_memory_does_not_hold_the_articles(tmp_path):
    """12,000 articles more are 72 MB of text; reading, marking and storing them may take 30 MB."""
    assert kilobytes_for(tmp_path, 16_000, 6000) < 30 * 1024


@pytest.mark.slow
def test_a_million_articles_fit_into_a_small_machine(tmp_path):
    """2.1 GB of text; the duplicate index may take 1.2 KB an article."""
    assert kilobytes_for(tmp_path, 1_000_000, 2000) < 1.2e6


def test_an_empty_news_file_is_named(tmp_path):
    with pytest.raises(SourceError, match=r"news\.jsonl: no rows; put news there"):
        snapshot_news(corpus(tmp_path, []), tmp_path, tmp_path / "staged")
