"""Which generated pairs count: those in which a scorer finds that each side shows its pole.

In: rows of a contrast set and a persona. Out: the same rows, with the reason in `dropped` where a pair does not count.
A model that is asked for a persona and goes on as ever gives texts that differ by chance, and so a direction of noise.
"""

from collections.abc import Callable, Sequence

import numpy as np
import polars as pl

from steer_pipeline.catalogue.specs import Persona
from steer_pipeline.lab.evaluation import Judgement, example_scorer
from steer_pipeline.lab.personas.contexts import HELD_OUT, TRAIN
from steer_pipeline.lab.personas.contrast import ContrastError, score_sides
from steer_pipeline.lab.personas.schema import GENERATED, SIDES, counted
from steer_pipeline.lab.vectors.extracted import MIN_PAIRS

Ask = Callable[[Sequence[tuple[str, str]]], list[Judgement]]  # (question, answer) -> what the judge says
UNFILTERED = "nothing: the persona has no examples, and there is no judge with a rubric and scale for it"


def filter_generated(
    contrast: pl.DataFrame, persona: Persona, ask: Ask | None = None
) -> tuple[pl.DataFrame, str]:
    """The rows with their reasons, and by what they were filtered, in words.

    A side counts when its score lies on its pole's side of the middle; a pair, when both do. The score is that of a
    scale fitted on the persona's examples; for a persona without, the judge's.

    Args:
        contrast: generated rows of `CONTRAST_SCHEMA`.
        ask: the judge, where there is one that can judge this persona.

    Raises:
        ExamplesError: the persona's examples do not make a scale.
    """
    if persona.examples is not None:
        scores = example_scorer(persona).score_many(contrast.get_column("completion").to_list())
        by = "a scale fitted on the persona's examples"
    elif ask is not None:
        scores, by = _judged(contrast, persona, ask), "the judge"
    else:
        return contrast, UNFILTERED
    sides = score_sides(contrast, scores.tolist())
    positive, negative = (pl.col(side).fill_nan(None) for side in SIDES)
    reasons = sides.select(
        "context_id",
        reason=pl.when(positive.is_null() | negative.is_null())
        .then(pl.lit("no score"))
        .when((positive <= 0) & (negative >= 0))
        .then(pl.lit("neither side shows its pole"))
        .when(positive <= 0)
        .then(pl.lit("the positive side does not show its pole"))
        .when(negative >= 0)
        .then(pl.lit("the negative side does not show its pole")),
    )
    rows = contrast.join(reasons, on="context_id", how="left", maintain_order="left")
    return rows.with_columns(dropped="reason").drop("reason"), by


def _judged(contrast: pl.DataFrame, persona: Persona, ask: Ask) -> np.ndarray:
    """Scores in [-1, 1]; nan where the judge gives none."""
    judgements = ask(list(contrast.select("user", "completion").iter_rows()))
    return np.array(
        [np.nan if one.score is None else 2 * one.score / persona.scale.top - 1 for one in judgements]
    )


def require_enough(contrast: pl.DataFrame, by: str) -> None:
    """Enough generated pairs are kept in both splits.

    Raises:
        ContrastError: how many were dropped, and why.
    """
    table = counted(contrast.filter(pl.col("source") == GENERATED))
    left = table.filter(pl.col("reason").is_null())
    train, held_out = (int(left[split].sum()) for split in (TRAIN, HELD_OUT))
    if min(train, held_out) >= MIN_PAIRS:
        return
    dropped = table.filter(pl.col("reason").is_not_null()).sort("contexts", descending=True)
    reasons = "; ".join(f"{reason} ({n})" for reason, n in dropped.select("reason", "contexts").iter_rows())
    raise ContrastError(
        f"of {int(table['contexts'].sum())} generated pairs, {train + held_out} count ({train} to fit and {held_out} "
        f"held out, at least {MIN_PAIRS} each are needed), filtered by {by}: {reasons}. The model does not do what "
        "the persona's instructions ask: set contrast.source: pairs"
    )
