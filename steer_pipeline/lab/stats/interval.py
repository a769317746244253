"""The value type of every interval. In: numbers. Out: numbers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval. `n` counts the rows (pairs, or clusters) it stands on."""

    estimate: float
    low: float
    high: float
    n: int

    @property
    def includes_zero(self) -> bool:
        return self.low <= 0.0 <= self.high
