"""What tuning changed in attention to directions: which heads look from one to another (QK), and what they write (VO).

In: a pair of models, directions, the neutral states of base. Out: rows a head. QK: the logit of attention of a query
state to a key state a stated number of positions before it, with norms, rotary positions, scaling and soft cap.
Alone: states are the directions, so that without biases a state and its opposite give the same logit with the sign
turned, and one row says both. Realistic: both lie on the mean state; `self_opposite` is the logit to the direction
itself less that to its opposite. VO: what a head adds to the stream along a direction where it looks at a state, per
unit. Nulls are each model's own: self among self, crossed among crossed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from steer_pipeline.lab.analysis.architecture import Block
from steer_pipeline.lab.analysis.directions import Directions
from steer_pipeline.lab.analysis.mlp import ALONE, REALISTIC
from steer_pipeline.lab.analysis.neutral import Neutral
from steer_pipeline.lab.analysis.nulls import placed
from steer_pipeline.lab.analysis.pairs import PairBlock
from steer_pipeline.lab.analysis.susceptibility import corrected, without
from steer_pipeline.lab.columns import described

QK, OPPOSITE, VO = KINDS = ("qk", "self_opposite", "vo")
ATTENTION_SCHEMA, ATTENTION_COLUMNS = described(
    block=(pl.Int64(), "whose attention"),
    head=(pl.Int64(), "of the queries"),
    kind=(pl.String(), "qk: logit | self_opposite: logit to itself less that to its opposite | vo: what is written, "
          "per unit"),
    state=(pl.String(), "realistic: on the mean state | alone"),
    distance=(pl.Int64(), "positions from key to query; of vo none"),
    query=(pl.String(), "who looks; of vo, along which direction it is written"),
    key=(pl.String(), "at what is looked"),
    base=(pl.Float64(), "in base"),
    tuned=(pl.Float64(), "in the tuned model"),
    delta=(pl.Float64(), "tuned less base"),
    base_z=(pl.Float64(), "within base's null"),
    tuned_z=(pl.Float64(), "within the tuned model's null"),
    delta_z=(pl.Float64(), "within the null of differences"),
    delta_p=(pl.Float64(), "two-sided"),
    delta_p_holm=(pl.Float64(), "corrected over blocks and heads"),
)  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """What is looked at.

    Attributes:
        distances: positions between key and query; beyond a block's window nothing is said.
        fraction: length of a direction at the realistic state, as a share of the stream's.
        top: crossed pairs a block, kind and state that are kept, by |z| of the difference; self is always kept.
    """

    distances: Sequence[int] = (1, 16)
    fraction: float = 0.2
    top: int = 10


def attention_block(
    pair: PairBlock, directions: Directions, neutral: Neutral, asked: Asked
) -> list[dict[str, Any]]:
    """Rows of one block; none of block 0, which reads embeddings."""
    if pair.index == 0:
        return []
    names, units = directions.reading(pair.index)
    written, axes = directions.writing(pair.index)
    null, null_axes = neutral.matched(pair.index - 1), neutral.matched(pair.index)
    length = neutral.length(pair.index, asked.fraction)
    mean = torch.from_numpy(neutral.attention_input(pair.index)).to(pair.base.weight("q").device)
    rows: list[dict[str, Any]] = []
    for state in (REALISTIC, ALONE):
        at = (length, mean if state == REALISTIC else None)
        for distance in (d for d in asked.distances if d < (pair.base.window or d + 1)):
            where = {"block": pair.index, "state": state, "distance": distance}
            own = _both(pair, all_affinities, units, *at, distance)
            drawn = [_both(pair, own_affinity, null, *at, distance, shift) for shift in (0, 1)]
            rows += _interactions({**where, "kind": QK}, names, names, own, _Null(*drawn), asked.top)
            if state == REALISTIC or pair.base.biased or pair.tuned.biased:
                both = (_both(pair, self_and_opposite, some, *at, distance) for some in (units, null))
                rows += _selves({**where, "kind": OPPOSITE}, names, *both)
        own = _both(pair, head_along, units, axes, *at)
        drawn = [_both(pair, _null_along, null, np.roll(null_axes, -shift, axis=0), *at) for shift in (0, 1)]
        where = {"block": pair.index, "kind": VO, "state": state}
        rows += _interactions(where, names, written, own, _Null(*drawn), asked.top)
    return rows


# ----------------------------------------------------------------------------------------- formulas

_Both = tuple[np.ndarray, np.ndarray]  # base and tuned
_CHUNK = 128  # null directions whose writes exist at a time


@dataclass(frozen=True)
class _Null:
    """Of null directions: each to itself, and each to the next; base and tuned, [heads, n]."""

    self: _Both
    crossed: _Both


def _states(block: Block, units: np.ndarray, length: float, mean: Tensor | None) -> Tensor:
    states = torch.from_numpy(units).to(block.weight("q").device) * length
    return states if mean is None else states + mean


def _numbers(tensor: Tensor) -> np.ndarray:
    return tensor.double().cpu().numpy()


def _both(pair: PairBlock, formula: Callable[..., np.ndarray], *arguments: Any) -> _Both:
    return formula(pair.base, *arguments), formula(pair.tuned, *arguments)


def all_affinities(
    block: Block, units: np.ndarray, length: float, mean: Tensor | None, distance: int
) -> np.ndarray:
    """[heads, n, n]: the logit of each direction to each."""
    states = _states(block, units, length, mean)
    return _numbers(block.affinities(states, states, distance))


def own_affinity(
    block: Block, units: np.ndarray, length: float, mean: Tensor | None, distance: int, shift: int
) -> np.ndarray:
    """[heads, n]: the logit of each direction to the one `shift` places further on; 0: to itself."""
    states = _states(block, units, length, mean)
    return _numbers(block.affinity(states, states.roll(-shift, 0), distance))


def self_and_opposite(
    block: Block, units: np.ndarray, length: float, mean: Tensor | None, distance: int
) -> np.ndarray:
    """[heads, n]: the logit of each direction to itself, less that to its opposite."""
    here, opposite = (_states(block, sign * units, length, mean) for sign in (1, -1))
    return _numbers(block.affinity(here, here, distance) - block.affinity(here, opposite, distance))


def head_along(
    block: Block, units: np.ndarray, axes: np.ndarray, length: float, mean: Tensor | None
) -> np.ndarray:
    """[heads, n, m]: what each head adds along unit axes [m, hidden] where it looks at each of unit directions [n,
    hidden], per unit of them; on a mean state: beyond what it adds there.
    """
    parts = block.head_writes(_states(block, units, length, mean))
    if mean is not None:
        parts = parts - block.head_writes(mean[None])
    probes = torch.from_numpy(axes).to(parts.device)
    return _numbers(torch.einsum("nho,mo->hnm", parts, probes) / length)


def _null_along(
    block: Block, units: np.ndarray, axes: np.ndarray, length: float, mean: Tensor | None
) -> np.ndarray:
    """[heads, n]: `head_along` of each direction along its own axis alone."""
    found = []
    for start in range(0, len(units), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        found.append(
            np.diagonal(head_along(block, units[chunk], axes[chunk], length, mean), axis1=1, axis2=2)
        )
    return np.concatenate(found, axis=1)


# --------------------------------------------------------------------------------------------- rows


def _interactions(
    where: dict[str, Any],
    keys: Sequence[str],
    queries: Sequence[str],
    own: _Both,
    null: _Null,
    top: int,
) -> Iterator[dict[str, Any]]:
    """Self rows of every head, and the crossed ones that moved most.

    The first axis of `own` after heads are queries of QK and keys of VO.
    """
    swapped = where["kind"] == VO
    selves = {name: (keys.index(name), queries.index(name)) for name in keys if name in set(queries)}
    for head in range(len(own[0])):
        at = list(selves.values())
        values = [np.array([one[head, i, j] for i, j in at]) for one in own]
        bands = [one[head] for one in null.self]
        for name, numbers in zip(selves, _placed(values, bands), strict=True):
            yield {**where, "head": head, "query": name, "key": name, **numbers}
    yield from _crossed(where, keys, queries, own, null.crossed, top, swapped)


def _crossed(
    where: dict[str, Any],
    keys: Sequence[str],
    queries: Sequence[str],
    own: _Both,
    null: _Both,
    top: int,
    swapped: bool,
) -> Iterator[dict[str, Any]]:
    found: list[tuple[float, dict[str, Any]]] = []
    pairs = [(i, j) for i, one in enumerate(keys) for j, other in enumerate(queries) if one != other]
    if not pairs:
        return
    rows, columns = (np.array(axis) for axis in zip(*pairs, strict=True))
    for head in range(len(own[0])):
        bands = [one[head] for one in null]
        for (i, j), numbers in zip(
            pairs, _placed([one[head, rows, columns] for one in own], bands), strict=True
        ):
            query, key = (queries[j], keys[i]) if swapped else (keys[i], queries[j])
            found.append(
                (-abs(numbers["delta_z"]), {**where, "head": head, "query": query, "key": key, **numbers})
            )
    found.sort(key=lambda one: one[0])
    yield from (row for _, row in found[:top])


def _selves(where: dict[str, Any], names: Sequence[str], own: _Both, null: _Both) -> Iterator[dict[str, Any]]:
    for head in range(len(own[0])):
        placed_rows = _placed([one[head] for one in own], [one[head] for one in null])
        for name, numbers in zip(names, placed_rows, strict=True):
            yield {**where, "head": head, "query": name, "key": name, **numbers}


def _placed(own: Sequence[np.ndarray], null: Sequence[np.ndarray]) -> list[dict[str, float]]:
    """Numbers of each of `own` (base, tuned: [n]) within those of its model's null and of the null's differences."""
    (base, tuned), (base_null, tuned_null) = own, null
    delta, delta_null = tuned - base, tuned_null - base_null
    z, p = placed(delta, delta_null)
    columns = {
        "base": base,
        "tuned": tuned,
        "delta": delta,
        "base_z": placed(base, base_null)[0],
        "tuned_z": placed(tuned, tuned_null)[0],
        "delta_z": z,
        "delta_p": p,
    }
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


class Attentions:
    """Gathers a pair block by block, upwards: `see` each, then `table`."""

    def __init__(self, directions: Directions, neutral: Neutral, asked: Asked):
        self._directions, self._neutral, self._asked = directions, neutral, asked
        self._rows: list[dict[str, Any]] = []

    def see(self, pair: PairBlock) -> None:
        """One block; nothing of block 0, which reads embeddings."""
        self._rows += attention_block(pair, self._directions, self._neutral, self._asked)

    def table(self) -> pl.DataFrame:
        """`ATTENTION_SCHEMA`. Only self rows are tested: crossed ones are picked for size."""
        table = pl.DataFrame(self._rows, schema=without(ATTENTION_SCHEMA, "_holm"))
        own = table.filter(pl.col("query") == pl.col("key"))
        own = corrected(own, "delta_p", "kind", "state", "distance", "query")
        crossed = table.filter(pl.col("query") != pl.col("key")).with_columns(
            delta_p=pl.lit(None, pl.Float64()), delta_p_holm=pl.lit(None, pl.Float64())
        )
        return pl.concat([own, crossed.select(own.columns)]).select(ATTENTION_SCHEMA.names())
