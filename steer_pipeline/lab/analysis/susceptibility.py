"""Where tuned weights make something else of a direction than base's: angle and length, within a null.

In: a pair of models, directions at block outputs, states of base. Out: one row a module, block, direction and measure;
one row a direction with its verdict over all modules and blocks; Frobenius norms and cosines of the weight difference.
For modules that read (q, k, v, gate, up) it is W n(d), n the norm before them; for those that write (o, down) it is
W' (g * d), g the gain of a norm behind them: how strongly each of their inputs writes along d. A null direction is a
random mixture of base's states, the same mixture at every block, as a persona's vector is one contrast at every block.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from torch import Tensor

from steer_pipeline.lab.analysis.architecture import LINEAR, READS_AT, WRITES_AT, Block
from steer_pipeline.lab.analysis.directions import Directions
from steer_pipeline.lab.analysis.neutral import Neutral
from steer_pipeline.lab.analysis.nulls import placed
from steer_pipeline.lab.analysis.pairs import WEIGHT_SCHEMA, ModelPair, PairBlock, weight_rows
from steer_pipeline.lab.columns import described
from steer_pipeline.lab.stats import holm

READS, WRITES = SIDES = ("reads", "writes")
ANGLE, LENGTH, CHANGE = MEASURES = ("angle", "length", "change")
SUSCEPTIBILITY_SCHEMA, SUSCEPTIBILITY_COLUMNS = described(
    block=(pl.Int64(), "whose weights"),
    module=(pl.String(), "q, k, v, gate, up: what they read; o, down: what writes along the direction"),
    direction=(pl.String(), "kind:name"),
    measure=(pl.String(), "angle in degrees | length: logarithm of tuned over base | change: length of the difference "
             "over base's length"),
    value=(pl.Float64(), "the measure"),
    null_low=(pl.Float64(), "2.5th percentile of the matched null directions"),
    null_high=(pl.Float64(), "their 97.5th percentile"),
    z=(pl.Float64(), "within them; of angle and change by logarithm"),
    rank=(pl.Int64(), "1: no null direction is as extreme"),
    p=(pl.Float64(), "rank over n + 1; of length two-sided"),
    p_holm=(pl.Float64(), "corrected over the blocks of this module"),
    z_isotropic=(pl.Float64(), "what isotropic null directions would claim"),
    p_isotropic=(pl.Float64(), "the same as p"),
)  # fmt: skip
FOUND_SCHEMA, FOUND_COLUMNS = described(
    direction=(pl.String(), "kind:name"),
    side=(pl.String(), "reads: change of q, k, v, gate, up | writes: change of o, down | pushes: of MLPs at the mean "
          "state, with its sign"),
    mean_z=(pl.Float64(), "over the side's modules and all blocks"),
    z=(pl.Float64(), "of that mean, within those of the null directions"),
    block=(pl.Int64(), "where z is largest"),
    module=(pl.String(), "where z is largest"),
    rank=(pl.Int64(), "among the null directions; 1: none has as large a mean"),
    p=(pl.Float64(), "rank over n + 1"),
    p_holm=(pl.Float64(), "corrected over directions and sides"),
    found=(pl.Boolean(), "p_holm is at most the level"),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Susceptibility:
    """Tables of one pair: `SUSCEPTIBILITY_SCHEMA`, `FOUND_SCHEMA`, `WEIGHT_SCHEMA`."""

    rows: pl.DataFrame
    found: pl.DataFrame
    weights: pl.DataFrame


def made_of(block: Block, module: str, units: np.ndarray) -> Tensor:
    """[n, out or in]: what a module's weights make of unit directions [n, hidden], at a root mean square of 1."""
    states = torch.from_numpy(units).to(block.weight(module).device) * units.shape[1] ** 0.5
    if module in READS_AT:
        return block.normed(states, READS_AT[module]) @ block.weight(module).T
    return (states * block.gain(WRITES_AT[module])) @ block.weight(module)


def measured(base: Tensor, tuned: Tensor) -> dict[str, np.ndarray]:
    """Measure -> fp64 [n], of what both models make of n directions [n, width]."""
    before, after = base.double(), tuned.double()
    lengths = before.norm(dim=1).clamp(min=1e-300), after.norm(dim=1).clamp(min=1e-300)
    apart = (after / lengths[1][:, None] - before / lengths[0][:, None]).norm(dim=1)
    found = {
        ANGLE: torch.rad2deg(2 * torch.asin((apart / 2).clamp(max=1.0))),
        LENGTH: (lengths[1] / lengths[0]).log(),
        CHANGE: (after - before).norm(dim=1) / lengths[0],
    }
    return {name: values.cpu().numpy() for name, values in found.items()}


def scaled(measure: str, values: np.ndarray) -> np.ndarray:
    """On the scale of z: angle and change by their logarithm."""
    return values if measure == LENGTH else np.log(np.maximum(values, 1e-12))


