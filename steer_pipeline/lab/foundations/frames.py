"""Frames: in which words and in which order of options a vignette is asked about.

In: a wording, a vignette and an order. Out: token ids of prompt and prefill, and which foundation each index stands
for. Answers are indices, one token each, since words for foundations are cut into tokens unevenly, and that prior no
change of order takes away.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from steer_pipeline.lab.foundations.vignettes import FOUNDATIONS
from steer_pipeline.lab.models.prompts import encode_completion, encode_prompt

FORWARD, REVERSED = ORDERS = ("forward", "reversed")


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
        indices: of the options as they are shown, from the top.
    """

    name: str
    question: str
    glosses: tuple[str, ...]
    scene: str = "Scene:"
    prefill: str = "The answer is ("
    indices: tuple[str, ...] = ("1", "2", "3", "4", "5", "6", "7")

    def user(self, text: str, shown: Sequence[int]) -> str:
        """The user turn: `shown` holds numbers of foundations, from the top."""
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
WORDINGS = (REASON,)


def shown_order(row_id: str, order: str) -> list[int]:
    """Numbers of the foundations, from the top.

    The first one is drawn by the vignette's id, the others follow in turn; `reversed` is the same from below. The two
    orders of a vignette cancel a preference that grows evenly from top to bottom; any other preference for a place
    falls on all foundations alike, over vignettes.
    """
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
def index_ids(tokenizer: Any, wording: Wording) -> tuple[int, ...]:
    """The token of each index, from the top.

    Raises:
        FrameError: an index is not one token of its own after the prefill.
    """
    prefill = encode_completion(tokenizer, wording.prefill, end_of_turn=False)
    found = []
    for index in wording.indices:
        whole = encode_completion(tokenizer, wording.prefill + index, end_of_turn=False)
        if whole[:-1] != prefill:
            raise FrameError(
                f"wording {wording.name!r}: {index!r} after {wording.prefill!r} is not one token of its own; take "
                "another prefill or other indices"
            )
        found.append(whole[-1])
    if len(set(found)) != len(FOUNDATIONS):
        raise FrameError(
            f"wording {wording.name!r}: {len(wording.indices)} indices make {len(set(found))} different tokens; "
            f"{len(FOUNDATIONS)} are needed"
        )
    return tuple(found)
