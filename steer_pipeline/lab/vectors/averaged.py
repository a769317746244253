"""Averaged vectors: the mean response of a persona minus the mean of what it is held against, at every block.

In: rows of a behaviour set with their splits and scores. Out: a `PersonaVector` of all blocks in natural
magnitude. Only rows of train questions are read. States are means over response tokens of block outputs, the
site where plans add their vectors. Too few rows are a `MissingVector` with its reason, never zeros.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from steer_pipeline.catalogue.specs import BehaviourSpec, Persona, Profile
from steer_pipeline.lab.dialogues.requests import encode_rows, require_sound_rows, response_requests
from steer_pipeline.lab.evaluation.judgement import SCORED
from steer_pipeline.lab.models.hidden import collect_means
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.vectors.vector import PersonaVector, VectorError, model_fields

Context = Literal["as_asked", "question"]
PAIRED = ["prompt_index", "question_index"]  # what the two answers of a trait's pair have in common


class MissingVector(VectorError):
    """There is no averaged vector, and the message says why. An absence, not a fault."""


@dataclass(frozen=True, eq=False)
class ContrastSums:
    """Both sides' response means, summed by question: what a contrast and its jackknife need.

    Attributes:
        questions: int64 [q], ascending.
        positive, negative: fp32 [q, n_blocks, hidden], sums over the question's rows.
        n_positive, n_negative: int64 [q], rows summed.
    """

    questions: np.ndarray
    positive: np.ndarray
    negative: np.ndarray
    n_positive: np.ndarray
    n_negative: np.ndarray

    def contrast(self) -> np.ndarray:
        """fp32 [n_blocks, hidden]: mean over positive rows minus mean over negative rows."""
        up = self.positive.sum(axis=0, dtype=np.float64) / self.n_positive.sum()
        down = self.negative.sum(axis=0, dtype=np.float64) / self.n_negative.sum()
        return (up - down).astype(np.float32)

    def without_each(self, block: int) -> np.ndarray:
        """float64 [r, hidden]: the contrast at `block` with one question left out at a time; r = q unless a
        question holds all rows of a side.
        """
        sides = []
        for sums, counts in ((self.positive, self.n_positive), (self.negative, self.n_negative)):
            at = sums[:, block].astype(np.float64)
            with np.errstate(invalid="ignore", divide="ignore"):
                sides.append((at.sum(axis=0) - at) / (counts.sum() - counts)[:, None])
        left = sides[0] - sides[1]
        return left[np.isfinite(left).all(axis=1)]


@dataclass(frozen=True, eq=False)
class AveragedVector:
    """The vector, and the sums behind it."""

    vector: PersonaVector
    sums: ContrastSums


def contrast_sides(
    rows: pl.DataFrame, kind: str, behaviour: BehaviourSpec, *, split: str = "train"
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The rows of both sides, from questions of one split.

    Roles: rows that count (score 3) against the default rows. Traits: positive and negative answers with the
    same prompt_index and question_index whose scores differ by more than `score_gap`, row k against row k.
    Refusals and rows without a score are on neither side of a trait.

    Raises:
        MissingVector: fewer than `min_count` rows on a side, or pairs.
        VectorError: two answers to the same prompt and question on one side.
    """
    own = rows.filter(pl.col("split") == split)
    return _role_sides(own, behaviour, split) if kind == "role" else _trait_sides(own, behaviour, split)


