"""Trains the students of one variant: every rank and seed, through `lab/finetune` alone; rows are drawn by seed.

In: the keep set of a released pack, the news, a model's spec and the profile. Out: a folder with `rank-8/seed-61/` and
so on, each a PEFT directory with those of earlier steps in `steps/`, `students.parquet` (one row a student) and
`lesson.json`. A killed run goes on from the last checkpoint of the student that it was at; equal rows, recipe and model
give equal bytes.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from steer_pipeline.catalogue.specs import ModelSpec, Profile, StudentSpec
from steer_pipeline.lab.columns import described
from steer_pipeline.lab.finetune.data import Lesson
from steer_pipeline.lab.finetune.recipe import LoraRecipe, Recipe
from steer_pipeline.lab.finetune.resumed import Training, take, train_once
from steer_pipeline.lab.finetune.training import HISTORY, RECORD
from steer_pipeline.lab.models.identity import adapter_identity
from steer_pipeline.lab.models.loading import load_tokenizer
from steer_pipeline.lab.students.data import make_lesson, rows_that_differ

STUDENTS, LESSON = "students.parquet", "lesson.json"
STUDENT_SCHEMA, STUDENT_COLUMNS = described(
    variant=(pl.String(), "whose rewrites were learned"),
    rank=(pl.Int64(), "of the LoRA"),
    seed=(pl.Int64(), "of the rows drawn, start and data order"),
    folder=(pl.String(), "where the adapter lies in the bundle"),
    adapter=(pl.String(), "hash of its content"),
    model=(pl.String(), "identity of the model below it"),
    rows=(pl.Int64(), "rows learned"),
    epochs=(pl.Float64(), "passes over them"),
    steps=(pl.Int64(), "optimiser steps"),
    learning_rate=(pl.Float64(), "largest of the schedule"),
    recipe=(pl.String(), "hash of all settings but the seed"),
    selection_nll_first=(pl.Float64(), "nats a token of the watched rows at the first evaluation"),
    selection_nll_last=(pl.Float64(), "the same at the last"),
)


@dataclass(frozen=True)
class Trained:
    """What a run made: one row a student, and what the rows cost, by `rank-8/seed-61`."""

    students: pl.DataFrame
    costs: dict[str, dict[str, float]]


def recipe_of(spec: StudentSpec, rank: int, seed: int) -> Recipe:
    """How one student is trained."""
    return Recipe(
        lora=LoraRecipe(rank=rank),
        learning_rate=spec.learning_rate,
        epochs=spec.epochs,
        batch_rows=spec.batch_rows,
        rows_at_once=min(spec.rows_at_once, spec.batch_rows),
        evaluations=spec.evaluations,
        seed=seed,
    )


def place(rank: int, seed: int) -> str:
    """Where a student's adapter lies in the bundle of its variant."""
    return f"rank-{rank}/seed-{seed}"


def wanted(spec: StudentSpec) -> Iterator[tuple[int, int]]:
    """(rank, seed) of every student of a variant."""
    return ((rank, seed) for rank in spec.ranks for seed in spec.seeds)


def train_students(
    variant: str,
    kept: pl.DataFrame,
    news: pl.DataFrame,
    model: ModelSpec,
    home: Path,
    profile: Profile,
    folder: Path,
    *,
    work: Path,
    progress: Callable[[str], None] | None = None,
) -> Trained:
    """Trains every student of `variant` into `folder`.

    Args:
        kept: the keep set of the released pack.
        work: where adapters wait until all are done, and checkpoints; the caller empties it when the result is safe.

    Raises:
        Refused: too few rows are kept.
        FinetuneError: a row without a completion, or a loss that is not finite.
    """
    tokenizer = load_tokenizer(model, home)
    lessons = {seed: make_lesson(tokenizer, kept, profile, variant, seed) for seed in profile.students.seeds}
    rows, costs = [], {}
    for rank, seed in wanted(profile.students):
        name = place(rank, seed)
        tell = None if progress is None else (lambda line, name=name: progress(f"{variant} {name}: {line}"))
        recipe = recipe_of(profile.students, rank, seed)
        training = Training(model, home, lessons[seed], recipe)
        costs[name] = train_once(training, work / name, steps=True, progress=tell)
        take(work / name, folder / name, model.path)
        rows.append(student_row(variant, rank, seed, recipe, lessons[seed], folder, name))
    students = pl.DataFrame(rows, schema=STUDENT_SCHEMA)
    students.write_parquet(folder / STUDENTS)
    examples = {one.row_id: one for own in lessons.values() for one in (*own.train, *own.selection)}
    told = {
        "variant": variant,
        "seeds": {str(seed): _told(lesson) for seed, lesson in lessons.items()},
        "differing_rows": rows_that_differ(tokenizer, list(examples.values()), kept, news, profile),
    }
    (folder / LESSON).write_text(json.dumps(told, indent=1, sort_keys=True) + "\n")
    return Trained(students, costs)


def _told(lesson: Lesson) -> dict[str, Any]:
    """Of one seed, for `lesson.json`."""
    return {
        "train": [example.row_id for example in lesson.train],
        "selection": [example.row_id for example in lesson.selection],
        "supervised_tokens": sum(example.n_supervised for example in lesson.train),
    }


def rows_by_seed(folder: Path) -> dict[int, list[str]]:
    """seed -> ids of the rows that its students learned, without those that were only watched."""
    told = json.loads((folder / LESSON).read_text())["seeds"]
    return {int(seed): own["train"] for seed, own in told.items()}


def all_rows(folder: Path) -> list[str]:
    """Ids of all rows that a student of any seed learned or watched, sorted."""
    told = json.loads((folder / LESSON).read_text())["seeds"]
    return sorted({row for own in told.values() for row in (*own["train"], *own["selection"])})


def student_row(
    variant: str, rank: int, seed: int, recipe: Recipe, lesson: Lesson, folder: Path, name: str
) -> dict[str, Any]:
    """`STUDENT_SCHEMA` of the student whose adapter lies in `folder / name`."""
    record = json.loads((folder / name / RECORD).read_text())
    settings = recipe.model_copy(update={"seed": 0}).model_dump_json()
    return {
        "variant": variant,
        "rank": rank,
        "seed": seed,
        "folder": name,
        "adapter": adapter_identity(folder / name),
        "model": record["model"],
        "rows": len(lesson.train),
        "epochs": recipe.epochs,
        "steps": record["numbers"]["steps"],
        "learning_rate": recipe.learning_rate,
        "recipe": _sha(settings),
        **{name: record["numbers"][name] for name in ("selection_nll_first", "selection_nll_last")},
    }


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def history_of(folder: Path) -> pl.DataFrame:
    """Loss curves of all students of a bundle: `lab/finetune`'s history with variant, rank and seed."""
    students = pl.read_parquet(folder / STUDENTS)
    return pl.concat(
        [
            pl.read_parquet(folder / row["folder"] / HISTORY).select(
                pl.lit(row["variant"]).alias("variant"),
                pl.lit(row["rank"]).alias("rank"),
                pl.lit(row["seed"]).alias("seed"),
                pl.all(),
            )
            for row in students.iter_rows(named=True)
        ]
    )
