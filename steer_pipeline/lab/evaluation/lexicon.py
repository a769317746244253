"""Persona score by marker words. In: a persona's two lexicons and texts. Out: a signed score in [-1, 1].

Transparent and blind to paraphrase; it counts sentences, so a text gains nothing by saying a marker twice in
one sentence. Matching ignores case, curly apostrophes and line breaks, and holds at word boundaries:
"watch" does not hit "Watched". Where markers overlap, of either pole, the longest one counts.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from steer_pipeline.catalogue.specs import Persona
from steer_pipeline.lab.quality.text import sentences, straight

PoleSide = Literal["positive", "negative"]


@dataclass(frozen=True)
class LexiconHits:
    """Markers found in a text, in order, with repeats."""

    positive: tuple[str, ...]
    negative: tuple[str, ...]


def _folded(marker: str) -> str:
    return " ".join(straight(marker).casefold().split())


class LexiconScorer:
    """Scores texts by the marker words of a persona's poles.

    Raises:
        ValueError: the positive pole has no markers, or a marker stands in both poles.
    """

    def __init__(self, persona: Persona) -> None:
        positive = {_folded(marker) for marker in persona.positive.lexicon} - {""}
        negative = {_folded(marker) for marker in persona.negative.lexicon} - {""}
        if not positive:
            raise ValueError(f"persona {persona.name}: positive.lexicon is empty; give it marker words")
        if both := sorted(positive & negative):
            raise ValueError(
                f"persona {persona.name}: {both[0]!r} stands in both lexicons; remove it from one"
            )
        self.persona = persona
        self._side: dict[str, PoleSide] = dict.fromkeys(positive, "positive")
        self._side |= dict.fromkeys(negative, "negative")
        longest_first = sorted(self._side, key=lambda marker: (-len(marker), marker))
        options = "|".join(re.escape(marker).replace(r"\ ", r"\s+") for marker in longest_first)
        # A look-ahead finds overlapping candidates; `_markers_in` then lets the longest win.
        self._candidates = re.compile(rf"(?=(?<!\w)({options})(?!\w))")

    def _markers_in(self, text: str) -> list[str]:
        folded = straight(text).casefold()
        spans = [(match.start(1), match.end(1)) for match in self._candidates.finditer(folded)]
        taken: list[tuple[int, int]] = []
        for start, end in sorted(spans, key=lambda span: (span[0] - span[1], span[0])):
            if all(end <= other_start or start >= other_end for other_start, other_end in taken):
                taken.append((start, end))
        return [" ".join(folded[start:end].split()) for start, end in sorted(taken)]

    def hits(self, text: str) -> LexiconHits:
        """The markers in the text, by pole."""
        markers = self._markers_in(text)
        return LexiconHits(
            tuple(marker for marker in markers if self._side[marker] == "positive"),
            tuple(marker for marker in markers if self._side[marker] == "negative"),
        )

    def score(self, text: str) -> float:
        """Share of sentences with a positive marker minus share with a negative one; 0 for an empty text."""
        parts = sentences(text)
        if not parts:
            return 0.0
        total = 0
        for part in parts:
            sides = {self._side[marker] for marker in self._markers_in(part)}
            total += ("positive" in sides) - ("negative" in sides)
        return total / len(parts)

    def score_many(self, texts: Iterable[str]) -> np.ndarray:
        """Float64 [n]."""
        return np.array([self.score(text) for text in texts], dtype=np.float64)

    def shows(self, text: str) -> bool:
        """Whether a marker of the positive pole stands in the text."""
        return bool(self.hits(text).positive)

    def shows_opposite(self, text: str) -> bool:
        """Whether a marker of the negative pole stands in the text."""
        return bool(self.hits(text).negative)
