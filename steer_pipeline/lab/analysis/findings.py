"""Which directions are in a tuned model: within random directions, and beyond what training on clean texts does to
them.

In: statistics of pairs, one number a direction and kind. Out: verdicts; how often the same rule finds something in
pairs of two clean students. A direction that base itself uses is touched by any training: among random directions it
stands out in clean students, too. So both must hold: no chance among random directions, and no place among clean
students. Both must hold of both statistics of a direction, so that one odd adapter is no finding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl
from scipy.stats import beta, t

from steer_pipeline.lab.analysis.architecture import WRITES_AT
from steer_pipeline.lab.analysis.directions import COMPONENT, Directions
from steer_pipeline.lab.analysis.mlp import PUSHES, Mlps
from steer_pipeline.lab.analysis.neutral import Neutral
from steer_pipeline.lab.analysis.pairs import ModelPair
from steer_pipeline.lab.analysis.susceptibility import WRITES, Susceptibilities, without
from steer_pipeline.lab.columns import described
from steer_pipeline.lab.stats import holm

WRITTEN, PUSHED = STATISTICS = ("written", "pushed")
MIN_CLEAN = 4  # clean pairs; with fewer a spread says nothing
STATISTIC_SCHEMA, STATISTIC_COLUMNS = described(
    pair=(pl.String(), "its name; of clean students variant, rank and seed"),
    base=(pl.String(), "whose weights are taken as before"),
    tuned=(pl.String(), "whose are taken as after"),
    direction=(pl.String(), "kind:name"),
    statistic=(pl.String(), "written: change of what o and down write along it, mean z | pushed: how far MLPs move the "
               "mean state along it otherwise than base's, mean z with its sign"),
    value=(pl.Float64(), "the statistic"),
    null_p=(pl.Float64(), "among random directions"),
)  # fmt: skip
FINDING_SCHEMA, FINDING_COLUMNS = described(
    pair=(pl.String(), "its name"),
    direction=(pl.String(), "kind:name"),
    statistic=(pl.String(), "written | pushed"),
    value=(pl.Float64(), "mean z within random directions"),
    null_p=(pl.Float64(), "among random directions"),
    null_p_holm=(pl.Float64(), "of the direction: the larger p of its statistics, corrected over directions"),
    clean_mean=(pl.Float64(), "of clean pairs"),
    clean_sd=(pl.Float64(), "their standard deviation"),
    clean_n=(pl.Int64(), "how many"),
    clean_t=(pl.Float64(), "distance from them in units of their prediction error"),
    clean_p=(pl.Float64(), "of a further clean pair lying as far"),
    clean_p_holm=(pl.Float64(), "of the direction, in the same way"),
    found=(pl.Boolean(), "of the direction: both corrected p are at most the level"),
)


@dataclass(frozen=True)
class Rate:
    """How often a rule fires where nothing is.

    Attributes:
        low, high: exact 95% interval (Clopper and Pearson 1934).
    """

    hits: int
    n: int
    low: float
    high: float


def statistics_of(pair: ModelPair, directions: Directions, neutral: Neutral, fraction: float) -> pl.DataFrame:
    """direction, statistic, value, null_p of one pair, in one pass over its blocks."""
    weights = Susceptibilities(directions, neutral, tuple(WRITES_AT))
    mlps = Mlps(directions, neutral, fraction)
    for block in pair.blocks(check=False):
        weights.see(block)
        mlps.see(block)
    return summarised(weights.tables().found, mlps.tables().pushed)


def summarised(found: pl.DataFrame, pushed: pl.DataFrame) -> pl.DataFrame:
    """direction, statistic, value, null_p of a pair's tables, both `FOUND_SCHEMA`.

    Principal components are left out: they are what the null is made of.
    """
    both = pl.concat([found.filter(side=WRITES), pushed])
    both = both.filter(~pl.col("direction").str.starts_with(f"{COMPONENT}:"))
    kinds = {WRITES: WRITTEN, PUSHES: PUSHED}
    return both.select(
        "direction",
        pl.col("side").replace_strict(kinds).alias("statistic"),
        pl.col("mean_z").alias("value"),
        pl.col("p").alias("null_p"),
    ).sort("direction", "statistic")


def judged(pair: str, own: pl.DataFrame, clean: pl.DataFrame, *, level: float = 0.05) -> pl.DataFrame:
    """`FINDING_SCHEMA` of a pair.

    Args:
        own: direction, statistic, value, null_p of the pair.
        clean: `STATISTIC_SCHEMA` of pairs that nothing is in. With fewer than `MIN_CLEAN` of them random directions
            alone decide, and `clean_p` is empty.
    """
    rows = []
    for row in own.iter_rows(named=True):
        values = clean.filter(direction=row["direction"], statistic=row["statistic"])["value"].to_numpy()
        rows.append({"pair": pair, **row, **_among(row["value"], row["statistic"], values)})
    table = pl.DataFrame(rows, schema=without(FINDING_SCHEMA, "_holm")).drop("found")
    for name in ("null_p", "clean_p"):
        table = _corrected(table, name)
    clean_fits = (pl.col("clean_p_holm") <= level).fill_null(value=True)
    return table.with_columns(found=(pl.col("null_p_holm") <= level) & clean_fits).select(
        FINDING_SCHEMA.names()
    )


def _corrected(table: pl.DataFrame, name: str) -> pl.DataFrame:
    """With `<name>_holm`: the larger p of a direction's statistics, corrected over directions; null where one is."""
    worst = table.group_by("direction", maintain_order=True).agg(
        pl.when(pl.col(name).is_null().any()).then(None).otherwise(pl.col(name).max()).alias("worst")
    )
    known = worst.drop_nulls("worst")
    adjusted = known.select("direction", pl.Series(f"{name}_holm", holm(known["worst"].to_numpy())))
    return table.join(adjusted, on="direction", how="left", maintain_order="left")


