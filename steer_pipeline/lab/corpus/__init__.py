"""News: sources, stable row ids, duplicates and sentence-rounded truncation, all as streams of batches."""

from steer_pipeline.lab.corpus.duplicates import DuplicateFinder, mark_duplicates
from steer_pipeline.lab.corpus.identity import row_id
from steer_pipeline.lab.corpus.snapshots import NewsSnapshot, Truncation, snapshot_news, snapshot_truncated
from steer_pipeline.lab.corpus.sources import NewsBatch, SourceError, read_news
from steer_pipeline.lab.corpus.truncation import sentence_ends, truncate_news

__all__ = [
    "DuplicateFinder",
    "NewsBatch",
    "NewsSnapshot",
    "SourceError",
    "Truncation",
    "mark_duplicates",
    "read_news",
    "row_id",
    "sentence_ends",
    "snapshot_news",
    "snapshot_truncated",
    "truncate_news",
]
