"""Loops of any period are seen; sound text with small repetitions is not called a loop."""

from collections import Counter

import numpy as np
import pytest

from steer_pipeline.lab.quality import duplicate_mass, find_cycle, find_loop
from steer_pipeline.lab.quality.repeats import Repeats, longest_repeat

VOCABULARY = [f"word{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(400)]


def top_ngram_share(text: str, n: int = 4) -> float:
    """The score that missed loops: share of the most frequent n-gram (steer-heal)."""
    tokens = text.split()
    grams = Counter(zip(*(tokens[i:] for i in range(n)), strict=False))
    return grams.most_common(1)[0][1] / sum(grams.values())


@pytest.mark.parametrize("period", [1, 2, 3, 4, 5, 6, 7, 9, 13, 20, 31])
def test_a_word_cycle_of_any_period_is_a_loop(period):
    rounds = max(3, 12 // period)
    text = " ".join(VOCABULARY[:period] * rounds)
    assert find_loop(text) is not None
    cycle = find_cycle(text.split())
    assert (cycle.period, cycle.start, cycle.length) == (period, 0, period * rounds)


def test_the_loop_that_the_top_ngram_score_kept():
    text = "one two three four " * 40
    assert top_ngram_share(text) < 0.3
    assert find_loop(text) == "4 words 40.0 times"


def test_a_loop_that_begins_late_is_found():
    cycle = find_cycle([*VOCABULARY[:40], *(VOCABULARY[50:55] * 4), *VOCABULARY[60:70]])
    assert (cycle.period, cycle.start, cycle.length) == (5, 40, 20)


def test_an_affect_loop_in_changing_order_is_a_loop():
    phrases = [
        "oh my goodness gracious me",
        "I am so very happy now",
        "what a lovely bright day",
        "my heart is full of joy",
        "thank you so very much",
        "this is simply the best",
    ]
    rng = np.random.default_rng(1)
    text = ". ".join(phrases[i] for i in rng.permutation(np.tile(np.arange(6), 6))) + "."
    assert top_ngram_share(text) < 0.1
    assert find_loop(text) is not None


@pytest.mark.parametrize(
    "text",
    [
        "ha" * 20,
        "hahahahahahahahahahahahahaha!",
        "会议结束了" * 8,
        "-=" * 20,
        "abc-" * 12,
        "The vote passed. The vote passed. The vote passed. The vote passed.",
        "Step 1: check the permit. Step 2: check the permit. Step 3: check the permit. Go on.",
        "A new plan came up today. It rained. A new plan came up today. He left. A new plan came up today.",
        " ".join(["no"] * 8),
    ],
)
def test_other_circles_are_loops(text):
    assert find_loop(text) is not None


@pytest.mark.parametrize(
    "text",
    [
        "the cat and the dog and the bird and the fish were in the house by the lake near the hill",
        "It was very, very, very cold.",
        "They tried again and again and again.",
        "No, no, no, he said.",
        "He had had had he known.",
        "She won 6-4 6-3 6-2 against 3-6 6-3 6-4 6-2 and 7-5 6-3 6-3 in the other matches of the day.",
        "to be or not to be, that is the question: to be, or to be not",
        "The U.S. The U.S. team won.",
        "Buffalo buffalo buffalo.",
        "",
    ],
)
def test_small_repetitions_are_no_loop(text):
    assert find_loop(text) is None


def test_a_repetition_of_the_source_is_no_loop():
    chant = "we want jobs now we want jobs now we want jobs now we want jobs now"
    assert find_loop(f"They sang: {chant}.") is not None
    assert find_loop(f"They sang: {chant}.", source=f"The crowd sang {chant} for hours.") is None


def test_duplicate_mass_of_varied_text_is_zero():
    assert duplicate_mass(" ".join(VOCABULARY)) == 0.0
    assert duplicate_mass("a b c d " * 50) > 0.95
    assert duplicate_mass("") == 0.0


def test_token_ids_are_searched_like_words():
    assert find_cycle([5, 9, 2, 7] * 3).period == 4
    assert find_cycle(list(range(50))) is None


def plain_cycle(sequence, max_period):
    """The same by comparing the sequence with itself at every shift: quadratic, and obviously right."""
    best = None
    for period in range(1, min(len(sequence) // 2, max_period or len(sequence)) + 1):
        needed = 4 if period == 1 else max(6, 2 * period) if period < 8 else period
        start = 0
        for at in range(period, len(sequence) + 1):
            if at < len(sequence) and sequence[at] == sequence[at - period]:
                continue
            length = at - start  # of the stretch, with the period before its first repeat
            if length - period >= needed and (best is None or length > best[2]):
                best = (period, start, length)
            start = at + 1 - period
    return best


def plain_repeat(sequence):
    for length in range(len(sequence) - 1, 0, -1):
        blocks = [tuple(sequence[i : i + length]) for i in range(len(sequence) - length + 1)]
        if len(set(blocks)) < len(blocks):
            return length
    return 0


def test_cycles_and_repeats_are_those_of_a_plain_search():
    rng = np.random.default_rng(0)
    cycles = 0
    for trial in range(400):
        sequence = rng.integers(0, rng.integers(1, 6), rng.integers(0, 50)).tolist()
        period, start = int(rng.integers(1, 12)), int(rng.integers(0, 50))
        for i in range(max(start, period), len(sequence)):
            sequence[i] = sequence[i - period]
        limit = [None, 3, 10][trial % 3]
        found = find_cycle(sequence, limit)
        assert (found and (found.period, found.start, found.length)) == plain_cycle(sequence, limit), sequence
        assert longest_repeat(sequence) == plain_repeat(sequence), sequence
        cycles += found is not None
    assert 50 < cycles < 350  # both kinds were tried


def test_a_long_text_costs_little_more_than_n_log_n():
    """Comparisons of places, not seconds: their number is the sum of n / period."""
    asked = []

    class Counting(Repeats):
        def agree(self, one, other, *, backward=False):
            asked.append(len(one))
            return super().agree(one, other, backward=backward)

    n = 4000
    Counting(np.random.default_rng(0).integers(0, 500, n).tolist()).runs(n // 2)
    assert sum(asked) < 2 * n * (np.log(n) + 1)