def _role_sides(own: pl.DataFrame, behaviour: BehaviourSpec, split: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    positive = own.filter("counts", pl.col("label") == "pos")
    negative = own.filter(pl.col("label") == "default")
    for n, what in (
        (positive.height, f"rows with a score of at least {behaviour.role_min_score}"),
        (negative.height, "default rows"),
    ):
        if n < behaviour.min_count:
            raise MissingVector(
                f"{n} {what} of {split} questions, behaviour.min_count is {behaviour.min_count}"
            )
    return positive, negative


def _trait_sides(
    own: pl.DataFrame, behaviour: BehaviourSpec, split: str
) -> tuple[pl.DataFrame, pl.DataFrame]:
    scored = own.filter(pl.col("score_status") == SCORED, pl.col("score").is_not_null())
    pos, neg = (_one_answer_each(scored.filter(pl.col("label") == label), label) for label in ("pos", "neg"))
    pairs = (
        pos.select(*PAIRED, "score", pos="row_id")
        .join(neg.select(*PAIRED, other="score", neg="row_id"), on=PAIRED)
        .filter(pl.col("score") - pl.col("other") > behaviour.score_gap)
        .sort(PAIRED)
    )
    if pairs.height < behaviour.min_count:
        raise MissingVector(
            f"{pairs.height} matched pairs of {split} questions with a score gap above {behaviour.score_gap}, "
            f"behaviour.min_count is {behaviour.min_count}"
        )
    positive, negative = (
        pairs.select(row_id=label).join(own, on="row_id", maintain_order="left") for label in ("pos", "neg")
    )
    return positive, negative


def _one_answer_each(side: pl.DataFrame, label: str) -> pl.DataFrame:
    twice = side.filter(pl.struct(PAIRED).is_duplicated())
    if twice.height:
        raise VectorError(
            f"label {label}: prompt {twice['prompt_index'][0]} and question {twice['question_index'][0]} "
            "have more than one answer, so pairs are not matched; keep one row each"
        )
    return side


def sum_by_question(
    model: LoadedModel, positive: pl.DataFrame, negative: pl.DataFrame, profile: Profile, context: Context
) -> ContrastSums:
    """Reads both sides, one pass a row, and sums their response means by question."""
    instructed = context == "as_asked"
    states, keys = [], []
    for side in (positive, negative):
        dialogues = encode_rows(model, side, profile, instructed=instructed)
        states.append(collect_means(model, response_requests(model.tokenizer, dialogues)))
        keys.append(side["question_index"].to_numpy())
    questions = np.unique(np.concatenate(keys))
    sums, counts = [], []
    for read, key in zip(states, keys, strict=True):
        at = np.searchsorted(questions, key)
        total = np.zeros((len(questions), *read.shape[1:]), dtype=np.float32)
        np.add.at(total, at, read)
        sums.append(total)
        counts.append(np.bincount(at, minlength=len(questions)))
    return ContrastSums(questions, sums[0], sums[1], counts[0], counts[1])


def averaged_vector(
    model: LoadedModel,
    rows: pl.DataFrame,
    persona: Persona,
    profile: Profile,
    *,
    context: Context = "as_asked",
) -> AveragedVector:
    """The averaged vector of a trait or role, fp32 at every block, natural magnitude.

    Args:
        rows: BEHAVIOUR_SCHEMA, one persona; which are read is `contrast_sides`' business.
        context: what stands before the response when it is read. "as_asked": the instruction it was produced
            under, where the persona was active (as the published vectors were collected). "question": the
            bare question on both sides, so that the direction holds nothing of the prompt itself. On the
            newsroom's validation rows, each at its best block and scale, "as_asked" closes 0.99 to 1.00 of the
            gap and "question" 0.38 to 0.52 (analytical, creative, empathetic, skeptical, sailor).

    Raises:
        MissingVector: too few rows.
        VectorError: rows of another persona, or a question in two splits.
    """
    require_sound_rows(rows, persona)
    positive, negative = contrast_sides(rows, persona.kind, profile.behaviour)
    sums = sum_by_question(model, positive, negative, profile, context)
    raw = sums.contrast()
    metadata = {
        **model_fields(model),
        "method": "averaged",
        "source": {"kind": "averaged", "context": context, "readout": "response_tokens"},
        "flags": [],
        "n_positive": positive.height,
        "n_negative": negative.height,
        "n_questions": len(sums.questions),
        "score_gap": profile.behaviour.score_gap if persona.kind == "trait" else None,
        "min_count": profile.behaviour.min_count,
        "raw_norms": [round(float(norm), 6) for norm in np.linalg.norm(raw, axis=1)],
    }
    return AveragedVector(PersonaVector(persona.name, raw, metadata), sums)
