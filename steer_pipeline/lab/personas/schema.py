"""The rows of a contrast set. No torch here: stages import it."""

import polars as pl

from steer_pipeline.lab.columns import described

SIDES = ("positive", "negative")

CONTRAST_SCHEMA, CONTRAST_COLUMNS = described(
    context_id=(pl.String(), "hash of the context; both sides of a pair share it"),
    category=(pl.String(), "kind of context: email, story, news, ..."),
    split=(pl.String(), "train | held_out, of the context"),
    side=(pl.String(), "positive | negative: which pole was asked for"),
    instruction_index=(pl.Int32(), "which instruction of the pole; the same on both sides"),
    system=(pl.String(), "the instruction, as system turn"),
    user=(pl.String(), "the context, the same on both sides"),
    completion=(pl.String(), "what the model answered"),
    n_tokens=(pl.Int32(), "of the completion, the end of turn left out"),
    finish_reason=(pl.String(), "eos | length"),
    prompt_ids=(pl.List(pl.Int32()), "token ids of the prompt, chat template included"),
    completion_ids=(pl.List(pl.Int32()), "token ids of the completion, the end of turn left out"),
)
# What is asked, before there are answers.
PROMPT_SCHEMA = pl.Schema(list(CONTRAST_SCHEMA.items())[:7])
