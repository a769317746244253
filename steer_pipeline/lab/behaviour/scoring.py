"""Trait score of an answer by MiniLM: the calibrated probability that it shows the persona.

In: the behaviour set (positives: rows that count; negatives: `neg` rows of a trait, `default` rows of a role) and
answers to other questions. Out: probabilities, and how far they can be trusted.

Trained on excerpts of equal length: answers in a persona are often longer than plain ones, and a classifier would
learn that. Rows are paired within a question and both cut to the same number of words. Held out by question
throughout; calibrated (Platt 1999) on whole texts that the model did not see.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from steer_pipeline.lab.evaluation.minilm import balanced_logistic, cross_fitted, embed, shuffled_aucs
from steer_pipeline.lab.stats import Interval, auc, auc_interval, grouped_folds, training_rows

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

CUT = 0.8  # of the shorter text of a pair, so that both ends are cut and an end tells nothing
CALIBRATION_BINS = 10
MIN_PAIRS = 20
REPORT_COLUMNS = (
    "auc", "auc_low", "auc_high", "shuffled_mean", "shuffled_high", "auc_whole", "length_auc_before",
    "length_auc_after", "brier", "calibration_error", "n_pairs", "n_training_questions",
)  # fmt: skip


class ScorerError(ValueError):
    """A behaviour set from which no scorer can be trained. The message says what is missing."""


@dataclass(frozen=True)
class ScorerReport:
    """How well the scorer does on questions that it was not trained on.

    Attributes:
        auc: on excerpts of equal length; interval over questions.
        shuffled_mean, shuffled_high: mean and 95th percentile of that AUC, labels shuffled within questions.
        auc_whole: on whole texts, length and all.
        length_auc_before, length_auc_after: AUC of the number of words alone, whole texts and excerpts.
        brier: mean squared error of the calibrated probability on whole texts; 0.25 knows nothing.
        calibration_error: expected calibration error over ten equal bins.
        reliability: one (mean predicted, share positive, n) a bin that is not empty.
        n_pairs, n_questions: what it stands on.
    """

    auc: Interval
    shuffled_mean: float
    shuffled_high: float
    auc_whole: float
    length_auc_before: float
    length_auc_after: float
    brier: float
    calibration_error: float
    reliability: tuple[tuple[float, float, int], ...]
    n_pairs: int
    n_questions: int

    @property
    def separates(self) -> bool:
        """Better than chance and than shuffled labels."""
        return self.auc.low > 0.5 and self.auc.estimate > self.shuffled_high

    def as_dict(self) -> dict[str, float | int]:
        """Flat numbers, `REPORT_COLUMNS`: they stand beside every score."""
        values = (
            self.auc.estimate, self.auc.low, self.auc.high, self.shuffled_mean, self.shuffled_high,
            self.auc_whole, self.length_auc_before, self.length_auc_after, self.brier,
            self.calibration_error, self.n_pairs, self.n_questions,
        )  # fmt: skip
        return dict(zip(REPORT_COLUMNS, values, strict=True))


def training_texts(rows: pl.DataFrame, kind: str, most: int, seed: int) -> pl.DataFrame:
    """Texts to train on: columns text, positive (bool), question_index; at most `most` a side.

    Text is the assistant's message and nothing else. Refusals and empty answers are left out; where a side has
    too many, rows are drawn by the seed, spread over the questions.

    Args:
        rows: frame with BEHAVIOUR_SCHEMA of one persona.
        kind: trait or role, which decides who the negatives are.

    Raises:
        ScorerError: a side has fewer than 20 texts.
    """
    contrast = {"trait": "neg", "role": "default"}.get(kind)
    if contrast is None:
        raise ScorerError(f"kind {kind!r}: only traits and roles are scored")
    answers = pl.col("messages").list.eval(
        pl.element().filter(pl.element().struct.field("role") == "assistant").struct.field("content")
    )
    usable = (
        rows.with_columns(text=answers.list.last(), positive=pl.col("counts"))
        .filter(pl.col("positive") | (pl.col("label") == contrast))
        .filter(pl.col("score_status") != "refusal", pl.col("text").str.strip_chars().str.len_chars() > 0)
        .sort("row_id")
    )
    rng, sides = np.random.default_rng(seed), []
    for positive in (True, False):
        side = usable.filter(pl.col("positive") == positive)
        if side.height < MIN_PAIRS:
            label = "pos rows that count" if positive else f"{contrast} rows"
            raise ScorerError(f"{side.height} {label} with text; a scorer needs {MIN_PAIRS} a side")
        turn = side.with_columns(draw=pl.Series(rng.permutation(side.height))).sort("draw")
        turn = turn.with_columns(turn=pl.int_range(pl.len()).over("question_index"))
        sides.append(turn.sort("turn", "draw").head(most))
    return pl.concat(sides).select("text", "positive", "question_index")


def paired_excerpts(texts: pl.DataFrame, seed: int) -> pl.DataFrame:
    """One positive and one negative row a pair, with an excerpt of equally many words.

    Pairs are drawn within a question; what is left over, across questions. An excerpt is the head of a text, as
    a rollout cut by its token limit is, with 80% of the words of the shorter text of its pair.

    Args:
        texts: as `training_texts` gives them.

    Returns:
        Columns text, excerpt, positive, question_index; two rows a pair.
    """
    rng, pairs = np.random.default_rng(seed), []
    sides: list[list[tuple[str, int]]] = [[], []]
    for (_,), group in texts.group_by("question_index", maintain_order=True):
        own = [
            group.filter(pl.col("positive") == side).select("text", "question_index").rows()
            for side in (True, False)
        ]
        both = min(map(len, own))
        pairs += list(zip(own[0][:both], own[1][:both], strict=True))
        for side, rows in zip(sides, own, strict=True):
            side += rows[both:]
    left = [[side[i] for i in rng.permutation(len(side))] for side in sides]
    pairs += list(zip(*left, strict=False))
    rows = []
    for pair in pairs:
        length = max(1, int(CUT * min(len(text.split()) for text, _ in pair)))
        for positive, (text, question) in zip((True, False), pair, strict=True):
            rows.append((text, " ".join(text.split()[:length]), positive, question))
    return pl.DataFrame(rows, schema=["text", "excerpt", "positive", "question_index"], orient="row")


class CalibratedScorer:
    """Calibrated probability that a text shows the persona. Call `fit` first.

    A text that was trained on is scored by the fold that saw neither its question nor, under another one, the same text
    or excerpt.
    """

    def __init__(self, *, seed: int = 17, n_folds: int = 5, n_shuffles: int = 20) -> None:
        self.seed, self.n_folds, self.n_shuffles = seed, n_folds, n_shuffles
        self.report: ScorerReport | None = None
        self._model: LogisticRegression | None = None
        self._calibrator: LogisticRegression | None = None
        self._held_out: dict[str, float] = {}

    def fit(self, texts: pl.DataFrame) -> "CalibratedScorer":
        """Trains on pairs of excerpts; measures by cross-validation over questions.

        Args:
            texts: as `training_texts` gives them.

        Raises:
            ScorerError: fewer than 20 pairs, or fewer questions than folds.
        """
        pairs = paired_excerpts(texts, self.seed)
        labels = pairs["positive"].cast(pl.Int64).to_numpy()
        questions = pairs["question_index"].to_numpy()
        if len(pairs) < 2 * MIN_PAIRS or len(np.unique(questions)) < self.n_folds:
            raise ScorerError(
                f"{len(pairs) // 2} pairs over {len(np.unique(questions))} questions; a scorer needs "
                f"{MIN_PAIRS} pairs and {self.n_folds} questions"
            )
        heads, bodies = pairs["excerpt"].to_list(), pairs["text"].to_list()
        excerpts, whole = embed(heads), embed(bodies)
        folds = grouped_folds(questions, self.n_folds, self.seed)
        views = cross_fitted(excerpts, labels, folds, heads, bodies, judged=np.stack([excerpts, whole]))
        shuffled = shuffled_aucs(
            excerpts, labels, questions, folds, heads, bodies, n=self.n_shuffles, seed=self.seed
        )
        logits = _logits(views[:, 1])
        probabilities = np.empty(len(labels))
        for fold in np.unique(folds):
            own, others = folds == fold, training_rows(folds, fold, heads, bodies)
            probabilities[own] = _calibrated(_calibrator(logits[others], labels[others]), logits[own])
        error, reliability = calibration(probabilities, labels)
        self.report = ScorerReport(
            auc=auc_interval(views[:, 0], labels, groups=questions, seed=self.seed),
            shuffled_mean=float(shuffled.mean()),
            shuffled_high=float(np.quantile(shuffled, 0.95)),
            auc_whole=auc(views[:, 1], labels),
            length_auc_before=auc([len(text.split()) for text in pairs["text"]], labels),
            length_auc_after=auc([len(text.split()) for text in pairs["excerpt"]], labels),
            brier=float(np.mean((probabilities - labels) ** 2)),
            calibration_error=error,
            reliability=reliability,
            n_pairs=len(pairs) // 2,
            n_questions=len(np.unique(questions)),
        )
        self._model = balanced_logistic().fit(excerpts, labels)
        self._calibrator = _calibrator(logits, labels)
        self._held_out = dict(zip(pairs["text"].to_list(), probabilities.tolist(), strict=True))
        return self

    def score(self, texts: Sequence[str]) -> np.ndarray:
        """Float64 [n] in [0, 1]; 0 for an empty text, which shows nothing. Equal texts are embedded once."""
        if self._model is None or self._calibrator is None:
            raise ValueError("this scorer is not fitted; call fit(texts) first")
        known = self._held_out | {text: 0.0 for text in texts if not text.strip()}
        new = list(dict.fromkeys(text for text in texts if text not in known))
        if new:
            raw = self._model.predict_proba(embed(new))[:, 1]
            known = known | dict(zip(new, _calibrated(self._calibrator, _logits(raw)).tolist(), strict=True))
        return np.array([known[text] for text in texts], dtype=np.float64)


def calibration(
    probabilities: np.ndarray, labels: np.ndarray
) -> tuple[float, tuple[tuple[float, float, int], ...]]:
    """Expected calibration error, and (mean predicted, share positive, n) of each bin that is not empty."""
    bins = np.minimum((probabilities * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    table = []
    for one in np.unique(bins):
        rows = bins == one
        table.append((float(probabilities[rows].mean()), float(labels[rows].mean()), int(rows.sum())))
    error = sum(n * abs(predicted - seen) for predicted, seen, n in table) / len(labels)
    return float(error), tuple(table)


def _logits(probabilities: np.ndarray) -> np.ndarray:
    clipped = np.clip(probabilities, 1e-6, 1 - 1e-6)
    return np.log(clipped / (1 - clipped))


def _calibrator(logits: np.ndarray, labels: np.ndarray) -> "LogisticRegression":
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression().fit(logits[:, None], labels)


def _calibrated(calibrator: "LogisticRegression", logits: np.ndarray) -> np.ndarray:
    return calibrator.predict_proba(logits[:, None])[:, 1]


def score_rollouts(rollouts: pl.DataFrame, scorer: CalibratedScorer) -> pl.DataFrame:
    """One row a rollout: row_id, persona, arm, scale, question_index, score, and the scorer's report.

    Raises:
        ValueError: the scorer is not fitted.
    """
    scores = scorer.score(rollouts["response"].to_list())
    assert scorer.report is not None
    facts: dict[str, Any] = scorer.report.as_dict()
    return rollouts.select("row_id", "persona", "arm", "scale", "question_index").with_columns(
        pl.Series("score", scores), *(pl.lit(value).alias(name) for name, value in facts.items())
    )


def score_by_length(scores: np.ndarray, texts: Sequence[str]) -> float:
    """Mean score of the longer half of the texts minus that of the shorter half; ties at the median stay out.

    Asked of answers in which nothing should show, it says how much length alone is worth.
    """
    lengths = np.array([len(text.split()) for text in texts])
    middle = np.median(lengths)
    longer, shorter = scores[lengths > middle], scores[lengths < middle]
    return float(longer.mean() - shorter.mean()) if len(longer) and len(shorter) else 0.0
