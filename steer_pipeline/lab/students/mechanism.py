"""By what a student does it: the mean shift of its residual stream, taken out of it and put into the model itself.

In: adapters, what they learned, and persona vectors. Out: `shifts.parquet`, one row a student and block: how far it
moves the stream while it reads what it learned, and which way; `arms.parquet`, one row a news item of two arms a
student: `removed`, the student less its shift, and `added`, the model itself with it, at the block that its teacher was
steered at; `stepwise.parquet`, the shifts at several steps of training. Both arms write on the held-out news with the
random numbers of the transfer; the shift comes from other rows. Source: Blank et al. (2026), who find a student's
effect in one direction: necessary, if taking it out ends the effect; sufficient, if putting it in brings it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from steer_pipeline.lab.columns import described
from steer_pipeline.lab.finetune.data import Example
from steer_pipeline.lab.finetune.resumed import STEPS
from steer_pipeline.lab.finetune.training import kept_steps, step_folder
from steer_pipeline.lab.generation.engine import generate
from steer_pipeline.lab.generation.jobs import FinishedRow, PromptRow
from steer_pipeline.lab.models.adapters import AdapterHasNoEffect
from steer_pipeline.lab.models.hidden import HiddenRequest, collect_means, residual_norms
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.sites import Site, SteeringPlan, SteeringTerm
from steer_pipeline.lab.rewrites import Refused
from steer_pipeline.lab.stats import bootstrap_means, percentiles
from steer_pipeline.lab.students.data import examples_of, prompt_ids
from steer_pipeline.lab.students.training import STUDENTS, rows_by_seed
from steer_pipeline.lab.students.transfer import STREAM, Load, Open, Task, with_traits
from steer_pipeline.lab.vectors.vector import PersonaVector

SHIFTS, ARMS, STEPWISE, TEACHER = "shifts.parquet", "arms.parquet", "stepwise.parquet", "teacher.json"
REMOVED, ADDED = "removed", "added"
NORM_SEQUENCES = 16
STEPWISE_ROWS = 32  # of a lesson, at most, over which the shift at a step is a mean
SHIFT_SCHEMA, SHIFT_COLUMNS = described(
    variant=(pl.String(), "whose rewrites the student has learned"),
    rank=(pl.Int64(), "of its LoRA"),
    seed=(pl.Int64(), "of its training"),
    block=(pl.Int64(), "at whose output"),
    norm=(pl.Float64(), "length of the mean shift"),
    norm_fraction=(pl.Float64(), "the same over the mean residual norm there"),
)
STEPWISE_SCHEMA = pl.Schema({**SHIFT_SCHEMA, "step": pl.Int64()})  # optimiser steps taken
ARM_SCHEMA, ARM_COLUMNS = described(
    variant=(pl.String(), "whose rewrites the student has learned"),
    rank=(pl.Int64(), "of its LoRA"),
    seed=(pl.Int64(), "of its training"),
    arm=(pl.String(), "removed: the student less its shift | added: the model itself with it"),
    row_id=(pl.String(), "of the news item"),
    output=(pl.String(), "the rewrite"),
)
SHARE_SCHEMA, SHARE_COLUMNS = described(
    variant=(pl.String(), "whose rewrites the student has learned"),
    rank=(pl.Int64(), "of its LoRA"),
    metric=(pl.String(), "trait_<persona>_<scale>"),
    effect=(pl.Float64(), "of the students on the model itself"),
    necessity=(pl.Float64(), "share of the effect that goes when the shift is taken out"),
    necessity_low=(pl.Float64(), "95% interval over news, seeds averaged"),
    necessity_high=(pl.Float64(), "its upper end"),
    sufficiency=(pl.Float64(), "share of the effect that the shift alone brings"),
    sufficiency_low=(pl.Float64(), "95% interval over news, seeds averaged"),
    sufficiency_high=(pl.Float64(), "its upper end"),
)


@dataclass(frozen=True, eq=False)
class Mechanism:
    """`shifts` and `stepwise` also have a column `cosine_<persona>` a vector; `arms` one a trait and scale.

    Attributes:
        arms: none of controls.
        stepwise: `STEPWISE_SCHEMA`: shifts at the steps at which the adapter was kept, and at the end.
        steered_at: persona -> block at which its vector was added to make the rows; none for what was not steered.
    """

    shifts: pl.DataFrame
    arms: pl.DataFrame
    stepwise: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=STEPWISE_SCHEMA))
    steered_at: Mapping[str, int] = field(default_factory=dict)


def measure_mechanism(
    variant: str,
    adapters: Path,
    kept: pl.DataFrame,
    task: Task,
    load: Load,
    vectors: Mapping[str, PersonaVector],
    *,
    arms: bool,
    journal: Open | None = None,
    progress: Callable[[Any], None] | None = None,
) -> Mechanism:
    """The shift of every student of a variant and, where `arms` is set, what writes with and without it.

    Args:
        vectors: persona -> vector, whose direction at each block the shifts are compared with.
        arms: only of a variant whose rows were made by adding vectors.
    """
    base = load(None)
    learned = rows_by_seed(adapters)
    pack = kept.filter(pl.col("row_id").is_in({row for rows in learned.values() for row in rows}))
    reading = _Reading(base, examples_of(base.tokenizer, pack, task.profile))
    norms = reading.norms()
    students = pl.read_parquet(adapters / STUDENTS).rows(named=True)
    shifts: dict[tuple[int, int], np.ndarray] = {}
    table, stepwise = [], []
    for row in students:
        who, rows = (row["rank"], row["seed"]), learned[row["seed"]]
        moved = reading.moved(load(adapters / row["folder"]), rows)
        shifts[who] = moved.mean(axis=0)
        table += _shift_rows(variant, *who, shifts[who], norms, vectors)
        steps = _earlier_shifts(adapters / row["folder"], reading, load, rows[:STEPWISE_ROWS])
        for step, shift in {**steps, row["steps"]: moved[:STEPWISE_ROWS].mean(axis=0)}.items():
            stepwise += [one | {"step": step} for one in _shift_rows(variant, *who, shift, norms, vectors)]
    written = pl.DataFrame(schema=ARM_SCHEMA)
    if arms:
        block, prompts = steered_at(pack), prompt_ids(base.tokenizer, task.news, task.profile)
        writer = _Writer(variant, prompts, task, block, journal, progress)
        parts = [writer.added(base, {who: shift[block] for who, shift in shifts.items()})]
        for row in students:
            who = row["rank"], row["seed"]
            parts.append(writer.removed(load(adapters / row["folder"]), who, shifts[who][block]))
        written = pl.concat(parts)
    cosines = {f"cosine_{persona}": pl.Float64() for persona in vectors}
    return Mechanism(
        pl.DataFrame(table, schema=pl.Schema({**SHIFT_SCHEMA, **cosines})),
        with_traits(written, task.scorers),
        pl.DataFrame(stepwise, schema=pl.Schema({**STEPWISE_SCHEMA, **cosines})),
        blocks_of_teacher(pack) if arms else {},
    )


def _earlier_shifts(
    student: Path, reading: "_Reading", load: Load, rows: Sequence[str]
) -> dict[int, np.ndarray]:
    """Step -> shift [blocks, hidden] of a student at its evaluations; none where its adapter moved nothing yet."""
    found = {}
    for step in kept_steps(student / STEPS):
        with suppress(AdapterHasNoEffect):
            found[step] = reading.moved(load(step_folder(student / STEPS, step)), rows).mean(axis=0)
    return found


def blocks_of_teacher(pack: pl.DataFrame) -> dict[str, int]:
    """persona -> block at which its vector was added, as a variant's rows say; the first where there are several."""
    terms = pack["personas"].explode().drop_nulls()
    if terms.is_empty():
        return {}
    own = terms.struct.unnest().group_by("name").agg(pl.col("block").min()).sort("name")
    return dict(own.iter_rows())


