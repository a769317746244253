"""Behaviour: what all arms say, several scales, and the table of all personas."""

from steer_pipeline.stages.behaviour.assets import ASSETS
from steer_pipeline.stages.behaviour.checks import CHECKS

__all__ = ["ASSETS", "CHECKS"]
