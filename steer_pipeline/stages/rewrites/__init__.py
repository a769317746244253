"""Rewrites: every news item rewritten in every variant, judged, filtered, released."""

from steer_pipeline.stages.rewrites.assets import ASSETS
from steer_pipeline.stages.rewrites.checks import CHECKS

__all__ = ["ASSETS", "CHECKS"]
