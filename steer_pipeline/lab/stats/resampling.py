"""Resamples of rows or clusters, intervals of statistics that have no formula, and sign-flip tests.

In: arrays of per-row values or differences, optionally with cluster keys. Out: resampled means, `Interval`s and p
values. One set of resamples serves all columns of a matrix, so families of metrics cost one matrix product. The
interval and the test of a plain mean need no resamples: see `means`.
"""

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr, stdtrit

from steer_pipeline.lab.stats.interval import Interval

Alternative = Literal["two-sided", "greater", "less"]
CHUNK_CELLS = 4_000_000  # resampled cells held at once: 32 MB of float64


def finite_vector(values: ArrayLike, name: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name}: expected a non-empty 1-d array, got shape {array.shape}")
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        raise ValueError(
            f"{name}: row {bad[0]} is {array[bad[0]]}; drop or impute missing rows before testing"
        )
    return array


def value_matrix(values: ArrayLike, name: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"{name}: expected a non-empty [n, k] matrix, got shape {array.shape}")
    return array


def _resample_counts(n: int, seed: int, n_boot: int) -> Iterator[np.ndarray]:
    """How often each of n units is drawn in each resample: float64 [chunk, n], n_boot rows in all."""
    rng = np.random.default_rng(seed)
    chunk = max(1, CHUNK_CELLS // n)
    for start in range(0, n_boot, chunk):
        size = min(chunk, n_boot - start)
        drawn = rng.integers(0, n, size=(size, n))
        drawn += np.arange(size)[:, None] * n
        yield np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)


def cluster_sums(matrix: np.ndarray, clusters: ArrayLike | None) -> tuple[np.ndarray, np.ndarray]:
    """Sums and counts of the non-missing cells by resampling unit: two arrays [units, k]."""
    present = np.isfinite(matrix)
    values = np.where(present, matrix, 0.0)
    counts = present.astype(np.float64)
    if clusters is None:
        return values, counts
    keys = np.asarray(clusters)
    if keys.shape != (len(matrix),):
        raise ValueError(f"clusters: {keys.shape} keys for {len(matrix)} rows; give one key a row")
    names, inverse = np.unique(keys, return_inverse=True)
    sums, sizes = np.zeros((len(names), matrix.shape[1])), np.zeros((len(names), matrix.shape[1]))
    np.add.at(sums, inverse, values)
    np.add.at(sizes, inverse, counts)
    return sums, sizes


def bootstrap_means(
    matrix: ArrayLike, *, seed: int, n_boot: int = 10_000, clusters: ArrayLike | None = None
) -> np.ndarray:
    """Means of every column in every resample of the rows.

    Args:
        matrix: [n, k]; NaN marks a missing cell, which is left out of its column's mean.
        seed: the same seed draws the same rows, whatever k is.
        n_boot: number of resamples.
        clusters: [n] keys; whole clusters are drawn instead of rows.

    Returns:
        float64 [n_boot, k]; NaN where a resample holds no cell of a column.
    """
    sums, sizes = cluster_sums(value_matrix(matrix, "matrix"), clusters)
    if (sizes == sizes[:, :1]).all():
        sizes = sizes[:, :1]  # nothing is missing: one denominator serves all columns
    means = np.empty((n_boot, sums.shape[1]))
    start = 0
    for counts in _resample_counts(len(sums), seed, n_boot):
        with np.errstate(invalid="ignore", divide="ignore"):
            means[start : start + len(counts)] = (counts @ sums) / (counts @ sizes)
        start += len(counts)
    return means


