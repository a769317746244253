"""Dialogues as training sees them: token ids with the boundary where the response begins.

In: rows of a behaviour set. Out: `Dialogues` of one split. Only counted rows, the question without its
instruction, through the one encoding, so that nothing but response tokens is ever supervised and every arm of
a later comparison is measured on the same tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl

from steer_pipeline.catalogue.specs import Profile
from steer_pipeline.lab.dialogues.encoding import encode_dialogue
from steer_pipeline.lab.dialogues.rules import foreign_answers
from steer_pipeline.lab.models.loaded import LoadedModel


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
        return self.lengths - self.firsts - 1

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64 [n]"""
        return np.array([len(ids) for ids in self.ids], dtype=np.int64)

    @cached_property
    def offsets(self) -> np.ndarray:
        """int64 [n]: where each row begins in `flat`."""
        return np.cumsum(self.lengths) - self.lengths

    @cached_property
    def flat(self) -> np.ndarray:
        """int64: the ids of all rows, one after the other."""
        return np.concatenate([np.array(ids, dtype=np.int64) for ids in self.ids])

    @cached_property
    def firsts(self) -> np.ndarray:
        """int64 [n]: position that predicts the first response token of each row; those before it supervise nothing."""
        return np.maximum(np.array(self.starts, dtype=np.int64), 1) - 1

    @cached_property
    def _by_prompt(self) -> tuple[np.ndarray, np.ndarray]:
        """int64 [n] each: place of a row in the order of prompts, and, by place, how many leading unsupervised
        positions that row has in common with the one before.
        """
        prompts = [ids[:first] for ids, first in zip(self.ids, self.firsts, strict=True)]
        order = sorted(range(len(self)), key=prompts.__getitem__)
        places, common = np.empty(len(self), dtype=np.int64), np.zeros(len(self), dtype=np.int64)
        places[order] = np.arange(len(self))
        for place, (before, row) in enumerate(pairwise(order), start=1):
            common[place] = _alike(prompts[before], prompts[row])
        return places, common

    def in_prompt_order(self, items: Sequence[tuple[int, int]]) -> tuple[list[tuple[int, int]], np.ndarray]:
        """(lane, row) pairs, lane by lane, rows that begin alike next to each other, and of each int64 [n] how many
        leading positions it shares with the pair before: same tokens of the prompt under the same vector.
        """
        places, common = self._by_prompt
        ordered = sorted(items, key=lambda item: (item[0], places[item[1]]))
        shared = [0] * len(ordered)
        for i, ((lane, before), (own, row)) in enumerate(pairwise(ordered), start=1):
            if lane == own:
                between = common[places[before] + 1 : places[row] + 1]
                shared[i] = int(between.min() if len(between) else self.firsts[row])  # the same row twice
        return ordered, np.array(shared, dtype=np.int64)


def _alike(first: list[int], second: list[int]) -> int:
    """Length of what both begin with."""
    differing = (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return next(differing, min(len(first), len(second)))


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
    _require_own_answers(counted, model, profile, who)
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


def _require_own_answers(rows: pl.DataFrame, model: LoadedModel, profile: Profile, who: str) -> None:
    others = foreign_answers(rows, model.is_called)
    if others.height and not profile.behaviour.allow_other_model:
        name, row_id = others.row(0, named=True)["model"], others["row_id"][0]
        raise TrainingError(
            f"{who}, row {row_id}: answered by {name!r}, the model is {model.name!r}; "
            "train on dialogues of this model, or set behaviour.allow_other_model"
        )
