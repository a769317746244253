"""Whole tables of the corpus stage, written batch by batch.

In: a corpus spec or the rows of `cc_news`, and an empty folder. Out: lazy frames over Parquet parts in that
folder, and counts. Memory is bounded by one batch and the duplicate index. The folder must outlive the
frames; who writes one to a single Parquet file in bounded memory sets a row group size (8,192, say).
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from steer_pipeline.catalogue.specs import CorpusSpec
from steer_pipeline.lab.corpus.duplicates import DuplicateFinder
from steer_pipeline.lab.corpus.sources import (
    QUARANTINE_SCHEMA,
    ROW_SCHEMA,
    read_news,
)
from steer_pipeline.lab.corpus.truncation import TRUNCATED_SCHEMA, cut_news

MARKED_SCHEMA = pl.Schema({**ROW_SCHEMA, "duplicate_of": pl.String()})
NEWS_SCHEMA = pl.Schema({**MARKED_SCHEMA, "near_duplicate_of": pl.String()})
DROPPED_SCHEMA = pl.Schema({"row_id": pl.String(), "source_index": pl.Int64(), "reason": pl.String()})
BATCH_ROWS = 1024
TOP_REASONS = 3


@dataclass(frozen=True)
class SetAside:
    """Lines of a source that gave no article, beside all its lines.

    Attributes:
        reasons: how many by reason without its details, most frequent first.
        first: where the first of them stands.
    """

    lines: int
    quarantined: int
    reasons: dict[str, int]
    first: str = ""

    @staticmethod
    def place(file: str, line: int) -> str:
        return f"{file}, line {line}"

    @property
    def rate(self) -> float:
        return self.quarantined / max(1, self.lines)

    def sentence(self) -> str:
        """With the most frequent reasons and the first place, where there are any."""
        message = f"{self.quarantined} of {self.lines} lines gave no article ({self.rate:.1%})"
        if not self.reasons:
            return message
        top = ", ".join(f"{reason} ({n})" for reason, n in list(self.reasons.items())[:TOP_REASONS])
        more = (
            f" and {len(self.reasons) - TOP_REASONS} more reasons" if len(self.reasons) > TOP_REASONS else ""
        )
        return f"{message}: {top}{more}" + (f"; the first is {self.first}" if self.first else "")


@dataclass(frozen=True)
class NewsSnapshot:
    """A source as read: `rows` (`NEWS_SCHEMA`), `quarantine`, and how many of each kind.

    Attributes:
        reasons: quarantined lines by reason, without its details; most frequent first.
        mended: kept rows by what was mended in them (see `NewsBatch`).
        first_set_aside: file and line of the first quarantined line; empty where there is none.
    """

    rows: pl.LazyFrame
    quarantine: pl.LazyFrame
    n_rows: int
    n_quarantined: int
    n_duplicates: int
    n_near_duplicates: int
    reasons: dict[str, int]
    mended: dict[str, int]
    first_set_aside: str = ""

    def set_aside(self) -> SetAside:
        """The lines that gave no article, and why."""
        return SetAside(
            self.n_rows + self.n_quarantined, self.n_quarantined, self.reasons, self.first_set_aside
        )

    def shares(self) -> dict[str, float | int]:
        """Lines read, and how many of them gave no article of their own."""
        lines = self.n_rows + self.n_quarantined
        return {
            "rows_in": lines,
            "n_duplicates": self.n_duplicates,
            "n_near_duplicates": self.n_near_duplicates,
            "quarantine_rate": self.n_quarantined / max(1, lines),
        }


@dataclass(frozen=True)
class Truncation:
    """The originals cut to the cap (`TRUNCATED_SCHEMA`) and those left out (`DROPPED_SCHEMA`).

    Attributes:
        n_duplicates: rows of the news that were no originals.
        n_dropped: originals without a whole sentence within the cap, and those of `n_failed`.
        n_failed: originals that the tokenizer or the segmenter could not take.
        n_cut: kept rows that are shorter than their article.
    """

    rows: pl.LazyFrame
    dropped: pl.LazyFrame
    n_rows: int
    n_duplicates: int
    n_dropped: int
    n_cut: int
    n_failed: int = 0

    def counts(self) -> dict[str, int]:
        """What became of the rows of the news."""
        return {
            "rows_in": self.n_rows + self.n_dropped + self.n_duplicates,
            "cut_rows": self.n_cut,
            "dropped_duplicates": self.n_duplicates,
            "dropped_without_sentence": self.n_dropped - self.n_failed,
            "dropped_by_failure": self.n_failed,
        }


def originals(news: pl.LazyFrame) -> pl.LazyFrame:
    """The rows of `cc_news` that repeat no earlier row, not even nearly."""
    return news.filter(pl.col("duplicate_of").is_null() & pl.col("near_duplicate_of").is_null())


def snapshot_news(spec: CorpusSpec, home: Path, folder: Path) -> NewsSnapshot:
    """Reads `spec.source` into Parquet parts under `folder` and marks duplicates.

    Raises:
        SourceError: the source cannot be read (see `read_news`), or has no rows at all.
    """
    finder = DuplicateFinder(spec.near_duplicate_threshold)
    rows, quarantine = (
        _Parts(folder / "rows", MARKED_SCHEMA),
        _Parts(folder / "quarantine", QUARANTINE_SCHEMA),
    )
    reasons: Counter[str] = Counter()
    mended: Counter[str] = Counter()
    first = ""
    n_duplicates = 0
    for batch in read_news(spec.source, home):
        marked = finder.add(batch.rows)
        rows.add(marked)
        quarantine.add(batch.quarantine)
        n_duplicates += marked.height - marked["duplicate_of"].null_count()
        mended.update(batch.mended)
        if not first and batch.quarantine.height:
            first = SetAside.place(*batch.quarantine.select("file", "line").row(0))
        reasons.update(reason.partition(":")[0] for reason in batch.quarantine["reason"])
    near = finder.near_duplicates()
    return NewsSnapshot(
        rows.scan().join(near.lazy(), on="source_index", how="left", maintain_order="left"),
        quarantine.scan(),
        rows.height,
        quarantine.height,
        n_duplicates,
        near.height,
        dict(reasons.most_common()),
        dict(mended.most_common()),
        first,
    )


def snapshot_truncated(news: pl.LazyFrame, tokenizer: Any, spec: CorpusSpec, folder: Path) -> Truncation:
    """Truncates the originals of `cc_news` into Parquet parts under `folder`, in order.

    A row without a whole sentence within the cap, or one that the tokenizer or the segmenter cannot take, is
    left out, with the reason in `dropped`.

    Raises:
        ValueError: there are no sentence rules for the language.
    """
    rows, dropped = _Parts(folder / "rows", TRUNCATED_SCHEMA), _Parts(folder / "dropped", DROPPED_SCHEMA)
    n_cut = n_failed = 0
    batches = originals(news).collect_batches(chunk_size=BATCH_ROWS, maintain_order=True, engine="streaming")
    for batch in batches:
        cut, problems = cut_news(batch, tokenizer, spec.max_tokens, spec.language)
        kept = cut.filter("ends_on_sentence")
        n_cut += int(kept["was_cut"].sum())
        rows.add(kept)
        n_failed += len(problems) - problems.count(None)
        without = f"no whole sentence within {spec.max_tokens} tokens"
        reasons = pl.Series("reason", [problem or without for problem in problems], dtype=pl.String)
        left_out = cut.with_columns(reasons).filter(~pl.col("ends_on_sentence"))
        dropped.add(left_out.select(DROPPED_SCHEMA.names()))
    total = news.select(pl.len()).collect(engine="streaming").item()
    n_duplicates = total - rows.height - dropped.height
    return Truncation(rows.scan(), dropped.scan(), rows.height, n_duplicates, dropped.height, n_cut, n_failed)


class _Parts:
    """A table in numbered Parquet files, written in order."""

    def __init__(self, folder: Path, schema: pl.Schema) -> None:
        folder.mkdir(parents=True)
        self.folder, self.schema = folder, schema
        self.height = self.count = 0

    def add(self, rows: pl.DataFrame) -> None:
        if rows.height:
            rows.write_parquet(self.folder / f"{self.count:08d}.parquet")
            self.height += rows.height
            self.count += 1

    def scan(self) -> pl.LazyFrame:
        return pl.scan_parquet(self.folder / "*.parquet") if self.count else pl.LazyFrame(schema=self.schema)
