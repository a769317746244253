"""Diagnosis: whether the profile's model does the job at all, before anything expensive is made with it."""

from steer_pipeline.stages.diagnosis.assets import ASSETS
from steer_pipeline.stages.diagnosis.checks import CHECKS

__all__ = ["ASSETS", "CHECKS"]
