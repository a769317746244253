"""What tuning changed in what MLPs make of a direction: the whole MLP, at the state where it works, and alone.

In: a pair of models, directions, the neutral states of base. Out: one row a block, direction and state; the change of
the mean state projected on the dictionary, with shares that add up. At the realistic state the direction lies on the
mean state m that the MLP reads, with a stated share of its length: f(m + v) - f(m) is what f makes of v there. Alone
it is f(v), as the literature has it: norm and gate work far from where they ever do. Both models read base's states,
so that what differs is the weights.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from steer_pipeline.lab.analysis.architecture import Block
from steer_pipeline.lab.analysis.directions import Directions
from steer_pipeline.lab.analysis.neutral import Neutral
from steer_pipeline.lab.analysis.nulls import placed
from steer_pipeline.lab.analysis.pairs import PairBlock
from steer_pipeline.lab.analysis.susceptibility import (
    ANGLE,
    CHANGE,
    LENGTH,
    Sums,
    corrected,
    measured,
    without,
)
from steer_pipeline.lab.columns import described

REALISTIC, ALONE = STATES = ("realistic", "alone")
MEAN_STATE, REST = "mean state", "rest"
PUSHES = "pushes"
MLP_SCHEMA, MLP_COLUMNS = described(
    block=(pl.Int64(), "whose MLP"),
    direction=(pl.String(), "kind:name, at the input of the block"),
    state=(pl.String(), "realistic: on the mean state | alone: nothing else"),
    base_length=(pl.Float64(), "of what base's MLP makes of the direction"),
    length=(pl.Float64(), "logarithm of tuned over base"),
    angle=(pl.Float64(), "degrees between both"),
    change=(pl.Float64(), "length of their difference over base's length"),
    change_z=(pl.Float64(), "within the matched null, by logarithm"),
    change_p=(pl.Float64(), "rank over n + 1"),
    change_p_holm=(pl.Float64(), "corrected over blocks"),
    base_parallel=(pl.Float64(), "what base's MLP gives back along the direction, per unit of it"),
    parallel=(pl.Float64(), "of the difference, per unit: above 0 the tuned MLP strengthens it more"),
    orthogonal=(pl.Float64(), "of the difference, per unit"),
    parallel_z=(pl.Float64(), "within the matched null"),
    parallel_p=(pl.Float64(), "two-sided"),
    parallel_p_holm=(pl.Float64(), "corrected over blocks"),
)
PROJECTION_SCHEMA, PROJECTION_COLUMNS = described(
    block=(pl.Int64(), "whose MLP"),
    changed=(pl.String(), "of what the change is: the mean state, or a direction on it"),
    direction=(pl.String(), "kind:name, at the output of the block; rest: what the dictionary does not hold"),
    coefficient=(pl.Float64(), "of the unit direction, by least squares on the whole dictionary"),
    cosine=(pl.Float64(), "of the change with the direction alone"),
    share=(pl.Float64(), "of the change's squared length; those of one change add up to 1; some may be negative"),
    z=(pl.Float64(), "of the cosine, within those of the matched null"),
    p=(pl.Float64(), "two-sided"),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class MlpTables:
    """Of one pair: `MLP_SCHEMA`, `PROJECTION_SCHEMA`, and `FOUND_SCHEMA` of which way the mean state is pushed."""

    rows: pl.DataFrame
    projections: pl.DataFrame
    pushed: pl.DataFrame


class Mlps:
    """Gathers a pair block by block, upwards: `see` each, then `tables`."""

    def __init__(self, directions: Directions, neutral: Neutral, fraction: float, shown: int = 5):
        """Args:
        fraction: length of a direction, as a share of the mean length of the stream.
        shown: directions with the largest shares that the change of a direction is projected on; others are one row.
        """
        self._directions, self._neutral = directions, neutral
        self._fraction, self._shown = fraction, shown
        self._rows: list[dict[str, Any]] = []
        self._projections: list[dict[str, Any]] = []
        self._sums = Sums(neutral.n_null)

    def see(self, pair: PairBlock) -> None:
        """One block; nothing of block 0, which reads embeddings."""
        if pair.index == 0:
            return
        neutral, directions = self._neutral, self._directions
        names, units = directions.reading(pair.index)
        null, length = neutral.matched(pair.index - 1), neutral.length(pair.index, self._fraction)
        mean = torch.from_numpy(neutral.mlp_input(pair.index)).to(pair.base.weight("down").device)
        changes = {MEAN_STATE: _moved(pair, mean)}
        for state in STATES:
            own, band = (
                _both(pair, some, length, mean if state == REALISTIC else None) for some in (units, null)
            )
            self._rows += _rows(pair.index, state, names, units * length, own, null * length, band)
            if state == REALISTIC:
                changes |= dict(zip(names, (own[1] - own[0]).double().cpu().numpy(), strict=True))
        self._project(pair.index, changes)

    def _project(self, block: int, changes: dict[str, np.ndarray]) -> None:
        names, axes = self._directions.writing(block)
        null = self._neutral.matched(block)
        for changed, change in changes.items():
            few = None if changed == MEAN_STATE else self._shown
            self._projections += projected(block, changed, change, names, axes, null, few)
        push = changes[MEAN_STATE]
        z = placed(axes @ push, null @ push)[0]
        self._sums.see(PUSHES, block, "mlp", names, z, placed(null @ push, null @ push)[0])

    def tables(self, level: float = 0.05) -> MlpTables:
        """Args: level of the verdicts in `pushed`."""
        rows = pl.DataFrame(self._rows, schema=without(MLP_SCHEMA, "_holm"))
        for measure in ("change", "parallel"):
            rows = corrected(rows, f"{measure}_p", "direction", "state")
        return MlpTables(
            rows.select(MLP_SCHEMA.names()),
            pl.DataFrame(self._projections, schema=PROJECTION_SCHEMA),
            self._sums.table(level, "two-sided"),
        )


def reaction(block: Block, units: np.ndarray, length: float, mean: Tensor | None) -> Tensor:
    """[n, hidden]: what a block's MLP makes of directions of a length, on a state [hidden] or alone."""
    states = torch.from_numpy(units).to(block.weight("down").device) * length
    if mean is None:
        return block.mlp(states)
    return block.mlp(states + mean) - block.mlp(mean[None])


