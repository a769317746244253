"""What counts as nothing: one rule for controls, and one for what lies beyond random directions.

In: paired differences of controls to their reference; shifts of random directions. Out: one row a control and metric
(`CONTROL_SCHEMA`), and where an effect stands in the band. Reports, checks and exit codes read these rows and judge
nothing by themselves.

A control that is held to zero alone is found guilty by enough rows: adding any vector disturbs, and 1,000 rows see it.
So it moves where its interval lies as a whole beyond a margin, shows nothing where it lies within, and stays open where
these rows cannot tell. The margin is `MAX_CONTROL_SHIFT` of the standard deviation between two samplings of one row, or
the spread of random directions where the control is made of several, whichever is larger.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike
from scipy.stats import t

from steer_pipeline.lab.columns import described
from steer_pipeline.lab.limits import MAX_CONTROL_SHIFT
from steer_pipeline.lab.stats import crossed_intervals
from steer_pipeline.lab.stats.power import minimum_detectable
from steer_pipeline.lab.verdict import Verdict

ROUNDING = 1e-9
STORED = "control_shifts.parquet"
ALPHA = 0.05  # over all controls and metrics of a run together; of an effect against the spread of the band
MOVED, NOTHING, OPEN = STATES = ("moved", "nothing", "open")
CONTROL_SCHEMA, CONTROL_COLUMNS = described(
    control=(pl.String(), "What must show nothing."),
    part=(pl.String(), "Rank, persona or reading, where a stage has several; else empty."),
    metric=(pl.String(), "Trait and scale."),
    n=(pl.Int64(), "Rows that the shift stands on, or random directions where the control has several."),
    unit=(pl.String(), "What n counts: rows or directions."),
    difference=(pl.Float64(), "Paired mean difference to the reference."),
    low=(pl.Float64(), "Interval that holds for all controls, parts and metrics of the table at once (95%)."),
    high=(pl.Float64(), "Its upper end."),
    margin=(pl.Float64(), "Shifts up to this size count as none."),
    detectable=(pl.Float64(), "Smallest shift that would be called moved with 80% power."),
    state=(
        pl.String(),
        "`moved`: the interval lies beyond the margin; `nothing`: within it; `open`: neither.",
    ),
)


@dataclass(frozen=True, eq=False)
class Controls:
    """Controls and metrics that were measured on the same units.

    Attributes:
        names: (control, part, metric) of each column.
        differences: float64 [units, seeds, columns], control less reference; units are rows.
        noise: float64 [columns]: standard deviation of one row's difference between two samplings of the same model.
        directions: axis on which random directions stand in the place of rows (0) or seeds (1), whose spread is then
            part of the margin; None: there is one direction, or none.
        floor: least margin, where a stage has one of its own.
    """

    names: Sequence[tuple[str, str, str]]
    differences: np.ndarray
    noise: np.ndarray
    directions: int | None = None
    floor: float = 0.0

    def column(self, place: int) -> "Controls":
        at = slice(place, place + 1)
        return replace(
            self, names=self.names[at], differences=self.differences[:, :, at], noise=self.noise[at]
        )


def judge_controls(blocks: Sequence[Controls], *, seed: int, n_boot: int = 10_000) -> pl.DataFrame:
    """`CONTROL_SCHEMA`, in the order given. Intervals hold for all blocks together with 95%: max-t within a block, and
    of the level each block has its share by the number of its columns.

    Units with a missing value are left out of their block; where none is whole, columns are judged one by one.
    """
    columns = sum(len(block.names) for block in blocks)
    told = [row for block in blocks for row in _block_rows(block, ALPHA / max(1, columns), seed, n_boot)]
    return pl.DataFrame(told, schema=CONTROL_SCHEMA)


def _block_rows(block: Controls, share: float, seed: int, n_boot: int) -> Iterator[dict[str, Any]]:
    """Rows of one block; `share` is the error that each of its columns may add."""
    whole = block.differences[np.isfinite(block.differences).all(axis=(1, 2))]
    if not len(whole):
        if len(block.names) > 1:
            for place in range(len(block.names)):
                yield from _block_rows(block.column(place), share, seed, n_boot)
        return
    level = 1 - share * len(block.names)
    own = whole.mean(axis=1).std(axis=0)
    # In one unit, so that the spread over seeds can be pooled over columns.
    scale = np.where(block.noise > 0, block.noise, np.where(own > 0, own, 1.0))
    shifts = crossed_intervals(whole / scale, seed=seed, level=level, n_boot=n_boot)
    for place, ((control, part, metric), unit, one) in enumerate(
        zip(block.names, scale, shifts, strict=True)
    ):
        cells, low, high = whole[:, :, place], one.low * unit, one.high * unit
        margin = max(_margin(cells, float(block.noise[place]), block.directions), block.floor)
        least = minimum_detectable(cells, level=level)
        yield (
            {"control": control, "part": part, "metric": metric, "n": len(cells)}
            | {"unit": "directions" if block.directions == 0 else "rows", "difference": one.estimate * unit}
            | {"low": low, "high": high, "margin": margin}
            | {"detectable": margin + least if np.isfinite(least) else None}
            | {"state": _state(low, high, margin)}
        )


def row_noise(cells: np.ndarray) -> np.ndarray:
    """Standard deviation over rows of differences [rows, seeds, columns], seeds pooled: float64 [columns]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a column without values has no noise
        return np.nan_to_num(np.sqrt(np.nanmean(np.nanvar(cells, axis=0), axis=0)))


