"""Intervals for means over rows and over seeds: for new rows and for new seeds at once.

In: paired differences of every row under every seed. Out: intervals that hold for a whole family together. What a few
seeds happen to do is no property of what is seeded, however many rows each of them has.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t

from steer_pipeline.lab.stats.interval import Interval
from steer_pipeline.lab.stats.means import simultaneous_intervals


def crossed_intervals(
    cells: ArrayLike, *, seed: int, level: float = 0.95, n_boot: int = 10_000
) -> list[Interval]:
    """Intervals of k means over rows and seeds that all hold at once with probability `level`.

    Rows: `simultaneous_intervals`, seeds averaged. Seeds: t interval of the mean over seeds at Bonferroni's
    level, its standard deviation pooled over the family, since that of two or three seeds alone tells little. The two
    are joined as distances that add in squares (Zou and Donner 2008, MOVER). With one seed the intervals are for rows
    only, and say nothing of other seeds.

    Args:
        cells: [rows, seeds, k] paired differences; a row with a missing cell is left out.

    Raises:
        ValueError: no row is complete.
    """
    array = np.asarray(cells, dtype=np.float64)
    if array.ndim != 3 or not array.size:
        raise ValueError(f"cells: expected non-empty [rows, seeds, k], got shape {array.shape}")
    array = array[np.isfinite(array).all(axis=(1, 2))]
    if not len(array):
        raise ValueError("cells: no row has a value for every seed and member; compare fewer of them")
    _, n_seeds, k = array.shape
    over_rows = simultaneous_intervals(array.mean(axis=1), level=level, seed=seed, n_boot=n_boot)
    spread = 0.0
    if n_seeds > 1:
        deviation = np.sqrt(array.mean(axis=0).var(axis=0, ddof=1).mean())
        spread = t.ppf(1 - (1 - level) / (2 * k), k * (n_seeds - 1)) * deviation / np.sqrt(n_seeds)
    return [
        Interval(
            one.estimate,
            one.estimate - float(np.hypot(one.estimate - one.low, spread)),
            one.estimate + float(np.hypot(one.high - one.estimate, spread)),
            one.n,
        )
        for one in over_rows
    ]
