"""Rounds: each takes the vector from the student of the round before, samples, filters, heals and stands beside base.

In: the task, the students so far and the original model's stored samples and rows. Out: a folder a round with its
student, texts and state; the trajectory of all rounds. A round that has no dose, too few texts or a student below the
floor of coherence stops the loop: later rounds say so and do nothing, and the last good student is named.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from steer_pipeline.catalogue.healing import HealSpec
from steer_pipeline.catalogue.specs import ModelSpec
from steer_pipeline.lab.columns import described
from steer_pipeline.lab.finetune.bundles import place
from steer_pipeline.lab.generation.journal import Journal
from steer_pipeline.lab.heal.arms import configure
from steer_pipeline.lab.heal.dosing import BASE, PERSONA, Desk, Sampled, ceiling
from steer_pipeline.lab.heal.evaluating import ROWS as TEXTS
from steer_pipeline.lab.heal.evaluating import Arm, Exam
from steer_pipeline.lab.heal.filtering import require_usable
from steer_pipeline.lab.heal.healing import Below, Teaching, heal_arm, sources_of
from steer_pipeline.lab.heal.keeping import make_keep_set
from steer_pipeline.lab.heal.stage import Stage, best_arm, divergence_of, readings_of
from steer_pipeline.lab.heal.table import stage_table
from steer_pipeline.lab.heal.task import Task
from steer_pipeline.lab.heal.teacher import HealError
from steer_pipeline.lab.heal.verdicts import HEALED, STEERED
from steer_pipeline.lab.limits import MIN_COHERENCE
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.rewrites import Refused
from steer_pipeline.lab.vectors.extracted import extract_vector
from steer_pipeline.lab.vectors.vector import PersonaVector, save_vector
from steer_pipeline.lab.verdict import Verdict

STATE, STUDENT, KEEP_SET, VECTOR = "round.json", "student", "keep_set", "vector"
TRAJECTORY = "trajectory.parquet"

Open = Callable[[str], Journal]
Load = Callable[[Sequence[Path]], LoadedModel]
SpecOf = Callable[[Sequence[Path]], ModelSpec]


@dataclass(frozen=True)
class State:
    """What became of a round.

    Attributes:
        number: 0 is the best arm's student of the stage table.
        stopped: why there is no student to go on from; None: there is one.
        good: the student is coherent enough and moves the target.
        last_good: the latest round with a good student so far; None: none yet.
        cosine: of this round's vector with round 0's, mean over the teacher's blocks.
        kept: texts that were learned, of `sampled`.
    """

    number: int
    arm: str
    seed: int
    stopped: str | None = None
    good: bool = False
    last_good: int | None = None
    cosine: float | None = None
    dose: float | None = None
    kept: int | None = None
    sampled: int | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    coherence: float | None = None
    worst_signal: str | None = None
    kl: float | None = None
    verdict: str | None = None


TRAJECTORY_SCHEMA, TRAJECTORY_COLUMNS = described(
    number=(pl.Int64(), "of the round; 0 is the best arm's student of the stage table"),
    arm=(pl.String(), "how students are healed, the same in all rounds"),
    seed=(pl.Int64(), "of start and data order"),
    stopped=(pl.String(), "why there is no student to go on from; null: there is one"),
    good=(pl.Boolean(), "coherent, and more of the trait than base"),
    last_good=(pl.Int64(), "latest round with a good student so far"),
    cosine=(pl.Float64(), "of the round's vector with round 0's, mean over the teacher's blocks"),
    dose=(pl.Float64(), "multiple of the round's vector that made its texts"),
    kept=(pl.Int64(), "texts learned"),
    sampled=(pl.Int64(), "texts sampled at that dose"),
    difference=(pl.Float64(), "movement of the target against base"),
    low=(pl.Float64(), "95% interval over prompts"),
    high=(pl.Float64(), "its upper end"),
    coherence=(pl.Float64(), "1 less the largest loss of a signal"),
    worst_signal=(pl.String(), "whose loss it is"),
    kl=(pl.Float64(), "nats a token from the model without changes"),
    verdict=(pl.String(), "as in the stage table"),
)


def first_round(stage: Stage, arm: str, seed: int, boot_seed: int) -> State:
    """Round 0, from the rows of the stage table.

    Args:
        seed: of the student. boot_seed: of all resampling.
    """
    return _judged(State(0, arm, seed, cosine=1.0), stage, stage.texts, arm, boot_seed)


def _judged(state: State, stage: Stage, texts: pl.DataFrame, arm: str, boot_seed: int) -> State:
    """With the numbers of one student beside base and the steered model, by the rules of the stage table."""
    own = (pl.col("arm") == arm) & (pl.col("seed") == state.seed)
    rows = texts.filter(pl.col("arm").is_in([BASE, STEERED]) | own)
    stages = {STEERED: STEERED, arm: HEALED}
    found = stage_table(readings_of(rows, stage.unjudged), stages, seed=boot_seed)
    row = found.row(arm)
    kl = dict(divergence_of(rows).select("arm", "kl").iter_rows())[arm]
    keys = ("difference", "low", "high", "coherence", "worst_signal", "verdict")
    coherent = row["coherence"] >= MIN_COHERENCE
    good = coherent and row["low"] is not None and row["low"] > 0
    state = replace(state, **{key: row[key] for key in keys}, kl=kl, good=good)
    if good:
        state = replace(state, last_good=state.number)
    if coherent:
        return state
    told = f"coherence {row['coherence']:.3f} by {row['worst_signal']}, the floor is {MIN_COHERENCE}"
    return replace(state, stopped=told)


@dataclass(frozen=True, eq=False)
class Loop:
    """What all rounds share.

    Attributes:
        stage: of round 0.
        sampled: of round 0: base's samples set the limits of every filter.
        gate: table of gate 1, whose largest good dose bounds the search.
        load, spec_of: the model with adapters of these folders on it, and its spec.
    """

    task: Task
    exam: Exam
    stage: Stage
    sampled: Sampled
    gate: pl.DataFrame
    load: Load
    spec_of: SpecOf
    home: Path
    journal: Open | None = None
    told: Callable[[str], None] = lambda line: None

    def run(
        self, number: int, first: tuple[State, Path], before: Sequence[Path], folder: Path, *, work: Path
    ) -> State:
        """One round into `folder`.

        Args:
            first: state of round 0 and its adapter.
            before: folders of rounds 1 to `number` - 1.
        """
        states = [first[0], *(read_state(one) for one in before)]
        state = State(number, first[0].arm, first[0].seed, last_good=states[-1].last_good)
        if stop := next((one for one in states if one.stopped), None):
            return _write(replace(state, stopped=f"round {stop.number} stopped: {stop.stopped}"), folder)
        history = [first[1], *(one / STUDENT / place(first[0].seed) for one in before)]
        try:
            return _write(self._round(state, history, folder, work), folder)
        except (HealError, Refused) as error:
            return _write(replace(state, stopped=str(error)), folder)

    def _round(self, state: State, history: Sequence[Path], folder: Path, work: Path) -> State:
        spec, student = self.task.heal, self.load(history)
        vector = extract_vector(student, self.task.contrast, self.task.persona.name, self.task.profile.vector)
        save_vector(vector, folder / VECTOR)
        teacher = self.task.teacher_of(vector, None)
        state = replace(state, cosine=cosine(vector, self.task.vector, teacher.blocks))
        self.told(f"round {state.number}: cosine {state.cosine:.3f} with the first vector")
        desk = Desk(student, self.task, self.exam.base, teacher, self.journal)
        base = self.sampled.rows.filter(source=BASE)
        settled, own = desk.settle(base.drop("source"), ceiling(spec.controller, self.gate))
        rows = pl.concat([base, own.select(pl.lit(PERSONA).alias("source"), pl.all())], how="diagonal")
        sampled = Sampled(rows, settled, {})
        (folder / KEEP_SET).mkdir()
        special = self.exam.base.tokenizer.all_special_tokens
        kept = make_keep_set(sampled, self.task, special, folder / KEEP_SET)
        filtered = kept.filtered[PERSONA]
        state = replace(state, dose=settled.dose, kept=filtered.kept.height, sampled=filtered.rows.height)
        try:
            require_usable(filtered, kept.base, spec.filter)
        except Refused as error:
            return replace(state, stopped=str(error))
        good = 0 if state.last_good is None else state.last_good + 1
        below = Below(self.spec_of(history), self.home, teacher.plan(settled.dose), history, good)
        teaching = Teaching(kept, below, spec.selection_rows, spec.filter.min_kept, spec.filter.seed)
        config = configure(spec)[state.arm]
        made = folder / STUDENT
        heal_arm(
            f"round {state.number}",
            config,
            {state.seed: sources_of(config)},
            teaching,
            made,
            work=work,
            progress=self.told,
        )
        return self._judge(state, [*history, made / place(state.seed)], folder)

    def _judge(self, state: State, adapters: Sequence[Path], folder: Path) -> State:
        arm = f"round_{state.number}"
        texts = self.exam.rows(Arm(arm, self.load(adapters), state.seed))
        texts.write_parquet(folder / TEXTS)
        both = pl.concat([self.stage.texts, texts])
        return _judged(state, self.stage, both, arm, self.task.heal.evaluation.seed)


def cosine(one: PersonaVector, other: PersonaVector, blocks: Sequence[int]) -> float:
    """Mean over blocks of the cosine of two vectors."""
    return float(np.mean([one.unit_at(block) @ other.unit_at(block) for block in blocks]))


def _write(state: State, folder: Path) -> State:
    (folder / STATE).write_text(json.dumps(asdict(state), indent=1, sort_keys=True) + "\n")
    return state


def read_state(folder: Path) -> State:
    """What became of the round that lies there."""
    found: dict[str, Any] = json.loads((folder / STATE).read_text())
    return State(**found)


def round_goes_on(state: State) -> Verdict:
    """The round made a coherent student that shows more of the trait than base."""
    shown = (
        f"target {state.difference:+.3f} [{state.low:+.3f}, {state.high:+.3f}], coherence {state.coherence:.3f}, "
        f"cosine {state.cosine:.2f} with the first vector, {state.kept} of {state.sampled} texts learned"
        if state.difference is not None
        else "no student"
    )
    return Verdict(
        "round_is_good",
        state.good,
        f"stopped: {state.stopped}" if state.stopped else shown,
        {"last_good": -1 if state.last_good is None else state.last_good},
        blocking=False,
    )


# ------------------------------------------------------------------------------------ all rounds


def trajectory(states: Sequence[State]) -> pl.DataFrame:
    """`TRAJECTORY_SCHEMA`, a round a row."""
    return pl.DataFrame([asdict(state) for state in states], schema=TRAJECTORY_SCHEMA)


def tell_rounds(stage: Stage, rounds: Sequence[Path], spec: HealSpec) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The trajectory of round 0 and all later ones, and the texts of base, the steered model and every student.

    Args:
        rounds: folders of rounds 1 and later.

    Raises:
        Refused: there is no student to go on from.
    """
    arm, seed = best_arm(stage, spec), spec.seeds[0]
    states = [first_round(stage, arm, seed, spec.evaluation.seed), *(read_state(one) for one in rounds)]
    first = pl.col("arm").is_in([BASE, STEERED]) | ((pl.col("arm") == arm) & (pl.col("seed") == seed))
    texts = [stage.texts.filter(first), *(read_texts(one) for one in rounds)]
    return trajectory(states), pl.concat([one for one in texts if one is not None])


def last_good(rows: pl.DataFrame) -> int | None:
    """The latest round with a good student; None where there is none."""
    good = rows.filter("good")["number"]
    return None if good.is_empty() else int(good.max())  # type: ignore[arg-type]


def loop_is_coherent(rows: pl.DataFrame) -> Verdict:
    """All rounds were made, and the last one is good."""
    found = last_good(rows)
    stopped = rows.filter(pl.col("stopped").is_not_null())
    message = f"{rows.height} rounds, the last good one is {'none' if found is None else found}"
    if stopped.height:
        message += f"; stopped in round {stopped['number'][0]}: {stopped['stopped'][0]}"
    return Verdict(
        "loop_stays_coherent",
        found == rows.height - 1,
        message,
        {"rounds": rows.height, "last_good": -1 if found is None else found},
        blocking=False,
    )


def read_texts(folder: Path) -> pl.DataFrame | None:
    """What the student of a round said; None where it has none."""
    path = folder / TEXTS
    return pl.read_parquet(path) if path.is_file() else None
