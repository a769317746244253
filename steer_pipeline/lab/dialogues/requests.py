"""Rows of a behaviour set as token ids, bare or under their instruction, and the span that is read out."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from steer_pipeline.catalogue.specs import Persona, Profile
from steer_pipeline.lab.dialogues.encoding import EncodedDialogue, encode_dialogue
from steer_pipeline.lab.models.hidden import HiddenRequest
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.prompts import end_of_turn_id
from steer_pipeline.lab.vectors.vector import VectorError


def encode_rows(
    model: LoadedModel, rows: pl.DataFrame, profile: Profile, *, instructed: bool
) -> list[EncodedDialogue]:
    """One dialogue a row of BEHAVIOUR_SCHEMA, in order.

    Args:
        instructed: True puts each row's own `instruction` into context (none where it is ""); False leaves the
            bare question. The response tokens are the same.

    Raises:
        VectorError: a dialogue has more tokens than the model has positions.
    """
    dialogues = []
    for row_id, instruction, messages in rows.select("row_id", "instruction", "messages").iter_rows():
        one = encode_dialogue(
            model.tokenizer,
            question=messages[0]["content"],
            response=messages[-1]["content"],
            instruction=instruction if instructed else None,
            chat_template=profile.model.chat_template,
            max_response_tokens=profile.behaviour.max_response_tokens,
        )
        if len(one.ids) > model.max_positions:
            raise VectorError(
                f"row {row_id}: {len(one.ids)} tokens{' with its instruction' if instructed else ''}, the model "
                f"has {model.max_positions} positions; lower behaviour.max_response_tokens"
            )
        dialogues.append(one)
    return dialogues


def response_requests(tokenizer: Any, dialogues: Sequence[EncodedDialogue]) -> list[HiddenRequest]:
    """The response tokens of each dialogue, without the token that ends the turn (a template's, no answer's).

    Raises:
        VectorError: a response has no token.
    """
    end = end_of_turn_id(tokenizer)
    requests = []
    for i, one in enumerate(dialogues):
        stop = len(one.ids) - (one.ids[-1] == end)
        if stop <= one.start:
            raise VectorError(f"row {i}: the response has no tokens to read; drop the row")
        requests.append(HiddenRequest(one.ids, one.start, stop))
    return requests


def response_hash(dialogue: EncodedDialogue) -> str:
    """16 hex digits that name the supervised response tokens."""
    tokens = np.asarray(dialogue.ids[dialogue.start :], dtype="<i4").tobytes()
    return hashlib.sha256(tokens).hexdigest()[:16]


def require_sound_rows(rows: pl.DataFrame, persona: Persona) -> None:
    """The rows are this persona's, and no question is in two splits.

    Raises:
        VectorError: names the persona or question.
    """
    others = rows.filter(pl.col("persona") != persona.name)
    if others.height:
        raise VectorError(
            f"{others.height} rows are of persona {others['persona'][0]!r}, not {persona.name!r}; "
            "give the behaviour set of one persona"
        )
    shared = rows.group_by("question_index").agg(pl.col("split").n_unique()).filter(pl.col("split") > 1)
    if shared.height:
        first = shared.sort("question_index")["question_index"][0]
        raise VectorError(
            f"question {first} of {persona.name!r} is in more than one split "
            f"({shared.height} such questions); materialise behaviour_set again"
        )
