"""What students are compared on: names of metrics, and their values as an array. In: stored rows; no statistics."""

from collections.abc import Sequence

import numpy as np
import polars as pl

COSTS = ("facts_kept", "suspect", "loop", "n_words", "nll_output", "nll_reference")


def metrics_of(rows: pl.DataFrame) -> list[str]:
    """Traits, projections, costs."""
    effects = [name for name in rows.columns if name.startswith(("trait_", "projection_"))]
    return [*effects, *COSTS]


def is_effect(metric: str) -> bool:
    """Whether a metric is of a trait; the others say what the text costs."""
    return metric.startswith(("trait_", "projection_"))


def persona_of(metric: str) -> str:
    """The persona that a trait or projection is of; names of scales have no underscore."""
    kind, _, rest = metric.partition("_")
    return rest if kind == "projection" else rest.rpartition("_")[0]


def cells(rows: pl.DataFrame, metric: str, names: Sequence[str]) -> np.ndarray:
    """float64 [news, seeds, variants], NaN where there is no value.

    Args:
        rows: of one rank; every variant has the same seeds and news.
    """
    own = rows.filter(pl.col("variant").is_in(list(names)))
    long = own.select("row_id", "seed", "variant", pl.col(metric).cast(pl.Float64).alias("value"))
    wide = long.sort("row_id", "seed").pivot(on="variant", index=["row_id", "seed"], values="value")
    values = wide.select(pl.col(list(names)).fill_null(float("nan"))).to_numpy().astype(np.float64)
    return values.reshape(-1, wide["seed"].n_unique(), len(names))
