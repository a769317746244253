"""What a judge that errs says about the truth: its means, corrected by rows whose truth is known.

In: a judge's scores, and for some rows the gold score. Out: intervals of the gold mean of all rows that hold though the
judge is wrong, as far as the gold rows stand for the others:

- `corrected_mean` takes scores of any kind: the judge's mean over the other rows, plus its mean error on the gold rows,
  both weighed by how much the judge knows (prediction-powered inference: Angelopoulos et al. 2023, Science 382; the
  weight of Angelopoulos, Duchi and Zrnic 2023, PPI++). Gold rows must be drawn from the same rows as the others.
- `corrected_share` takes yes and no: the judge's share, by its sensitivity and specificity (Rogan and Gladen 1978; the
  interval of Lang and Reiczigel 2014). Gold rows may show the trait more or less often than the others, but the judge
  must err on them as it does on the others.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri

from steer_pipeline.lab.stats import Interval, mean_interval, share_interval

MIN_GOLD = 5  # rows with and without the trait that a judge's errors are read from


class CorrectionError(ValueError):
    """Too little gold, or a judge that no gold helps. The message says what is missing."""


@dataclass(frozen=True)
class JudgeQuality:
    """How a judge that says yes or no meets the gold.

    Attributes:
        sensitivity: share of the rows with the trait that it finds; n counts these rows, the interval is exact.
        specificity: share of the rows without it that it lets be.
    """

    sensitivity: Interval
    specificity: Interval

    @property
    def knows(self) -> float:
        """Sensitivity + specificity - 1: 0 for a judge that tosses coins."""
        return self.sensitivity.estimate + self.specificity.estimate - 1


def judge_quality(said: ArrayLike, gold: ArrayLike) -> JudgeQuality:
    """Sensitivity and specificity on gold rows.

    Args:
        said, gold: [n] whether the judge, and the truth, see the trait. Independent rows: one a question.

    Raises:
        CorrectionError: fewer than `MIN_GOLD` rows with the trait, or without it.
    """
    told, truth = np.asarray(said, dtype=bool), np.asarray(gold, dtype=bool)
    if told.shape != truth.shape or told.ndim != 1:
        raise ValueError(f"said {told.shape} and gold {truth.shape} must be 1-d and of one length")
    for rows, what in ((truth, "with"), (~truth, "without")):
        if rows.sum() < MIN_GOLD:
            raise CorrectionError(
                f"{rows.sum()} gold rows {what} the trait, {MIN_GOLD} are needed: give gold scores to more rows"
            )
    return JudgeQuality(
        share_interval(int(told[truth].sum()), int(truth.sum())),
        share_interval(int((~told[~truth]).sum()), int((~truth).sum())),
    )


def corrected_share(said: ArrayLike, quality: JudgeQuality, *, level: float = 0.95) -> Interval:
    """Share of rows that have the trait, from what the judge said of them.

    Args:
        said: [n] whether the judge sees the trait, of independent rows.

    Raises:
        CorrectionError: the judge does no better than chance on the gold rows.
    """
    told = np.asarray(said, dtype=bool)
    if told.ndim != 1 or not told.size:
        raise ValueError(f"said: expected a non-empty 1-d array, got shape {told.shape}")
    if quality.knows <= 0:
        raise CorrectionError(
            f"the judge's sensitivity {quality.sensitivity.estimate:.2f} and specificity "
            f"{quality.specificity.estimate:.2f} are those of chance: what it says cannot be corrected"
        )
    z = float(ndtri((1 + level) / 2))
    size, (finds, n_with) = len(told) + z**2, _added(quality.sensitivity)
    spares, n_without = _added(quality.specificity)
    share, knows = (told.sum() + z**2 / 2) / size, finds + spares - 1
    centre = (share + spares - 1) / knows
    of_finds, of_spares = finds * (1 - finds) / n_with, spares * (1 - spares) / n_without
    shift = 2 * z**2 * (centre * of_finds - (1 - centre) * of_spares)
    error = np.sqrt(share * (1 - share) / size + centre**2 * of_finds + (1 - centre) ** 2 * of_spares) / knows
    estimate = np.clip((told.mean() + quality.specificity.estimate - 1) / quality.knows, 0, 1)
    low, high = (float(np.clip(centre + shift + side * z * error, 0, 1)) for side in (-1, 1))
    return Interval(float(estimate), min(low, float(estimate)), max(high, float(estimate)), len(told))


def _added(share: Interval) -> tuple[float, float]:
    """A share and its number of rows, with one row more of either kind."""
    return (share.estimate * share.n + 1) / (share.n + 2), float(share.n + 2)


def corrected_mean(
    judged: ArrayLike,
    gold_judged: ArrayLike,
    gold: ArrayLike,
    *,
    level: float = 0.95,
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> Interval:
    """Gold mean of all rows, from the judge's scores of rows without gold and both scores of rows with it.

    The two parts, the judge's mean and its error, are independent; their intervals (`mean_interval`) are joined as
    distances that add in squares. A judge that knows nothing gets no weight, and the gold rows stand alone.

    Args:
        judged: [N] the judge's scores of rows without gold.
        gold_judged, gold: [n] both scores of the gold rows. Independent rows or means of clusters; differences to a
            base are scores, too.
        bounds: the least and the largest value that the mean can have.

    Raises:
        CorrectionError: fewer than `MIN_GOLD` gold rows.
    """
    others, own, truth = (np.asarray(values, dtype=np.float64) for values in (judged, gold_judged, gold))
    if own.shape != truth.shape or own.ndim != 1:
        raise ValueError(f"gold_judged {own.shape} and gold {truth.shape} must be 1-d and of one length")
    if len(truth) < MIN_GOLD:
        raise CorrectionError(f"{len(truth)} gold rows, {MIN_GOLD} are needed: give gold scores to more rows")
    weight = _weight(others, own, truth) if len(others) > 1 else 0.0
    if not weight:
        return mean_interval(truth, level=level, bounds=bounds)
    error = mean_interval(truth - weight * own, level=level)
    said = mean_interval(weight * others, level=level)
    estimate = error.estimate + said.estimate
    low = estimate - np.hypot(error.estimate - error.low, said.estimate - said.low)
    high = estimate + np.hypot(error.high - error.estimate, said.high - said.estimate)
    low, high = (float(np.clip(edge, *bounds)) for edge in (low, high))
    return Interval(estimate, min(low, estimate), max(high, estimate), len(truth) + len(others))


def _weight(others: np.ndarray, own: np.ndarray, truth: np.ndarray) -> float:
    """Of the judge's scores, 0 to 1: what makes the variance of the estimate least (PPI++)."""
    spread = np.concatenate([others, own]).var(ddof=1)
    if spread == 0:
        return 0.0
    together = np.cov(own, truth, ddof=1)[0, 1]
    return float(np.clip(together / ((1 + len(own) / len(others)) * spread), 0, 1))
