"""One player describes a word, another guesses it: rows that teach to guess."""

from steer_pipeline.stages.word_games.assets import ASSETS
from steer_pipeline.stages.word_games.checks import CHECKS

__all__ = ["ASSETS", "CHECKS"]
