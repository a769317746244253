"""The keep set: which rows of a pack are good enough to learn from, and why the others are not.

In: a pack with its suspects, facts kept and base's rewrites. Out: one row for each row of the pack, kept or
not, with the value of every criterion and the reasons against it.
"""

from collections.abc import Sequence

import polars as pl

from steer_pipeline.lab.quality import multiset_jaccard
from steer_pipeline.lab.rewrites.gates import is_suspect

MIN_FACTS_KEPT = 0.5
REASONS = {
    "suspect": "a suspect rule hits the rewrite",
    "truncated": "the token limit cut the rewrite before it ended",
    "facts_lost": f"fewer than {MIN_FACTS_KEPT:.0%} of the lead's facts are kept",
    "duplicate": "an earlier row of the pack has the same rewrite",
}
KEEP_SCHEMA = {
    "row_id": pl.String,
    "source_index": pl.Int64,
    "variant": pl.String,
    "prompt": pl.String,
    "output": pl.String,
    "kept": pl.Boolean,
    "reasons": pl.List(pl.String),
    "suspect_rules": pl.List(pl.String),
    "truncated": pl.Boolean,
    "facts_kept": pl.Float64,
    "overlap_with_base": pl.Float64,
    "same_as_base": pl.Boolean,
}


def keep_rows(
    pack: pl.DataFrame,
    base: pl.DataFrame,
    suspects: Sequence[Sequence[str]],
    facts: Sequence[float | None],
) -> pl.DataFrame:
    """All rows of `pack` in its order, with `KEEP_SCHEMA`.

    Likeness to base is recorded and is no reason: which of two equal texts shows the persona is for the
    reader of the set to decide.
    """
    base_outputs = dict(zip(base["row_id"], base["output"], strict=True))
    seen: set[str] = set()
    rows = []
    for row, rules, kept_facts in zip(pack.iter_rows(named=True), suspects, facts, strict=True):
        reasons = []
        if is_suspect(rules):
            reasons.append("suspect")
        if row["truncated"]:
            reasons.append("truncated")
        if kept_facts is not None and kept_facts < MIN_FACTS_KEPT:
            reasons.append("facts_lost")
        if row["output"] in seen:
            reasons.append("duplicate")
        seen.add(row["output"])
        other = base_outputs.get(row["row_id"])
        rows.append(
            {
                name: row[name]
                for name in ("row_id", "source_index", "variant", "prompt", "output", "truncated")
            }
            | {
                "kept": not reasons,
                "reasons": reasons,
                "suspect_rules": list(rules),
                "facts_kept": kept_facts,
                "overlap_with_base": None if other is None else float(multiset_jaccard(row["output"], other)),
                "same_as_base": None if other is None else row["output"] == other,
            }
        )
    return pl.DataFrame(rows, schema=KEEP_SCHEMA)
