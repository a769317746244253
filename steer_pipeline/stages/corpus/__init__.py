"""Corpus: a snapshot of the news, what was set aside while reading, and articles cut to whole sentences."""

from steer_pipeline.stages.corpus.assets import ASSETS
from steer_pipeline.stages.corpus.checks import CHECKS

__all__ = ["ASSETS", "CHECKS"]
