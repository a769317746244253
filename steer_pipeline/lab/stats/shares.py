"""Shares of rows: what was seen, what it leaves open, and how many rows tell more.

In: counts. Out: exact intervals, bounds, numbers of rows and a sentence. A share of 0 in 50 rows is no share of 0.
"""

import math

from scipy.stats import binom, binomtest

from steer_pipeline.lab.stats.interval import Interval


def share_interval(hits: int, n: int, level: float = 0.95) -> Interval:
    """Clopper and Pearson's exact interval of a share; [0, 1] of no rows, with a share of NaN."""
    if not 0 <= hits <= n:
        raise ValueError(f"{hits} of {n} rows: hits lie between 0 and the number of rows")
    if n == 0:
        return Interval(float("nan"), 0.0, 1.0, 0)
    low, high = binomtest(hits, n).proportion_ci(level, "exact")
    return Interval(hits / n, float(low), float(high), n)


def at_most(hits: int, n: int, level: float = 0.95) -> float:
    """The largest share that `hits` of `n` rows leave open, one-sided; 1 of no rows."""
    if not 0 <= hits <= n:
        raise ValueError(f"{hits} of {n} rows: hits lie between 0 and the number of rows")
    if n == 0:
        return 1.0
    return float(binomtest(hits, n, alternative="less").proportion_ci(level, "exact").high)


def rows_to_exclude(share: float, level: float = 0.95) -> int:
    """How many rows without a hit exclude that a `share` of all would be one: 299 for 1%."""
    if not 0 < share <= 1:
        raise ValueError(f"share must lie above 0 and at most at 1, got {share}")
    return 1 if share == 1 else math.ceil(math.log(1 - level) / math.log1p(-share))


def passes(share: float, n: int, limit: float) -> float:
    """How often `n` rows keep to `limit` where a `share` of all do not."""
    return float(binom.cdf(math.floor(limit * n + 1e-9), n, share))


def told(hits: int, n: int, level: float = 0.95) -> str:
    """`0 of 50, at most 5.8%` or `3 of 50, 6.0% [1.3%, 16.5%]`."""
    if hits == 0:
        return f"0 of {n}, at most {at_most(0, n, level):.1%}"
    one = share_interval(hits, n, level)
    return f"{hits} of {n}, {one.estimate:.1%} [{one.low:.1%}, {one.high:.1%}]"
