"""What must hold of the stored corpus tables, measured on the tables themselves.

In: lazy frames of `cc_news` and `truncated_news`. Out: counts of rows that break a rule; all zero (or an
empty list) where the rule holds. Tables are scanned, not held in memory, but for ids and indices.
"""

from typing import Any

import polars as pl

from steer_pipeline.lab.corpus.sentences import ends_on_sentence
from steer_pipeline.lab.corpus.snapshots import BATCH_ROWS, SetAside, originals
from steer_pipeline.lab.corpus.truncation import count_tokens

RECOUNTED_ROWS = 1000


def schema_problems(table: pl.LazyFrame, expected: pl.Schema, nullable: tuple[str, ...] = ()) -> list[str]:
    """Missing, surplus or mistyped columns, nulls outside `nullable` ones, an empty table: as sentences."""
    found = table.collect_schema()
    problems = [f"column {name} is missing" for name in expected if name not in found]
    problems += [f"column {name} is not in the schema" for name in found if name not in expected]
    problems += [
        f"column {name} is {found[name]}, expected {dtype}"
        for name, dtype in expected.items()
        if name in found and found[name] != dtype
    ]
    full = [name for name in expected if name in found and name not in nullable]
    counts = table.select(pl.len().alias("rows"), pl.col(full).null_count()).collect(engine="streaming")
    if not counts["rows"][0]:
        problems.append("the table has no rows")
    return problems + [f"column {name} has {counts[name][0]} nulls" for name in full if counts[name][0]]


def set_aside(news: pl.LazyFrame, quarantine: pl.LazyFrame) -> SetAside:
    """How much of a source is missing from `cc_news`, by reason without its details."""
    kept = news.select(pl.len()).collect().item()
    reason = pl.col("reason").str.split(":").list.first()
    reasons = quarantine.group_by(reason).len().sort("len", "reason", descending=[True, False]).collect()
    quarantined = int(reasons["len"].sum())
    first = quarantine.select("file", "line").head(1).collect().rows()
    return SetAside(
        kept + quarantined, quarantined, dict(reasons.rows()), *(SetAside.place(*row) for row in first)
    )


def id_problems(news: pl.LazyFrame) -> dict[str, int]:
    """Rows of `cc_news` whose identity is broken.

    `repeated_ids`: originals that share a row id; `repeated_indices`: rows that share a source index;
    `dangling_marks`: duplicates that point to no original of their kind (an exact duplicate may point to
    a near duplicate, which is the first of its text).
    """
    marks = ("duplicate_of", "near_duplicate_of")
    ids = news.select("row_id", "source_index", *marks).collect(engine="streaming")
    firsts = ids.filter(pl.col("duplicate_of").is_null())
    kept = firsts.filter(pl.col("near_duplicate_of").is_null())
    dangling = [
        ids.filter(pl.col(mark).is_not_null())
        .join(targets, left_on=mark, right_on="row_id", how="anti")
        .height
        for mark, targets in zip(marks, (firsts, kept), strict=True)
    ]
    return {
        "repeated_ids": firsts.height - firsts["row_id"].n_unique(),
        "repeated_indices": ids.height - ids["source_index"].n_unique(),
        "dangling_marks": sum(dangling),
    }


def cap_problems(truncated: pl.LazyFrame, tokenizer: Any, max_tokens: int) -> dict[str, int]:
    """`over_cap`: rows above the cap by their stored count; `miscounted`: rows whose count is not the text's.

    Counts are measured again on `RECOUNTED_ROWS` rows, spread evenly over the table.
    """
    total, over = (
        truncated.select(pl.len(), (pl.col("n_tokens") > max_tokens).sum()).collect(engine="streaming").row(0)
    )
    some = truncated.select("text", "n_tokens").gather_every(max(1, total // RECOUNTED_ROWS))
    rows = some.collect(engine="streaming")
    counts = pl.Series(count_tokens(tokenizer, rows["text"].to_list()), dtype=pl.Int64)
    return {
        "over_cap": over,
        "miscounted": int((counts != rows["n_tokens"]).sum()),
        "recounted": rows.height,
    }


def open_ends(truncated: pl.LazyFrame, language: str) -> pl.DataFrame:
    """`row_id` and last 80 characters, `ending`, of the rows whose text does not end on a sentence."""
    found = [
        {"row_id": row_id, "ending": text[-80:]}
        for batch in truncated.select("row_id", "text").collect_batches(chunk_size=BATCH_ROWS)
        for row_id, text in batch.iter_rows()
        if not ends_on_sentence(text, language)
    ]
    return pl.DataFrame(found, schema={"row_id": pl.String, "ending": pl.String})


def alignment_problems(truncated: pl.LazyFrame, news: pl.LazyFrame) -> dict[str, int]:
    """Rows of `truncated_news` that do not fit `cc_news`.

    `unknown_rows`: no original has this row id and source index; `foreign_texts`: the text is not part
    of the article; `repeated_rows`: a source index twice; `out_of_order`: an index below its predecessor's.
    """
    article = originals(news).select("row_id", "source_index", article="text")
    joined = truncated.select("row_id", "source_index", "text").join(
        article, on=["source_index", "row_id"], how="left", maintain_order="left"
    )
    counts = joined.select(
        unknown_rows=pl.col("article").is_null().sum(),
        foreign_texts=pl.col("article").str.contains(pl.col("text"), literal=True).not_().sum(),
        repeated_rows=pl.len() - pl.col("source_index").n_unique(),
        out_of_order=(pl.col("source_index").diff() < 0).sum(),
    )
    return {name: int(value) for name, value in counts.collect(engine="streaming").row(0, named=True).items()}