class Susceptibilities:
    """Gathers a pair block by block, upwards: `see` each, then `tables`."""

    def __init__(self, directions: Directions, neutral: Neutral, modules: Sequence[str] = tuple(LINEAR)):
        self._directions, self._neutral, self._modules = directions, neutral, modules
        self._isotropic = neutral.isotropic()
        self._rows: list[dict[str, Any]] = []
        self._weights: list[dict[str, Any]] = []
        self._sums = Sums(neutral.n_null)

    def see(self, block: PairBlock) -> None:
        """All modules of a block."""
        self._weights += weight_rows(block)
        for module in self._modules:
            self._rows += self._module(block, module)

    def tables(self, level: float = 0.05) -> Susceptibility:
        """Args: level of the verdicts; it holds for all directions, sides, modules and blocks of the pair together."""
        rows = pl.DataFrame(self._rows, schema=without(SUSCEPTIBILITY_SCHEMA, "_holm"))
        return Susceptibility(
            corrected(rows, "p", "module", "direction", "measure").select(SUSCEPTIBILITY_SCHEMA.names()),
            self._sums.table(level),
            pl.DataFrame(self._weights, schema=WEIGHT_SCHEMA),
        )

    def _module(self, block: PairBlock, module: str) -> Iterator[dict[str, Any]]:
        reads, directions = module in READS_AT, self._directions
        names, units = directions.reading(block.index) if reads else directions.writing(block.index)
        if not names:
            return
        drawn = self._neutral.matched(block.index - 1 if reads else block.index)
        own, matched, everywhere = (
            measured(made_of(block.base, module, some), made_of(block.tuned, module, some))
            for some in (units, drawn, self._isotropic)
        )
        for measure in MEASURES:
            sided: Any = "two-sided" if measure == LENGTH else "greater"
            values, band = scaled(measure, own[measure]), scaled(measure, matched[measure])
            z, p = placed(values, band, sided)
            z_iso, p_iso = placed(values, scaled(measure, everywhere[measure]), sided)
            low, high = np.quantile(matched[measure], [0.025, 0.975])
            if measure == CHANGE:
                side = READS if reads else WRITES
                self._sums.see(side, block.index, module, names, z, placed(band, band, sided)[0])
            for at, name in enumerate(names):
                yield {
                    "block": block.index,
                    "module": module,
                    "direction": name,
                    "measure": measure,
                    "value": own[measure][at],
                    "null_low": low,
                    "null_high": high,
                    "z": z[at],
                    "rank": round(p[at] * (self._neutral.n_null + 1)),
                    "p": p[at],
                    "z_isotropic": z_iso[at],
                    "p_isotropic": p_iso[at],
                }


def corrected(rows: pl.DataFrame, column: str, *family: str) -> pl.DataFrame:
    """Rows with `<column>_holm`: p values corrected over the rows that are alike in `family`, which are blocks."""
    return rows.with_columns(
        pl.col(column)
        .map_batches(lambda ps: pl.Series(holm(ps.to_numpy())), return_dtype=pl.Float64())
        .over(*family)
        .alias(f"{column}_holm")
    )


def without(schema: pl.Schema, ending: str) -> pl.Schema:
    """A schema less the columns whose names end so."""
    return pl.Schema({name: kind for name, kind in schema.items() if not name.endswith(ending)})


class Sums:
    """Of every direction and null direction z by cell (block and module), and their means over a side."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._null: dict[tuple[str, int, str], np.ndarray] = {}
        self._own: dict[tuple[str, str], dict[tuple[int, str], float]] = {}

    def see(
        self, side: str, block: int, module: str, names: Sequence[str], z: np.ndarray, null: np.ndarray
    ) -> None:
        """Args: z of the directions, and [n] of the null directions."""
        self._null[side, block, module] = null
        for name, value in zip(names, z.tolist(), strict=True):
            self._own.setdefault((name, side), {})[block, module] = value

    def table(self, level: float, sided: Literal["two-sided", "greater"] = "greater") -> pl.DataFrame:
        """`FOUND_SCHEMA`, likeliest first. A direction's mean over its cells stands among the null directions' means
        over the same cells, so that all modules and blocks of a side cost one test.
        """
        rows: list[tuple[Any, ...]] = []
        for (name, side), cells in self._own.items():
            mean = float(np.mean(list(cells.values())))
            band = np.mean([self._null[side, *cell] for cell in cells], axis=0)
            (own,), (p,) = placed([mean], band, sided)
            furthest = {cell: abs(z) if sided == "two-sided" else z for cell, z in cells.items()}
            block, module = max(furthest, key=furthest.__getitem__)
            rows.append((name, side, mean, float(own), block, module, round(p * (self._n + 1)), float(p)))
        adjusted = holm([row[-1] for row in rows]).tolist()
        complete = [(*row, adjust, adjust <= level) for row, adjust in zip(rows, adjusted, strict=True)]
        table = pl.DataFrame(complete, schema=FOUND_SCHEMA, orient="row")
        return table.sort("p", "direction", maintain_order=True)


def susceptibility(
    pair: ModelPair, directions: Directions, neutral: Neutral, *, level: float = 0.05
) -> Susceptibility:
    """All tables of a pair, alone.

    Raises:
        PairError, NotDescribed: as `ModelPair.blocks`.
    """
    gathered = Susceptibilities(directions, neutral)
    for block in pair.blocks():
        gathered.see(block)
    return gathered.tables(level)
