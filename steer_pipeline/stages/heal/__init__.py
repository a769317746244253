"""Steer, filter, heal: does a trait survive in a student without the damage of steering?"""

from steer_pipeline.partitions import HEALED
from steer_pipeline.stages.heal import assets, checks

# A profile that does without the persona of its `heal` has no such stage.
ASSETS = assets.ASSETS if HEALED else []
CHECKS = checks.CHECKS if HEALED else []

__all__ = ["ASSETS", "CHECKS"]
