"""How small an effect a comparison could have seen. In: paired differences. Out: a size in their unit."""

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaincinv, stdtrit

from steer_pipeline.lab.stats.means import units_of
from steer_pipeline.lab.stats.resampling import value_matrix


def quantiles(units: ArrayLike, *, level: float = 0.95, power: float = 0.8) -> np.ndarray:
    """Standard errors that a mean over `units` must be away from zero: t quantile of the level + that of the power."""
    freedom = np.maximum(np.asarray(units, dtype=np.float64) - 1, 1)
    return stdtrit(freedom, (1 + level) / 2) + stdtrit(freedom, power)


def detectable(
    matrix: ArrayLike, *, clusters: ArrayLike | None = None, level: float = 0.95, power: float = 0.8
) -> np.ndarray:
    """Per column of [rows, k]: the mean difference that a two-sided test at 1 - `level` finds with probability `power`.

    From the spread that was seen: `quantiles` x standard error. Where most rows have
    one value, the spread of the few others tells little, and of none nothing: there it is at least the share of rows
    that would have to move one way, by the size seen (1 where none moved), so that with `power` so many do that
    McNemar's mid-p test at 1 - `level` rejects: 5 at 95%.

    Args:
        matrix: NaN cells are left out.
        clusters: [rows] keys of rows that belong together.

    Returns:
        float64 [k]; NaN where so few rows find nothing.
    """
    units = units_of(value_matrix(matrix, "matrix"), clusters)
    n = units.n.astype(np.float64)
    found = quantiles(n, level=level, power=power) * units.error
    needed = np.ceil(np.log2(1 / (1 - level)) - 1e-9)
    with np.errstate(invalid="ignore"):
        rate = np.where(n >= needed, betaincinv(needed, np.maximum(n - needed + 1, 1), power), np.nan)
    found = np.where(units.tied, np.maximum(found, rate * units.size), found)
    return np.where(n < 2, np.nan, found)


def minimum_detectable(differences: ArrayLike, *, level: float = 0.95, power: float = 0.8) -> float:
    """`detectable` of one mean over rows and, from two seeds on, over seeds: their parts of the error add in squares.

    Args:
        differences: [rows, seeds], finite.

    Returns:
        The size; NaN where so few rows find nothing.
    """
    cells = np.asarray(differences, dtype=np.float64)
    if cells.ndim != 2 or not cells.size or not np.isfinite(cells).all():
        raise ValueError(
            f"differences: expected finite [rows, seeds], got shape {cells.shape}; drop incomplete rows"
        )
    rows, seeds = cells.shape
    over_rows = float(detectable(cells.mean(axis=1)[:, None], level=level, power=power)[0])
    if rows < 2 or seeds < 2:
        return over_rows
    over_seeds = quantiles(rows, level=level, power=power) * cells.mean(axis=0).std(ddof=1) / np.sqrt(seeds)
    return float(np.hypot(over_rows, over_seeds))
