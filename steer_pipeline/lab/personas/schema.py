"""The rows of a contrast set, and which of them count. No torch here: stages import it."""

import polars as pl

from steer_pipeline.lab.columns import described

SIDES = ("positive", "negative")
GENERATED, PAIRS, PREFILL = SOURCES = ("generated", "pairs", "prefill")

CONTRAST_SCHEMA, CONTRAST_COLUMNS = described(
    context_id=(pl.String(), "hash of the context; both sides of a pair share it"),
    category=(pl.String(), "kind of context: email, story, news, ..."),
    split=(pl.String(), "train | held_out, of the context"),
    side=(pl.String(), "positive | negative: which pole was asked for"),
    instruction_index=(pl.Int32(), "which instruction of the pole, the same on both sides; null: none"),
    system=(pl.String(), "the instruction, as system turn; null: none"),
    user=(pl.String(), "the context, the same on both sides"),
    completion=(pl.String(), "what the model answered, or the text that was given as its answer"),
    n_tokens=(pl.Int32(), "of the completion, the end of turn left out"),
    finish_reason=(pl.String(), "eos | length | given"),
    prompt_ids=(pl.List(pl.Int32()), "token ids of the prompt, chat template included"),
    completion_ids=(pl.List(pl.Int32()), "token ids of the completion, the end of turn left out"),
    source=(pl.String(), "generated | pairs | prefill: where the completions come from"),
    pair_id=(pl.String(), "contexts with the same texts share it; it is what is split, halved and shuffled"),
    dropped=(pl.String(), "why the pair does not count; null: it counts"),
)
# What is asked, before there are answers.
PROMPT_SCHEMA = pl.Schema(list(CONTRAST_SCHEMA.items())[:7])


def kept(contrast: pl.DataFrame) -> pl.DataFrame:
    """The rows that count.

    Raises:
        ValueError: rows of a version that did not know of others.
    """
    if "dropped" not in contrast.columns:
        raise ValueError("the contrast set is of an older version: materialise contrast_set again")
    return contrast.filter(pl.col("dropped").is_null())


def voiced(contrast: pl.DataFrame) -> pl.DataFrame:
    """Rows that show how the poles sound, one context a pair: what the model said; where it did not, given texts."""
    rows = kept(contrast)
    generated = rows.filter(pl.col("source") == GENERATED)
    given = rows.filter(pl.col("source") == PAIRS)
    return (
        generated
        if generated.height
        else given.unique(["pair_id", "side"], keep="first", maintain_order=True)
    )


def counted(contrast: pl.DataFrame) -> pl.DataFrame:
    """One row a source and reason: `source`, `reason` (null: kept), `contexts`, `train` and `held_out` of them."""
    one_side = contrast.filter(pl.col("side") == SIDES[0])
    return one_side.group_by("source", pl.col("dropped").alias("reason"), maintain_order=True).agg(
        contexts=pl.len(),
        train=(pl.col("split") == "train").sum(),
        held_out=(pl.col("split") == "held_out").sum(),
    )
