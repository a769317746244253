"""Every column that a reader is shown says what it holds."""

from steer_pipeline.lab.generation.schema import REWRITE_SCHEMA
from steer_pipeline.lab.quality.filter import ADDED
from steer_pipeline.lab.rewrites import columns
from steer_pipeline.lab.rewrites.comparison import SUMMARY_SCHEMA


def test_every_column_of_packs_and_keep_sets_is_described():
    assert list(columns.PACK) == list(REWRITE_SCHEMA)
    assert set(columns.KEEP) == {*REWRITE_SCHEMA, *ADDED}
    assert set(columns.SUMMARY) <= set(SUMMARY_SCHEMA)
    assert all(text.endswith(".") for text in (columns.KEEP | columns.SUMMARY).values())
