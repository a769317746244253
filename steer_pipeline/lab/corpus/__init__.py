"""News: sources, stable row ids, duplicates and sentence-rounded truncation, all as streams of batches."""

from steer_pipeline.lab.corpus.duplicates import DuplicateFinder, mark_duplicates
from steer_pipeline.lab.corpus.identity import row_id
from steer_pipeline.lab.corpus.invariants import (
    alignment_problems,
    cap_problems,
    id_problems,
    open_ends,
    schema_problems,
    set_aside,
)
from steer_pipeline.lab.corpus.sentences import sentence_ends
from steer_pipeline.lab.corpus.snapshots import (
    NEWS_SCHEMA,
    NewsSnapshot,
    Truncation,
    originals,
    snapshot_news,
    snapshot_truncated,
)
from steer_pipeline.lab.corpus.sources import QUARANTINE_SCHEMA, NewsBatch, SourceError, news_files, read_news
from steer_pipeline.lab.corpus.truncation import TRUNCATED_SCHEMA, truncate_news

__all__ = [
    "NEWS_SCHEMA",
    "QUARANTINE_SCHEMA",
    "TRUNCATED_SCHEMA",
    "DuplicateFinder",
    "NewsBatch",
    "NewsSnapshot",
    "SourceError",
    "Truncation",
    "alignment_problems",
    "cap_problems",
    "id_problems",
    "mark_duplicates",
    "news_files",
    "open_ends",
    "originals",
    "read_news",
    "row_id",
    "schema_problems",
    "sentence_ends",
    "set_aside",
    "snapshot_news",
    "snapshot_truncated",
    "truncate_news",
]
