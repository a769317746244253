"""The stage table: base, steered and healed, arm by arm, from stored rows and nothing else.

In: per-row metrics of every arm and seed, of one or several readings (forced choices, free texts). Out: frames. Every
number is a difference to base on the same rows. Intervals are over rows and, where an arm has several seeds, over
seeds. Verdicts take the gates in order: finite and coherent, then moved, then surgical, then cost; a collapsed model
moves anything, and a model that does nothing is surgical.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy.stats import t

from steer_pipeline.lab.columns import described
from steer_pipeline.lab.controls import STORED, Controls, judge_controls, read_controls, row_noise
from steer_pipeline.lab.heal.pairs import (
    OFF_TARGET,
    TARGET,
    Reading,
    StageError,
    paired,
    require_same_arms,
)
from steer_pipeline.lab.heal.signals import SIGNALS
from steer_pipeline.lab.heal.verdicts import (
    CONTROL,
    HEALED,
    KNOWN_STAGES,
    OF_DIRECTIONS,
    STAGES,
    VERDICTS,
    judge,
    with_control_verdict,
)
from steer_pipeline.lab.limits import MAX_NO_EFFECT
from steer_pipeline.lab.stats import (
    Interval,
    bootstrap_means,
    crossed_intervals,
    holm,
    mean_interval,
    mean_tests,
    minimum_detectable,
    percentiles,
)

LEVEL = 0.95
STAGE_SCHEMA, STAGE_COLUMNS = described(
    reading=(pl.String(), "how the arms were read: forced choices, or free texts on a scale"),
    arm=(pl.String(), "how the model was changed"),
    stage=(pl.String(), " | ".join(STAGES)),
    n_rows=(pl.Int64(), "rows that have a target in the arm and in base"),
    n_seeds=(pl.Int64(), "of the arm; intervals of one seed say nothing of others"),
    base=(pl.Float64(), "mean target of base"),
    mean=(pl.Float64(), "of the arm: base plus difference"),
    difference=(pl.Float64(), "arm less base, paired by row; positive: more of the trait"),
    low=(pl.Float64(), "95% interval over rows and seeds"),
    high=(pl.Float64(), "its upper end"),
    seed_sd=(pl.Float64(), "standard deviation of the difference over seeds; null for one"),
    p=(pl.Float64(), "test of the mean over rows, seeds averaged"),
    p_holm=(pl.Float64(), "the same after Holm over the arms of the reading"),
    detectable=(pl.Float64(), "smallest difference that would be found with 80% power, from the spread seen"),
    off_target=(
        pl.Float64(),
        "largest mean movement beside the target, without its sign; null: not measured",
    ),
    off_low=(pl.Float64(), "95% interval over rows"),
    off_high=(pl.Float64(), "its upper end"),
    off_name=(pl.String(), "what moved most beside the target"),
    coherence=(pl.Float64(), "1 less the largest loss of all signals of all readings; base has 1"),
    coherence_low=(pl.Float64(), "95% interval over rows"),
    coherence_high=(pl.Float64(), "its upper end"),
    worst_signal=(pl.String(), "whose loss it is"),
    coherence_cost=(pl.Float64(), "coherence lost for a unit of the target's movement"),
    retain=(pl.Float64(), "difference over that of the steered arm; null where that is not clear of zero"),
    retain_low=(pl.Float64(), "95% interval over rows and seeds"),
    retain_high=(pl.Float64(), "its upper end"),
    band=(pl.Float64(), "largest movement of a control arm, without its sign; null without controls"),
    verdict=(pl.String(), "the first gate that the arm fails, or good: " + " | ".join(VERDICTS)),
    reason=(pl.String(), "the verdict in numbers"),
)
SEED_SCHEMA, SEED_COLUMNS = described(
    reading=(pl.String(), "how the arms were read"),
    arm=(pl.String(), "how the model was changed"),
    stage=(pl.String(), " | ".join(STAGES)),
    seed=(pl.Int64(), "of the arm; null where it has none"),
    n_rows=(pl.Int64(), "rows with a target"),
    difference=(pl.Float64(), "mean, arm less base"),
    low=(pl.Float64(), "95% interval over rows"),
    high=(pl.Float64(), "its upper end"),
    detectable=(pl.Float64(), "smallest difference that would be found with 80% power, from the spread seen"),
    off_target=(pl.Float64(), "largest mean movement beside the target, without its sign"),
    coherence=(pl.Float64(), "1 less the largest loss of all signals"),
    retain=(pl.Float64(), "difference over that of the steered arm, whose seeds are averaged"),
)
SIGNAL_SCHEMA, SIGNAL_COLUMNS = described(
    reading=(pl.String(), "whose rows the signal stands on"),
    arm=(pl.String(), "how the model was changed"),
    signal=(pl.String(), f"one of {', '.join(SIGNALS)}"),
    n_rows=(pl.Int64(), "rows that have it in the arm and in base"),
    base=(pl.Float64(), "base's mean"),
    difference=(pl.Float64(), "arm less base, seeds averaged"),
    low=(pl.Float64(), "95% interval over rows"),
    high=(pl.Float64(), "its upper end"),
    detectable=(pl.Float64(), "smallest difference that would be found with 80% power, from the spread seen"),
    loss=(pl.Float64(), "share that is lost, 0 to 1; null: not judged"),
)


@dataclass(frozen=True, eq=False)
class StageTable:
    """Frames that can be stored as they are.

    Attributes:
        table: `STAGE_SCHEMA`, one row a reading and arm. `seeds`: `SEED_SCHEMA`. `signals`: `SIGNAL_SCHEMA`.
        control_shifts: `controls.CONTROL_SCHEMA`, control arms of all readings, judged together.
    """

    table: pl.DataFrame
    seeds: pl.DataFrame
    signals: pl.DataFrame
    control_shifts: pl.DataFrame

    def row(self, arm: str, reading: str | None = None) -> dict[str, Any]:
        """One row of the table; of the first reading by default.

        Raises:
            KeyError: there is none.
        """
        own = self.table.filter(arm=arm)
        if reading is not None:
            own = own.filter(reading=reading)
        if own.is_empty():
            raise KeyError(f"no arm {arm!r} read as {reading or 'anything'} in the stage table")
        return own.row(0, named=True)


def stages_of(arms: Sequence[str]) -> dict[str, str]:
    """arm -> stage by the names of `lab.heal.arms`; what is not known there is healed."""
    return {arm: KNOWN_STAGES.get(arm, HEALED) for arm in arms}


def stage_table(
    frames: Mapping[str, pl.DataFrame],
    stages: Mapping[str, str] | None = None,
    *,
    directions: Collection[str] = OF_DIRECTIONS,
    base: str = "base",
    reference: str = "steered",
    seed: int,
    n_boot: int = 10_000,
) -> StageTable:
    """The table of all arms.

    Args:
        frames: reading -> rows: arm, seed (null where an arm has none), row_id, made_with and any of `target` (more is
            more of the trait), `off_target…`, and the signals of `lab.heal.signals`. Those without `target` only
            count for coherence.
        stages: arm -> stage; default: `stages_of`.
        directions: arms whose seeds are random directions, so that their spread is part of a control's margin.
        reference: the steered arm whose movement healed arms are to retain, at the dose that made their data.

    Raises:
        StageError: rows, arms or seeds that one side lacks, arms that were not measured alike, or no target at all.
    """
    readings = {name: paired(name, frame, base) for name, frame in frames.items()}
    if not any(TARGET in one.metrics for one in readings.values()):
        raise StageError("no reading has a column target; the table is about one")
    require_same_arms(readings)
    arms = list(next(iter(readings.values())).seeds)
    stages = stages or stages_of(arms)
    if unknown := [arm for arm in arms if stages.get(arm) not in STAGES]:
        raise StageError(f"arm {unknown[0]} has no stage; give one of {', '.join(STAGES)}")
    coherence = {arm: _coherence(readings.values(), arm, seed, n_boot) for arm in arms}
    table, seeds = [], []
    for reading in readings.values():
        if TARGET in reading.metrics:
            rows = _reading_rows(reading, arms, stages, coherence, reference, seed, n_boot)
            table += rows
            seeds += _seed_rows(reading, readings.values(), rows, reference)
    signals = [row for reading in readings.values() for row in _signal_rows(reading)]
    controls = _control_shifts(readings.values(), stages, directions, reference, seed, n_boot)
    table = [with_control_verdict(row, controls) for row in table]
    frames_of = ((table, STAGE_SCHEMA), (seeds, SEED_SCHEMA), (signals, SIGNAL_SCHEMA))
    made, by_seed, of_signals = (
        pl.DataFrame(rows, schema=schema).with_columns(pl.col(pl.Float64).fill_nan(None))
        for rows, schema in frames_of
    )
    return StageTable(made, by_seed, of_signals, controls)


def _control_shifts(
    readings: Collection[Reading],
    stages: Mapping[str, str],
    directions: Collection[str],
    reference: str,
    seed: int,
    n_boot: int,
) -> pl.DataFrame:
    """`CONTROL_SCHEMA` of the control arms in every reading; less than `MAX_NO_EFFECT` of the steered shift is none."""
    blocks = []
    for reading in (one for one in readings if TARGET in one.metrics):
        steered = reading.of(reference, TARGET) if reference in reading.seeds else np.zeros((1, 1))
        floor = MAX_NO_EFFECT * abs(float(np.nanmean(steered))) if np.isfinite(steered).any() else 0.0
        for arm in (arm for arm in reading.seeds if stages[arm] == CONTROL):
            cells = reading.of(arm, TARGET)[:, :, None]
            axis = 1 if arm in directions else None
            blocks.append(Controls([(arm, reading.name, TARGET)], cells, row_noise(cells), axis, floor=floor))
    return judge_controls(blocks, seed=seed, n_boot=n_boot)


# ------------------------------------------------------------------------------------------ target


def _reading_rows(
    reading: Reading,
    arms: Sequence[str],
    stages: Mapping[str, str],
    coherence: Mapping[str, "_Coherence"],
    reference: str,
    seed: int,
    n_boot: int,
) -> list[dict[str, Any]]:
    """Rows of `STAGE_SCHEMA` of one reading, judged."""
    cells = {arm: _complete(reading.of(arm, TARGET)) for arm in arms}
    shifts = {
        arm: crossed_intervals(own[:, :, None], seed=seed, level=LEVEL, n_boot=n_boot)[0]
        for arm, own in cells.items()
        if len(own)
    }
    ps = _tests(reading, arms)
    controls = [abs(one.estimate) for arm, one in shifts.items() if stages[arm] == CONTROL]
    steered = shifts.get(reference)
    rows = []
    for arm in arms:
        row: dict[str, Any] = {"reading": reading.name, "arm": arm, "stage": stages[arm]}
        row |= {
            "band": max(controls, default=None),
            "base": float(reading.base[reading.metrics.index(TARGET)]),
        }
        row |= {"n_rows": len(cells[arm]), "n_seeds": len(reading.seeds[arm])} | coherence[arm].numbers()
        if arm in shifts:
            row |= _movement(shifts[arm], cells[arm], row) | {"p": ps[arm][0], "p_holm": ps[arm][1]}
            row |= _off_target(reading, arm, seed, n_boot)
        if arm != reference and steered and not steered.includes_zero:
            row |= _retained(reading, arm, reference, seed, n_boot)
        row["verdict"], row["reason"] = judge(row, None if arm == reference else steered)
        rows.append(row)
    return rows


def _movement(shift: Interval, cells: np.ndarray, row: Mapping[str, Any]) -> dict[str, Any]:
    """What follows from the target's differences [rows, seeds] and their interval."""
    return {
        "mean": row["base"] + shift.estimate,
        "difference": shift.estimate,
        "low": shift.low,
        "high": shift.high,
        "seed_sd": float(cells.mean(axis=0).std(ddof=1)) if cells.shape[1] > 1 else None,
        "detectable": minimum_detectable(cells),
        "coherence_cost": (1 - row["coherence"]) / abs(shift.estimate) if shift.estimate else None,
    }


