"""Corpus: the news as read, the lines set aside, and the articles that the model is given.

Tables are staged as Parquet parts beside the store and streamed from there into it, so that a million
articles need little more memory than a thousand.
"""

from collections.abc import Iterator
from typing import Any

import dagster as dg
import polars as pl

from steer_pipeline import show
from steer_pipeline.execution import RETRY_NETWORK
from steer_pipeline.lineage import made_of
from steer_pipeline.resources import ArtifactStoreResource
from steer_pipeline.settings import settings
from steer_pipeline.stages.kit import cpu, staging, user_errors

TABLE = cpu("corpus", io_manager_key="parquet_io", kinds={"polars", "parquet"})
TOP_REASONS = 3
OUT = {name: value for name, value in TABLE.items() if name != "group_name"}
READ = made_of("2", "corpus.source", "corpus.near_duplicate_threshold")


@dg.multi_asset(
    name="read_news",
    group_name="corpus",
    outs={
        "cc_news": dg.AssetOut(
            description="Snapshot of the news source: one row an article. `row_id` is the hash of url and text, "
            "`source_index` the ordinal of the line among those that parsed; `duplicate_of` and "
            "`near_duplicate_of` name the first article with the same, or nearly the same, text.",
            code_version=READ,
            **OUT,
        ),
        "news_quarantine": dg.AssetOut(
            description="Lines of the source that gave no article: file, line number, reason and excerpt. Its "
            "rows and those of `cc_news` together are the lines that are not blank.",
            code_version=READ,
            **OUT,
        ),
    },
    deps=["news_source"],
    retry_policy=RETRY_NETWORK,
)
def read_news(context: dg.AssetExecutionContext, store: ArtifactStoreResource) -> Iterator[dg.Output]:
    """Reads the profile's news source once, batch by batch."""
    from steer_pipeline.lab.corpus import SourceError, snapshot_news

    profile = settings().profile
    with staging(store, "cc_news") as folder, user_errors(SourceError):
        read = snapshot_news(profile.corpus, settings().home, folder)
        missing = read.set_aside()
        (context.log.warning if missing.quarantined else context.log.info)(missing.sentence())
        if read.mended:
            context.log.info(f"articles with something to mend: {_counted(read.mended)}")
        message = {"set_aside": missing.sentence(), "mended": read.mended}
        yield dg.Output(
            read.rows, "cc_news", metadata={**read.shares(), **message, "preview": _preview(read.rows)}
        )
        reasons = {f"reason_{name.replace(' ', '_')}": n for name, n in read.reasons.items()}
        shown = {**reasons, "set_aside": missing.sentence(), "preview": _preview(read.quarantine)}
        yield dg.Output(read.quarantine, "news_quarantine", metadata=shown)


@dg.asset(
    deps=["tokenizer"],
    code_version=made_of("2", "corpus.max_tokens", "corpus.language"),
    **TABLE,
)
def truncated_news(
    context: dg.AssetExecutionContext, cc_news: pl.LazyFrame, store: ArtifactStoreResource
) -> Iterator[dg.Output]:
    """The articles that the model is given: at most the profile's token cap, cut after a whole sentence.

    Left out: duplicates and near duplicates, articles without a whole sentence within the cap, and such as the
    tokenizer or the segmenter cannot take; `dropped` names them.
    """
    from steer_pipeline.lab.corpus import snapshot_truncated
    from steer_pipeline.lab.models.loading import load_tokenizer

    profile = settings().profile
    tokenizer = load_tokenizer(profile.model, settings().home)
    with staging(store, "truncated_news") as folder:
        cut = snapshot_truncated(cc_news, tokenizer, profile.corpus, folder)
        if cut.n_dropped:
            reasons = dict(cut.dropped.collect()["reason"].value_counts(sort=True).head(TOP_REASONS).rows())
            context.log.warning(f"{cut.n_dropped} articles left out: {_counted(reasons)}")
        shown = {**_lengths(cut.rows), "dropped": _preview(cut.dropped), "preview": _preview(cut.rows)}
        yield dg.Output(cut.rows, metadata={**cut.counts(), "max_tokens": profile.corpus.max_tokens, **shown})


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} ({n})" for name, n in counts.items())


def _preview(rows: pl.LazyFrame) -> dg.MarkdownMetadataValue:
    return show.preview(rows.head(500).collect())


def _lengths(rows: pl.LazyFrame) -> dict[str, Any]:
    tokens = rows.select("n_tokens").collect()["n_tokens"].to_list()
    if not tokens:
        return {}
    return {"mean_tokens": sum(tokens) / len(tokens), "tokens": show.histogram(tokens, "tokens an article")}


ASSETS = [read_news, truncated_news]
