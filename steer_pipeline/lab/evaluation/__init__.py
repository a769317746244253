"""Scorers of text: how much of a persona it shows, by marker words, by a sentence-embedding classifier, by a judge.

The first two are `TraitScorer`s; `judge_texts` gives judgements on the persona's own scale.
"""

from steer_pipeline.lab.evaluation.judge import JudgeError, JudgeUnavailable, judge_texts
from steer_pipeline.lab.evaluation.judgement import Judgement
from steer_pipeline.lab.evaluation.lexicon import LexiconHits, LexiconScorer
from steer_pipeline.lab.evaluation.minilm import MiniLMScorer, SeparationReport
from steer_pipeline.lab.evaluation.scorer import TraitScorer, trait_scorer

__all__ = [
    "JudgeError",
    "JudgeUnavailable",
    "Judgement",
    "LexiconHits",
    "LexiconScorer",
    "MiniLMScorer",
    "SeparationReport",
    "TraitScorer",
    "judge_texts",
    "trait_scorer",
]
