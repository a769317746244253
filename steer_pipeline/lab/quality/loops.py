"""Finds text that goes round in circles, whatever the length of the circle.

In: a sequence (words, characters, token ids) or a text. Out: the cycle, or the reason why a text loops.
The share of the most frequent n-gram cannot see a cycle of k words (it scores about 1/k) and perplexity
is low in a loop; comparing the sequence with itself, shifted by every period, sees all of them.
"""

import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from steer_pipeline.lab.quality.repeats import Repeats
from steer_pipeline.lab.quality.text import sentences, straight, words

MIN_DUPLICATE_MASS = 0.35  # share of 4-word windows that repeat an earlier one; news stays below 0.1
MIN_MASS_WORDS = 30
SENTENCE_TIMES = 3
MIN_SENTENCE_WORDS = 4
MAX_CHARACTER_PERIOD = 64
MIN_CHARACTER_SPAN = 24


@dataclass(frozen=True)
class Cycle:
    """`sequence[start : start + length]` repeats itself every `period` elements."""

    period: int
    start: int
    length: int

    @property
    def rounds(self) -> float:
        return self.length / self.period


def _needed(periods: np.ndarray) -> np.ndarray:
    """Elements that must equal the one a period earlier before a cycle of words is no accident, by period.

    One word 5 times, two words 4 times, 3 to 7 words 3 times, 8 words or more twice. "Very, very, very"
    and "again and again and again" pass.
    """
    several = np.where(periods < 8, np.maximum(6, 2 * periods), periods)
    return np.where(periods == 1, 4, several)


def find_cycle(sequence: Sequence[Hashable], max_period: int | None = None) -> Cycle | None:
    """The longest stretch that repeats with any period, by the rule of `_needed`; None without one.

    Words, characters or token ids alike.
    """
    n = len(sequence)
    if n < 5:
        return None
    periods, starts, repeats = Repeats(sequence).runs(min(n // 2, max_period or n))
    enough = np.flatnonzero(repeats >= _needed(periods))
    if not enough.size:
        return None
    # The longest; of equal ones that of the smallest period, and the earliest.
    best = enough[np.lexsort((starts[enough], periods[enough], -(repeats + periods)[enough]))[0]]
    return Cycle(int(periods[best]), int(starts[best]), int(repeats[best] + periods[best]))


def duplicate_mass(text: str, n: int = 4) -> float:
    """Share of the text's n-word windows that repeat an earlier one: 0 for varied text, near 1 in a loop."""
    return repeated_windows(words(text), n)


def repeated_windows(tokens: Sequence[str], n: int) -> float:
    """Share of the windows of n words that repeat an earlier one; 0 with fewer than n words."""
    windows = list(zip(*(tokens[i:] for i in range(n)), strict=False))
    return 1 - len(set(windows)) / len(windows) if windows else 0.0


def find_loop(text: str, source: str = "") -> str | None:
    """Why `text` loops, in a few words, or None. A repetition that stands in the source too is no loop.

    Looks for a cycle of words, the same with numbers masked ("step 1 … step 2 …"), a cycle of characters
    (no word boundaries needed), a sentence said three times, and a large share of repeated word windows.
    """
    tokens = words(text)
    cycle = find_cycle(tokens) if _repeats(tokens) else None
    if cycle and " ".join(tokens[cycle.start : cycle.start + cycle.length]) not in " ".join(words(source)):
        return f"{cycle.period} words {cycle.rounds:.1f} times"
    if counted := counting_cycle(tokens):
        return f"{counted.period} words {counted.rounds:.1f} times, counting"
    if letters := character_cycle(text, source):
        return f"{letters.period} characters {letters.rounds:.1f} times"
    answers = Counter(" ".join(words(sentence)) for sentence in sentences(text))
    for sentence, times in answers.items():
        if times < SENTENCE_TIMES or sentence.count(" ") + 1 < MIN_SENTENCE_WORDS:
            continue
        if times > len(re.findall(rf"\b{re.escape(sentence)}\b", " ".join(words(source)))):
            return f"a sentence {times} times"
    mass = duplicate_mass(text) if len(tokens) >= MIN_MASS_WORDS else 0.0
    if mass >= MIN_DUPLICATE_MASS and mass > 2 * duplicate_mass(source):
        return f"{mass:.0%} of 4-word windows repeat"
    return None


def _repeats(tokens: Sequence[str]) -> bool:
    """Whether some 4-word window stands twice; every cycle that counts has one."""
    windows = list(zip(tokens, tokens[1:], tokens[2:], tokens[3:], strict=False))
    return len(set(windows)) < len(windows)


def counting_cycle(tokens: Sequence[str]) -> Cycle | None:
    """A cycle that shows once numbers are masked and that holds at least three other words."""
    masked = ["#" if re.fullmatch(r"\d+", token) else token for token in tokens]
    if "#" not in masked or not _repeats(masked):
        return None
    cycle = find_cycle(masked)
    if cycle is None or cycle.period < 4 or cycle.rounds < 3:
        return None
    return cycle if len(set(masked[cycle.start : cycle.start + cycle.period]) - {"#"}) >= 3 else None


def character_cycle(text: str, source: str = "") -> Cycle | None:
    """24 characters or more that repeat a unit of up to 64 at least four times: "hahaha…", "-=-=-=…"."""
    squeezed = re.sub(r"\s+", "", straight(text)).lower()
    if len(squeezed) < MIN_CHARACTER_SPAN:
        return None
    windows = {squeezed[i : i + 12] for i in range(len(squeezed) - 11)}
    if len(windows) == len(squeezed) - 11:
        return None
    cycle = find_cycle(squeezed, MAX_CHARACTER_PERIOD)
    if cycle is None or cycle.length < MIN_CHARACTER_SPAN or cycle.rounds < 4:
        return None
    if squeezed[cycle.start : cycle.start + cycle.length] in re.sub(r"\s+", "", straight(source)).lower():
        return None
    return cycle
