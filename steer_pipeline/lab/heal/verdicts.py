"""Verdicts on arms: the gates in their order, and what a whole stage table should show.

In: rows of the stage table. Out: a verdict's name and its reason in numbers; claims for checks. A collapsed model moves
anything, and a model that does nothing is surgical: so finite and coherent first, then moved, then surgical, then cost.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from steer_pipeline.lab.controls import MOVED, NOTHING, controls_verdict
from steer_pipeline.lab.limits import (
    MAX_HEALED_LOSS,
    MAX_NO_EFFECT,
    MIN_COHERENCE,
    MIN_RETAINED,
    MIN_SEEDS,
)
from steer_pipeline.lab.stats import Interval
from steer_pipeline.lab.verdict import Verdict

ALPHA = 0.05
BASE, STEERED, HEALED, PROMPTED, CONTROL = STAGES = ("base", "steered", "healed", "prompted", "control")
KNOWN_STAGES = {
    "base": BASE,
    "steered": STEERED,
    "prompt_only": PROMPTED,
    "random_direction": CONTROL,
    "base_text_sft": CONTROL,
}
OF_DIRECTIONS = (
    "random_direction",
)  # arms whose seeds are random directions, where no configuration says so
(
    NOT_FINITE,
    INCOHERENT,
    NO_EFFECT,
    INCONCLUSIVE,
    CONTROL_MOVES,
    WRONG_WAY,
    WITHIN,
    NOT_SURGICAL,
    COSTLY,
    GOOD,
) = VERDICTS = (
    "not finite",
    "incoherent",
    "no effect",
    "inconclusive",
    "control moves",
    "wrong way",
    "within controls",
    "not surgical",
    "costs coherence",
    "good",
)


def stage_of(config: Mapping[str, Any]) -> str:
    """Stage of an arm by what it does, whatever its name: a student of random directions or of base's texts is a
    control.

    Args:
        config: as it was stored (`HealArmSpec`).
    """
    if config["intervention"] != "train":
        return STEERED if config["intervention"] == "steer" else PROMPTED
    return CONTROL if learns_directions(config) or config["texts"] == "base" else HEALED


def learns_directions(config: Mapping[str, Any]) -> bool:
    """Whether an arm's seeds are random directions."""
    return bool(
        config["intervention"] == "train" and config["texts"] != "base" and config["direction"] == "random"
    )


def judge(row: Mapping[str, Any], steered: Interval | None) -> tuple[str, str]:
    """The verdict on one row of the table, and why: the gates in their order.

    Args:
        row: `STAGE_SCHEMA`, as far as it is known.
        steered: movement of the reference; None for the reference itself, or without one.
    """
    shift = row.get("difference")
    if shift is None or not np.isfinite(shift):
        return NOT_FINITE, "no row has a finite target in every seed"
    if row["coherence"] < MIN_COHERENCE:
        worst = row["worst_signal"]
        return INCOHERENT, f"coherence {row['coherence']:.3f} by {worst}, the floor is {MIN_COHERENCE}"
    shown = f"moved {shift:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
    moved = _moved(row, shown, steered)
    if moved is not None:
        return moved
    off = row.get("off_target")
    if off is not None and off >= abs(shift):
        return NOT_SURGICAL, f"{shown}, but {row['off_name']} by {off:.3f}"
    beside = "off-target not measured" if off is None else f"{off:.3f} beside the target at most"
    lost = 1 - row["coherence"]
    if lost > MAX_HEALED_LOSS:
        least = 1 - row["coherence_high"]
        told = f"{shown}, {beside}; coherence {lost:.3f} below base by {row['worst_signal']}"
        if least > MAX_HEALED_LOSS:
            return COSTLY, told
        return INCONCLUSIVE, f"{told}, but perhaps {least:.3f} alone, within the limit of {MAX_HEALED_LOSS}"
    seeds = "" if row["n_seeds"] >= MIN_SEEDS else f"; {row['n_seeds']} of {MIN_SEEDS} seeds"
    return GOOD, f"{shown}, {beside}, coherence {row['coherence']:.3f}{seeds}"