def steered_at(pack: pl.DataFrame) -> int:
    """The first block that a variant's vectors were added at, as its rows say: where a shift can do what they did.

    Raises:
        Refused: nothing was added to make these rows.
    """
    terms = pack["personas"].explode().drop_nulls()
    if terms.is_empty():
        raise Refused(f"{pack['variant'][0]}: no vector was added, so there is no block to take a shift at")
    return int(terms.struct.field("block").min())  # type: ignore[arg-type]


def write_mechanism(made: Mechanism, folder: Path) -> None:
    """All tables, and where the teacher was steered."""
    made.shifts.write_parquet(folder / SHIFTS)
    made.arms.write_parquet(folder / ARMS)
    made.stepwise.write_parquet(folder / STEPWISE)
    (folder / TEACHER).write_text(json.dumps(dict(made.steered_at), indent=1, sort_keys=True) + "\n")


def read_mechanism(folder: Path) -> Mechanism:
    """What `write_mechanism` wrote."""
    shifts, arms, stepwise = (pl.read_parquet(folder / name) for name in (SHIFTS, ARMS, STEPWISE))
    return Mechanism(shifts, arms, stepwise, json.loads((folder / TEACHER).read_text()))


def _shift_rows(
    variant: str,
    rank: int,
    seed: int,
    shift: np.ndarray,
    norms: np.ndarray,
    vectors: Mapping[str, PersonaVector],
) -> list[dict[str, Any]]:
    """One row a block of a shift [blocks, hidden]."""
    table = []
    for block, (own, norm) in enumerate(zip(shift, norms, strict=True)):
        length = float(np.linalg.norm(own))
        row: dict[str, Any] = {"variant": variant, "rank": rank, "seed": seed, "block": block}
        row |= {"norm": length, "norm_fraction": length / float(norm)}
        for persona, vector in vectors.items():
            if block in vector.present_blocks:
                unit = vector.unit[vector.present_blocks.index(block)]
                row[f"cosine_{persona}"] = float(own @ unit) / max(length, 1e-12)
        table.append(row)
    return table


