import polars as pl
import pytest

from steer_pipeline.lab.corpus.duplicates import mark_duplicates
from steer_pipeline.lab.corpus.invariants import (
    alignment_problems,
    cap_problems,
    id_problems,
    open_ends,
    schema_problems,
)
from steer_pipeline.lab.corpus.truncation import TRUNCATED_SCHEMA, truncate_news
from steer_pipeline_tests.lab.corpus.test_duplicates import article, edited


@pytest.fixture(scope="module")
def table(news):
    """Marked rows: two originals, an exact duplicate, a near duplicate, and a copy of the near duplicate."""
    near = edited(article(1), 3)
    return mark_duplicates(news([article(1), article(2), article(1), near, near]))


@pytest.fixture(scope="module")
def truncated(table, tokenizer):
    return truncate_news(table[:2], tokenizer, 2000)


def change(frame, row, **values):
    return frame.with_columns(
        pl.when(pl.int_range(pl.len()) == row).then(pl.lit(value)).otherwise(pl.col(name)).alias(name)
        for name, value in values.items()
    )


def test_sound_tables_have_no_problems(table, truncated, tokenizer):
    assert schema_problems(truncated.lazy(), TRUNCATED_SCHEMA) == []
    assert id_problems(table.lazy()) == {"repeated_ids": 0, "repeated_indices": 0, "dangling_marks": 0}
    assert cap_problems(truncated.lazy(), tokenizer, 2000) == {"over_cap": 0, "miscounted": 0, "recounted": 2}
    assert open_ends(truncated.lazy(), "en").is_empty()
    assert not any(alignment_problems(truncated.lazy(), table.lazy()).values())


def test_schema_problems_name_each_column(truncated):
    broken = truncated.drop("url").with_columns(
        pl.col("n_tokens").cast(pl.Int32), pl.lit(None, pl.String).alias("title"), extra=1
    )
    assert schema_problems(broken.lazy(), TRUNCATED_SCHEMA) == [
        "column url is missing",
        "column extra is not in the schema",
        "column n_tokens is Int32, expected Int64",
        "column title has 2 nulls",
    ]
    assert schema_problems(truncated[:0].lazy(), TRUNCATED_SCHEMA) == ["the table has no rows"]


@pytest.mark.parametrize(
    ("seed", "problem"),
    [
        (lambda t: pl.concat([t, t[:1].with_columns(source_index=pl.lit(9, pl.Int64))]), "repeated_ids"),
        (lambda t: change(t, 1, source_index=0), "repeated_indices"),
        (lambda t: t[1:], "dangling_marks"),
        (lambda t: change(t, 3, near_duplicate_of="f" * 16), "dangling_marks"),
    ],
)
def test_broken_identity_is_counted(table, seed, problem):
    counts = id_problems(seed(table).lazy())
    assert [name for name, count in counts.items() if count] == [problem]


def test_rows_above_the_cap_and_wrong_counts_are_counted(truncated, tokenizer):
    counts = cap_problems(change(truncated, 0, n_tokens=2001).lazy(), tokenizer, 2000)
    assert counts == {"over_cap": 1, "miscounted": 1, "recounted": 2}


def test_open_ends_are_shown(truncated):
    found = open_ends(change(truncated, 1, text="He moved to the U.S. but Mr.").lazy(), "en")
    assert found.rows() == [(truncated["row_id"][1], "He moved to the U.S. but Mr.")]


@pytest.mark.parametrize(
    ("seed", "problem"),
    [
        (lambda t: change(t, 0, row_id="0" * 16), {"unknown_rows": 1}),
        (lambda t: change(t, 0, text="Another story."), {"foreign_texts": 1}),
        (lambda t: pl.concat([t, t[1:]]), {"repeated_rows": 1}),
        (lambda t: t.reverse(), {"out_of_order": 1}),
    ],
)
def test_rows_that_do_not_fit_cc_news_are_counted(table, truncated, seed, problem):
    counts = alignment_problems(seed(truncated).lazy(), table.lazy())
    assert {name: count for name, count in counts.items() if count} == problem


def test_a_duplicate_does_not_belong_into_the_truncated_table(table, tokenizer):
    everything = truncate_news(table, tokenizer, 2000)
    assert alignment_problems(everything.lazy(), table.lazy())["unknown_rows"] == 3