def _complete(cells: np.ndarray) -> np.ndarray:
    """Rows that are finite in every seed."""
    return cells[np.isfinite(cells).all(axis=1)]


def _tests(reading: Reading, arms: Sequence[str]) -> dict[str, tuple[float, float]]:
    """arm -> p and Holm's p over the arms, each over the rows that it has."""
    means = np.stack([reading.of(arm, TARGET).mean(axis=1) for arm in arms], axis=1)
    ps = mean_tests(means)
    return dict(zip(arms, zip(ps.tolist(), holm(ps).tolist(), strict=True), strict=True))


def _off_target(reading: Reading, arm: str, seed: int, n_boot: int) -> dict[str, Any]:
    """The largest mean movement beside the target, with its interval over rows."""
    names = reading.off_targets
    if not names:
        return {}
    cells = np.stack([reading.of(arm, name).mean(axis=1) for name in names], axis=1)
    means = np.abs(np.nanmean(cells, axis=0))
    drawn = np.nanmax(np.abs(bootstrap_means(cells, seed=seed, n_boot=n_boot)), axis=1)
    low, high = percentiles(drawn, len(cells), LEVEL)
    worst = int(np.nanargmax(means))
    name = names[worst].removeprefix(OFF_TARGET).strip("_") or OFF_TARGET
    return {
        "off_target": float(means[worst]),
        "off_low": low,
        "off_high": high,
        "off_name": name,
    }


