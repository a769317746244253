"""Corpus: the news as read, the lines set aside, and the articles that the model is given.

Tables are staged as Parquet parts beside the store and streamed from there into it, so that a million
articles need little more memory than a thousand.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from steer_pipeline import show
from steer_pipeline.execution import RETRY_NETWORK
from steer_pipeline.lineage import made_of
from steer_pipeline.resources import ArtifactStoreResource
from steer_pipeline.settings import settings

TABLE: dict[str, Any] = {
    "io_manager_key": "parquet_io",
    "owners": ["team:steering"],
    "tags": {"steer/stage": "corpus", "steer/device": "cpu"},
    "kinds": {"polars", "parquet"},
}
READ = made_of("1", "corpus.source", "corpus.near_duplicate_threshold")


@dg.multi_asset(
    name="read_news",
    group_name="corpus",
    outs={
        "cc_news": dg.AssetOut(
            description="Snapshot of the news source: one row an article. `row_id` is the hash of url and text, "
            "`source_index` the ordinal of the line among those that parsed; `duplicate_of` and "
            "`near_duplicate_of` name the first article with the same, or nearly the same, text.",
            code_version=READ,
            **TABLE,
        ),
        "news_quarantine": dg.AssetOut(
            description="Lines of the source that gave no article: file, line number, reason and excerpt. Its "
            "rows and those of `cc_news` together are the lines that are not blank.",
            code_version=READ,
            **TABLE,
        ),
    },
    deps=["news_source"],
    retry_policy=RETRY_NETWORK,
)
def read_news(store: ArtifactStoreResource) -> Iterator[dg.Output]:
    """Reads the profile's news source once, batch by batch."""
    from steer_pipeline.lab.corpus import SourceError, snapshot_news

    now = settings()
    with _staging(store, "cc_news") as folder:
        try:
            read = snapshot_news(now.profile.corpus, now.home, folder)
        except SourceError as error:  # as wrong at the next try
            raise dg.Failure(str(error), allow_retries=False) from error
        shares = {
            "rows_in": read.n_rows + read.n_quarantined,
            "n_duplicates": read.n_duplicates,
            "n_near_duplicates": read.n_near_duplicates,
            "quarantine_rate": read.n_quarantined / max(1, read.n_rows + read.n_quarantined),
        }
        described = {**shares, **_shown(read.rows)}
        yield dg.Output(read.rows, "cc_news", metadata=described)
        reasons = {f"reason_{name.replace(' ', '_')}": n for name, n in read.reasons.items()}
        described = {**reasons, **_shown(read.quarantine)}
        yield dg.Output(read.quarantine, "news_quarantine", metadata=described)


@dg.asset(
    group_name="corpus",
    deps=["tokenizer"],
    code_version=made_of("1", "corpus.max_tokens", "corpus.language"),
    **TABLE,
)
def truncated_news(cc_news: pl.LazyFrame, store: ArtifactStoreResource) -> Iterator[dg.Output]:
    """The articles that the model is given: at most the profile's token cap, cut after a whole sentence.

    Left out: duplicates and near duplicates, and articles without a whole sentence within the cap.
    """
    from steer_pipeline.lab.corpus import snapshot_truncated
    from steer_pipeline.lab.models.loading import load_tokenizer

    now = settings()
    tokenizer = load_tokenizer(now.profile.model, now.home)
    with _staging(store, "truncated_news") as folder:
        cut = snapshot_truncated(cc_news, tokenizer, now.profile.corpus, folder)
        numbers = {
            "rows_in": cut.n_rows + cut.n_dropped + cut.n_duplicates,
            "max_tokens": now.profile.corpus.max_tokens,
            "cut_rows": cut.n_cut,
            "dropped_duplicates": cut.n_duplicates,
            "dropped_without_sentence": cut.n_dropped,
        }
        described = {**numbers, **_lengths(cut.rows), **_shown(cut.rows)}
        yield dg.Output(cut.rows, metadata=described)


@contextmanager
def _staging(store: ArtifactStoreResource, label: str) -> Iterator[Path]:
    """A scratch folder that is there until the IO manager has taken what lies in it."""
    folder = store.store().scratch(label)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _shown(rows: pl.LazyFrame) -> dict[str, Any]:
    return {"preview": show.preview(rows.head(500).collect())}


def _lengths(rows: pl.LazyFrame) -> dict[str, Any]:
    tokens = rows.select("n_tokens").collect()["n_tokens"].to_list()
    if not tokens:
        return {}
    return {"mean_tokens": sum(tokens) / len(tokens), "tokens": show.histogram(tokens, "tokens an article")}


ASSETS = [read_news, truncated_news]
