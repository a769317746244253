"""Barriers of other strengths over the same stored texts, and whether strength does what it should.

In: the profile's `heal`, and a table of what the students of a sweep came to. Out: the losses to heal with, and a
verdict. Nothing is generated and nothing trained here.
"""

from itertools import pairwise

import polars as pl

from steer_pipeline.catalogue.specs import HealLossSpec, HealSpec
from steer_pipeline.lab.columns import described
from steer_pipeline.lab.verdict import Verdict

CLAIM = "barrier_strength_orders_kl"
SWEEP_SCHEMA, SWEEP_COLUMNS = described(
    barrier=(pl.String(), "which one"),
    strength=(pl.Float64(), "its weight"),
    seed=(pl.Int64(), "of start and data order"),
    kl=(pl.Float64(), "nats a token to base, on held-out rows"),
)


def sweep_losses(spec: HealSpec) -> dict[tuple[str, float], HealLossSpec]:
    """(barrier, strength) -> the base arm's loss under it."""
    loss = spec.base_arm.loss
    return {
        (name, strength): loss.model_copy(
            update={"barrier": barrier.model_copy(update={"strength": strength})}
        )
        for name, barrier in spec.sweep.barriers.items()
        for strength in spec.sweep.strengths
    }


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
