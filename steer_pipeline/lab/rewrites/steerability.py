"""How far a variant moved where it should, and how far everywhere else: aim and side effects over all axes.

In: scores of every text on every axis of the catalogue, and what each variant aims at. Out: one row a variant and axis
(the matrix), and one row a variant: movement along its aim, and what is left of the movement at right angles to it,
beside a band of random directions. Axes are measured in standard deviations of base, so that they can be added. Source:
Chang et al. (2025), "A course correction in steerability evaluation": miscalibration and orthogonal side effects.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import polars as pl

from steer_pipeline.lab.stats import bootstrap_means, detectable, mean_interval, mean_intervals, percentiles

MATRIX_SCHEMA = pl.Schema(
    {
        "variant": pl.String(),
        "axis": pl.String(),
        "aimed": pl.Int64(),  # 1 up, -1 down, 0 not aimed at
        "moved": pl.Float64(),  # mean paired difference to base, in standard deviations of base
        "low": pl.Float64(),
        "high": pl.Float64(),
        "detectable": pl.Float64(),  # smallest movement that would be found with 80% power
        "band_low": pl.Float64(),  # smallest and largest movement of the random directions
        "band_high": pl.Float64(),
        "beyond_band": pl.Boolean(),  # on the news items that the random directions have
    }
)
AIM_SCHEMA = pl.Schema(
    {
        "variant": pl.String(),
        "aim": pl.Float64(),  # movement along the aimed axes, null for a variant without an aim
        "aim_low": pl.Float64(),
        "aim_high": pl.Float64(),
        "side": pl.Float64(),  # length of the movement at right angles to the aim
        "side_low": pl.Float64(),
        "side_high": pl.Float64(),
        "random_side": pl.Float64(),  # largest movement of a random direction, all axes
        "n": pl.Int64(),
    }
)


def moved(
    scores: pl.DataFrame, base: str, partial: Collection[str] = ()
) -> tuple[list[str], dict[str, np.ndarray]]:
    """Axes, and variant -> paired differences to base [rows, axes] in standard deviations of base.

    Args:
        scores: row_id, variant, axis, score; every variant has every row of base on every axis.
        partial: variants that may have fewer rows than base, all of them base's.

    Raises:
        ValueError: base is constant on an axis (nothing can be measured in its deviations), or a variant lacks a row.
    """
    axes = scores["axis"].unique().sort().to_list()
    wide = {
        variant: part.pivot(on="axis", index="row_id", values="score").sort("row_id")
        for (variant,), part in scores.partition_by("variant", as_dict=True).items()
    }
    reference = wide[base].select(axes).to_numpy()
    spread = reference.std(axis=0, ddof=1)
    flat = [axis for axis, sd in zip(axes, spread, strict=True) if not sd > 0]
    if flat:
        raise ValueError(
            f"axis {flat[0]!r}: base scores the same on every row; the scorer measures nothing there"
        )
    found, place = {}, {row_id: index for index, row_id in enumerate(wide[base]["row_id"])}
    for variant, table in wide.items():
        rows = [place.get(row_id, -1) for row_id in table["row_id"]]
        if -1 in rows or (variant not in partial and len(rows) != len(place)):
            raise ValueError(f"variant {variant!r} and {base!r} have other rows; score the same news")
        found[variant] = (table.select(axes).to_numpy() - reference[rows]) / spread
    return axes, found


def steerability(
    scores: pl.DataFrame,
    targets: Mapping[str, Mapping[str, int]],
    *,
    base: str,
    band: Sequence[str],
    seed: int,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """`MATRIX_SCHEMA` and `AIM_SCHEMA` of every variant but base.

    Args:
        scores: as `moved` takes them.
        targets: variant -> axis -> 1 or -1.
        band: variants of random directions, perhaps of fewer rows; they set the floor.

    Raises:
        ValueError: as `moved`, or a target is not among the axes.
    """
    axes, differences = moved(scores, base, band)
    means = {name: table.mean(axis=0) for name, table in differences.items()}
    drawn = np.stack([means[name] for name in band]) if band else np.zeros((1, len(axes)))
    low, high = drawn.min(axis=0), drawn.max(axis=0)
    beside = _rows_of(scores, base, band)
    matrix, aims = [], []
    for variant, table in differences.items():
        if variant == base:
            continue
        aim = _aim(axes, targets.get(variant, {}), variant)
        there = (table if variant in band else table[beside]).mean(axis=0)
        found = detectable(table).tolist()
        for index, interval in enumerate(mean_intervals(table)):
            matrix.append(
                {"variant": variant, "axis": axes[index], "aimed": int(np.sign(aim[index]))}
                | {"moved": interval.estimate, "low": interval.low, "high": interval.high}
                | {"detectable": found[index]}
                | {"band_low": float(low[index]), "band_high": float(high[index])}
                | {"beyond_band": not low[index] <= there[index] <= high[index]}
            )
        along, side = _parts(table, aim, seed)
        aims.append(
            {"variant": variant, "n": len(table), "random_side": float(np.linalg.norm(drawn, axis=1).max())}
            | dict(zip(("aim", "aim_low", "aim_high"), along, strict=True))
            | dict(zip(("side", "side_low", "side_high"), side, strict=True))
        )
    return pl.DataFrame(matrix, schema=MATRIX_SCHEMA), pl.DataFrame(aims, schema=AIM_SCHEMA)


def _rows_of(scores: pl.DataFrame, base: str, band: Sequence[str]) -> np.ndarray:
    """Which of base's rows, in the order of `moved`, the random directions have: bool [rows]; all without a band."""
    ids = scores.filter(pl.col("variant") == base)["row_id"].unique().sort()
    drawn = scores.filter(pl.col("variant").is_in(list(band)))["row_id"].unique()
    return ids.is_in(drawn.implode()).to_numpy() if len(drawn) else np.ones(len(ids), dtype=bool)


def _aim(axes: Sequence[str], targets: Mapping[str, int], variant: str) -> np.ndarray:
    """Unit vector [axes] of what a variant aims at; zeros without an aim."""
    if unknown := sorted(set(targets) - set(axes)):
        raise ValueError(f"variant {variant!r} aims at {unknown[0]!r}, which nothing scores")
    aim = np.array([float(targets.get(axis, 0)) for axis in axes])
    return aim / max(np.linalg.norm(aim), 1e-12)


def _parts(
    table: np.ndarray, aim: np.ndarray, seed: int
) -> tuple[tuple[float | None, ...], tuple[float, ...]]:
    """(estimate, low, high) along the aim, and of the length at right angles to it."""
    mean, along = table.mean(axis=0), mean_interval(table @ aim)
    resampled = np.vstack([mean, bootstrap_means(table, seed=seed, n_boot=2000)])
    side = np.linalg.norm(resampled - (resampled @ aim)[:, None] * aim, axis=1)
    beside = (float(side[0]), *percentiles(side[1:], len(table)))
    return ((along.estimate, along.low, along.high) if aim.any() else (None, None, None)), beside
