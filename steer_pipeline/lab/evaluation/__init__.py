"""Scorers of text: how much of a persona it shows, by marker words, by a sentence-embedding classifier, by a judge.

The first two are `TraitScorer`s; `judge_texts` gives judgements on the persona's own scale. `example_scorer` fits the
classifier on what a persona itself brings, so it needs no text of the model that is studied.
"""

from steer_pipeline.lab.evaluation.examples import ExamplesError, example_scorer
from steer_pipeline.lab.evaluation.judge import JudgeError, JudgeUnavailable, judge_texts
from steer_pipeline.lab.evaluation.judgement import Judgement
from steer_pipeline.lab.evaluation.lexicon import LexiconHits, LexiconScorer
from steer_pipeline.lab.evaluation.minilm import MiniLMScorer, SeparationReport
from steer_pipeline.lab.evaluation.scorer import (
    ScaleError,
    Scales,
    TraitScorer,
    needs_contrast,
    require_telling,
    trait_scales,
)

__all__ = [
    "ExamplesError",
    "JudgeError",
    "JudgeUnavailable",
    "Judgement",
    "LexiconHits",
    "LexiconScorer",
    "MiniLMScorer",
    "ScaleError",
    "Scales",
    "SeparationReport",
    "TraitScorer",
    "example_scorer",
    "judge_texts",
    "needs_contrast",
    "require_telling",
    "trait_scales",
]
