"""A judge's answers about rollouts as rows, and what must hold of them. Nobody is asked here."""

from collections.abc import Sequence

import polars as pl

from steer_pipeline.catalogue.specs import Persona
from steer_pipeline.lab.behaviour.schema import JUDGE_SCHEMA
from steer_pipeline.lab.evaluation.judgement import NOT_ASKED, SCORED, STATUSES, Judgement

ANSWER_CHARS = 200  # of the judge's reply; a reply that follows the rubric has three
SKIPPED = (
    "not asked: STEER_JUDGE_URL names no endpoint. Set it to an OpenAI-compatible one (and STEER_JUDGE_KEY to its "
    "key, if it wants one), then materialise judge_scores again"
)


def judged_rows(
    persona: Persona, row_ids: Sequence[str], judgements: Sequence[Judgement], judge_model: str
) -> pl.DataFrame:
    """One row a judgement, with JUDGE_SCHEMA.

    Raises:
        ValueError: an axis has no scale.
    """
    top = persona.scale.top
    rows = [
        (
            row_id,
            persona.name,
            None if one.status == NOT_ASKED.status else judge_model,
            top,
            one.score,
            one.status,
            _cut(one.answer),
            one.cached,
        )
        for row_id, one in zip(row_ids, judgements, strict=True)
    ]
    return pl.DataFrame(rows, schema=JUDGE_SCHEMA, orient="row")


def _cut(answer: str | None) -> str | None:
    return answer if answer is None or len(answer) <= ANSWER_CHARS else answer[: ANSWER_CHARS - 1] + "…"


def scale_problems(scores: pl.DataFrame, persona: Persona) -> list[str]:
    """What is wrong with a table of judge scores, each problem with its first row."""
    scale, scored = persona.scale, pl.col("status") == SCORED
    broken = {
        "comes twice": pl.col("row_id").is_duplicated(),
        f"is not of {persona.name}": pl.col("persona").ne_missing(persona.name),
        f"has another scale than {scale}": pl.col("scale_max").ne_missing(scale.top),
        "has an unknown status": ~pl.col("status").is_in(STATUSES).fill_null(False),
        "is scored without a score": scored & pl.col("score").is_null(),
        "has a score and is not scored": ~scored & pl.col("score").is_not_null(),
        f"has a score outside {scale}": ~scale.holds(pl.col("score")),
    }
    wrong = {problem: scores.filter(rows) for problem, rows in broken.items()}
    return [
        f"row {rows['row_id'][0]} {problem} ({rows.height} such rows)"
        for problem, rows in wrong.items()
        if rows.height
    ]
