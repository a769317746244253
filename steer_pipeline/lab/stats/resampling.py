"""Bootstrap intervals and sign-flip tests for paired differences.

In: arrays of per-row values or differences, optionally with cluster keys. Out: `Interval` values and p
values. One set of resamples serves all columns of a matrix, so families of metrics cost one matrix product.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

Alternative = Literal["two-sided", "greater", "less"]
CHUNK_CELLS = 4_000_000  # resampled cells held at once: 32 MB of float64


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval. `n` counts the rows (pairs, or clusters) it stands on."""

    estimate: float
    low: float
    high: float
    n: int

    @property
    def includes_zero(self) -> bool:
        return self.low <= 0.0 <= self.high


def _vector(values: ArrayLike, name: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name}: expected a non-empty 1-d array, got shape {array.shape}")
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        raise ValueError(
            f"{name}: row {bad[0]} is {array[bad[0]]}; drop or impute missing rows before testing"
        )
    return array


def _matrix(values: ArrayLike, name: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"{name}: expected a non-empty [n, k] matrix, got shape {array.shape}")
    return array


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")


def _resample_counts(n: int, seed: int, n_boot: int) -> Iterator[np.ndarray]:
    """How often each of n units is drawn in each resample: float64 [chunk, n], n_boot rows in all."""
    rng = np.random.default_rng(seed)
    chunk = max(1, CHUNK_CELLS // n)
    for start in range(0, n_boot, chunk):
        size = min(chunk, n_boot - start)
        drawn = rng.integers(0, n, size=(size, n))
        drawn += np.arange(size)[:, None] * n
        yield np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)


def _cluster_sums(matrix: np.ndarray, clusters: ArrayLike | None) -> tuple[np.ndarray, np.ndarray]:
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
    sums, sizes = _cluster_sums(_matrix(matrix, "matrix"), clusters)
    if (sizes == sizes[:, :1]).all():
        sizes = sizes[:, :1]  # nothing is missing: one denominator serves all columns
    means = np.empty((n_boot, sums.shape[1]))
    start = 0
    for counts in _resample_counts(len(sums), seed, n_boot):
        with np.errstate(invalid="ignore", divide="ignore"):
            means[start : start + len(counts)] = (counts @ sums) / (counts @ sizes)
        start += len(counts)
    return means


def mean_intervals(
    matrix: ArrayLike,
    *,
    seed: int,
    n_boot: int = 10_000,
    level: float = 0.95,
    clusters: ArrayLike | None = None,
) -> list[Interval]:
    """Percentile bootstrap intervals of the column means of [n, k]; NaN cells are left out.

    A column without a single value gives NaN bounds and n = 0.
    """
    _check_level(level)
    array = _matrix(matrix, "matrix")
    means = bootstrap_means(array, seed=seed, n_boot=n_boot, clusters=clusters)
    tail = (1 - level) / 2
    intervals = []
    for column in range(array.shape[1]):
        values = array[np.isfinite(array[:, column]), column]
        drawn = means[np.isfinite(means[:, column]), column]
        if not values.size:
            intervals.append(Interval(float("nan"), float("nan"), float("nan"), 0))
            continue
        low, high = np.quantile(drawn, [tail, 1 - tail])
        intervals.append(Interval(float(values.mean()), float(low), float(high), int(values.size)))
    return intervals


def mean_interval(
    values: ArrayLike,
    *,
    seed: int,
    n_boot: int = 10_000,
    level: float = 0.95,
    clusters: ArrayLike | None = None,
) -> Interval:
    """Percentile bootstrap interval of a mean, over rows or over whole clusters of rows."""
    array = _vector(values, "values")
    return mean_intervals(array[:, None], seed=seed, n_boot=n_boot, level=level, clusters=clusters)[0]


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    *,
    seed: int,
    n_boot: int = 10_000,
    level: float = 0.95,
    clusters: ArrayLike | None = None,
) -> Interval:
    """Mean of a - b with a percentile bootstrap interval over pairs.

    Args:
        a, b: [n] values of the same rows in the same order; pair by key before calling.
        clusters: [n] keys of pairs that belong together (several samples of one article).

    Raises:
        ValueError: different lengths, no rows, or a value that is not finite (its row is named).
    """
    first, second = _vector(a, "a"), _vector(b, "b")
    if first.shape != second.shape:
        raise ValueError(f"a has {first.size} rows and b has {second.size}; pair them by row_id first")
    return mean_interval(first - second, seed=seed, n_boot=n_boot, level=level, clusters=clusters)


