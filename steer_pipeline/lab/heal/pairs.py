"""Arms beside their base: per-row metrics of every arm and seed, paired with base on the same rows.

In: frames of per-row metrics. Out: arrays of differences; rows that one side lacks are an error that names them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from steer_pipeline.lab.heal.signals import SIGNALS
from steer_pipeline.lab.stats.pairing import require_same_rows

KEY = ("arm", "seed", "row_id")
TARGET, OFF_TARGET = "target", "off_target"  # the second is a name's beginning: several are off the target


class StageError(ValueError):
    """Stored rows that make no table. The message names reading, arm or row, and the cure."""


@dataclass(frozen=True, eq=False)
class Reading:
    """One way of reading all arms: forced choices, or free texts.

    Attributes:
        metrics: in the order of the arrays' last axis.
        base: mean of each metric over base's rows, float64 [metrics]; NaN where base has no value.
        differences: arm -> float64 [rows, seeds, metrics], the arm less base on the same row; NaN where one has none.
        seeds: arm -> its seeds, sorted; [None] for an arm without.
    """

    name: str
    rows: list[str]
    metrics: list[str]
    base: np.ndarray
    differences: dict[str, np.ndarray]
    seeds: dict[str, list[int | None]] = field(default_factory=dict)

    def of(self, arm: str, metric: str) -> np.ndarray:
        """float64 [rows, seeds]."""
        return self.differences[arm][:, :, self.metrics.index(metric)]

    @property
    def off_targets(self) -> list[str]:
        return [name for name in self.metrics if name.startswith(OFF_TARGET)]

    @property
    def signals(self) -> list[str]:
        return [name for name in self.metrics if name in SIGNALS]


def paired(name: str, frame: pl.DataFrame, base: str) -> Reading:
    """Every arm of a frame beside base.

    A base row stands beside the same row of every seed; where base has seeds of its own, beside that of the same seed.

    Args:
        frame: arm, seed, row_id, made_with, and any of target, off_target…, and the names of `SIGNALS`.

    Raises:
        StageError: no base, a column that is missing, arms that were not measured alike, rows that one side lacks, or
            a base row without a target.
    """
    frame = _checked(name, frame, base)
    metrics = [one for one in frame.columns if one == TARGET or one.startswith(OFF_TARGET) or one in SIGNALS]
    plain = {seed: own for (seed,), own in frame.filter(arm=base).group_by("seed", maintain_order=True)}
    rows = sorted(next(iter(plain.values()))["row_id"])
    values = {seed: _values(name, base, seed, own, rows, metrics) for seed, own in plain.items()}
    for seed, one in values.items():
        if TARGET in metrics and not np.isfinite(one[:, metrics.index(TARGET)]).all():
            row = rows[int(np.flatnonzero(~np.isfinite(one[:, metrics.index(TARGET)]))[0])]
            raise StageError(f"{name}: base, seed {seed}, row {row} has no target; measure base again")
    mean = np.stack(list(values.values())).mean(axis=0)
    shared = values.get(None, mean)
    seeds, differences = {}, {}
    for (arm,), own in frame.filter(pl.col("arm") != base).group_by("arm", maintain_order=True):
        arm = str(arm)
        by_seed = dict(sorted(own.partition_by("seed", as_dict=True).items(), key=lambda item: str(item[0])))
        seeds[arm] = [seed for (seed,) in by_seed]
        lacking = [
            seed for seed in seeds[arm] if seed is not None and None not in values and seed not in values
        ]
        if lacking:
            raise StageError(
                f"{name}: base has seeds {sorted(map(str, values))}, arm {arm} has seed {lacking[0]}; measure base "
                "with it, or once without a seed"
            )
        differences[arm] = np.stack(
            [
                _values(name, arm, seed, part, rows, metrics)
                - (shared if seed is None else values.get(seed, shared))
                for (seed,), part in by_seed.items()
            ],
            axis=1,
        )
    with np.errstate(invalid="ignore"):
        means = np.array([_finite_mean(mean[:, place]) for place in range(len(metrics))])
    return Reading(name, rows, metrics, means, differences, seeds)


def _checked(name: str, frame: pl.DataFrame, base: str) -> pl.DataFrame:
    if lacking := [column for column in (*KEY, "made_with") if column not in frame.columns]:
        raise StageError(
            f"{name}: column {lacking[0]} is missing; give {', '.join((*KEY, 'made_with'))} and metrics"
        )
    if frame.filter(arm=base).is_empty():
        raise StageError(f"{name}: no rows of arm {base!r}; every number stands beside base's: measure it")
    made = sorted(frame["made_with"].unique())
    if len(made) > 1:
        arms = [frame.filter(made_with=one)["arm"][0] for one in made]
        raise StageError(
            f"{name}: arms {', '.join(arms)} were not measured alike (made_with {', '.join(made)}); measure them again "
            "with one model, precision, set of rows and read-out"
        )
    return frame


def _values(
    name: str, arm: str, seed: int | None, own: pl.DataFrame, rows: list[str], metrics: list[str]
) -> np.ndarray:
    """float64 [rows, metrics] in the order of `rows`."""
    label = f"{name}: arm {arm}" + ("" if seed is None else f", seed {seed}")
    try:
        require_same_rows(own["row_id"].to_list(), rows, label)
    except ValueError as error:
        raise StageError(str(error)) from error
    cells = own.sort("row_id").select(pl.col(metrics).cast(pl.Float64).fill_null(float("nan")))
    return cells.to_numpy().astype(np.float64)


def _finite_mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")


def require_same_arms(readings: Mapping[str, Reading]) -> None:
    """All readings have the same arms and seeds.

    Raises:
        StageError: one lacks an arm or a seed; both are named.
    """
    first = next(iter(readings.values()))
    for one in readings.values():
        if one.seeds != first.seeds:
            arms = sorted(
                arm for arm in {*one.seeds, *first.seeds} if one.seeds.get(arm) != first.seeds.get(arm)
            )
            raise StageError(
                f"{one.name} and {first.name} do not have the same seeds of arm {arms[0]}: "
                f"{one.seeds.get(arms[0], 'none')} and {first.seeds.get(arms[0], 'none')}; measure what is missing"
            )