def _retained(reading: Reading, arm: str, reference: str, seed: int, n_boot: int) -> dict[str, Any]:
    """The arm's movement over the reference's, with an interval: rows resampled for both at once, and the spread of
    the arm's seeds, joined as distances that add in squares.
    """
    own, steered = reading.of(arm, TARGET), reading.of(reference, TARGET).mean(axis=1)
    whole = np.isfinite(own).all(axis=1) & np.isfinite(steered)
    if not whole.any():
        return {}
    own, steered = own[whole], steered[whole]
    share = float(own.mean() / steered.mean())
    drawn = bootstrap_means(np.stack([own.mean(axis=1), steered], axis=1), seed=seed, n_boot=n_boot)
    # A resample in which the reference hardly moves says nothing of a share of it.
    ratios = drawn[:, 0] / np.where(drawn[:, 1] * steered.mean() > 0, drawn[:, 1], np.nan)
    low, high = percentiles(ratios, len(own), LEVEL)
    spread, n_seeds = 0.0, own.shape[1]
    if n_seeds > 1:
        by_seed = own.mean(axis=0) / steered.mean()
        spread = float(t.ppf((1 + LEVEL) / 2, n_seeds - 1) * by_seed.std(ddof=1) / np.sqrt(n_seeds))
    return {
        "retain": share,
        "retain_low": share - float(np.hypot(share - low, spread)),
        "retain_high": share + float(np.hypot(high - share, spread)),
    }


