"""Contrast sets: the same contexts asked of both poles of a persona, and what the model answers.

In: a persona, contexts and a loaded model. Out: polars rows, two a context, that carry the token ids of
prompt and completion, so that nothing downstream tokenises them again. Read-out is `vectors`' business.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from steer_pipeline.catalogue.specs import ContrastSpec, Persona, SamplingSpec
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.prompts import encode_prompt
from steer_pipeline.lab.models.sites import SteeringPlan
from steer_pipeline.lab.personas.contexts import HELD_OUT, TRAIN, Context
from steer_pipeline.lab.personas.schema import CONTRAST_SCHEMA, GENERATED, PROMPT_SCHEMA, SIDES


class ContrastError(ValueError):
    """A contrast set cannot be used. The message names the rows or fields and the cure."""


def build_contrast_prompts(persona: Persona, spec: ContrastSpec, contexts: Sequence[Context]) -> pl.DataFrame:
    """Two rows a context, positive then negative: same user turn, same split, the i-th instruction of each
    pole.

    The instructions of a pole take turns over the contexts of each split; where the poles have different
    numbers of them, the shorter list starts over.

    Args:
        contexts: at least `spec.n_contexts`; the first that many are used.

    Returns:
        Rows of `PROMPT_SCHEMA`.

    Raises:
        ContrastError: too few contexts, or none in one of the splits.
    """
    if len(contexts) < spec.n_contexts:
        raise ContrastError(
            f"contrast.n_contexts is {spec.n_contexts}, but there are {len(contexts)} contexts; lower it"
        )
    poles = {"positive": persona.positive.instructions, "negative": persona.negative.instructions}
    n_instructions = max(len(instructions) for instructions in poles.values())
    turns = {TRAIN: 0, HELD_OUT: 0}
    rows = []
    for context in contexts[: spec.n_contexts]:
        index = turns[context.split] % n_instructions
        turns[context.split] += 1
        rows += [
            {
                "context_id": context.context_id,
                "category": context.category,
                "split": context.split,
                "side": side,
                "instruction_index": index,
                "system": instructions[index % len(instructions)],
                "user": context.user,
            }
            for side, instructions in poles.items()
        ]
    if not all(turns.values()):
        raise ContrastError(f"contexts by split: {turns}; both are needed, see contexts.split_contexts")
    return pl.DataFrame(rows, schema=PROMPT_SCHEMA)


def complete_contrast(
    model: LoadedModel, prompts: pl.DataFrame, spec: ContrastSpec, chat_template: bool = True
) -> pl.DataFrame:
    """The model's answers to both sides, sampled with common random numbers.

    A context's two sides draw from one stream keyed by (seed, context, step), so they differ by their
    instruction and by nothing else. A pair in which either side is empty is dropped.

    Args:
        prompts: rows of `PROMPT_SCHEMA`, two a context.

    Returns:
        Rows of `CONTRAST_SCHEMA`, sorted by context and side as in `prompts`. `n_tokens` and `completion_ids`
        leave the end-of-turn token out. `dropped_pairs` counts what is missing.

    Raises:
        ContrastError: the sides differ in more than their instruction, or every pair has an empty side.
    """
    require_matched_sides(prompts)
    ids = _prompt_ids(model, prompts, chat_template)
    answers = _answers(model, ids, spec)
    rows = prompts.join(answers, on=["context_id", "side"], how="left", maintain_order="left").with_columns(
        n_tokens=pl.col("completion_ids").list.len().cast(pl.Int32),
        source=pl.lit(GENERATED),
        pair_id=pl.col("context_id"),
        dropped=pl.lit(None, dtype=pl.String),
    )
    answered = (pl.col("completion").str.strip_chars() != "") & (pl.col("n_tokens") > 0)
    both = rows.filter(answered.all().over("context_id"))
    if both.is_empty():
        raise ContrastError(
            f"all {len(ids)} contexts have an empty completion on one side; raise contrast.max_new_tokens "
            "or check the model and its chat template"
        )
    return both.select(CONTRAST_SCHEMA.names()).cast(CONTRAST_SCHEMA)


def _prompt_ids(
    model: LoadedModel, prompts: pl.DataFrame, chat_template: bool
) -> dict[str, dict[str, list[int]]]:
    """context_id -> side -> token ids."""
    ids: dict[str, dict[str, list[int]]] = {}
    for context, side, system, user in prompts.select("context_id", "side", "system", "user").iter_rows():
        encoded = encode_prompt(model.tokenizer, user=user, system=system, chat_template=chat_template)
        ids.setdefault(context, {})[side] = encoded
    return ids


def _answers(model: LoadedModel, ids: Mapping[str, dict[str, list[int]]], spec: ContrastSpec) -> pl.DataFrame:
    """What the model generates for every context and side."""
    from steer_pipeline.lab.generation.engine import generate
    from steer_pipeline.lab.generation.jobs import PromptRow

    finished = generate(
        model,
        [PromptRow(context_id, sides) for context_id, sides in ids.items()],
        [SteeringPlan(side, stream="contrast") for side in SIDES],
        SamplingSpec(temperature=spec.temperature, max_new_tokens=spec.max_new_tokens, seed=spec.seed),
    )
    rows = [
        {
            "context_id": row.row_id,
            "side": row.variant,
            "completion": row.text,
            "finish_reason": row.finish_reason,
            "prompt_ids": ids[row.row_id][row.variant],
            "completion_ids": row.token_ids,
        }
        for row in finished
    ]
    kinds = {name: CONTRAST_SCHEMA[name] for name in ("prompt_ids", "completion_ids")}
    return pl.DataFrame(rows, schema_overrides=kinds)


def dropped_pairs(prompts: pl.DataFrame, contrast: pl.DataFrame) -> int:
    """Number of contexts whose pair was dropped because a completion was empty."""
    return prompts.get_column("context_id").n_unique() - contrast.get_column("context_id").n_unique()


def require_matched_sides(rows: pl.DataFrame) -> None:
    """Both sides hold the same contexts: same user turn, split and instruction index, one row a side.

    Raises:
        ContrastError: names the first context that breaks this, and how.
    """
    problems = mismatched_contexts(rows)
    if not problems.is_empty():
        first = problems.row(0, named=True)
        raise ContrastError(
            f"{problems.height} contexts differ between the sides; the first is {first['context_id']}: "
            f"{first['problem']}; build the set anew with build_contrast_prompts"
        )


def mismatched_contexts(rows: pl.DataFrame) -> pl.DataFrame:
    """Contexts that are not the same on both sides: `context_id` and `problem`; empty when all match."""
    return (
        rows.group_by("context_id", maintain_order=True)
        .agg(
            sides=pl.col("side").sort(),
            users=pl.col("user").n_unique(),
            splits=pl.col("split").n_unique(),
            instructions=pl.col("instruction_index").n_unique(),
        )
        .with_columns(
            problem=pl.when(pl.col("sides").list.join(" ") != "negative positive")
            .then(
                pl.format(
                    "sides are [{}] instead of one positive and one negative", pl.col("sides").list.join(" ")
                )
            )
            .when(pl.col("users") > 1)
            .then(pl.lit("field user differs"))
            .when(pl.col("splits") > 1)
            .then(pl.lit("field split differs"))
            .when(pl.col("instructions") > 1)
            .then(pl.lit("field instruction_index differs"))
        )
        .filter(pl.col("problem").is_not_null())
        .select("context_id", "problem")
    )


def score_sides(contrast: pl.DataFrame, scores: Sequence[float]) -> pl.DataFrame:
    """One row a context: `context_id`, `split`, and the trait scores `positive` and `negative` of its two
    sides.

    Args:
        scores: of the completions, in the order of the rows.
    """
    scored = contrast.with_columns(score=pl.Series(list(scores), dtype=pl.Float64))
    sides = scored.pivot("side", index=["context_id", "split"], values="score", maintain_order=True)
    return sides.select("context_id", "split", *SIDES)


def measure_contrast(contrast: pl.DataFrame, scorer: Any) -> dict[str, float]:
    """How far the completions of the two sides lie apart on a trait scale.

    Args:
        scorer: has `score_many(texts)`, in [-1, 1] towards the positive pole.

    Returns:
        Mean scores `positive` and `negative`, their paired `difference` with `difference_low` and
        `difference_high` (95%, over contexts), and the `auc` between the sides.
    """
    from steer_pipeline.lab.stats import auc, paired_difference

    sides = score_sides(contrast, scorer.score_many(contrast.get_column("completion").to_list()))
    a, b = (sides.get_column(side).to_numpy() for side in SIDES)
    apart = paired_difference(a, b)
    return {
        "positive": float(a.mean()),
        "negative": float(b.mean()),
        "difference": apart.estimate,
        "difference_low": apart.low,
        "difference_high": apart.high,
        "auc": auc(np.concatenate([a, b]), np.repeat([1, 0], len(a))),
    }
