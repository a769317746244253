"""What a judge says of the rollouts, and whether its answers can be used.

One partition a persona. The judge is asked over the network and needs no model here; without an endpoint every
row says so and what is downstream goes on.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg
import polars as pl

from steer_pipeline import show
from steer_pipeline.catalogue import Persona, load_persona
from steer_pipeline.execution import RETRY_NETWORK
from steer_pipeline.keys import key
from steer_pipeline.lineage import made_of
from steer_pipeline.partitions import TRAIT_OR_ROLE
from steer_pipeline.resources import ArtifactStoreResource, JudgeResource

if TYPE_CHECKING:
    from steer_pipeline.lab.evaluation.judge import Verdict

STATUSES = ("scored", "refusal", "invalid", "missing", "not_asked")
MAX_UNREADABLE = 0.05
ANSWER_CHARS = 200  # of the judge's reply; a reply that follows the rubric has three
SKIPPED = (
    "not asked: STEER_JUDGE_URL names no endpoint. Set it to an OpenAI-compatible one (and STEER_JUDGE_KEY to its "
    "key, if it wants one), then materialise judge_scores again"
)
JUDGE_SCHEMA = pl.Schema(
    {
        "row_id": pl.String(),  # of the rollout
        "persona": pl.String(),
        "judge_model": pl.String(),  # null: not asked
        "scale_max": pl.Int64(),  # 100 for a trait, 3 for a role; the lowest score is 0
        "score": pl.Int64(),  # null unless scored
        "status": pl.String(),  # scored | refusal | invalid | missing | not_asked
        "answer": pl.String(),  # the judge's reply, cut; null without one
        "cached": pl.Boolean(),  # the reply was on disk from an earlier run
    }
)


@dg.asset(
    group_name="behaviour",
    owners=["team:steering"],
    partitions_def=TRAIT_OR_ROLE,
    tags={"steer/stage": "behaviour", "steer/device": "cpu"},
    code_version=made_of("1", "judge"),
    io_manager_key="parquet_io",
    kinds={"openai", "parquet"},
    retry_policy=RETRY_NETWORK,
)
def judge_scores(
    context: dg.AssetExecutionContext,
    persona_scale: Persona,
    rollouts: pl.LazyFrame,
    judge: JudgeResource,
    store: ArtifactStoreResource,
) -> pl.DataFrame:
    """A judge's score for every rollout by the persona's rubric: 0 to 100 for a trait, 0 to 3 for a role.

    Asked at temperature 0 of the OpenAI-compatible endpoint that STEER_JUDGE_URL names; its replies are kept,
    so that a second run asks only what is missing. Refusals, unreadable replies and missing ones are counted
    apart and have no score. Without an endpoint every row is `not_asked`.
    """
    from steer_pipeline.lab.evaluation.judge import JudgeError, JudgeUnavailable

    rows = rollouts.select("row_id", "arm", "question", "response").collect()
    pairs = list(rows.select("question", "response").iter_rows())
    try:
        verdicts = judge.ask(persona_scale, pairs, store.store())
    except JudgeError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    except JudgeUnavailable as error:  # perhaps it is back when the retry policy tries again
        raise dg.Failure(str(error)) from error
    scores = judged_rows(persona_scale, rows["row_id"].to_list(), verdicts, judge.spec().model)
    context.add_output_metadata(_numbers(scores, rows["arm"], judge.endpoint()))
    return scores


def judged_rows(
    persona: Persona, row_ids: Sequence[str], verdicts: "Sequence[Verdict]", judge_model: str
) -> pl.DataFrame:
    """One row a verdict, with JUDGE_SCHEMA."""
    from steer_pipeline.lab.evaluation.judge import scale_of

    top = scale_of(persona)
    rows = [
        (
            row_id,
            persona.name,
            None if verdict.status == "not_asked" else judge_model,
            top,
            verdict.score,
            verdict.status,
            None if verdict.answer is None else show.cut(verdict.answer, ANSWER_CHARS),
            verdict.cached,
        )
        for row_id, verdict in zip(row_ids, verdicts, strict=True)
    ]
    return pl.DataFrame(rows, schema=JUDGE_SCHEMA, orient="row")


def _numbers(scores: pl.DataFrame, arms: pl.Series, url: str | None) -> dict[str, Any]:
    """How many rows of each status, and the mean score an arm."""
    from steer_pipeline.lab.evaluation.judge import shown_url

    counts = {f"rows_{status}": scores.filter(status=status).height for status in STATUSES}
    if url is None:
        return counts | {"judged": SKIPPED}
    by_arm = (
        scores.with_columns(arms.alias("arm"))
        .group_by("arm", maintain_order=True)
        .agg(pl.len().alias("rows"), pl.col("score").count().alias("scored"), pl.col("score").mean())
    )
    return counts | {
        "judged": f"by {scores['judge_model'][0] if scores.height else 'nobody: no rows'}",
        "endpoint": shown_url(url),
        "scale_max": scores["scale_max"].max() or 0,
        "replies_from_cache": int(scores["cached"].sum()),
        "mean_score_by_arm": show.markdown_table(by_arm),
        "preview": show.preview(scores),
    }


def _spec(name: str, claim: str, *, blocking: bool = False) -> dg.AssetCheckSpec:
    return dg.AssetCheckSpec(
        name, asset="judge_scores", description=claim, blocking=blocking, partitions_def=TRAIT_OR_ROLE
    )


@dg.multi_asset_check(
    name="judge_scores_checks",
    specs=[
        _spec(
            "scores_fit_the_scale",
            "No rollout comes twice; scored rows, and only they, have a whole number from 0 to the top of the "
            "persona's scale (100 for a trait, 3 for a role), and every status is a known one.",
            blocking=True,
        ),
        _spec(
            "judge_answers_are_readable",
            f"Fewer than {MAX_UNREADABLE:.0%} of the rows that were asked have an unreadable reply or none.",
        ),
    ],
)
def judge_scores_checks(context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource):
    """Whether scores are on the persona's scale, and whether the judge answered as the rubric asks."""
    version = store.store().current("judge_scores", context.partition_key)
    if version is None:
        raise dg.Failure(
            f"judge_scores[{context.partition_key}] is not in the store: materialise it first",
            allow_retries=False,
        )
    scores = pl.read_parquet(version.path / "data.parquet")
    problems = scale_problems(scores, load_persona(context.partition_key))
    yield dg.AssetCheckResult(
        asset_key=key("judge_scores"),
        check_name="scores_fit_the_scale",
        passed=not problems,
        description="; ".join(problems) or f"{scores['score'].count()} scores, all on the scale",
        metadata={"problems": json.dumps(problems)},
    )
    asked = scores.filter(pl.col("status") != "not_asked")
    invalid, missing = (asked.filter(status=status).height for status in ("invalid", "missing"))
    share = (invalid + missing) / asked.height if asked.height else 0.0
    told = f"{invalid} unreadable and {missing} missing replies of {asked.height}"
    yield dg.AssetCheckResult(
        asset_key=key("judge_scores"),
        check_name="judge_answers_are_readable",
        passed=share < MAX_UNREADABLE,
        severity=dg.AssetCheckSeverity.WARN,
        description=told if asked.height else SKIPPED,
        metadata={"asked": asked.height, "invalid": invalid, "missing": missing, "unreadable_share": share},
    )


def scale_problems(scores: pl.DataFrame, persona: Persona) -> list[str]:
    """What is wrong with a table of judge scores, each problem with its first row."""
    from steer_pipeline.lab.evaluation.judge import scale_of

    top, scored = scale_of(persona), pl.col("status") == "scored"
    broken = {
        "comes twice": pl.col("row_id").is_duplicated(),
        f"is not of {persona.name}": pl.col("persona").ne_missing(persona.name),
        f"has another scale than 0 to {top}": pl.col("scale_max").ne_missing(top),
        "has an unknown status": ~pl.col("status").is_in(STATUSES).fill_null(False),
        "is scored without a score": scored & pl.col("score").is_null(),
        "has a score and is not scored": ~scored & pl.col("score").is_not_null(),
        f"has a score outside 0 to {top}": (pl.col("score") < 0) | (pl.col("score") > top),
    }
    found = {problem: scores.filter(wrong) for problem, wrong in broken.items()}
    return [
        f"row {rows['row_id'][0]} {problem} ({rows.height} such rows)"
        for problem, rows in found.items()
        if rows.height
    ]


ASSETS = [judge_scores]
CHECKS = [judge_scores_checks]
