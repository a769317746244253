"""How small an effect a comparison could have seen. In: paired differences. Out: a size in their unit."""

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t


def minimum_detectable(differences: ArrayLike, *, level: float = 0.95, power: float = 0.8) -> float:
    """The mean difference that a two-sided test at 1 - `level` would find with probability `power`.

    From the spread that was seen: (t quantile of the level + that of the power) x standard error. The error has the
    part of rows and, from two seeds on, the part of seeds.

    Args:
        differences: [rows, seeds], finite.

    Returns:
        The size; NaN where one row says nothing of spread.
    """
    cells = np.asarray(differences, dtype=np.float64)
    if cells.ndim != 2 or not cells.size or not np.isfinite(cells).all():
        raise ValueError(
            f"differences: expected finite [rows, seeds], got shape {cells.shape}; drop incomplete rows"
        )
    rows, seeds = cells.shape
    if rows < 2:
        return float("nan")
    variance = cells.mean(axis=1).var(ddof=1) / rows
    if seeds > 1:
        variance += cells.mean(axis=0).var(ddof=1) / seeds
    quantiles = t.ppf((1 + level) / 2, rows - 1) + t.ppf(power, rows - 1)
    return float(quantiles * np.sqrt(variance))
