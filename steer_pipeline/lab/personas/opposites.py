"""Whether the two poles of a persona are direct opposites, as a teacher's contrast pairs should be.

In: a persona's instructions. Out: what is weak about each pair, in sentences. A direction from pairs that differ in
more than the trait steers more than the trait: a negation ("never rude") names what it forbids, a plain speaker is the
absence of a pole and not its opposite, and other wording or another length is part of the difference. Words decide; it
runs no model and judges no meaning.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from steer_pipeline.catalogue.specs import Persona
from steer_pipeline.lab.quality.text import straight, words

MIN_SHARED = 0.2  # share of the longer instruction's words that both have: the frame in which they differ
MAX_LENGTH_RATIO = 1.8  # of their numbers of words
_NEGATION = re.compile(
    r"\b(no|not|never|none|nothing|nobody|nowhere|neither|nor|without|cannot|\w+n't|refus\w+|avoid\w*|lack\w*)\b",
    re.IGNORECASE,
)
_PLAIN = re.compile(
    r"\b(helpful assistant|news editor|neutral|plainly|plain words|plain speaker|ordinary person)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class WeakPair:
    """A pair of instructions, by its number in the persona's file, and what is weak about it."""

    index: int
    problem: str
    plain: bool = False  # its only fault: a plain speaker takes the place of an opposite

    def __str__(self) -> str:
        return f"instructions.{self.index}: {self.problem}"


def weak_pairs(persona: Persona) -> list[WeakPair]:
    """What keeps each pair of instructions from being direct opposites without negation; the first fault of each.

    Poles with different numbers of instructions are no pairs: that is one fault of the whole.
    """
    positive, negative = persona.positive.instructions, persona.negative.instructions
    if len(positive) != len(negative):
        told = f"{len(positive)} positive and {len(negative)} negative: write one opposite for each"
        return [WeakPair(min(len(positive), len(negative)), told)]
    found = []
    for index, pair in enumerate(zip(positive, negative, strict=True)):
        if problem := _problem(*pair):
            found.append(WeakPair(index, *problem))
    return found


def contrast_notes(personas: Iterable[Persona]) -> list[str]:
    """A sentence for each persona with weak pairs: which, and what to write; one for all that have no opposite pole."""
    plain, notes = [], []
    for persona in personas:
        weak, n = weak_pairs(persona), len(persona.positive.instructions)
        if weak and len(weak) == n and all(one.plain for one in weak):
            plain.append(persona.name)
        elif weak:
            faults = "; ".join(map(str, weak))
            notes.append(
                f"{persona.name}: {len(weak)} of {n} contrast pairs are no direct opposites: {faults}"
            )
    if plain:
        notes.append(
            f"{', '.join(plain)}: the negative pole is a plain speaker; that is right for a role, but a teacher's "
            "vector wants an opposite"
        )
    return notes


def _problem(positive: str, negative: str) -> tuple[str, bool] | None:
    """(what is weak, whether it is a plain speaker)."""
    if plain := _PLAIN.search(negative) or _PLAIN.search(positive):
        return f"{plain[0]!r} is a plain speaker and no opposite; name the other pole", True
    for side, text in (("positive", positive), ("negative", negative)):
        if negated := _NEGATION.search(straight(text)):
            return f"the {side} one says {negated[0]!r}; say what it is, and not what it is not", False
    one, other = set(words(positive)), set(words(negative))
    if one == other:
        return "both say the same", False
    lengths = sorted((len(words(positive)), len(words(negative))))
    if lengths[1] > MAX_LENGTH_RATIO * lengths[0]:
        return f"{lengths[0]} words against {lengths[1]}; make them about as long as each other", False
    shared = len(one & other) / max(len(one), len(other))
    if shared < MIN_SHARED:
        return (
            f"they share {shared:.0%} of their words; write both in one frame, with the trait alone exchanged",
            False,
        )
    return None