def simultaneous_intervals(
    matrix: ArrayLike, *, level: float = 0.95, seed: int, n_boot: int = 10_000
) -> list[Interval]:
    """Intervals of the k column means that all hold at once with probability `level` (max-t bootstrap).

    For each resample the largest |mean* - mean| / se over the columns is taken; its quantile replaces 1.96.
    Correlation between columns is kept, so the family pays less than Bonferroni. Columns whose differences
    are all equal have zero width. Source: Romano and Wolf (2005), single-step form.

    Args:
        matrix: [n, k] paired differences, one column a member of the family, no missing cells.
    """
    _check_level(level)
    array = _matrix(matrix, "matrix")
    if not np.isfinite(array).all():
        row, column = np.argwhere(~np.isfinite(array))[0]
        raise ValueError(f"matrix: row {row}, column {column} is not finite; drop incomplete rows first")
    n, k = array.shape
    mean = array.mean(axis=0)
    error = array.std(axis=0, ddof=1) / np.sqrt(n) if n > 1 else np.zeros(k)
    varies = error > 1e-12 * np.maximum(1.0, np.abs(mean))
    width = np.zeros(k)
    if varies.any():
        centred = array[:, varies] - mean[varies]
        drawn = bootstrap_means(centred, seed=seed, n_boot=n_boot)
        # A resample's spread is (n - 1) / n of the sample's; the factor takes the shrinkage out.
        largest = np.abs(drawn / error[varies]).max(axis=1) * np.sqrt(n / (n - 1))
        width[varies] = np.quantile(largest, level) * error[varies]
    return [Interval(float(m), float(m - w), float(m + w), n) for m, w in zip(mean, width, strict=True)]


def sign_flip_tests(
    matrix: ArrayLike, *, seed: int, n: int = 10_000, alternative: Alternative = "two-sided"
) -> np.ndarray:
    """Sign-flip permutation p values of the column means of [rows, k]; NaN cells are left out.

    Under the null a paired difference is as likely to have either sign. p = (b + 1) / (n + 1), b counting
    the flips whose mean is at least as extreme, so p is never 0 (Phipson and Smyth 2010). With so few rows
    that all 2^rows sign patterns number at most n, all are enumerated and p is their exact share.

    Returns:
        float64 [k]; 1.0 for a column of zeros or without a value.
    """
    if alternative not in ("two-sided", "greater", "less"):
        raise ValueError(f"alternative must be two-sided, greater or less, got {alternative!r}")
    array = np.nan_to_num(_matrix(matrix, "matrix"), nan=0.0)
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
            _vector(differences, "differences")[:, None], seed=seed, n=n, alternative=alternative
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


def cluster_bootstrap(
    statistic: Callable[[np.ndarray], float],
    clusters: ArrayLike,
    *,
    seed: int,
    n_boot: int = 2_000,
    level: float = 0.95,
) -> Interval:
    """Percentile interval of any statistic of rows, by resampling whole clusters.

    Args:
        statistic: takes row indices (with repeats) and returns a number; NaN where it is undefined.
        clusters: [n] key of each row. Rows of one article, question or context belong together.

    Returns:
        Interval whose n counts clusters; resamples where the statistic is undefined are left out.

    Raises:
        ValueError: fewer than two clusters, or the statistic is undefined in every resample.
    """
    _check_level(level)
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
    tail = (1 - level) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(float(statistic(np.arange(len(inverse)))), float(low), float(high), len(names))
