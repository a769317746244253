"""What a person sees of sparse autoencoders: how faithful one is, and what its features tell."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from steer_pipeline import show

if TYPE_CHECKING:
    from steer_pipeline.lab.sae.predictor import RankPrediction
    from steer_pipeline.lab.sae.stage import MadeSae


def of_sae(made: "MadeSae") -> dict[str, Any]:
    """How it learned, reconstruction and sparsity."""
    from steer_pipeline.lab.sae.training import HISTORY_COLUMNS

    learned = made.history.select("step", "unexplained").rows()
    plot = (
        {"training": show.curves({"batch": learned}, "step", HISTORY_COLUMNS["unexplained"])}
        if learned
        else {}
    )
    return {
        **plot,
        "trained": made.trained,
        "features": made.sae.n_features,
        **show.rounded(dict(made.fidelity.numbers)),
    }


def of_features(path: Path) -> dict[str, Any]:
    """How many rows there are."""
    return {"rows": pl.scan_parquet(path).select(pl.len()).collect().item()}


def of_prediction(found: "RankPrediction") -> dict[str, Any]:
    """Quality beside what costs nothing, what metadata tell, and the first rows by prediction."""
    from steer_pipeline.lab.sae.predictor import (
        GAIN_COLUMNS,
        METADATA_COLUMNS,
        PREDICTION_COLUMNS,
        QUALITY_COLUMNS,
    )

    own = found.quality.row(0, named=True)
    plotted = {
        row["predictor"]: (row["spearman"], row["low"], row["high"])
        for row in found.quality.drop_nans(["spearman", "low", "high"]).iter_rows(named=True)
    }
    plot = {"held_out": show.intervals(plotted, "held-out rank correlation")} if plotted else {}
    return {
        **plot,
        "quality": show.markdown_table(found.quality, QUALITY_COLUMNS),
        "gains": show.markdown_table(found.gains, GAIN_COLUMNS),
        "metadata": show.markdown_table(found.metadata, METADATA_COLUMNS),
        "held_out_spearman": show.significant(own["spearman"]),
        "first_rows": show.markdown_table(found.predictions.sort("rank").head(5), PREDICTION_COLUMNS),
        "rows": found.predictions.height,
    }
