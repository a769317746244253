"""Catalogue: what people write and Dagster observes."""

from steer_pipeline.stages.catalogue.assets import ASSETS

CHECKS: list = []

__all__ = ["ASSETS", "CHECKS"]
