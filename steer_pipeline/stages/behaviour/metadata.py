"""What a person sees of rollouts, scores and the behaviour table: plots and samples first, then numbers."""

from typing import TYPE_CHECKING, Any

import dagster as dg
import polars as pl

from steer_pipeline import show
from steer_pipeline.lab.behaviour.schema import JUDGE_COLUMNS, ROLLOUT_COLUMNS
from steer_pipeline.stages.kit import picture

if TYPE_CHECKING:
    from steer_pipeline.lab.behaviour.report import Written
    from steer_pipeline.lab.behaviour.schema import BehaviourTables
    from steer_pipeline.lab.behaviour.scoring import CalibratedScorer

PREVIEWED = ("arm", "scale", "question", "response", "dose_fraction", "perplexity", "loop", "trait_truth")


def of_rollouts(rows: pl.DataFrame, missing: str) -> dict[str, Any]:
    """Answers to one question side by side, and numbers that the UI plots."""
    from steer_pipeline.lab.arms import arm_label

    named = rows.with_columns(arm_label())
    first = named.filter(question_index=0, sample=0).select("arm_name", "response")
    truth = named.drop_nulls("trait_truth").group_by("arm_name", maintain_order=True)
    return {
        "answers": show.samples([{k: str(v) for k, v in row.items()} for row in first.to_dicts()]),
        "truth_by_arm": show.markdown_table(truth.agg(pl.col("trait_truth").mean())),
        "preview": show.preview(rows.select(PREVIEWED), ROLLOUT_COLUMNS),
        "arms": named["arm_name"].n_unique(),
        "questions": rows["question_index"].n_unique(),
        "mean_new_tokens": _mean(rows["n_new_tokens"]),
        "truncated_rate": _mean(rows["truncated"]),
        "loop_rate": _mean(rows["loop"]),
        "vector_version": rows.filter(arm="trained")["vector_version"][0],
        "averaged_arms": missing or "present",
    }


def _mean(column: pl.Series) -> float:
    return show.significant(float(column.mean() or 0.0))  # type: ignore[arg-type]


def of_scores(scores: pl.DataFrame, scorer: "CalibratedScorer") -> dict[str, Any]:
    """Mean score an arm, calibration, and how far the scorer can be trusted."""
    by_arm = scores.group_by("arm", "scale", maintain_order=True).agg(pl.col("score").mean(), pl.len())
    report = scorer.report
    assert report is not None, "it was fitted"
    bins = [{"predicted": mean, "positive": seen, "texts": n} for mean, seen, n in report.reliability]
    return {
        "score_by_arm": show.markdown_table(by_arm),
        "reliability": show.markdown_table(pl.DataFrame(bins)),
        **{name: show.significant(value) for name, value in report.as_dict().items()},
    }


def of_judge(scores: pl.DataFrame, arms: pl.Series, url: str | None) -> dict[str, Any]:
    """How many rows of each status, and the mean score an arm."""
    from steer_pipeline.lab.behaviour.judging import SKIPPED
    from steer_pipeline.lab.endpoints import shown_url
    from steer_pipeline.lab.evaluation.judgement import STATUSES

    counts = {f"rows_{status}": scores.filter(status=status).height for status in STATUSES}
    if url is None:
        return {"judged": SKIPPED, **counts}
    by_arm = (
        scores.with_columns(arms.alias("arm"))
        .group_by("arm", maintain_order=True)
        .agg(pl.len().alias("rows"), pl.col("score").count().alias("scored"), pl.col("score").mean())
    )
    return {
        "mean_score_by_arm": show.markdown_table(by_arm),
        "preview": show.preview(scores, JUDGE_COLUMNS),
        "judged": f"by {scores['judge_model'][0] if scores.height else 'nobody: no rows'}",
        **counts,
        "endpoint": shown_url(url),
        "scale_max": scores["scale_max"].max() or 0,
        "replies_from_cache": int(scores["cached"].sum()),
    }


def of_table(tables: "BehaviourTables", written: "Written") -> dict[str, Any]:
    """The plots, what they say in a few lines, and shift and gap at the learned scale, a persona each."""
    from steer_pipeline.lab.behaviour.report import LEARNED_ARM, summary_text
    from steer_pipeline.lab.behaviour.table import arms_table

    arms, plotted = arms_table(tables), {}
    for row in arms.filter(arm_name=LEARNED_ARM).iter_rows(named=True):
        plotted[f"trait_shift_{row['persona']}"] = row["difference"]
        plotted[f"trait_gap_closed_{row['persona']}"] = row["trait_gap_closed"]
    return {
        **{path.stem: picture(path) for path in written.plots},
        "summary": dg.MetadataValue.md(summary_text(arms)),
        "personas": len(tables.personas),
        "answers": tables.rows.height,
        **{name: show.significant(value) for name, value in plotted.items() if value is not None},
    }