def _seed_rows(
    reading: Reading,
    readings: Collection[Reading],
    rows: Sequence[Mapping[str, Any]],
    reference: str,
) -> list[dict[str, Any]]:
    """Rows of `SEED_SCHEMA` of one reading."""
    found = []
    steered: Any = next((row.get("difference") for row in rows if row["arm"] == reference), None)
    for row in rows:
        arm = row["arm"]
        for place, own_seed in enumerate(reading.seeds[arm]):
            values = reading.of(arm, TARGET)[:, place]
            values = values[np.isfinite(values)]
            shift = mean_interval(values) if len(values) else None
            off = [abs(float(np.nanmean(reading.of(arm, name)[:, place]))) for name in reading.off_targets]
            one = {"reading": reading.name, "arm": arm, "stage": row["stage"], "seed": own_seed}
            one |= {"n_rows": len(values), "off_target": max(off, default=None)}
            one |= {"coherence": 1 - max((loss for loss, _ in _losses(readings, arm, place)), default=0.0)}
            if shift is not None:
                one |= {"difference": shift.estimate, "low": shift.low, "high": shift.high}
                one |= {"detectable": minimum_detectable(values[:, None])}
                clear = steered is not None and row.get("retain") is not None
                one |= {"retain": shift.estimate / steered if clear else None}
            found.append(one)
    return found


# ------------------------------------------------------------------------------------------ coherence


