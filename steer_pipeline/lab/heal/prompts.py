"""The prompts of the heal loop: who may be sampled, and fair parts of them. Runs no model.

In: a frame of prompts. Out: prompts as the engine takes them, and seeded parts that are spread over categories.
Held-out prompts are for evaluation: no function that generates training data takes them.
"""

import polars as pl

from steer_pipeline.lab.columns import described
from steer_pipeline.lab.corpus.identity import digest64
from steer_pipeline.lab.generation.jobs import PromptRow
from steer_pipeline.lab.heal.teacher import HealError
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.prompts import encode_prompt

PROMPT_SCHEMA, PROMPT_COLUMNS = described(
    prompt_id=(pl.String(), "unique"),
    category=(pl.String(), "kind of prompt; parts are spread over these"),
    prompt=(pl.String(), "the user's turn"),
    system=(pl.String(), "system turn, the same for all arms; null: the template's own"),
    source=(pl.String(), "text that an answer must keep to, where prompts ask for a rewrite; null: none"),
    facts=(pl.List(pl.String()), "phrases of the source that an answer should keep; null: none"),
    held_out=(pl.Boolean(), "for evaluation only: never sampled"),
)


def check_prompts(prompts: pl.DataFrame) -> pl.DataFrame:
    """The prompts with `PROMPT_SCHEMA`'s columns; `system`, `source` and `facts` may be missing.

    Raises:
        HealError: another column is missing, or an id comes twice.
    """
    if missing := [
        name for name in ("prompt_id", "category", "prompt", "held_out") if name not in prompts.columns
    ]:
        raise HealError(f"prompts: no column {missing[0]!r}; the frame has {', '.join(prompts.columns)}")
    twice = prompts.filter(pl.col("prompt_id").is_duplicated())
    if twice.height:
        raise HealError(f"prompts: {twice['prompt_id'][0]!r} comes twice; prompt_id must be unique")
    return prompts.select(
        (pl.col(name) if name in prompts.columns else pl.lit(None, kind).alias(name)).cast(kind)
        for name, kind in PROMPT_SCHEMA.items()
    )


def require_open(prompts: pl.DataFrame) -> pl.DataFrame:
    """The prompts, none of them held out.

    Raises:
        HealError: one is.
    """
    checked = check_prompts(prompts)
    held_out = checked.filter("held_out")
    if held_out.height:
        raise HealError(
            f"{held_out.height} of {checked.height} prompts are held out, such as {held_out['prompt_id'][0]!r}; "
            "sample the others (`filter(~pl.col('held_out'))`)"
        )
    if checked.is_empty():
        raise HealError("no prompts; give some that are not held out")
    return checked


def spread(prompts: pl.DataFrame, n: int, seed: int) -> pl.DataFrame:
    """`n` prompts in a seeded order in which categories take turns, so that any first part is spread, too.

    A category that has run out is left out from then on; all prompts where `n` is larger than their number.
    """
    keyed = prompts.with_columns(
        _key=pl.col("prompt_id").map_elements(lambda name: digest64(f"{seed}\x1f{name}"), pl.UInt64),
        _of=pl.col("category").map_elements(lambda name: digest64(f"{seed}\x1f{name}"), pl.UInt64),
    ).sort("_key", "prompt_id")
    turn = pl.int_range(pl.len()).over("category")
    return (
        keyed.with_columns(_turn=turn).sort("_turn", "_of", "prompt_id").head(n).drop("_key", "_of", "_turn")
    )


def prompt_rows(model: LoadedModel, prompts: pl.DataFrame) -> list[PromptRow]:
    """Each prompt through the one tokenisation; `row_id` is its `prompt_id`."""
    return [
        PromptRow(
            prompt_id,
            {
                "*": encode_prompt(
                    model.tokenizer, user=prompt, system=system, chat_template=model.spec.chat_template
                )
            },
        )
        for prompt_id, prompt, system in check_prompts(prompts)
        .select("prompt_id", "prompt", "system")
        .iter_rows()
    ]
