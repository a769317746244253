"""Frames: in which words and in which order of options a vignette is asked about.

In: a wording, a vignette and an order. Out: token ids of prompt and prefill, and of the answers. Answers are indices of
options that are shown, one token each: words for foundations are cut into tokens unevenly, a prior that no change of
order takes away. Small models answer with indices whatever the scene is; for them there are wordings whose answers are
phrases that nothing shows beforehand. Their priors are large, and cancel where an arm is compared with its base.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from steer_pipeline.lab.foundations.vignettes import FOUNDATIONS
from steer_pipeline.lab.models.prompts import encode_completion, encode_prompt

FORWARD, REVERSED = ORDERS = ("forward", "reversed")
UNSHOWN = "unshown"  # the order of answers that are not shown


class FrameError(ValueError):
    """A wording that this tokenizer cannot answer with single tokens. The message names it and the index."""


@dataclass(frozen=True)
class Wording:
    """How a vignette is asked about.

    Attributes:
        name: in stored rows.
        question: stands before the options.
        glosses: what each foundation's option says, in the order of `FOUNDATIONS`.
        scene: stands before the vignette, after the options: so all vignettes share the options' tokens.
        prefill: what the answer begins with; the index follows without a blank, which some tokenizers would join to it.
        indices: of the options as they are shown, from the top; none: the glosses are answers themselves, a blank after
            the prefill, and no options are shown.
    """

    name: str
    question: str
    glosses: tuple[str, ...]
    scene: str = "Scene:"
    prefill: str = "The answer is ("
    indices: tuple[str, ...] = ("1", "2", "3", "4", "5", "6", "7")

    @property
    def orders(self) -> tuple[str, ...]:
        return ORDERS if self.indices else (UNSHOWN,)

    def user(self, text: str, shown: Sequence[int]) -> str:
        """The user turn: `shown` holds numbers of foundations, from the top."""
        if not self.indices:
            return f"{self.question} {text}"
        options = "\n".join(
            f"({index}) {self.glosses[number]}" for index, number in zip(self.indices, shown, strict=True)
        )
        return f"{self.question}\n\n{options}\n\n{self.scene} {text}"


REASON = Wording(
    "reason",
    "Read the scene below. Which of these is the main reason why somebody would call it wrong?",
    (
        "It hurts somebody, in body or in feelings.",
        "It is unfair, or somebody cheats.",
        "It betrays a group, a friend or a country.",
        "It lacks respect for somebody in charge, or for tradition.",
        "It is impure, disgusting or degrading.",
        "It bullies somebody, or takes away a free choice.",
        "It is not wrong, only unusual.",
    ),
)
LABEL = Wording(
    "label",
    "A scene is described below. Say which one of these words fits best to what is wrong in it.",
    (
        "Cruelty",
        "Cheating",
        "Betrayal",
        "Disrespect",
        "Indecency",
        "Oppression",
        "Nothing: it is merely odd",
    ),
    prefill="Best fit: (",
)
BECAUSE = Wording(
    "because",
    "Why would somebody call this wrong?",
    (
        "it hurts somebody.",
        "it is cheating.",
        "it betrays others.",
        "it defies authority.",
        "it is disgusting.",
        "it takes away freedom.",
        "no, it is only unusual.",
    ),
    prefill="It is wrong because",
    indices=(),
)
IS = Wording(
    "is",
    "What is wrong with this?",
    ("cruel.", "unfair.", "disloyal.", "disrespectful.", "disgusting.", "oppressive.", "odd, but not wrong."),
    prefill="It is",
    indices=(),
)
WORDINGS, PHRASES = (REASON,), (BECAUSE, IS)


def shown_order(row_id: str, order: str) -> list[int]:
    """Numbers of the foundations, from the top; none where nothing is shown.

    The first one is drawn by the vignette's id, the others follow in turn; `reversed` is the same from below. The two
    orders of a vignette cancel a preference that grows evenly from top to bottom; any other preference for a place
    falls on all foundations alike, over vignettes.
    """
    if order == UNSHOWN:
        return []
    first = int(hashlib.sha256(row_id.encode()).hexdigest()[:8], 16) % len(FOUNDATIONS)
    places = [(first + step) % len(FOUNDATIONS) for step in range(len(FOUNDATIONS))]
    return places if order == FORWARD else places[::-1]


def prompt_ids(
    tokenizer: Any, wording: Wording, text: str, shown: Sequence[int], *, system: str | None, chat: bool
) -> tuple[list[int], int]:
    """Ids of prompt and prefill, and where the prefill begins."""
    user = wording.user(text, shown)
    prompt = encode_prompt(tokenizer, user=user if chat else f"{user}\n", system=system, chat_template=chat)
    return [*prompt, *encode_completion(tokenizer, wording.prefill, end_of_turn=False)], len(prompt)


@lru_cache(maxsize=32)
def answer_ids(tokenizer: Any, wording: Wording) -> tuple[tuple[int, ...], ...]:
    """The tokens of each index, from the top, or of each phrase, in the order of `FOUNDATIONS`.

    Raises:
        FrameError: an answer is not made of tokens of its own after the prefill, an index not of one, or two are equal.
    """
    prefill = encode_completion(tokenizer, wording.prefill, end_of_turn=False)
    answers = wording.indices or tuple(f" {gloss}" for gloss in wording.glosses)
    found = []
    for answer in answers:
        whole = encode_completion(tokenizer, wording.prefill + answer, end_of_turn=False)
        own = tuple(whole[len(prefill) :])
        if whole[: len(prefill)] != prefill or not own or (wording.indices and len(own) != 1):
            raise FrameError(
                f"wording {wording.name!r}: {answer!r} after {wording.prefill!r} is not "
                f"{'one token' if wording.indices else 'made of tokens'} of its own; take another prefill or answer"
            )
        found.append(own)
    if len(found) != len(FOUNDATIONS) or len(set(found)) != len(FOUNDATIONS):
        raise FrameError(
            f"wording {wording.name!r}: {len(found)} answers make {len(set(found))} different ones in tokens; "
            f"{len(FOUNDATIONS)} are needed"
        )
    return tuple(found)
