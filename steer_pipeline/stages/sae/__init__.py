"""Sparse autoencoders: what features of training rows tell of their ranks."""

from steer_pipeline.stages.sae.assets import ASSETS
from steer_pipeline.stages.sae.checks import CHECKS

__all__ = ["ASSETS", "CHECKS"]
