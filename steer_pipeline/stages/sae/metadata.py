"""What a person sees of sparse autoencoders: how faithful one is, and what its features tell."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from steer_pipeline import show

if TYPE_CHECKING:
    from steer_pipeline.lab.sae.predictor import RankPrediction
    from steer_pipeline.lab.sae.stage import MadeSae


def of_sae(made: "MadeSae") -> dict[str, Any]:
    """Reconstruction and sparsity."""
    return {
        "trained": made.trained,
        "features": made.sae.n_features,
        **show.rounded(dict(made.fidelity.numbers)),
    }


def of_features(path: Path) -> dict[str, Any]:
    """How many rows there are."""
    return {"rows": pl.scan_parquet(path).select(pl.len()).collect().item()}


def of_prediction(found: "RankPrediction") -> dict[str, Any]:
    """Quality beside what costs nothing, and what metadata tell."""
    from steer_pipeline.lab.sae.predictor import GAIN_COLUMNS, METADATA_COLUMNS, QUALITY_COLUMNS

    own = found.quality.row(0, named=True)
    return {
        "quality": show.markdown_table(found.quality, QUALITY_COLUMNS),
        "gains": show.markdown_table(found.gains, GAIN_COLUMNS),
        "metadata": show.markdown_table(found.metadata, METADATA_COLUMNS),
        "held_out_spearman": show.significant(own["spearman"]),
        "rows": found.predictions.height,
    }
