"""Adapters of base and arms, trained through `lab/finetune` alone: completions only, loss watched on selection.

In: examples, a model's spec and a recipe. Out: PEFT directories, `adapters.parquet` (one row an adapter) and
`seen.parquet` (ids that were given). A killed run goes on from the last checkpoint of the adapter that it was at.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from steer_pipeline.catalogue.attribution import LearnSpec
from steer_pipeline.catalogue.specs import ModelSpec
from steer_pipeline.lab.attribution.encoding import note_seen
from steer_pipeline.lab.columns import described
from steer_pipeline.lab.finetune.bundles import ADAPTERS, Bundle, every_seed_is_trained, place, trained_row
from steer_pipeline.lab.finetune.data import Example, Lesson
from steer_pipeline.lab.finetune.recipe import LoraRecipe, Recipe
from steer_pipeline.lab.finetune.resumed import Training, take, train_once
from steer_pipeline.lab.verdict import Verdict

ADAPTER = "adapter"
ADAPTER_SCHEMA, ADAPTER_COLUMNS = described(
    arm=(pl.String(), "whose rows were learned"),
    seed=(pl.Int64(), "of start and data order, and of random draws"),
    mode=(pl.String(), "scratch: on the model; continued: on top of the base adapter"),
    folder=(pl.String(), "where the adapter lies in the bundle"),
    adapter=(pl.String(), "hash of its content"),
    model=(pl.String(), "identity of the model below it"),
    rows=(pl.Int64(), "rows learned"),
    tokens=(pl.Int64(), "ids of these rows that are learned"),
    steps=(pl.Int64(), "optimiser steps"),
    selection_nll_first=(pl.Float64(), "nats a token on selection at the first evaluation"),
    selection_nll_last=(pl.Float64(), "the same at the last"),
)


@dataclass(frozen=True)
class Below:
    """What adapters are trained on: the model, with the base adapter where an arm continues it."""

    model: ModelSpec
    home: Path
    mode: str = "scratch"


def recipe_of(spec: LearnSpec, seed: int) -> Recipe:
    """How one adapter is trained."""
    return Recipe(
        lora=LoraRecipe(rank=spec.rank),
        learning_rate=spec.learning_rate,
        epochs=spec.epochs,
        max_steps=spec.max_steps,
        batch_rows=spec.batch_rows,
        rows_at_once=min(spec.rows_at_once, spec.batch_rows),
        evaluations=spec.evaluations,
        patience=spec.patience,
        seed=seed,
    )


def below_arm(model: ModelSpec, home: Path, mode: str, base_adapter: Path) -> Below:
    """What an arm stands on, by its mode."""
    if mode == "continued":
        model = model.model_copy(update={"adapter": (*model.adapters, str(base_adapter))})
    return Below(model, home, mode)


def train_adapters(
    arm: str,
    learned: Mapping[int, Sequence[Example]],
    selection: Sequence[Example],
    spec: LearnSpec,
    below: Below,
    folder: Path,
    *,
    work: Path,
    progress: Callable[[str], None] | None = None,
) -> Bundle:
    """Trains the adapters of one arm into `folder`.

    Args:
        learned: seed -> what is learned.
        selection: what is watched; checkpoints are chosen on it, never on eval.
        work: where adapters wait until all are done, and checkpoints; the caller empties it when the result is safe.

    Raises:
        FinetuneError: a row in both splits, or a loss that is not finite.
    """
    rows, costs = [], {}
    for seed, train in learned.items():
        name, recipe = place(seed), recipe_of(spec, seed)
        tell = None if progress is None else (lambda line, name=name: progress(f"{arm} {name}: {line}"))
        training = Training(below.model, below.home, Lesson(tuple(train), tuple(selection)), recipe)
        costs[name] = train_once(training, work / name, progress=tell)
        take(work / name, folder / name, below.model.path)
        rows.append(_row(arm, seed, below, train, folder))
    adapters = pl.DataFrame(rows, schema=ADAPTER_SCHEMA)
    adapters.write_parquet(folder / ADAPTERS)
    given = {one.row_id: one for train in learned.values() for one in train}
    note_seen([*given.values(), *selection], folder)
    return Bundle(adapters, costs)


def _row(arm: str, seed: int, below: Below, train: Sequence[Example], folder: Path) -> dict[str, Any]:
    told = {
        "mode": below.mode,
        "rows": len(train),
        "tokens": sum(one.n_supervised for one in train),
    }
    return trained_row(folder, arm, seed) | told


def adapter_verdicts(folder: Path, seeds: Sequence[int]) -> list[Verdict]:
    """Whether an arm has all its adapters, and whether they learned something that holds on selection."""
    adapters = pl.read_parquet(folder / ADAPTERS)
    first, last = (
        sum(adapters[name].to_list()) / adapters.height
        for name in ("selection_nll_first", "selection_nll_last")
    )
    learns = Verdict(
        "selection_loss_falls",
        last <= first,
        f"from {first:.3f} to {last:.3f} nats a token on selection, between the first evaluation and the last",
        {"first": first, "last": last},
    )
    return [every_seed_is_trained(adapters, seeds), learns]
