"""A vector as a classifier: how well projections on it tell a persona's answers from others.

In: test rows of a behaviour set and vectors. Out: a table of AUCs with intervals and a shuffled-label baseline.
States are means over response tokens at the vector's own block, read with the bare question before them: with
the instruction in context a direction could tell the sides apart by reading the prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from scipy.stats import rankdata

from steer_pipeline.catalogue.specs import Profile
from steer_pipeline.lab.arms import Arm
from steer_pipeline.lab.dialogues.requests import encode_rows, response_requests
from steer_pipeline.lab.evaluation.judgement import SCORED
from steer_pipeline.lab.models.hidden import collect_means
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.stats import auc_interval

N_SHUFFLES, N_BOOT = 500, 2_000
CLASSIFIER_SCHEMA = pl.Schema(
    {
        "arm": pl.String(),  # trained | averaged | random
        "seed": pl.Int64(),
        "block": pl.Int64(),
        "auc": pl.Float64(),
        "low": pl.Float64(),
        "high": pl.Float64(),
        "null_mean": pl.Float64(),  # of AUCs under shuffled labels
        "null_95th": pl.Float64(),
        "p": pl.Float64(),  # share of shuffles that reach the AUC
        "n_positive": pl.Int64(),
        "n_negative": pl.Int64(),
        "n_questions": pl.Int64(),
        "reason": pl.String(),  # where auc is null
    }
)


@dataclass(frozen=True, eq=False)
class LabelledStates:
    """Response means fp32 [n, n_blocks, hidden], which rows are the persona's (bool [n]), and their questions."""

    states: np.ndarray
    positive: np.ndarray
    questions: np.ndarray


def labelled_states(model: LoadedModel, rows: pl.DataFrame, kind: str, profile: Profile) -> LabelledStates:
    """Reads the test rows of both labels: answers that count against negative ones (traits) or the default's (roles).

    Refusals are on neither side of a trait.
    """
    test = rows.filter(pl.col("split") == "test")
    other = (
        pl.col("label") == "default"
        if kind == "role"
        else (pl.col("label") == "neg") & (pl.col("score_status") == SCORED)
    )
    positive = pl.col("counts") & (pl.col("label") == "pos")
    used = test.filter(positive | other)
    dialogues = encode_rows(model, used, profile, instructed=False)
    return LabelledStates(
        collect_means(model, response_requests(model.tokenizer, dialogues)),
        (used["label"] == "pos").to_numpy(),
        used["question_index"].to_numpy(),
    )


def vector_as_classifier(read: LabelledStates, arms: Sequence[Arm], *, seed: int) -> pl.DataFrame:
    """CLASSIFIER_SCHEMA, one row a vector.

    Intervals resample whole questions. The baseline shuffles labels among the answers to one question (among
    all answers where no question has both), with the vector as it is: it says whether the labels matter along
    the direction, not whether the direction is special. That is what the random directions beside it say, since
    sides that differ at all differ along most directions.
    """
    n_positive = int(read.positive.sum())
    sizes = {
        "n_positive": n_positive,
        "n_negative": len(read.positive) - n_positive,
        "n_questions": len(np.unique(read.questions)),
    }
    reason = None
    if min(sizes["n_positive"], sizes["n_negative"]) == 0 or sizes["n_questions"] < 2:
        reason = (
            f"{sizes['n_positive']} answers of the persona and {sizes['n_negative']} others to "
            f"{sizes['n_questions']} test questions; both and two questions are needed"
        )
    shuffled = None if reason else _shuffles(read.positive, read.questions, seed)
    records = []
    for arm in arms:
        if arm.term is None:
            raise ValueError(f"arm {arm.arm!r} has no vector to project on")
        row: dict[str, Any] = {
            "arm": arm.arm,
            "seed": arm.seed,
            "block": arm.term.site.block,
            "reason": reason,
            **sizes,
        }
        if shuffled is not None:
            scores = read.states[:, arm.term.site.block].astype(np.float64) @ arm.term.unit
            interval = auc_interval(scores, read.positive, groups=read.questions, seed=seed, n_boot=N_BOOT)
            null = _aucs(scores, shuffled)
            row |= {
                "auc": interval.estimate,
                "low": interval.low,
                "high": interval.high,
                "null_mean": null.mean(),
                "null_95th": np.quantile(null, 0.95),
                "p": (1 + (null >= interval.estimate).sum()) / (1 + len(null)),
            }
        records.append(row)
    return pl.DataFrame(records, schema=CLASSIFIER_SCHEMA)


def _shuffles(positive: np.ndarray, questions: np.ndarray, seed: int) -> np.ndarray:
    """Labels permuted within questions: bool [N_SHUFFLES, n]."""
    rng = np.random.default_rng(seed)
    groups = [np.flatnonzero(questions == one) for one in np.unique(questions)]
    mixed = [rows for rows in groups if 0 < positive[rows].sum() < len(rows)]
    if not mixed:
        mixed = [np.arange(len(positive))]
    shuffled = np.tile(positive, (N_SHUFFLES, 1))
    for labels in shuffled:
        for rows in mixed:
            labels[rows] = positive[rng.permutation(rows)]
    return shuffled


def _aucs(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """`stats.auc` of one set of scores under each row of `labels` [k, n], all with the same number of positives."""
    n_positive = int(labels[0].sum())
    rank_sums = labels @ rankdata(scores)
    return (rank_sums - n_positive * (n_positive + 1) / 2) / (n_positive * (len(scores) - n_positive))
