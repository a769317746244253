"""What a judge answers about one text: a score, or why there is none. Plain values; nothing is asked here."""

import re
from dataclasses import dataclass
from typing import Literal, get_args

from steer_pipeline.catalogue.scale import ScoreScale

Status = Literal["scored", "refusal", "invalid", "missing", "not_asked"]
STATUSES: tuple[Status, ...] = get_args(Status)
SCORED: Status = "scored"
REFUSED = "REFUSAL"  # how judges, and published scores, write that there is none to give

_WHOLE_ANSWER = re.compile(rf"""["'“‘]?\s*({REFUSED}|0|[1-9][0-9]{{0,2}})\s*(?:\.?["'”’]?|["'”’]\.)""")


@dataclass(frozen=True)
class Judgement:
    """What the judge wrote about one answer.

    Attributes:
        score: on the persona's scale; None unless status is `scored`.
        status: `refusal`: the judge replied REFUSAL; `invalid`: neither that nor one number of the scale;
            `missing`: no reply, or none but empty ones, after all retries; `not_asked`: there is no endpoint.
        answer: the judge's reply, None without one.
        cached: the reply was on disk from an earlier run.
    """

    score: int | None
    status: Status
    answer: str | None = None
    cached: bool = False


NOT_ASKED = Judgement(None, "not_asked")
MISSING = Judgement(None, "missing")


def read_judgement(answer: str, scale: ScoreScale) -> Judgement:
    """What a judge's reply says, read strictly.

    The whole reply must be one whole number of the scale, or REFUSAL. White space, quotes around it and a period
    after it are let pass; "Score: 85", "85/100", "85.0" and "**85**" are invalid: who adds words has not
    followed the rubric, and the first number of a sentence need not be the score.
    """
    match = _WHOLE_ANSWER.fullmatch(answer.strip())
    if match is None:
        return Judgement(None, "invalid", answer)
    if match[1] == REFUSED:
        return Judgement(None, "refusal", answer)
    score = int(match[1])
    return Judgement(score, "scored", answer) if scale.holds(score) else Judgement(None, "invalid", answer)
