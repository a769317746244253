"""Reports, rendered from stored rows only."""

from steer_pipeline.stages.reports.assets import ASSETS
from steer_pipeline.stages.reports.checks import CHECKS

__all__ = ["ASSETS", "CHECKS"]
