"""Vectors: scored dialogues, trained vectors, their comparison with averaged ones, for each persona."""

from steer_pipeline.stages.vectors.assets import ASSETS
from steer_pipeline.stages.vectors.checks import CHECKS

__all__ = ["ASSETS", "CHECKS"]
