"""Personas: contrast sets, persona vectors and dose curves, one partition a persona."""

from steer_pipeline.stages.personas.assets import ASSETS
from steer_pipeline.stages.personas.checks import CHECKS

__all__ = ["ASSETS", "CHECKS"]
