"""Corrections of p values for families of tests. In: p values. Out: adjusted p values in the same order."""

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import false_discovery_control


def _p_values(ps: ArrayLike) -> np.ndarray:
    array = np.asarray(ps, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"ps: expected a 1-d array, got shape {array.shape}")
    bad = np.flatnonzero(~((array >= 0) & (array <= 1)))
    if bad.size:
        raise ValueError(f"ps: entry {bad[0]} is {array[bad[0]]}; a p value lies between 0 and 1")
    return array


def holm(ps: ArrayLike) -> np.ndarray:
    """Holm's step-down adjustment (family-wise error). Float64 [n], never below the raw p, at most 1."""
    array = _p_values(ps)
    order = np.argsort(array, kind="stable")
    stepped = np.maximum.accumulate(array[order] * np.arange(len(array), 0, -1))
    adjusted = np.empty_like(array)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def benjamini_hochberg(ps: ArrayLike) -> np.ndarray:
    """Benjamini and Hochberg's adjustment (false discovery rate). Float64 [n]."""
    array = _p_values(ps)
    return false_discovery_control(array, method="bh") if array.size else array
