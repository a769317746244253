"""Every block of a sequence that stands in it twice, in little more than n log n steps.

In: words, characters or token ids. Out: how far two places agree, the longest repeated block, the cycles. Blocks of
1, 2, 4, 8, ... elements get numbers, equal blocks the same one (Karp, Miller and Rosenberg 1972); two places are then
compared in log n look-ups, whatever the length of what they share.
"""

from collections.abc import Hashable, Sequence

import numpy as np


class Repeats:
    """Numbers of the blocks of a sequence.

    Attributes:
        n: elements of the sequence.
    """

    def __init__(self, sequence: Sequence[Hashable]) -> None:
        codes: dict[Hashable, int] = {}
        first = np.array([codes.setdefault(item, len(codes)) for item in sequence], dtype=np.int64)
        self.n = len(first)
        self._levels = [first]  # level k numbers the blocks of 2**k elements by where they begin
        while 2 ** len(self._levels) <= self.n:
            self._levels.append(self._joined(2 ** len(self._levels)))

    def _joined(self, length: int) -> np.ndarray:
        """Numbers [n - length + 1] of the blocks of `length`: of two blocks that cover it, apart or overlapping."""
        level = min((length - 1).bit_length() - 1, len(self._levels) - 1) if length > 1 else 0
        half, numbers = 2**level, self._levels[level]
        starts = np.arange(self.n - length + 1)
        pairs = numbers[starts] * (self.n + 1) + numbers[starts + length - half]
        return np.unique(pairs, return_inverse=True)[1].astype(np.int64)

    def agree(self, one: np.ndarray, other: np.ndarray, *, backward: bool = False) -> np.ndarray:
        """int64: how many elements are equal from places `one` and `other` on, or, backward, before them."""
        shared = np.zeros(len(one), dtype=np.int64)
        for level in reversed(range(len(self._levels))):
            length, numbers = 2**level, self._levels[level]
            step = -shared - length if backward else shared
            a, b = one + step, other + step
            room = (np.minimum(a, b) >= 0) & (np.maximum(a, b) + length <= self.n)
            a, b = np.where(room, a, 0), np.where(room, b, 0)
            shared += np.where(room & (numbers[a] == numbers[b]), length, 0)
        return shared

    def longest(self) -> int:
        """Elements of the longest block that stands twice; the two may overlap. 0: every element stands once."""
        low, high = 0, self.n - 1
        while low < high:
            length = (low + high + 1) // 2
            numbers = self._joined(length) if length > 1 else self._levels[0]
            low, high = (length, high) if numbers.max() + 1 < len(numbers) else (low, length - 1)
        return max(low, 0)

    def runs(self, max_period: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Stretches in which each element equals the one a period earlier: (periods, starts, elements that repeat).

        Complete for stretches that repeat a whole period or more; shorter ones may be missing. One may come up twice.
        """
        counts = [max(0, -(-(self.n - period) // period)) for period in range(1, max_period + 1)]
        periods = np.repeat(np.arange(1, max_period + 1), counts)
        # A stretch as long as its period holds a multiple of it.
        places = np.concatenate([np.arange(count) for count in counts] or [np.empty(0, dtype=int)]) * periods
        before = self.agree(places, places + periods, backward=True)
        return periods, places - before, before + self.agree(places, places + periods)


def longest_repeat(sequence: Sequence[Hashable]) -> int:
    """Elements of the longest block of the sequence that stands in it twice; the two may overlap."""
    return Repeats(sequence).longest() if len(sequence) > 1 else 0
