"""Vectors: scored dialogues, trained vectors, their comparison with averaged ones, for each persona."""

from steer_pipeline.stages.vectors import comparing, data, training

ASSETS = [*data.ASSETS, *training.ASSETS, *comparing.ASSETS]
CHECKS = [*data.CHECKS, *training.CHECKS, *comparing.CHECKS]

__all__ = ["ASSETS", "CHECKS"]
