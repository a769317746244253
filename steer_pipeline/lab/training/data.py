"""Dialogues as training sees them: token ids with the boundary where the response begins.

In: rows of a behaviour set. Out: `Dialogues` of one split. Only counted rows, the question without its
instruction, through the one encoding, so that nothing but response tokens is ever supervised and every arm of
a later comparison is measured on the same tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from steer_pipeline.catalogue.models import Profile
from steer_pipeline.lab.dialogues.encoding import encode_dialogue
from steer_pipeline.lab.dialogues.readers import same_model
from steer_pipeline.lab.models.loading import LoadedModel


class TrainingError(ValueError):
    """A vector cannot be trained. The message names the row, lane or step and the cure."""


@dataclass(frozen=True)
class Dialogues:
    """Encoded rows: `ids[i][starts[i]:]` is the response of row i. `questions` int64 [n] groups rows."""

    row_ids: Sequence[str]
    ids: Sequence[list[int]]
    starts: Sequence[int]
    questions: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def n_tokens(self) -> np.ndarray:
        """int64 [n]: supervised tokens of each row."""
        counts = [len(ids) - max(start, 1) for ids, start in zip(self.ids, self.starts, strict=True)]
        return np.array(counts, dtype=np.int64)


def encode_split(rows: pl.DataFrame, split: str, model: LoadedModel, profile: Profile) -> Dialogues:
    """The counted rows of a split, in the order of `row_id`.

    Raises:
        TrainingError: no row counts, a row was answered by another model, or a row does not fit the model's
            positions.
    """
    who = ", ".join(rows["persona"].unique().sort()) or "behaviour set"
    counted = rows.filter(pl.col("counts") & (pl.col("split") == split)).sort("row_id")
    if counted.is_empty():
        raise TrainingError(
            f"{who}: no row of split {split!r} counts; lower the minimum score or the token budgets in "
            "`behaviour`, or bring more scored dialogues"
        )
    _require_same_model(counted, model, profile, who)
    encoded = [_encode(row, model.tokenizer, profile) for row in counted.iter_rows(named=True)]
    for row_id, one in zip(counted["row_id"], encoded, strict=True):
        if len(one.ids) > model.max_positions:
            raise TrainingError(
                f"{who}, row {row_id}: {len(one.ids)} tokens, the model has {model.max_positions} positions; "
                "lower behaviour.max_response_tokens"
            )
    return Dialogues(
        counted["row_id"].to_list(),
        [one.ids for one in encoded],
        [one.start for one in encoded],
        counted["question_index"].to_numpy(),
    )


def _encode(row: dict[str, Any], tokenizer: Any, profile: Profile) -> Any:
    return encode_dialogue(
        tokenizer,
        question=row["messages"][0]["content"],
        response=row["messages"][1]["content"],
        chat_template=profile.model.chat_template,
        max_response_tokens=profile.behaviour.max_response_tokens,
    )


def _require_same_model(rows: pl.DataFrame, model: LoadedModel, profile: Profile, who: str) -> None:
    strange = [name for name in rows["model"].unique().sort() if not same_model(name, model.name)]
    others = rows.filter(pl.col("model").is_in(strange))
    if others.height and not profile.behaviour.allow_other_model:
        raise TrainingError(
            f"{who}, row {others['row_id'][0]}: answered by {others['model'][0]!r}, the model is {model.name!r}; "
            "train on dialogues of this model, or set behaviour.allow_other_model"
        )
