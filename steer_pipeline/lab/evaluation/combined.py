"""One number for trait, instruction and fluency together, as AxBench has it: their harmonic mean, from 0 to 2.

In: per row a trait score, the share of facts kept and the NLL under the unsteered model. Out: the score of each row,
and of a variant with an interval. A text that shows the trait but nothing of its source scores 0, as does a fluent copy
that shows no trait. Source: Wu et al. (2025), AxBench; there a judge rates the three parts, here they are measured.
"""

import numpy as np
import polars as pl
from numpy.typing import ArrayLike

from steer_pipeline.lab.stats import Interval, mean_interval

TOP = 2.0  # of each part and of the whole


def combined_scores(
    trait: ArrayLike, facts_kept: ArrayLike, nll: ArrayLike, base_nll: ArrayLike
) -> np.ndarray:
    """fp64 [n], 0 to 2.

    Args:
        trait: [n], 0 to 1: how far the text shows what was asked for.
        facts_kept: [n], 0 to 1: how far it did what the prompt asks; NaN where its source has no facts.
        nll, base_nll: [n] nats a token under the unsteered model of the text and of base's on the same row; a text
            less likely than base's loses fluency by the ratio of their perplexities.

    Rows without facts are means of the other two parts; NaN where nothing else is known.
    """
    parts = np.stack(
        [
            TOP * np.clip(np.asarray(trait, float), 0, 1),
            TOP * np.clip(np.asarray(facts_kept, float), 0, 1),
            TOP * np.exp(-np.clip(np.asarray(nll, float) - np.asarray(base_nll, float), 0, None)),
        ]
    )
    known = np.isfinite(parts)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(known, 1.0 / parts, 0.0).sum(axis=0)
        scores = known.sum(axis=0) / inverse
    return np.where(known[[0, 2]].all(axis=0), np.nan_to_num(scores, posinf=np.nan), np.nan)


def combined_interval(rows: pl.DataFrame) -> Interval | None:
    """Mean score of a variant over its rows, with a 95% interval; None where no row can be scored.

    Args:
        rows: columns trait, facts_kept, nll, base_nll.
    """
    columns = (rows[name].cast(pl.Float64).to_numpy() for name in ("trait", "facts_kept", "nll", "base_nll"))
    scores = combined_scores(*columns)
    scores = scores[np.isfinite(scores)]
    return mean_interval(scores, bounds=(0.0, TOP)) if scores.size else None
