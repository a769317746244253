"""Vectors between models: what a persona's vector does when a linear map carries it to another model."""

from steer_pipeline.stages.transport.assets import ASSETS
from steer_pipeline.stages.transport.checks import CHECKS

__all__ = ["ASSETS", "CHECKS"]
