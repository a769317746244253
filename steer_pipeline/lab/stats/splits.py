"""Splits that keep groups whole, so that twins never sit on both sides.

In: one group key a row. Out: a mask or fold numbers a row. The result depends on the set of keys and the
seed, not on the order of the rows.
"""

import numpy as np
from numpy.typing import ArrayLike


def _groups(groups: ArrayLike, at_least: int) -> np.ndarray:
    keys = np.asarray(groups)
    if keys.ndim != 1:
        raise ValueError(f"groups: expected one key a row, got shape {keys.shape}")
    distinct = len(np.unique(keys))
    if distinct < at_least:
        raise ValueError(f"groups: {distinct} distinct keys; this split needs at least {at_least}")
    return keys


def grouped_split(groups: ArrayLike, fraction: float, seed: int) -> np.ndarray:
    """Held-out mask: bool [n], True for the rows of a random `fraction` of the groups (rounded up)."""
    keys = _groups(groups, 2)
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie between 0 and 1, got {fraction}")
    from sklearn.model_selection import GroupShuffleSplit

    splitter = GroupShuffleSplit(n_splits=1, test_size=fraction, random_state=seed)
    held_out = np.zeros(len(keys), dtype=bool)
    held_out[next(splitter.split(keys, groups=keys))[1]] = True
    return held_out


def grouped_folds(groups: ArrayLike, k: int, seed: int) -> np.ndarray:
    """Fold number of each row: int64 [n] in 0..k-1. Groups stay whole and are spread evenly."""
    keys = _groups(groups, k)
    from sklearn.model_selection import GroupKFold

    folds = np.empty(len(keys), dtype=np.int64)
    splitter = GroupKFold(n_splits=k, shuffle=True, random_state=seed)
    for fold, (_, held_out) in enumerate(splitter.split(keys, groups=keys)):
        folds[held_out] = fold
    return folds


def training_rows(folds: np.ndarray, fold: int, *keys: ArrayLike) -> np.ndarray:
    """Rows that a model may learn from before it is judged on `fold`: bool [n].

    Those of other folds, without rows that have a key in common with a row of this one: groups keep twins together
    only where twins share a group.

    Args:
        keys: [n] each; equal values mark the same text, or the same head of it.
    """
    own = folds == fold
    allowed = ~own
    for key in keys:
        values = np.asarray(key)
        allowed &= ~np.isin(values, values[own])
    return allowed
