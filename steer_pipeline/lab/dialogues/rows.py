"""One dialogue as it was read, with its instruction taken out of the turns and its score judged valid.

What all readers share. In: turns and scores as a file has them. Out: `Dialogue`s, and the rows left out, counted
by reason. Rows are told apart by label, prompt and question, never by their position in a file.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from steer_pipeline.catalogue.scale import SCALES
from steer_pipeline.lab.dialogues.schema import Label
from steer_pipeline.lab.evaluation.judgement import REFUSED, SCORED, Status

LABELS: tuple[Label, ...] = get_args(Label)


class DialogueError(ValueError):
    """Dialogues cannot be read or used. The message names file, row or field, and the cure."""


@dataclass(frozen=True)
class Dialogue:
    """A question, asked under `instruction` ("" for none), and its answer.

    Attributes:
        model: who wrote the answer.
        score: on the scale of the persona's kind; None unless `score_status` is scored.
        score_status: scored, refusal or missing.
    """

    model: str
    label: Label
    prompt_index: int
    question_index: int
    question: str
    instruction: str
    response: str
    score: int | None
    score_status: Status

    @property
    def key(self) -> str:
        return row_key(self.label, self.prompt_index, self.question_index)


@dataclass
class Reading:
    """What a reader found; `left_out` counts rows that cannot be used, and scores without a row, by reason."""

    dialogues: list[Dialogue] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def row_key(label: str, prompt_index: int, question_index: int) -> str:
    """As the published score files name a row."""
    return f"{label}_p{prompt_index}_q{question_index}"


def as_label(value: Any, where: str) -> Label:
    """pos, neg or default; the published sets also write default as neutral.

    Raises:
        DialogueError: another label.
    """
    label = next((label for label in LABELS if label == ("default" if value == "neutral" else value)), None)
    if label is None:
        raise DialogueError(f"{where}: label is {value!r}; it must be one of {', '.join(LABELS)}")
    return label


def as_index(value: Any, name: str, where: str) -> int:
    """A whole number from 0.

    Raises:
        DialogueError: anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise DialogueError(f"{where}: {name} is {value!r}; a whole number from 0 is expected")
    return value


def as_score(value: Any, kind: str, where: str) -> tuple[int | None, Status]:
    """(score, status) of an entry: a whole number on the kind's scale, "REFUSAL", or nothing.

    Raises:
        DialogueError: a fraction, a number off the scale, or another text: the scores are of another kind.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None, "missing"
    if isinstance(value, str) and value.strip().upper() == REFUSED:
        return None, "refusal"
    rule = f"a {kind} score is a whole number from {SCALES[kind]}, or {REFUSED}"
    if isinstance(value, bool) or not isinstance(value, int | float) or not float(value).is_integer():
        raise DialogueError(f"{where}: score is {value!r}; {rule}")
    if not SCALES[kind].holds(value):
        raise DialogueError(
            f"{where}: score {value:g} is off the scale; {rule}: is this a set of the other kind?"
        )
    return int(value), SCORED


def take_turns(
    messages: Sequence[Mapping[str, Any]], question: str, system_prompt: str = ""
) -> tuple[str, str] | str:
    """(instruction, response) of a conversation, or the reason why it cannot be used.

    The instruction is what stands in system turns, and before the question in the user turn: models without a
    system role (Gemma) were asked `instruction`, a blank line, `question`. A set whose system turns were dropped
    still has the instruction in its own column.
    """
    turns = [(str(turn.get("role")), str(turn.get("content") or "").strip()) for turn in messages]
    heads = [text for role, text in turns if role == "system" and text]
    spoken = [(role, text) for role, text in turns if role != "system"]
    if len(spoken) > 2:
        return "several turns"
    if [role for role, _ in spoken] not in (["user", "assistant"], ["user", "model"]):
        return "not one question and one answer"
    (_, user), (_, response) = spoken
    if not response:
        return "empty answer"
    asked = question.strip()
    if not asked:
        return "no question"
    if not user.endswith(asked):
        return "user turn is not the question"
    before = user[: -len(asked)]
    head = before.strip()
    if head and head != system_prompt.strip() and not before.rstrip(" ").endswith("\n\n"):
        return "user turn is not the question"
    if head:
        heads.append(head)
    return "\n\n".join(dict.fromkeys(heads)) or system_prompt.strip(), response


def require_unique(dialogues: Iterable[Dialogue], where: str) -> None:
    """Raises:
    DialogueError: two rows have the same label, prompt and question.
    """
    twice = [key for key, n in Counter(dialogue.key for dialogue in dialogues).items() if n > 1]
    if twice:
        raise DialogueError(
            f"{where}: {len(twice)} rows come twice, the first is {twice[0]}; drop the copies"
        )


def require_scores(reading: Reading, where: str) -> None:
    """Raises:
    DialogueError: no pos row has a score.
    """
    positive = [dialogue for dialogue in reading.dialogues if dialogue.label == "pos"]
    if not any(dialogue.score_status == SCORED for dialogue in positive):
        reasons = "".join(f"; left out: {n} with {reason}" for reason, n in sorted(reading.left_out.items()))
        raise DialogueError(
            f"{where}: none of its {len(positive)} pos rows has a score, so none can count{reasons}; "
            "score them, or leave this persona out"
        )
