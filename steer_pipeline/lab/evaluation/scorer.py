"""Which scales a persona has: its lexicon, where it has one, and MiniLM fitted on its examples or its contrast set.

In: a persona as the profile has it, what the profile wants MiniLM fitted on, and a contrast set. Out: scorers by name,
the headline's first. A scale that says the same of every text of a run is refused: its zeros would read as a result.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import polars as pl

from steer_pipeline.catalogue.specs import Persona, ScaleSpec
from steer_pipeline.lab.evaluation.examples import ExamplesError, example_scorer
from steer_pipeline.lab.evaluation.lexicon import LexiconScorer
from steer_pipeline.lab.evaluation.minilm import MiniLMScorer
from steer_pipeline.lab.personas.schema import voiced

LEXICON, MINILM = "lexicon", "minilm"
MINILM_CONTEXTS = 96  # a side and persona; embedding more of a contrast set moves no held-out AUC


class ScaleError(ValueError):
    """A persona has no scale, or one that tells no text of a run from another. The message names persona and cure."""


class TraitScorer(Protocol):
    """How much of a persona texts show: `score_many` gives float64 [n] in [-1, 1], positive towards its positive
    pole. `LexiconScorer` and `MiniLMScorer` are such.
    """

    def score_many(self, texts: Sequence[str]) -> np.ndarray: ...
    def shows(self, text: str) -> bool: ...
    def shows_opposite(self, text: str) -> bool: ...


@dataclass(frozen=True)
class Scales:
    """The scales of a persona.

    Attributes:
        scorers: `lexicon` and `minilm`, those that it has, the headline's first.
        note: what MiniLM is fitted on, or why there is none.
    """

    persona: str
    scorers: Mapping[str, TraitScorer]
    note: str

    @property
    def headline(self) -> str:
        """The name of the scale that doses are chosen on.

        Raises:
            ScaleError: the persona has none.
        """
        if not self.scorers:
            raise ScaleError(
                f"persona {self.persona} has no scale: no lexicon, and {self.note}; give it `examples` in its file, or "
                "marker words in the profile's `lexicons`"
            )
        return next(iter(self.scorers))

    @property
    def scorer(self) -> TraitScorer:
        """The headline's."""
        return self.scorers[self.headline]


def needs_contrast(persona: Persona, spec: ScaleSpec) -> bool:
    """Whether MiniLM is fitted on the persona's contrast set."""
    return spec.minilm == "contrast_set" or persona.examples is None


def trait_scales(
    persona: Persona,
    spec: ScaleSpec,
    contrast: pl.DataFrame | None,
    *,
    seed: int = 17,
    headline_only: bool = False,
) -> Scales:
    """The scales that the persona has on this model.

    Args:
        contrast: rows of `personas.contrast.CONTRAST_SCHEMA`; read where `needs_contrast`.
        seed: of the fit's folds and shuffles.
        headline_only: fit no MiniLM where the headline is the lexicon's.
    """
    scorers: dict[str, TraitScorer] = {LEXICON: LexiconScorer(persona)} if persona.positive.lexicon else {}
    if scorers and headline_only:
        return Scales(persona.name, scorers, "the lexicon is the profile's or the persona's")
    fitted, note = _minilm(persona, spec, contrast, seed)
    if fitted is not None:
        scorers[MINILM] = fitted
    return Scales(persona.name, scorers, note)


def _minilm(
    persona: Persona, spec: ScaleSpec, contrast: pl.DataFrame | None, seed: int
) -> tuple[MiniLMScorer | None, str]:
    if not needs_contrast(persona, spec):
        try:
            return example_scorer(persona, seed=seed), "MiniLM is fitted on the persona's examples"
        except ExamplesError as error:
            return None, str(error)
    why = "" if spec.minilm == "contrast_set" else ", for it has no examples"
    if contrast is None:
        return None, f"there is no contrast set to fit MiniLM on{why}"
    spoken = _spoken(contrast)
    sides = [spoken.filter(pl.col("side") == side) for side in ("positive", "negative")]
    groups = [context for side in sides for context in side["context_id"]]
    positive, negative = (side["completion"].to_list() for side in sides)
    try:
        fitted = MiniLMScorer(seed=seed).fit(positive, negative, groups)
    except ValueError as error:
        return None, f"MiniLM cannot be fitted on its contrast set{why}: {error}"
    return fitted, f"MiniLM is fitted on the persona's contrast set{why}"


def _spoken(contrast: pl.DataFrame) -> pl.DataFrame:
    """Completions with text that count, of the first contexts by name that have both sides."""
    with_text = voiced(contrast).filter(pl.col("completion").str.strip_chars().str.len_chars() > 0)
    both = with_text.group_by("context_id").agg(sides=pl.col("side").n_unique()).filter(pl.col("sides") == 2)
    contexts = both["context_id"].sort().head(MINILM_CONTEXTS)
    return with_text.filter(pl.col("context_id").is_in(contexts.implode()))


def require_telling(persona: str, scale: str, scores: Sequence[float] | np.ndarray | pl.Series) -> None:
    """Refuses a scale that says the same of every text of a run.

    Args:
        scores: of all texts of the run, steered and not.

    Raises:
        ScaleError: they are all equal; of a lexicon it says that none of its markers occurs.
    """
    values = np.asarray(scores, dtype=np.float64)
    if len(values) < 2 or np.ptp(values) > 0:
        return
    if scale == LEXICON:
        raise ScaleError(
            f"persona {persona}: its lexicon scores all {len(values)} texts of this run {values[0]:g}"
            f"{', none has a marker' if values[0] == 0 else ''}: it was written for other texts. Give this model "
            f"marker words of its own, or none (`lexicons: {{{persona}: {{}}}}` in the profile): MiniLM scores it then"
        )
    raise ScaleError(
        f"persona {persona}: {scale} scores all {len(values)} texts of this run {values[0]:g}; see whether the "
        "texts differ at all (rows.parquet, `steer query`), and whether the persona's examples show its poles"
    )