def _margin(cells: np.ndarray, noise: float, directions: int | None) -> float:
    means = None if directions is None else cells.mean(axis=1 - directions)
    spread = 0.0 if means is None or len(means) < 2 else float(means.std(ddof=1))
    return max(MAX_CONTROL_SHIFT * noise, spread, ROUNDING)


def read_controls(folder: Path) -> pl.DataFrame:
    """The table of a stored folder; empty where the folder is older than the rule, so that its claim does not hold."""
    path = folder / STORED
    return pl.read_parquet(path) if path.is_file() else pl.DataFrame(schema=CONTROL_SCHEMA)


def _state(low: float, high: float, margin: float) -> str:
    if low > margin or high < -margin:
        return MOVED
    return NOTHING if -margin <= low and high <= margin else OPEN


def moved_controls(table: pl.DataFrame) -> list[str]:
    """A sentence for each control that moved: `random_direction moves trait_x by +0.10 [+0.05, +0.15], margin 0.02`."""
    return [
        f"{row['control']} {row['part'] + ' ' if row['part'] else ''}moves {row['metric']} by {row['difference']:+.3f} "
        f"[{row['low']:+.3f}, {row['high']:+.3f}], beyond its margin of {row['margin']:.3f}"
        for row in table.filter(state=MOVED).iter_rows(named=True)
    ]


def told_of_controls(table: pl.DataFrame) -> str:
    """What a table without a moved control says, in a sentence: how many show nothing, how many cannot be told."""
    still, unsure = table.filter(state=NOTHING).height, table.filter(state=OPEN)
    told = f"no control moves beyond its margin: {still} of {table.height} lie within it"
    if unsure.is_empty():
        return told
    least = unsure.drop_nulls("detectable").sort("detectable").tail(1)
    seen = "".join(
        f"; the least that would be seen of {row['control']} on {row['metric']} is {row['detectable']:.3f}"
        for row in least.iter_rows(named=True)
    )
    return f"{told}, {unsure.height} are open (too few rows to tell){seen}"


def controls_verdict(claim: str, table: pl.DataFrame) -> Verdict:
    """The claim that no control moves; it fails without controls, which say nothing by being absent."""
    moved = moved_controls(table)
    message = "; ".join(moved) or told_of_controls(table)
    if table.is_empty():
        message = "no control was measured; nothing says that any disturbance would not do the same"
    counts = dict(table.group_by("state").len().iter_rows())
    return Verdict(
        claim,
        table.height > 0 and not moved,
        message,
        {"controls": table.height} | {f"controls_{state}": counts.get(state, 0) for state in STATES},
        table.filter(state=MOVED).to_dicts(),
    )


# ------------------------------------------------------------------------------------ the band


@dataclass(frozen=True)
class Place:
    """Where a shift stands among those of random directions on the same rows.

    Attributes:
        rank_p: (1 + directions that reach the shift in the wanted direction) / (1 + directions).
        spread_p: one-sided p that another random direction goes as far, from the spread of these (Student's t).
    """

    directions: int
    low: float
    mean: float
    high: float
    sd: float
    rank_p: float
    spread_p: float

    @property
    def beyond(self) -> bool:
        """No direction reaches the shift, and by their spread hardly another would."""
        return self.rank_p <= 1 / (1 + self.directions) and self.spread_p < ALPHA

    def __str__(self) -> str:
        return (
            f"{self.directions} random directions {self.mean:+.3f}, from {self.low:+.3f} to {self.high:+.3f}; rank p "
            f"{self.rank_p:.3g}, against their spread p {self.spread_p:.3g}"
        )


def place_among(shift: float, directions: ArrayLike, sign: int) -> Place:
    """Where `shift` stands; `sign` is 1 where it should be large, -1 where it should be small.

    Under the null the shift is that of one more direction: (shift - mean) / (s sqrt(1 + 1 / n)) has a t distribution
    with n - 1 degrees of freedom.
    """
    values = np.asarray(directions, dtype=np.float64)
    n, sd = len(values), float(values.std(ddof=1)) if len(values) > 1 else 0.0
    ahead = sign * (shift - values.mean())
    if sd > ROUNDING:
        spread_p = float(t.sf(ahead / (sd * np.sqrt(1 + 1 / n)), n - 1))
    else:  # all of them did the same: one direction tells no spread
        spread_p = 0.0 if ahead > ROUNDING and n > 1 else 1.0
    reached = int((sign * (values - shift) >= 0).sum())
    return Place(
        n,
        float(values.min()),
        float(values.mean()),
        float(values.max()),
        sd,
        (1 + reached) / (1 + n),
        spread_p,
    )