@dataclass(frozen=True)
class _Coherence:
    interval: Interval
    worst: str | None

    def numbers(self) -> dict[str, Any]:
        one = self.interval
        return {
            "coherence": one.estimate,
            "coherence_low": one.low,
            "coherence_high": one.high,
            "worst_signal": self.worst,
        }


def _coherence(readings: Collection[Reading], arm: str, seed: int, n_boot: int) -> _Coherence:
    """1 less the largest loss over the signals of all readings; each reading's rows are resampled on their own."""
    losses = _losses(readings, arm)
    if not losses:
        return _Coherence(Interval(1.0, 1.0, 1.0, 0), None)
    drawn = []
    for reading in readings:
        names = [name for name in reading.signals if SIGNALS[name].worse != "none"]
        known = [name for name in names if np.isfinite(reading.of(arm, name)).any()]
        if known:
            cells = np.stack([_seed_means(reading.of(arm, name)) for name in known], axis=1)
            means = bootstrap_means(cells, seed=seed, n_boot=n_boot)
            bases = [float(reading.base[reading.metrics.index(name)]) for name in known]
            drawn += [SIGNALS[name].loss(means[:, i], bases[i]) for i, name in enumerate(known)]
    worst, name = max(losses, key=lambda one: one[0])
    low, high = 1 - worst, 1 - worst
    n = min(len(reading.rows) for reading in readings if reading.signals)
    if drawn:
        low, high = percentiles(1 - np.max(drawn, axis=0), n, LEVEL)
    return _Coherence(Interval(1 - worst, low, high, n), name if worst > 0 else None)


def _losses(readings: Collection[Reading], arm: str, place: int | None = None) -> list[tuple[float, str]]:
    """(loss, signal) of every judged signal of an arm, or of one of its seeds.

    A signal that base has and the arm has nowhere is lost altogether: perplexity, where all texts are empty.
    """
    found = []
    for reading in readings:
        for name in reading.signals:
            base = float(reading.base[reading.metrics.index(name)])
            if SIGNALS[name].worse == "none" or not np.isfinite(base):
                continue
            cells = reading.of(arm, name)
            values = _seed_means(cells) if place is None else cells[:, place]
            known = values[np.isfinite(values)]
            loss = float(SIGNALS[name].loss(known.mean(), base)) if len(known) else 1.0
            found.append((loss, name))
    return found


def _seed_means(cells: np.ndarray) -> np.ndarray:
    """float64 [rows]: means over the seeds that have a value, NaN where none has."""
    known = np.isfinite(cells)
    sums = np.where(known, cells, 0.0).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return sums / known.sum(axis=1)


def _signal_rows(reading: Reading) -> list[dict[str, Any]]:
    """Rows of `SIGNAL_SCHEMA` of one reading."""
    rows = []
    for arm in reading.seeds:
        for name in reading.signals:
            base = float(reading.base[reading.metrics.index(name)])
            values = _seed_means(reading.of(arm, name))
            values = values[np.isfinite(values)]
            row: dict[str, Any] = {"reading": reading.name, "arm": arm, "signal": name, "base": base}
            row["n_rows"] = len(values)
            judged = SIGNALS[name].worse != "none" and np.isfinite(base)
            if len(values):
                change = mean_interval(values)
                row |= {"difference": change.estimate, "low": change.low, "high": change.high}
                row |= {"detectable": minimum_detectable(values[:, None])}
                row["loss"] = float(SIGNALS[name].loss(np.array(change.estimate), base)) if judged else None
            elif judged:
                row["loss"] = 1.0
            rows.append(row)
    return rows


# ------------------------------------------------------------------------------------------ as a folder


def write_stage_table(tables: StageTable, folder: Path) -> None:
    """One Parquet file a frame."""
    for one in fields(tables):
        getattr(tables, one.name).write_parquet(folder / f"{one.name}.parquet")


def read_stage_table(folder: Path) -> StageTable:
    """What `write_stage_table` wrote."""
    names = [one.name for one in fields(StageTable) if f"{one.name}.parquet" != STORED]
    frames = {name: pl.read_parquet(folder / f"{name}.parquet") for name in names}
    return StageTable(**frames, control_shifts=read_controls(folder))