class _Reading:
    """What was learned, as the model itself reads it: what a student's reading is held against."""

    def __init__(self, base: LoadedModel, examples: Sequence[Example]) -> None:
        self._base = base
        self._requests = {
            one.row_id: HiddenRequest(list(one.ids), one.start, len(one.ids)) for one in examples
        }
        self._plain = dict(
            zip(self._requests, collect_means(base, list(self._requests.values())), strict=True)
        )

    def norms(self) -> np.ndarray:
        """fp32 [blocks]: mean residual norm of the model itself."""
        return residual_norms(self._base, [one.ids for one in list(self._requests.values())[:NORM_SEQUENCES]])

    def moved(self, student: LoadedModel, rows: Sequence[str]) -> np.ndarray:
        """fp32 [rows, blocks, hidden]: how far a student moves the stream on each of these rows."""
        read = collect_means(student, [self._requests[row] for row in rows])
        return read - np.stack([self._plain[row] for row in rows])


@dataclass(frozen=True)
class _Writer:
    """Writes on the held-out news under plans, with the random numbers of the transfer."""

    variant: str
    prompts: Mapping[str, list[int]]
    task: Task
    block: int
    journal: Open | None
    progress: Callable[[Any], None] | None

    def added(self, base: LoadedModel, shifts: Mapping[tuple[int, int], np.ndarray]) -> pl.DataFrame:
        """The model itself with each student's shift, in one call: they share the prompts' first blocks."""
        plans = {f"added-{rank}-{seed}": (rank, seed) for rank, seed in shifts}
        made = [_plan(name, shifts[who], self.block) for name, who in plans.items()]
        finished = self._write(base, made, f"{self.variant}-added")
        return pl.concat(
            [
                self._frame(ADDED, who, [row for row in finished if row.variant == name])
                for name, who in plans.items()
            ]
        )

    def removed(self, student: LoadedModel, who: tuple[int, int], shift: np.ndarray) -> pl.DataFrame:
        """A student less its shift."""
        name = f"{self.variant}-removed-{who[0]}-{who[1]}"
        return self._frame(REMOVED, who, self._write(student, [_plan(REMOVED, -shift, self.block)], name))

    def _write(self, model: LoadedModel, plans: Sequence[SteeringPlan], name: str) -> list[FinishedRow]:
        rows = [PromptRow(row_id, {"*": ids}) for row_id, ids in self.prompts.items()]
        journal = None if self.journal is None else self.journal(name)
        sampling = self.task.profile.rewrites.sampling
        return list(generate(model, rows, plans, sampling, journal=journal, progress=self.progress))

    def _frame(self, arm: str, who: tuple[int, int], finished: Sequence[FinishedRow]) -> pl.DataFrame:
        texts = {row.row_id: row.text for row in finished}
        made = [
            {"variant": self.variant, "rank": who[0], "seed": who[1], "arm": arm}
            | {"row_id": row_id, "output": texts[row_id]}
            for row_id in self.prompts
        ]
        return pl.DataFrame(made, schema=ARM_SCHEMA)


def _plan(name: str, shift: np.ndarray, block: int) -> SteeringPlan:
    length = float(np.linalg.norm(shift))
    unit = (shift / max(length, 1e-12)).astype(np.float32)
    return SteeringPlan(name, (SteeringTerm(name, unit, Site(block), length),), stream=STREAM)


# ------------------------------------------------------------------------------------ shares


def explained(
    student: np.ndarray, removed: np.ndarray, added: np.ndarray, itself: np.ndarray, *, seed: int
) -> dict[str, float]:
    """Necessity and sufficiency of the shift for an effect: numbers of `SHARE_SCHEMA`.

    Shares of means, with intervals from resampled news; of a student without an effect they mean nothing.

    Args:
        student, removed, added: scores [news, seeds].
        itself: [news] of the model without a student.
    """
    gone, brought = (student - removed).mean(axis=1), (added - itself[:, None]).mean(axis=1)
    effect = (student - itself[:, None]).mean(axis=1)
    drawn = bootstrap_means(np.column_stack([gone, brought, effect]), seed=seed)
    found = {"effect": float(effect.mean())}
    for place, (name, part) in enumerate((("necessity", gone), ("sufficiency", brought))):
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = drawn[:, place] / drawn[:, 2]
        low, high = percentiles(shares, len(effect))
        found |= {
            name: float(part.mean() / effect.mean()),
            f"{name}_low": low,
            f"{name}_high": high,
        }
    return found
