"""What a trait scorer is, and which one a persona has: its lexicon, or MiniLM fitted on its contrast set."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import polars as pl

from steer_pipeline.catalogue.specs import Persona
from steer_pipeline.lab.evaluation.lexicon import LexiconScorer
from steer_pipeline.lab.evaluation.minilm import MiniLMScorer


class TraitScorer(Protocol):
    """How much of a persona texts show: `score_many` gives float64 [n] in [-1, 1], positive towards its positive
    pole. `LexiconScorer` and `MiniLMScorer` are such.
    """

    def score_many(self, texts: Sequence[str]) -> np.ndarray: ...
    def shows(self, text: str) -> bool: ...
    def shows_opposite(self, text: str) -> bool: ...


def require_telling(persona: str, scale: str, scores: Sequence[float] | np.ndarray | pl.Series) -> None:
    """Refuses a scale that says the same of every text of a run: its zeros would read as a result.

    Args:
        scores: of all texts of the run, steered and not.

    Raises:
        ValueError: they are all equal; persona, scale and cure are named.
    """
    values = np.asarray(scores, dtype=np.float64)
    if len(values) > 1 and np.ptp(values) == 0:
        raise ValueError(
            f"persona {persona}, scale {scale}: all {len(values)} texts of this run score {values[0]:g}, so it tells "
            "nothing here. Markers of a lexicon must occur in what this model says: take the lexicon out for this "
            "model, and give the persona `examples`, on which the scale of any model is fitted"
        )


def trait_scorer(persona: Persona, contrast: pl.DataFrame) -> TraitScorer:
    """The persona's lexicon, or, where it has none, a MiniLM classifier fitted on its contrast set.

    Args:
        contrast: rows of `personas.contrast.CONTRAST_SCHEMA`.
    """
    if persona.positive.lexicon:
        return LexiconScorer(persona)
    positive, negative = (
        contrast.filter(pl.col("side") == side).sort("context_id") for side in ("positive", "negative")
    )
    return MiniLMScorer().fit(
        positive.get_column("completion").to_list(),
        negative.get_column("completion").to_list(),
        positive.get_column("context_id").to_list(),
    )
