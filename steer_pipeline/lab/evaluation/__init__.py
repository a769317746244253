"""Scorers of text: how much of a persona it shows, by marker words, by a sentence-embedding classifier, by a judge.

The first two have `score_many(texts) -> float64 [n]` in [-1, 1], positive towards the persona's positive pole;
`judge_texts` gives verdicts on the persona's own scale. `example_scorer` fits the classifier on what a persona itself
brings, so it needs no text of the model that is studied.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from steer_pipeline.lab.evaluation.examples import ExamplesError, example_scorer
from steer_pipeline.lab.evaluation.judge import (
    JudgeError,
    JudgeUnavailable,
    Verdict,
    judge_texts,
    scale_of,
)
from steer_pipeline.lab.evaluation.lexicon import LexiconHits, LexiconScorer
from steer_pipeline.lab.evaluation.minilm import MiniLMScorer, SeparationReport


class TraitScorer(Protocol):
    """What comparisons need of a scorer."""

    def score_many(self, texts: Sequence[str]) -> np.ndarray: ...


__all__ = [
    "ExamplesError",
    "JudgeError",
    "JudgeUnavailable",
    "LexiconHits",
    "LexiconScorer",
    "MiniLMScorer",
    "SeparationReport",
    "TraitScorer",
    "Verdict",
    "example_scorer",
    "judge_texts",
    "scale_of",
]
