"""Cosine between trained vectors and an averaged one, block by block, with intervals.

In: trained vectors by seed, an averaged vector and the sums behind it. Out: a table. Only the row of the trained
site compares like with like; the others show where along the depth the averaged direction is nearest to it.
"""

from collections.abc import Mapping

import numpy as np
import polars as pl
from scipy.stats import beta, t

from steer_pipeline.lab.likelihood.measuring import site_of
from steer_pipeline.lab.vectors.averaged import AveragedVector
from steer_pipeline.lab.vectors.vector import PersonaVector

COSINE_SCHEMA = pl.Schema(
    {
        "block": pl.Int64(),  # of the averaged vector
        "same_site": pl.Boolean(),  # the trained vectors' own block
        "cosine": pl.Float64(),  # mean over seeds
        "low": pl.Float64(),
        "high": pl.Float64(),
        "seed_low": pl.Float64(),  # smallest and largest over seeds
        "seed_high": pl.Float64(),
        "random_95th": pl.Float64(),  # absolute cosine that 95% of random directions stay under
        "n_seeds": pl.Int64(),
        "n_questions": pl.Int64(),
    }
)


def random_cosine(hidden: int, level: float = 0.95) -> float:
    """Quantile of |cos| between a fixed and a uniformly random direction: cos^2 is Beta(1/2, (hidden - 1) / 2)."""
    return float(np.sqrt(beta.ppf(level, 0.5, (hidden - 1) / 2)))


def cosine_table(
    trained: Mapping[int, PersonaVector], averaged: AveragedVector, *, level: float = 0.95
) -> pl.DataFrame:
    """COSINE_SCHEMA, one row a block of the averaged vector.

    Interval: t, from the delete-one-question jackknife variance of the averaged side (Efron and Tibshirani 1993,
    ch. 11) plus the variance over seeds divided by their number, with Satterthwaite's degrees of freedom.
    A bootstrap would be off centre here: resampling adds noise to the mean, which shrinks every cosine.
    """
    site = site_of(trained)
    units = np.stack([vector.unit_at(site) for vector in trained.values()]).astype(np.float64)
    records = []
    for block in averaged.vector.present_blocks:
        cosines = units @ averaged.vector.unit_at(block)
        left = averaged.sums.without_each(block)
        left = left / np.linalg.norm(left, axis=1, keepdims=True)
        without = (left @ units.T).mean(axis=1)
        n, seeds = len(without), len(cosines)
        by_question = (n - 1) / n * ((without - without.mean()) ** 2).sum()
        by_seed = cosines.var(ddof=1) / seeds if seeds > 1 else 0.0
        variance = by_question + by_seed
        freedom = (
            variance**2 / (by_question**2 / (n - 1) + by_seed**2 / max(seeds - 1, 1)) if variance else 1.0
        )
        half = t.ppf((1 + level) / 2, freedom) * np.sqrt(variance)
        mean = float(cosines.mean())
        records.append(
            {
                "block": block,
                "same_site": block == site,
                "cosine": mean,
                "low": max(-1.0, mean - half),
                "high": min(1.0, mean + half),
                "seed_low": cosines.min(),
                "seed_high": cosines.max(),
                "random_95th": random_cosine(averaged.vector.raw.shape[1]),
                "n_seeds": seeds,
                "n_questions": len(averaged.sums.questions),
            }
        )
    return pl.DataFrame(records, schema=COSINE_SCHEMA)