def _both(pair: PairBlock, units: np.ndarray, length: float, mean: Tensor | None) -> tuple[Tensor, Tensor]:
    return reaction(pair.base, units, length, mean), reaction(pair.tuned, units, length, mean)


def _moved(pair: PairBlock, mean: Tensor) -> np.ndarray:
    """fp64 [hidden]: how far the tuned MLP moves the mean state otherwise than base's."""
    return (pair.tuned.mlp(mean[None]) - pair.base.mlp(mean[None]))[0].double().cpu().numpy()


def _rows(
    block: int,
    state: str,
    names: Sequence[str],
    vectors: np.ndarray,
    own: tuple[Tensor, Tensor],
    null_vectors: np.ndarray,
    null: tuple[Tensor, Tensor],
) -> Iterator[dict[str, Any]]:
    measures, parts = measured(*own), split(vectors, *own)
    null_measures, null_parts = measured(*null), split(null_vectors, *null)
    change = placed(_log(measures[CHANGE]), _log(null_measures[CHANGE]), "greater")
    parallel = placed(parts["parallel"], null_parts["parallel"])
    base_length = own[0].double().norm(dim=1).cpu().numpy()
    for at, name in enumerate(names):
        yield {
            "block": block,
            "direction": name,
            "state": state,
            "base_length": base_length[at],
            "length": measures[LENGTH][at],
            "angle": measures[ANGLE][at],
            "change": measures[CHANGE][at],
            "change_z": change[0][at],
            "change_p": change[1][at],
            **{part: values[at] for part, values in parts.items()},
            "parallel_z": parallel[0][at],
            "parallel_p": parallel[1][at],
        }


def split(vectors: np.ndarray, base: Tensor, tuned: Tensor) -> dict[str, np.ndarray]:
    """Parts of what both models make of vectors [n, hidden], per unit of the vector's length: fp64 [n] each.

    `base_parallel`: base's along the vector; `parallel`, `orthogonal`: of tuned less base, whose squares add up to the
    squared length of that difference.
    """
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    units = vectors / lengths[:, None]
    before, after = (x.double().cpu().numpy() for x in (base, tuned))
    difference = after - before
    along = (difference * units).sum(axis=1)
    across = np.linalg.norm(difference - along[:, None] * units, axis=1)
    return {
        "base_parallel": (before * units).sum(axis=1) / lengths,
        "parallel": along / lengths,
        "orthogonal": across / lengths,
    }


def _log(values: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(values, 1e-12))


def decomposed(change: np.ndarray, axes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least squares of a change [hidden] on unit axes [k, hidden]: coefficients and shares, fp64 [k] each.

    share_i = c_i (d_i . change) / |change|^2; shares add up to the explained part whatever the angles between axes.
    """
    wide, target = np.asarray(axes, dtype=np.float64), np.asarray(change, dtype=np.float64)
    coefficients = np.linalg.lstsq(wide.T, target, rcond=1e-8)[0]
    return coefficients, coefficients * (wide @ target) / max(float(target @ target), 1e-300)


def projected(
    block: int,
    name: str,
    change: np.ndarray,
    names: Sequence[str],
    axes: np.ndarray,
    null: np.ndarray,
    shown: int | None,
) -> Iterator[dict[str, Any]]:
    """`PROJECTION_SCHEMA` of one change; shares add up to 1.

    Args:
        null: unit null directions [n, hidden] at the output of the block.
        shown: directions with the largest shares; what the others hold is part of `rest`. None: all.
    """
    coefficients, shares = decomposed(change, axes)
    length = max(float(np.linalg.norm(change)), 1e-300)
    cosines = axes @ change / length
    z, p = placed(cosines, null @ change / length)
    order = np.argsort(-np.abs(shares), kind="stable")[:shown]
    for at in sorted(order.tolist()):
        yield {
            "block": block,
            "changed": name,
            "direction": names[at],
            "coefficient": coefficients[at],
            "cosine": cosines[at],
            "share": shares[at],
            "z": z[at],
            "p": p[at],
        }
    yield {"block": block, "changed": name, "direction": REST, "share": 1.0 - shares[order].sum()}
