"""The layout of rows that attribution works on: a prompt, the completion that is learned, and where both come from.

In: rows of any source. Out: a frame of `SFT_SCHEMA`, checked. Tokens are made by `lab/finetune/data.py` and nowhere
else: `text_rows` is the only way from a row to what it encodes.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import polars as pl

from steer_pipeline.lab.columns import described
from steer_pipeline.lab.finetune.data import TextRow

SUCCESS, FAILURE, ABORTED = "success", "failure", "aborted"
TRAIN, QUERY, SELECTION, EVAL = SPLITS = ("train", "query", "selection", "eval")
POOL, HELD_OUT = "train", "validation"  # what a source calls its own two parts
INFORMATIVE, USELESS, MISLED, MISLABELLED = "informative", "useless", "misled", "mislabelled"

SFT_SCHEMA, SFT_COLUMNS = described(
    row_id=(pl.String(), "unique among all splits"),
    prompt=(pl.String(), "what is asked, as one user turn; the assistant's turn begins behind it"),
    completion=(pl.String(), "what is learned: the last answer, without its end of turn"),
    system=(pl.String(), "system turn; null: the chat template's own"),
    ended=(pl.Boolean(), "whether the completion came to its end, and teaches to end"),
    split=(pl.String(), "train | query | selection | eval; train is the pool that rows are ranked in"),
    source=(pl.String(), "where the row comes from"),
    source_split=(pl.String(), "train | validation, as the source has it"),
    group_id=(pl.String(), "rows of one group are never in two splits"),
    game=(pl.String(), "of a word game, or kind of task"),
    game_role=(pl.String(), "who speaks the completion"),
    experiment=(pl.String(), "of a word game"),
    task_id=(pl.String(), "of a word game"),
    outcome=(pl.String(), "success | failure; null where the source knows none"),
    target_word=(
        pl.String(),
        "the word that was to be guessed; null where there is none, or nobody logged it",
    ),
    logged_word=(pl.String(), "the word that the completion guesses; null where it is no guess"),
    truth=(
        pl.String(),
        "what the generator planted: informative | useless | misled | mislabelled; null: unknown",
    ),
    duplicate_of=(pl.String(), "row that this one repeats, where the generator planted it"),
    category=(pl.String(), "of a chat corpus"),
    difficulty=(pl.String(), "of a chat corpus"),
    quality=(pl.String(), "of a chat corpus"),
    reward_model_score=(pl.Float64(), "of a chat corpus"),
    meta=(pl.String(), "whatever else the source says of the row, as JSON"),
)


class AttributionError(ValueError):
    """What was asked cannot be done. The message names the row, file or setting and the cure."""


def sft_frame(rows: Iterable[Mapping[str, Any]], where: str) -> pl.DataFrame:
    """`rows`, in `SFT_SCHEMA`; columns that a source lacks are null.

    Args:
        where: names the source in messages.

    Raises:
        AttributionError: an unknown column, an empty prompt, group or completion, or an id twice.
    """
    listed = [dict(row) for row in rows]
    unknown = {name for row in listed for name in row} - set(SFT_SCHEMA)
    if unknown:
        raise AttributionError(f"{where}: unknown columns {', '.join(sorted(unknown))}; put them into meta")
    for number, row in enumerate(listed):
        for name in ("row_id", "prompt", "completion", "group_id", "source_split"):
            if not str(row.get(name) or "").strip():
                raise AttributionError(
                    f"{where}: row {row.get('row_id') or number} has no {name}; fill it, or drop the row"
                )
        if row["source_split"] not in (POOL, HELD_OUT):
            raise AttributionError(
                f"{where}: row {row['row_id']} is of split {row['source_split']!r}; {POOL} or {HELD_OUT} are known"
            )
        if isinstance(row.get("meta"), Mapping):
            row["meta"] = json.dumps(row["meta"], sort_keys=True, ensure_ascii=False)
    frame = pl.DataFrame(
        [
            {name: row.get(name) for name in SFT_SCHEMA}
            | {"source": row.get("source") or where, "ended": row.get("ended", True)}
            for row in listed
        ],
        schema=SFT_SCHEMA,
    )
    require_unique(frame, where)
    return frame


def require_unique(rows: pl.DataFrame, where: str) -> None:
    """Raises AttributionError where a row id comes twice."""
    twice = rows.filter(pl.col("row_id").is_duplicated())
    if twice.height:
        raise AttributionError(f"{where}: row {twice['row_id'][0]!r} comes twice; row ids must be unique")


def text_rows(rows: pl.DataFrame) -> list[TextRow]:
    """What `encode_examples` takes, in order."""
    return [
        TextRow(row_id, prompt, completion, system, ended)
        for row_id, prompt, completion, system, ended in rows.select(
            "row_id", "prompt", "completion", "system", "ended"
        ).iter_rows()
    ]


def flattened(messages: Iterable[Mapping[str, str]], where: str) -> tuple[str, str, str | None]:
    """(prompt, completion, system turn) of a conversation: its last turn is the completion.

    Earlier turns become one text, each under the name of its speaker; a single user turn is the prompt as it stands.

    Raises:
        AttributionError: the last turn is not the assistant's, or nothing comes before it.
    """
    turns = [(str(one["role"]).lower(), str(one["content"]).strip()) for one in messages]
    if not turns or turns[-1][0] != "assistant":
        raise AttributionError(
            f"{where}: the last message is {turns[-1][0] if turns else 'missing'}, not the assistant's; drop the row"
        )
    system = turns[0][1] if turns[0][0] == "system" else None
    before = turns[1:-1] if system is not None else turns[:-1]
    if not before:
        raise AttributionError(f"{where}: no turn before the assistant's; drop the row")
    alone = len(before) == 1 and before[0][0] == "user"
    prompt = before[0][1] if alone else "\n\n".join(f"{role.upper()}: {said}" for role, said in before)
    return prompt, turns[-1][1], system or None
