"""Area under the ROC curve with ties, and its interval.

In: scores and binary labels, optionally group keys. Out: AUC in [0, 1] or an `Interval`. An AUC of 0.5 is
chance; it says how often a random positive scores above a random negative, ties counting half.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import expit, logit
from scipy.stats import norm, rankdata, t

from steer_pipeline.lab.stats.interval import Interval
from steer_pipeline.lab.stats.resampling import percentiles


def _checked(scores: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if values.ndim != 1 or values.shape != truth.shape:
        raise ValueError(f"scores {values.shape} and labels {truth.shape} must be 1-d and of one length")
    if not np.isfinite(values).all():
        raise ValueError(f"scores: row {np.flatnonzero(~np.isfinite(values))[0]} is not finite")
    if not np.isin(truth, (0, 1)).all():
        raise ValueError(f"labels: expected 0 and 1, got {np.unique(truth)[:5].tolist()}")
    positive = truth.astype(bool)
    if positive.all() or not positive.any():
        raise ValueError("labels: all rows have the same label; AUC needs both")
    return values, positive


def auc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Mann-Whitney AUC; ties count half. Labels are 0/1 or bool."""
    values, positive = _checked(scores, labels)
    n_positive = int(positive.sum())
    rank_sum = rankdata(values)[positive].sum()
    return float((rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * (len(values) - n_positive)))


def auc_interval(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    seed: int = 0,
    n_boot: int = 2_000,
    level: float = 0.95,
) -> Interval:
    """AUC with an interval.

    Rows are independent: DeLong's variance (DeLong et al. 1988, midrank form of Sun and Xu 2014) on the logit scale,
    with Student's quantile of the smaller side. With `groups`: bootstrap over whole groups. Perfect separation has no
    spread to resample; there the bound is Newcombe's (2006, method 5), which depends on the number of rows or groups
    alone.
    """
    values, positive = _checked(scores, labels)
    area = auc(values, positive)
    if area in (0.0, 1.0):
        return _separated(area, *_sizes(positive, groups), level)
    if groups is not None:
        return _grouped(values, positive, np.asarray(groups), seed, n_boot, level)
    a, b = values[positive], values[~positive]
    all_ranks = rankdata(values)
    # Placement of each positive among the negatives, and of each negative among the positives.
    above = (all_ranks[positive] - rankdata(a)) / len(b)
    below = 1 - (all_ranks[~positive] - rankdata(b)) / len(a)
    spread_a = above.var(ddof=1) / len(a) if len(a) > 1 else 0.0
    spread_b = below.var(ddof=1) / len(b) if len(b) > 1 else 0.0
    freedom = max(1, min(len(a), len(b)) - 1)
    half = t.ppf((1 + level) / 2, freedom) * np.sqrt(spread_a + spread_b) / (area * (1 - area))
    low, high = expit(logit(area) - half), expit(logit(area) + half)
    return Interval(area, float(low), float(high), len(values))


def _grouped(
    values: np.ndarray, positive: np.ndarray, groups: np.ndarray, seed: int, n_boot: int, level: float
) -> Interval:
    """`cluster_bootstrap` of the AUC, with the draws that it makes.

    A resample that holds group g c_g times has the AUC c'Ac / (c'p c'n), A[g, h] counting how often a positive of
    g lies above a negative of h, p and n the positives and negatives of each group.
    """
    names, at = np.unique(groups, return_inverse=True)
    if groups.shape != values.shape or len(names) < 2:
        raise ValueError(
            f"groups: {len(names)} keys for {len(values)} rows; one a row and two different ones"
        )
    order = np.argsort(at[~positive], kind="stable")
    negatives, owners = values[~positive][order], at[~positive][order]
    starts = np.flatnonzero(np.diff(owners, prepend=-1))
    above = np.zeros((len(names), len(names)))
    for group in np.unique(at[positive]):
        own = values[positive & (at == group)][:, None]
        wins = (own > negatives).sum(axis=0) + 0.5 * (own == negatives).sum(axis=0)
        above[group, owners[starts]] = np.add.reduceat(wins, starts)
    n_positive, n_negative = (np.bincount(at[side], minlength=len(names)) for side in (positive, ~positive))
    rng = np.random.default_rng(seed)
    counts = np.array(
        [np.bincount(rng.integers(0, len(names), len(names)), minlength=len(names)) for _ in range(n_boot)]
    )
    pairs = (counts @ n_positive) * (counts @ n_negative)
    drawn = ((counts @ above) * counts).sum(axis=1)[pairs > 0] / pairs[pairs > 0]
    if not drawn.size:
        raise ValueError("no resample holds both labels; are there groups of both kinds?")
    low, high = percentiles(drawn, len(names), level)
    return Interval(auc(values, positive), low, high, len(names))


def _sizes(positive: np.ndarray, groups: ArrayLike | None) -> tuple[int, int, int]:
    """Independent positives, negatives, and units in all."""
    if groups is None:
        return int(positive.sum()), int((~positive).sum()), len(positive)
    keys = np.asarray(groups)
    return len(np.unique(keys[positive])), len(np.unique(keys[~positive])), len(np.unique(keys))


def _separated(area: float, n_positive: int, n_negative: int, units: int, level: float) -> Interval:
    z = norm.ppf((1 + level) / 2)
    size = (n_positive + n_negative) / 2 - 1

    def gap(theta: float) -> float:
        spread = (1 - theta) / (2 - theta) + theta / (1 + theta)
        variance = theta * (1 - theta) * (1 + size * spread) / (n_positive * n_negative)
        return (1 - theta) - z * np.sqrt(variance)

    bound = float(brentq(gap, 1e-9, 1 - 1e-9))
    return Interval(1.0, bound, 1.0, units) if area == 1.0 else Interval(0.0, 0.0, 1 - bound, units)