def _moved(row: Mapping[str, Any], shown: str, steered: Interval | None) -> tuple[str, str] | None:
    """Why the second gate stops an arm; None where it has moved as wanted."""
    low, high, shift = row["low"], row["high"], row["difference"]
    if steered is not None and not steered.includes_zero:
        limit = MAX_NO_EFFECT * abs(steered.estimate)
        if max(abs(low), abs(high)) <= limit:
            return NO_EFFECT, f"{shown}, all within {MAX_NO_EFFECT:.0%} of the steered shift ({limit:.3f})"
    if low <= 0 <= high or row["p_holm"] >= ALPHA:
        found = f"{row['detectable']:.3f} would have been found"
        return INCONCLUSIVE, f"{shown}, p {row['p_holm']:.3f} over all arms; {found}"
    if shift < 0:
        return WRONG_WAY, f"{shown}: less of the trait"
    band = row.get("band")
    if row["stage"] != CONTROL and band is not None and shift <= band:
        return WITHIN, f"{shown}, a control {band:.3f}"
    return None


def with_control_verdict(row: Mapping[str, Any], controls: pl.DataFrame) -> dict[str, Any]:
    """A row of the table; of a finite control with the verdict of the rule for controls, whatever its own interval.

    A control is never good: beyond its margin it is what the others must be explained against.
    """
    told = controls.filter(control=row["arm"], part=row["reading"])
    if told.is_empty() or row["verdict"] in (NOT_FINITE, INCOHERENT):
        return dict(row)
    one = told.row(0, named=True)
    verdict = {MOVED: CONTROL_MOVES, NOTHING: NO_EFFECT}.get(one["state"], INCONCLUSIVE)
    if row["verdict"] == NO_EFFECT and one["state"] != MOVED:
        return dict(row)
    within = f"{row['reason']}; a control's margin is {one['margin']:.3f}"
    return dict(row) | {"verdict": verdict, "reason": within}


def claims(table: pl.DataFrame, controls: pl.DataFrame, healed: Sequence[str] | None = None) -> list[Verdict]:
    """What a stage table should show, judged; only that controls show nothing blocks.

    Args:
        table: `STAGE_SCHEMA`.
        controls: `controls.CONTROL_SCHEMA`, of all readings.
        healed: arms that are to keep the trait; default: all of stage `healed`.
    """
    own = table.filter(stage=HEALED)
    own = own if healed is None else own.filter(pl.col("arm").is_in(healed))
    return [
        controls_verdict("heal_controls_show_nothing", controls),
        keeps_the_trait(own),
        has_enough_seeds(own),
    ]


def keeps_the_trait(own: pl.DataFrame) -> Verdict:
    """A healed arm retains the steered movement at no cost."""
    kept = own.filter(pl.col("retain") >= MIN_RETAINED, pl.col("verdict") == GOOD)
    best = own.drop_nulls("retain").sort("retain", descending=True).head(1)
    told = "".join(
        f"; {row['arm']} retains {row['retain']:.2f} at coherence {row['coherence']:.3f}, {row['verdict']}"
        for row in best.iter_rows(named=True)
    )
    return Verdict(
        "heal_keeps_the_trait",
        kept.height > 0,
        f"{kept.height} of {own.height} healed arms retain {MIN_RETAINED} of the steered shift within "
        f"{MAX_HEALED_LOSS} of base's coherence{told}",
        {"kept": kept.height, "healed": own.height},
        blocking=False,
    )


def has_enough_seeds(own: pl.DataFrame) -> Verdict:
    """Every healed arm has seeds enough for its interval to speak of others."""
    few = own.filter(pl.col("n_seeds") < MIN_SEEDS)
    names = ", ".join(f"{row['arm']} {row['n_seeds']}" for row in few.iter_rows(named=True))
    return Verdict(
        "heal_has_enough_seeds",
        few.is_empty(),
        f"fewer than {MIN_SEEDS} seeds: {names}"
        if names
        else f"{own.height} healed arms have {MIN_SEEDS} or more",
        {"arms": own.height, "few": few.height},
        blocking=False,
    )
