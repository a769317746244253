"""How much of what the target's own vector does a carried one does: shares of the effect, paired by news item.

In: rows of `dose.ROW_SCHEMA` whose `direction` is base, native, carried or random. Out: one row an arm, and one for all
random rotations together. A share is (arm - base) / (native - base), of means; its interval comes from resampled news.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from steer_pipeline.lab.columns import described
from steer_pipeline.lab.stats import bootstrap_means, detectable, mean_intervals, percentiles

BASE, NATIVE, CARRIED, RANDOM = "base", "native", "carried", "random"
KNOWING = "own"  # texts that know the trait; no claim is judged by their maps
SHARE_SCHEMA, SHARE_COLUMNS = described(
    arm=(pl.String(), "native, way.texts of a map, randomNN, or random: all rotations together"),
    kind=(pl.String(), "native | carried | random"),
    n=(pl.Int64(), "news items"),
    trait=(pl.Float64(), "mean score of its texts on the target's scale"),
    shift=(pl.Float64(), "paired difference to base"),
    shift_low=(pl.Float64(), "95% interval over news"),
    shift_high=(pl.Float64(), "its upper end"),
    detectable=(pl.Float64(), "smallest shift that would be found with 80% power, from the spread seen"),
    share=(pl.Float64(), "of the shift of the target's own vector"),
    share_low=(pl.Float64(), "95% interval over news; null where the own vector's shift may be none"),
    share_high=(pl.Float64(), "its upper end"),
    facts_kept=(pl.Float64(), "mean share of the facts"),
    suspect_rate=(pl.Float64(), "share of texts with a suspect"),
    nll=(pl.Float64(), "nats a token under the target without a vector"),
)


@dataclass(frozen=True, eq=False)
class Shares:
    """`table` has rows of `SHARE_SCHEMA`; base is what they are differences to."""

    table: pl.DataFrame
    base_trait: float

    def headline(self) -> dict[str, Any]:
        """The numbers of the last line: own effect, best carried arm that knows nothing of the trait, rotations."""
        native, together = self.row(NATIVE), self.row(RANDOM)
        best, knowing = best_of(self.table, knowing=False), best_of(self.table, knowing=True)
        return {
            "rows": native["n"],
            "base_trait": self.base_trait,
            "native_shift": native["shift"],
            "native_low": native["shift_low"],
            "native_high": native["shift_high"],
            **_numbers("carried", best),
            **_numbers("knowing", knowing),
            **_numbers("random", together),
            "random_max": self.table.filter(pl.col("arm").str.starts_with(RANDOM), pl.col("arm") != RANDOM)[
                "share"
            ].max(),
        }

    def row(self, arm: str) -> dict[str, Any]:
        return self.table.row(by_predicate=pl.col("arm") == arm, named=True)


def best_of(table: pl.DataFrame, *, knowing: bool) -> dict[str, Any] | None:
    """The carried arm with the largest share, of maps that know the trait or of the others; None: there is none."""
    own = pl.col("arm").str.ends_with(f".{KNOWING}")
    arms = table.filter(pl.col("kind") == CARRIED, own if knowing else ~own).sort("share", descending=True)
    return arms.row(0, named=True) if arms.height else None


def _numbers(name: str, row: dict[str, Any] | None) -> dict[str, Any]:
    if row is None:
        return {}
    told = {f"{name}_arm": row["arm"]} if name != RANDOM else {}
    return told | {f"{name}_{part}": row[part] for part in ("share", "share_low", "share_high")}


def share_table(rows: pl.DataFrame, *, seed: int) -> Shares:
    """Shifts and shares of every arm. All arms hold the same news items."""
    base = rows.filter(direction=BASE).sort("row_id")
    arms = {
        str(name): own.sort("row_id")
        for (name,), own in rows.filter(pl.col("direction") != BASE).group_by("variant", maintain_order=True)
    }
    values = base["trait"].to_numpy()
    shifts = {name: own["trait"].to_numpy() - values for name, own in arms.items()}
    draws = [name for name, own in arms.items() if own["direction"][0] == RANDOM]
    shifts[RANDOM] = np.mean([shifts[name] for name in draws], axis=0)
    arms[RANDOM] = rows.filter(direction=RANDOM)
    names = list(shifts)
    matrix = np.column_stack([shifts[name] for name in names])
    drawn, means = bootstrap_means(matrix, seed=seed), mean_intervals(matrix)
    whole = names.index(NATIVE)
    certain = not means[whole].includes_zero
    with np.errstate(divide="ignore", invalid="ignore"):
        shared = drawn / drawn[:, [whole]]
    table = []
    for place, (name, one, size) in enumerate(zip(names, means, detectable(matrix).tolist(), strict=True)):
        bounds = percentiles(shared[:, place], len(values)) if certain else (None, None)
        table.append(
            _described(name, arms[name], len(values))
            | {"shift": one.estimate, "shift_low": one.low, "shift_high": one.high, "detectable": size}
            | {"share": _ratio(shifts[name], shifts[NATIVE])}
            | dict(zip(("share_low", "share_high"), (_known(bound) for bound in bounds), strict=True))
        )
    return Shares(pl.DataFrame(table, schema=SHARE_SCHEMA), float(values.mean()))


def _described(name: str, own: pl.DataFrame, n: int) -> dict[str, Any]:
    found = own.select(
        trait=pl.col("trait").mean(),
        facts_kept=pl.col("facts_kept").mean(),
        suspect_rate=(pl.col("suspects").list.len() > 0).mean(),
        nll=pl.col("cost_nll").mean(),
    ).row(0, named=True)
    return {"arm": name, "kind": own["direction"][0], "n": n} | found


def _ratio(shift: np.ndarray, native: np.ndarray) -> float | None:
    whole = float(native.mean())
    return float(shift.mean()) / whole if abs(whole) > 1e-12 else None


def _known(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)
