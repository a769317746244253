"""How good every ranking is: forecast of trainings, cost of its first rows, planted rows found; one row a method.

In: rankings, stored trainings without some rows, and the replay that makes more of them. Out: a table.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path

import polars as pl

from steer_pipeline.catalogue.attribution_scoring import QualitySpec
from steer_pipeline.lab.attribution.manifest import Manifest
from steer_pipeline.lab.attribution.rows import INFORMATIVE, TRAIN
from steer_pipeline.lab.attribution.scoring.quality import Retrainings, effect, protocol, table
from steer_pipeline.lab.attribution.scoring.ranking import Ranking

QUALITY, RETRAINED, PROTOCOL = "quality.parquet", "retrained.parquet", "protocol.json"


def retrain(retrainings: Retrainings, spec: QualitySpec, folder: Path) -> pl.DataFrame:
    """Runs all trainings and writes `retrained.parquet` and `protocol.json`."""
    found = retrainings.over(spec)
    found.write_parquet(folder / RETRAINED)
    told = protocol(retrainings.replay, spec)
    (folder / PROTOCOL).write_text(json.dumps(told, indent=1, sort_keys=True) + "\n")
    return found


def planted_rows(manifest: Manifest) -> list[str]:
    """Rows of the pool that are known to help; none where nobody knows."""
    return manifest.split(TRAIN).filter(truth=INFORMATIVE)["row_id"].to_list()


def quality_table(
    rankings: Mapping[str, Ranking],
    retrained: pl.DataFrame,
    retrainings: Retrainings,
    planted: Collection[str],
    spec: QualitySpec,
) -> pl.DataFrame:
    """A row a method: costs, coverage, LDS of each protocol, recall, and the effect of its first rows, with intervals.

    Args:
        planted: rows that are known to be informative; none: recall is left out.
    """
    found = table(rankings, retrained, planted, seed=spec.seed)
    effects = [effect(rankings[name], retrainings, spec) for name in found["method"]]
    return found.with_columns(
        effect=pl.Series([one.estimate for one in effects]),
        effect_low=pl.Series([one.low for one in effects]),
        effect_high=pl.Series([one.high for one in effects]),
    )
