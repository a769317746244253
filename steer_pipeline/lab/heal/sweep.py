"""Barriers of other strengths over the same stored texts, and whether strength does what it should.

In: a stage of base, the steered model, `nll` and the arms of a sweep, from stored rows. Out: its table, and a verdict.
Nothing is generated and nothing trained here.
"""

from collections.abc import Mapping
from itertools import pairwise

import polars as pl

from steer_pipeline.lab.columns import described
from steer_pipeline.lab.heal.arms import BASE_ARM
from steer_pipeline.lab.heal.stage import FREE_TEXT, Stage
from steer_pipeline.lab.verdict import Verdict

CLAIM = "barrier_strength_orders_kl"
TABLE, SEEDS = "sweep.parquet", "sweep_seeds.parquet"
SWEEP_SCHEMA, SWEEP_COLUMNS = described(
    barrier=(pl.String(), "which one"),
    strength=(pl.Float64(), "its weight; 0: nll, which has none"),
    seed=(pl.Int64(), "of start and data order"),
    kl=(pl.Float64(), "nats a token to base, on held-out rows"),
)
TABLE_SCHEMA, TABLE_COLUMNS = described(
    barrier=(pl.String(), "which one"),
    strength=(pl.Float64(), "its weight; 0: nll, which has none"),
    arm=(pl.String(), "its name"),
    n_seeds=(pl.Int64(), "students"),
    difference=(pl.Float64(), "movement of the target"),
    low=(pl.Float64(), "95% interval over rows and seeds"),
    high=(pl.Float64(), "its upper end"),
    coherence=(pl.Float64(), "1 less the largest loss of a signal"),
    kl=(pl.Float64(), "nats a token from the model without changes"),
    kl_falls=(pl.Boolean(), "no more than at the strength before"),
    movement_falls=(pl.Boolean(), "no further than at the strength before"),
)

Places = Mapping[str, tuple[str, float]]


def _placed(rows: pl.DataFrame, places: Places) -> pl.DataFrame:
    """Rows of arms with barrier and strength; those of `nll` stand under each barrier, with strength 0."""
    names = {arm: barrier for arm, (barrier, _) in places.items()}
    weights = {arm: strength for arm, (_, strength) in places.items()}
    swept = rows.filter(pl.col("arm").is_in(list(places))).with_columns(
        barrier=pl.col("arm").replace_strict(names, return_dtype=pl.String),
        strength=pl.col("arm").replace_strict(weights, return_dtype=pl.Float64),
    )
    plain = rows.filter(arm=BASE_ARM)
    zeros = [
        plain.with_columns(barrier=pl.lit(barrier), strength=pl.lit(0.0))
        for barrier in dict.fromkeys(names.values())
    ]
    return pl.concat([*zeros, swept]).sort("barrier", "strength", maintain_order=True)


def sweep_rows(stage: Stage, places: Places) -> pl.DataFrame:
    """`SWEEP_SCHEMA`: how far each student is from base along what it says itself."""
    rows = _placed(stage.texts, places)
    means = rows.group_by("barrier", "strength", "seed", maintain_order=True).agg(pl.col("kl").mean())
    return means.select(SWEEP_SCHEMA.names())


def sweep_table(stage: Stage, places: Places) -> pl.DataFrame:
    """`TABLE_SCHEMA`, by barrier and strength."""
    table = stage.tables.table.filter(reading=FREE_TEXT).join(stage.divergence.select("arm", "kl"), on="arm")
    return (
        _placed(table, places)
        .with_columns(
            kl_falls=pl.col("kl").diff().le(0).over("barrier"),
            movement_falls=pl.col("difference").diff().le(0).over("barrier"),
        )
        .select(TABLE_SCHEMA.names())
    )


def strength_orders_kl(table: pl.DataFrame) -> Verdict:
    """Under each barrier, the stronger it is, the nearer to base: the mean of `kl` over seeds never rises.

    Args:
        table: with the columns of SWEEP_SCHEMA; others are left alone.
    """
    means = table.group_by("barrier", "strength").agg(pl.col("kl").mean()).sort("barrier", "strength")
    wrong = []
    for (barrier,), rows in means.group_by("barrier", maintain_order=True):
        for weaker, stronger in pairwise(rows.iter_rows(named=True)):
            if not stronger["kl"] <= weaker["kl"]:  # NaN is no order either
                wrong.append(
                    {
                        "barrier": barrier,
                        "from": weaker["strength"],
                        "to": stronger["strength"],
                        "kl_from": weaker["kl"],
                        "kl_to": stronger["kl"],
                    }
                )
    steps = means.height - means["barrier"].n_unique()
    message = f"KL to base falls or stays in all {steps} steps of strength"
    if wrong:
        where = "; ".join(
            f"{one['barrier']} from {one['from']:g} to {one['to']:g}: {one['kl_from']:.3g} to {one['kl_to']:.3g} nats"
            for one in wrong
        )
        message = f"KL to base rises with strength in {len(wrong)} of {steps} steps: {where}"
    numbers: dict[str, float | int | str] = {"steps": steps, "rises": len(wrong)}
    return Verdict(CLAIM, not wrong, message, numbers, wrong, blocking=False)