def sign_flip_tests(
    matrix: ArrayLike, *, seed: int, n: int = 10_000, alternative: Alternative = "two-sided"
) -> np.ndarray:
    """Sign-flip permutation p values of the column means of [rows, k]; NaN cells are left out.

    The null: both sides of a pair may change places, as two samples of one model may. A difference is then as likely
    to have either sign, and the test is exact. That a mean is zero is another null, which skewed rows do not need to
    be symmetric for: `mean_tests` tests it. p = (b + 1) / (n + 1), b counting
    the flips whose mean is at least as extreme, so p is never 0 (Phipson and Smyth 2010). With so few rows
    that all 2^rows sign patterns number at most n, all are enumerated and p is their exact share.

    Returns:
        float64 [k]; 1.0 for a column of zeros or without a value.
    """
    if alternative not in ("two-sided", "greater", "less"):
        raise ValueError(f"alternative must be two-sided, greater or less, got {alternative!r}")
    array = np.nan_to_num(value_matrix(matrix, "matrix"), nan=0.0)
    rows, k = array.shape
    observed = array.sum(axis=0)
    tolerance = 1e-9 * np.abs(array).sum(axis=0)  # rounding must not turn a tie into a win
    exact = rows <= 30 and 2**rows <= n
    extreme = np.zeros(k)
    for signs in _sign_patterns(rows) if exact else _random_signs(rows, seed, n):
        flipped = signs @ array
        if alternative == "two-sided":
            hits = np.abs(flipped) >= np.abs(observed) - tolerance
        elif alternative == "greater":
            hits = flipped >= observed - tolerance
        else:
            hits = flipped <= observed + tolerance
        extreme += hits.sum(axis=0)
    return extreme / 2**rows if exact else (extreme + 1) / (n + 1)


def sign_flip_test(
    differences: ArrayLike, *, seed: int, n: int = 10_000, alternative: Alternative = "two-sided"
) -> float:
    """`sign_flip_tests` for one vector of paired differences, all finite."""
    return float(
        sign_flip_tests(
            finite_vector(differences, "differences")[:, None], seed=seed, n=n, alternative=alternative
        )[0]
    )


def _random_signs(rows: int, seed: int, n: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    chunk = max(1, CHUNK_CELLS // rows)
    for start in range(0, n, chunk):
        yield rng.integers(0, 2, size=(min(chunk, n - start), rows)).astype(np.float64) * 2 - 1


def _sign_patterns(rows: int) -> Iterator[np.ndarray]:
    codes = np.arange(2**rows)[:, None] >> np.arange(rows)
    yield (codes & 1) * 2.0 - 1.0


def expanded(level: float, n: int) -> float:
    """Level at which percentiles are read so that an interval over `n` clusters holds with `level`.

    Percentile intervals of few units are too narrow twice over: they use normal quantiles and a variance
    divided by n. Source: Hesterberg (2015), What teachers should know about the bootstrap, expanded percentiles.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    if n < 2:
        return 1.0
    return float(1 - 2 * ndtr(-np.sqrt(n / (n - 1)) * stdtrit(n - 1, (1 + level) / 2)))


def percentiles(drawn: ArrayLike, n: int, level: float = 0.95) -> tuple[float, float]:
    """Bounds of a statistic from its resamples over `n` units, read at the `expanded` level; NaN are left out.

    For shares, norms, ranks and the like. A mean has `mean_interval`.

    Returns:
        Two NaN where the statistic is undefined in every resample.
    """
    values = np.asarray(drawn, dtype=np.float64)
    values, tail = values[np.isfinite(values)], (1 - expanded(level, n)) / 2
    if not values.size:
        return float("nan"), float("nan")
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def cluster_bootstrap(
    statistic: Callable[[np.ndarray], float],
    clusters: ArrayLike,
    *,
    seed: int,
    n_boot: int = 2_000,
    level: float = 0.95,
) -> Interval:
    """Interval of any statistic of rows, by resampling whole clusters: `percentiles` of the resamples.

    Args:
        statistic: takes row indices (with repeats) and returns a number; NaN where it is undefined.
        clusters: [n] key of each row. Rows of one article, question or context belong together.

    Returns:
        Interval whose n counts clusters; resamples where the statistic is undefined are left out.

    Raises:
        ValueError: fewer than two clusters, or the statistic is undefined in every resample.
    """
    names, inverse = np.unique(np.asarray(clusters), return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"clusters: {len(names)} distinct keys; a cluster bootstrap needs at least two")
    members = np.split(np.argsort(inverse, kind="stable"), np.cumsum(np.bincount(inverse))[:-1])
    rng = np.random.default_rng(seed)
    drawn = np.array(
        [
            statistic(np.concatenate([members[i] for i in rng.integers(0, len(names), len(names))]))
            for _ in range(n_boot)
        ]
    )
    drawn = drawn[np.isfinite(drawn)]
    if not drawn.size:
        raise ValueError("statistic is undefined in every resample; are there clusters of both kinds?")
    low, high = percentiles(drawn, len(names), level)
    return Interval(float(statistic(np.arange(len(inverse)))), low, high, len(names))
