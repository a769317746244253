"""Which training rows help: rows, rankings, adapters that learn a part of them, games that they play."""

from steer_pipeline.stages.attribution.assets import ASSETS
from steer_pipeline.stages.attribution.checks import CHECKS

__all__ = ["ASSETS", "CHECKS"]
