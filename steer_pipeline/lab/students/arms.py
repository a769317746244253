"""The arms of hidden transfer: students of a variant's rewrites less one of the ways in which its trait could travel.

In: a released keep set and base's, the held-out news, and the model. Out: `rows.parquet` in the layout of the transfer
with a column `arm`, `states.safetensors`, `students.parquet`, `made.parquet` (one row an arm: what was done, or why
there is no student) and the adapters in `<arm>/rank-8/seed-61/`. Base's pack goes through the same arms: an arm's
effect is its difference to base's student of the same arm. Arms are made at the first rank.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from safetensors.numpy import load_file, save_file

from steer_pipeline.catalogue.specs import ArmName, ModelSpec, VariantSpec
from steer_pipeline.lab.columns import described
from steer_pipeline.lab.finetune.resumed import Training, take, train_once
from steer_pipeline.lab.generation.jobs import decoding_hash
from steer_pipeline.lab.models.identity import ModelLoadError
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.loading import load_model, load_tokenizer
from steer_pipeline.lab.rewrites import Refused
from steer_pipeline.lab.students import arm_lessons
from steer_pipeline.lab.students.arm_lessons import Aims, Prepared, Vectors
from steer_pipeline.lab.students.data import lesson_rows
from steer_pipeline.lab.students.training import STUDENT_SCHEMA, place, recipe_of, student_row
from steer_pipeline.lab.students.transfer import (
    ROW_SCHEMA,
    STATES,
    Load,
    Open,
    Task,
    Writing,
    measured,
    read_blocks,
    states_of,
)

ARM_ROWS, ARM_STUDENTS, MADE, ARM_FACTS = "rows.parquet", "students.parquet", "made.parquet", "arms.json"
MADE_SCHEMA, MADE_COLUMNS = described(
    variant=(pl.String(), "whose rewrites were learned"),
    arm=(pl.String(), "what was changed of them"),
    made=(pl.Boolean(), "whether there are students"),
    seeds=(pl.Int64(), "students, or draws of the pack in context"),
    rows=(pl.Int64(), "rows that each learned; in context: that were drawn from"),
    note=(pl.String(), "what was done, or why there is no student"),
)
IN_CONTEXT_RANK = 0  # nothing is trained


@dataclass(frozen=True)
class Apprentices:
    """Whose students the arms are, and by what.

    Attributes:
        kept, base_kept: keep sets of the variant and of base.
        adapters: its plain students; an arm that changes nothing takes theirs.
        model, home: what is trained; `other` for the arm of another initialisation.
        load: gives the profile's model, with an adapter or without.
        vectors: reads a persona's vector in the version that a pack names.
        aims: traits that rows are filtered by.
    """

    variant: VariantSpec
    kept: pl.DataFrame
    base_kept: pl.DataFrame
    adapters: Path
    task: Task
    model: ModelSpec
    home: Path
    load: Load
    vectors: Vectors
    aims: Aims


@dataclass(frozen=True, eq=False)
class Arms:
    """What `make_arms` found; frames and states can be stored as they are.

    Attributes:
        rows: `ROW_SCHEMA` with `arm` before it and a column a trait and scale.
        states: fp32 [rows, blocks read, hidden], as the transfer's.
        made: `MADE_SCHEMA`.
    """

    rows: pl.DataFrame
    states: np.ndarray
    students: pl.DataFrame
    made: pl.DataFrame
    facts: Mapping[str, Any] = field(default_factory=dict)


def make_arms(
    whose: Apprentices,
    folder: Path,
    *,
    work: Path,
    journal: Open | None = None,
    progress: Callable[[Any], None] | None = None,
) -> Arms:
    """Trains the students of all arms into `folder`, lets them write on the held-out news, and measures it.

    Args:
        work: where adapters wait until all are done, and checkpoints; the caller empties it when the result is safe.

    Raises:
        FinetuneError: a loss that is not finite.
    """
    making = _Making(whose, folder, work, journal, progress)
    spec = whose.task.profile.students
    parts, notes = [], []
    for arm in sorted(
        spec.arms, key=lambda arm: arm == "other_init"
    ):  # its model takes the place of the profile's
        try:
            rows, done = making.arm(arm)
        except (Refused, ModelLoadError) as error:
            done = {"made": False, "note": str(error)}
        else:
            parts.append(rows.select(pl.lit(arm).alias("arm"), pl.all()))
        notes.append({"variant": whose.variant.name, "arm": arm} | done)
    base = whose.load(None)
    written = pl.concat(parts) if parts else making.nothing()
    rows = measured(written.drop("arm"), whose.task, base)
    states = states_of(rows, whose.task.profile, base)
    return Arms(
        rows.drop("prompt").select(written["arm"], pl.all()),
        states,
        pl.DataFrame(making.students, schema=pl.Schema({"arm": pl.String(), **STUDENT_SCHEMA})),
        pl.DataFrame(notes, schema=MADE_SCHEMA),
        {
            "model": str(base.identity),
            "decoding_hash": decoding_hash(whose.task.profile.rewrites.sampling, base),
            "blocks": read_blocks(whose.task.profile, base),
            "other_model": None if spec.other_model is None else spec.other_model.path,
        },
    )


def write_arms(made: Arms, folder: Path) -> None:
    """The tables, states and facts, beside the adapters."""
    made.rows.write_parquet(folder / ARM_ROWS)
    made.students.write_parquet(folder / ARM_STUDENTS)
    made.made.write_parquet(folder / MADE)
    save_file({"rows": made.states}, folder / STATES)
    (folder / ARM_FACTS).write_text(json.dumps(dict(made.facts), indent=1, sort_keys=True) + "\n")


def read_arms(folder: Path) -> Arms:
    """What `write_arms` wrote."""
    frames = [pl.read_parquet(folder / name) for name in (ARM_ROWS, ARM_STUDENTS, MADE)]
    states = load_file(folder / STATES)["rows"]
    return Arms(frames[0], states, frames[1], frames[2], json.loads((folder / ARM_FACTS).read_text()))


class _Making:
    """One variant's arms, one after the other."""

    def __init__(
        self,
        whose: Apprentices,
        folder: Path,
        work: Path,
        journal: Open | None,
        progress: Callable[[Any], None] | None,
    ) -> None:
        self._whose, self._folder, self._work = whose, folder, work
        self._journal, self._progress = journal, progress
        self._spec = whose.task.profile.students
        self._rank = self._spec.ranks[0]
        self._writing = Writing(whose.task, whose.load, journal, progress)
        self.students: list[dict[str, Any]] = []

    def nothing(self) -> pl.DataFrame:
        """Rows of no arm."""
        return self._writing.none().select(pl.lit("").alias("arm"), pl.all())

    def arm(self, arm: ArmName) -> tuple[pl.DataFrame, dict[str, Any]]:
        """What its students write, and what was done.

        Raises:
            Refused: there are none, and why.
            ModelLoadError: the other model cannot be loaded.
        """
        if arm == "in_context":
            return self._in_context()
        model, load = self._on(arm)
        prepared, tokenizer = self._prepared(arm), load_tokenizer(model, self._whose.home)
        name = self._whose.variant.name
        lessons = {
            seed: prepared.lesson(tokenizer, self._whose.task.profile, name, seed)
            for seed in self._spec.seeds
        }
        parts = []
        for seed, lesson in lessons.items():
            own = Path(arm) / place(self._rank, seed)
            self._train(own, model, lesson, seed)
            row = student_row(
                name,
                self._rank,
                seed,
                recipe_of(self._spec, self._rank, seed),
                lesson,
                self._folder,
                str(own),
            )
            self.students.append({"arm": arm} | row)
            student = load(self._folder / own)
            parts.append(self._writing.rows(name, self._rank, seed, student, f"{name}-{arm}-{seed}"))
        rows = min(len(lesson.train) for lesson in lessons.values())
        return pl.concat(parts), {"made": True, "seeds": len(lessons), "rows": rows, "note": prepared.note}

    def _on(self, arm: ArmName) -> tuple[ModelSpec, Load]:
        """The model that an arm's students are trained on, and what loads it with an adapter."""
        if arm != "other_init":
            return self._whose.model, self._whose.load
        other = self._spec.other_model
        if other is None:
            raise Refused("no other model: name one of the same tokenizer in students.other_model")

        def load(adapter: Path | None) -> LoadedModel:
            found = other if adapter is None else other.model_copy(update={"adapter": str(adapter)})
            return load_model(found, self._whose.home)

        return other, load

    def _prepared(self, arm: ArmName) -> Prepared:
        whose, profile = self._whose, self._whose.task.profile
        if arm == "filtered":
            return arm_lessons.filtered(whose.kept, whose.base_kept, whose.aims, whose.task.scorers, profile)
        if arm == "other_init":
            path = "" if self._spec.other_model is None else self._spec.other_model.path
            return Prepared(whose.kept, f"students of {path}, against base's on the same model")
        base = whose.load(None)
        if arm == "shuffled":
            return arm_lessons.shuffled(whose.kept, base.tokenizer, profile)
        if arm == "masked":
            return arm_lessons.masked(whose.kept, whose.variant, base, whose.vectors, profile)
        return arm_lessons.paraphrased(
            whose.kept, whose.variant.name, base, profile, journal=self._journal, progress=self._progress
        )

    def _train(self, own: Path, model: ModelSpec, lesson: Any, seed: int) -> None:
        """One student into `folder / own`: the plain one, where it has learned the same in the same way."""
        whose, recipe = self._whose, recipe_of(self._spec, self._rank, seed)
        plain = whose.adapters / place(self._rank, seed)
        training = Training(model, whose.home, lesson, recipe)
        if training.is_of(plain):
            shutil.copytree(plain, self._folder / own, ignore=shutil.ignore_patterns("steps"))
            return
        tell = self._progress
        name = f"{whose.variant.name} {own}"
        say = None if tell is None else (lambda line: tell(f"{name}: {line}"))
        train_once(training, self._work / own, progress=say)
        take(self._work / own, self._folder / own, model.path)

    def _in_context(self) -> tuple[pl.DataFrame, dict[str, Any]]:
        """What the model itself writes after rows of the pack: nothing is trained, a seed draws the rows."""
        whose, parts, used = self._whose, [], []
        base, name = whose.load(None), whose.variant.name
        for seed, pack in self._drawn():
            prompts, mean = arm_lessons.context_prompts(
                base.tokenizer, pack, whose.task.news, whose.task.profile, base.max_positions
            )
            used.append(mean)
            journal = f"{name}-in_context-{seed}"
            parts.append(self._writing.rows(name, IN_CONTEXT_RANK, seed, base, journal, prompts=prompts))
        note = f"{np.mean(used):.1f} rows of the pack before each news item, on average; nothing is trained"
        return pl.concat(parts), {"made": True, "seeds": len(parts), "rows": self._spec.rows, "note": note}

    def _drawn(self) -> Iterator[tuple[int, pl.DataFrame]]:
        for seed in self._spec.seeds:
            yield (
                seed,
                lesson_rows(self._whose.kept, self._whose.task.profile, self._whose.variant.name, seed)[0],
            )


__all__ = ["ROW_SCHEMA", "Apprentices", "Arms", "make_arms", "read_arms", "write_arms"]
