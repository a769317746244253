"""What tuning changed in weights: where a tuned model reacts to a direction. One partition a pair of models."""

from steer_pipeline.stages.analysis.assets import ASSETS
from steer_pipeline.stages.analysis.checks import CHECKS

__all__ = ["ASSETS", "CHECKS"]
