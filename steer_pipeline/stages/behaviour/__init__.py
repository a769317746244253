"""Behaviour: what all arms say, several scales, and the table of all personas."""

from steer_pipeline.stages.behaviour import judging, rollouts, table

ASSETS = [*rollouts.ASSETS, *judging.ASSETS, *table.ASSETS]
CHECKS = [*rollouts.CHECKS, *judging.CHECKS, *table.CHECKS]

__all__ = ["ASSETS", "CHECKS"]