def _among(value: float, statistic: str, clean: np.ndarray) -> dict[str, Any]:
    """Of one value the place among clean ones: one-sided where it has no sign, by the t prediction interval."""
    n = len(clean)
    if n < MIN_CLEAN:
        return {"clean_n": n, "clean_p": None}
    mean, spread = float(clean.mean()), float(clean.std(ddof=1))
    distance = (value - mean) / max(spread * np.sqrt(1 + 1 / n), 1e-12)
    tail = t.sf(distance if statistic == WRITTEN else abs(distance), n - 1)
    return {
        "clean_mean": mean,
        "clean_sd": spread,
        "clean_n": n,
        "clean_t": distance,
        "clean_p": float(tail if statistic == WRITTEN else 2 * tail),
    }


def clean_draw(students: Sequence[str], n: int, seed: int) -> list[tuple[str, str]]:
    """At most n pairs of two different clean students, each student in about as many; base is the first of a pair."""
    pairs = list(combinations(students, 2))
    order = np.random.default_rng(seed).permutation(len(pairs))
    return [pairs[k] for k in sorted(order[:n])]


def null_rate(clean: pl.DataFrame, *, level: float = 0.05) -> tuple[pl.DataFrame, Rate]:
    """What the rule finds in pairs of two clean students, each judged by those pairs that share no student with it.

    Args:
        clean: `STATISTIC_SCHEMA`; pairs of two students, not those on the model itself.

    Returns:
        `FINDING_SCHEMA` of all pairs, and how many of them have a finding.
    """
    pairs = clean.select("pair", "base", "tuned").unique(maintain_order=True)
    tables = []
    for name, base, tuned in pairs.iter_rows():
        own = clean.filter(pair=name).select("direction", "statistic", "value", "null_p")
        apart = ~pl.col("base").is_in([base, tuned]) & ~pl.col("tuned").is_in([base, tuned])
        tables.append(judged(name, own, clean.filter(apart), level=level))
    found = pl.concat(tables) if tables else pl.DataFrame(schema=FINDING_SCHEMA)
    hits = found.filter("found")["pair"].n_unique()
    return found, rate(hits, pairs.height)


def rate(hits: int, n: int) -> Rate:
    """A share with its exact interval."""
    if n == 0:
        return Rate(0, 0, 0.0, 1.0)
    low = float(beta.ppf(0.025, hits, n - hits + 1)) if hits else 0.0
    high = float(beta.ppf(0.975, hits + 1, n - hits)) if hits < n else 1.0
    return Rate(hits, n, low, high)


def as_statistics(pair: str, base: str, tuned: str, own: pl.DataFrame) -> pl.DataFrame:
    """`STATISTIC_SCHEMA` of `statistics_of` a pair."""
    named = {"pair": pair, "base": base, "tuned": tuned}
    return own.select(*(pl.lit(value).alias(name) for name, value in named.items()), pl.all()).select(
        STATISTIC_SCHEMA.names()
    )
