"""The scales on which answers are scored, by judges and in published sets: one a kind of persona."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ScoreScale:
    """Whole numbers from 0.

    Attributes:
        top: the highest score.
        levels: the steps that scorers tell apart, equally far from each other; agreement is measured on them.
    """

    top: int
    levels: tuple[int, ...]

    def holds(self, score: Any) -> Any:
        """Whether a score, or each of a polars column, is on the scale."""
        return (score >= 0) & (score <= self.top)

    def share(self, score: Any) -> Any:
        """A score, or a polars column of them, as a share of the scale, 0 to 1."""
        return score / self.top

    def steps(self, share: Any) -> Any:
        """A share of the scale in steps between levels, for rounding: 1 is the last level."""
        return share * (len(self.levels) - 1)

    def __str__(self) -> str:
        return f"0 to {self.top}"


SCALES: Mapping[str, ScoreScale] = {
    "trait": ScoreScale(100, (0, 25, 50, 75, 100)),
    "role": ScoreScale(3, (0, 1, 2, 3)),
}
