"""What on-policy distillation learns from: the student's own samples, drawn anew while it learns.

In: prompts, the model in training and a recipe. Out: batches of prompt and sample. Sampling is the engine's, keyed by
seed, row and draw; samples of some steps are drawn together and lie in the work folder before they are used, so that
a killed run goes on from the same ones.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor

from steer_pipeline.catalogue.specs import SamplingSpec
from steer_pipeline.lab.columns import described
from steer_pipeline.lab.finetune.data import Example, FinetuneError, collate, in_keyed_order
from steer_pipeline.lab.finetune.recipe import Recipe
from steer_pipeline.lab.generation.engine import generate
from steer_pipeline.lab.generation.jobs import FinishedRow, PromptRow
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.prompts import end_of_turn_id
from steer_pipeline.lab.models.sites import SteeringPlan

SAMPLES = "samples.parquet"
SAMPLE_SCHEMA, SAMPLE_COLUMNS = described(
    step=(pl.Int64(), "optimiser step that learned from it, from 0"),
    row_id=(pl.String(), "whose prompt"),
    token_ids=(pl.List(pl.Int64()), "what the student said, without an end token"),
    ended=(pl.Boolean(), "by itself, not by the limit"),
)
_EPOCH = 1_000_003  # keys of the orders of two passes over the rows are as far apart


@dataclass(frozen=True)
class Draw:
    """One sample to come: the `index`-th of the run, from an example's prompt."""

    index: int
    example: Example


def collate_drawn(items: Sequence[Draw | Example], pad_id: int) -> dict[str, Tensor]:
    """`data.collate` of examples; draws have their numbers under "draw" beside it, int64 [n]."""
    numbers = [item.index for item in items if isinstance(item, Draw)]
    batch = collate([item.example if isinstance(item, Draw) else item for item in items], pad_id)
    return batch | ({"draw": torch.tensor(numbers)} if numbers else {})


class Rollouts:
    """Which prompt is sampled when, and what was said. `draws` is the Trainer's data, in order."""

    def __init__(
        self,
        live: LoadedModel,
        examples: Sequence[Example],
        recipe: Recipe,
        *,
        steps: int,
        work: Path,
        pad_id: int,
    ) -> None:
        """
        Args:
            live: the model that learns, as the engine takes it.
            work: where samples wait for the steps that learn from them.
        """
        assert recipe.on_policy is not None
        self._live, self._recipe, self._settings, self._work = live, recipe, recipe.on_policy, work
        self._pad_id = pad_id
        self._sampled: dict[int, Example] = {}
        self._rows: dict[int, list[dict[str, Any]]] = {}  # window -> rows of SAMPLE_SCHEMA
        wanted = steps * recipe.batch_rows
        passes = -(-wanted // len(examples))
        order = [
            example
            for one in range(passes)
            for example in in_keyed_order(examples, recipe.seed + one * _EPOCH)
        ]
        self.draws = [Draw(index, example) for index, example in enumerate(order[:wanted])]

    def batch(self, draws: Tensor, done: int) -> tuple[dict[str, Tensor], int]:
        """What the student says at these draws, as `data.collate` has it, and the supervised tokens of their whole
        optimiser step.

        Args:
            draws: numbers, int64 [n], of one step.
            done: optimiser steps before this one.

        Raises:
            FinetuneError: samples that steps before were made with are gone.
        """
        numbers = draws.tolist()
        step = numbers[0] // self._recipe.batch_rows
        self._require(step // self._settings.fresh_every, done)
        whole = range(step * self._recipe.batch_rows, (step + 1) * self._recipe.batch_rows)
        tokens = sum(self._sampled[number].n_supervised for number in whole)
        return collate([self._sampled[number] for number in numbers], self._pad_id), tokens

    def samples(self) -> pl.DataFrame:
        """All samples of the run so far, of SAMPLE_SCHEMA."""
        for path in self._work.glob("samples-*.json"):
            self._rows.setdefault(int(path.stem.split("-")[1]), json.loads(path.read_text()))
        rows = [row for window in sorted(self._rows) for row in self._rows[window]]
        return pl.DataFrame(rows, schema=SAMPLE_SCHEMA)

    def _require(self, window: int, done: int) -> None:
        """Draws the samples of `fresh_every` steps, unless they are there."""
        if window in self._rows:
            return
        each = self._settings.fresh_every * self._recipe.batch_rows
        draws = self.draws[window * each : (window + 1) * each]
        path = self._work / f"samples-{window}.json"
        if not path.is_file():
            if done > window * self._settings.fresh_every:
                raise FinetuneError(
                    f"{path}: gone, and steps have learned from it; delete {self._work}, begin anew"
                )
            part = path.with_suffix(".part")
            part.write_text(json.dumps(self._draw(draws)))
            os.replace(part, path)
        self._rows[window] = json.loads(path.read_text())
        end = end_of_turn_id(self._live.tokenizer)
        self._sampled = {}
        for draw, row in zip(draws, self._rows[window], strict=True):
            prompt = draw.example.ids[: draw.example.start]
            said = (*row["token_ids"], *([end] if row["ended"] else []))
            self._sampled[draw.index] = Example(draw.example.row_id, prompt + said, len(prompt))

    def _draw(self, draws: Sequence[Draw]) -> list[dict[str, Any]]:
        """Rows of SAMPLE_SCHEMA, in the order of the draws, of the student as it is now."""
        sampling = SamplingSpec(
            temperature=self._settings.temperature,
            top_p=1.0,
            max_new_tokens=self._settings.max_new_tokens,
            seed=self._recipe.seed,
        )
        rows = [
            PromptRow(str(draw.index), {"*": list(draw.example.ids[: draw.example.start])}) for draw in draws
        ]
        module = self._live.module
        was_training = module.training
        module.eval()
        said: dict[str, FinishedRow] = {}
        for row in generate(self._live, rows, [SteeringPlan("student", stream="on_policy")], sampling):
            said[row.row_id] = row
        module.train(was_training)
        return [
            {
                "step": draw.index // self._recipe.batch_rows,
                "row_id": draw.example.row_id,
                "token_ids": said[str(draw.index)].token_ids,
                "ended": not said[str(draw.index)].truncated,
            }
            for draw in draws
        ]
