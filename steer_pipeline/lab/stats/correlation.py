"""Rank correlation. In: two columns of numbers of the same rows. Out: a number."""

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Rank correlation with ties at their mean rank; NaN if one side is constant."""
    x, y = rankdata(a), rankdata(b)
    x, y = x - x.mean(), y - y.mean()
    size = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / size) if size > 0 else float("nan")
