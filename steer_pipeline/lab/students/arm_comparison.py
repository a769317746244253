"""The arms of hidden transfer, each held against base's students of the same arm.

In: what the arms' students wrote, and the summary of the plain students. Out: one row an arm, variant and metric, or
one that says why there is nothing to compare. Runs no model.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from steer_pipeline.catalogue.specs import VariantSpec
from steer_pipeline.lab.behaviour.schema import DOWN, NONE, UP
from steer_pipeline.lab.columns import described
from steer_pipeline.lab.stats import crossed_intervals, holm, mean_test, minimum_detectable
from steer_pipeline.lab.students.cells import cells, is_effect, metrics_of, persona_of

ALPHA = 0.05
ARM_EFFECT_SCHEMA, ARM_EFFECT_COLUMNS = described(
    variant=(pl.String(), "whose rewrites were learned"),
    arm=(pl.String(), "what was changed of them"),
    metric=(pl.String(), "trait_<persona>_<scale> or projection_<persona>; null where there is no student"),
    n_rows=(pl.Int64(), "held-out news items"),
    n_seeds=(pl.Int64(), "students"),
    mean=(pl.Float64(), "of the arm's students"),
    control=(pl.Float64(), "of base's students of the same arm"),
    difference=(pl.Float64(), "between them, paired by news item and seed"),
    low=(pl.Float64(), "95% interval over news and seeds"),
    high=(pl.Float64(), "its upper end"),
    detectable=(pl.Float64(), "smallest difference that would be found with 80% power, from the spread seen"),
    p=(pl.Float64(), "test of the mean over news, seeds averaged"),
    p_holm=(pl.Float64(), "the same after Holm over the arms"),
    plain=(pl.Float64(), "difference of the plain students of the first rank"),
    share=(pl.Float64(), "difference over the plain students'; null where these show no effect"),
    wanted=(pl.String(), "up or down, where the variant targets this trait"),
    verdict=(pl.String(), "effect up | effect down | no effect"),
    note=(pl.String(), "what was done, or why there is no student"),
)


def compare_arms(
    rows: pl.DataFrame,
    made: pl.DataFrame,
    summary: pl.DataFrame,
    variants: Mapping[str, VariantSpec],
    *,
    base: str,
    seed: int,
    n_boot: int = 10_000,
) -> pl.DataFrame:
    """`ARM_EFFECT_SCHEMA`: an effect is what has an interval without zero, Holm's p below `ALPHA`, and a difference
    beyond the band of the plain students of controls.

    Args:
        rows: as the transfer's, with `arm` and projections, of all variants and of base.
        made: `MADE_SCHEMA` of the same.
        summary: of the plain students.
    """
    notes = {
        (name, arm): (there, note)
        for name, arm, there, note in made.select("variant", "arm", "made", "note").rows()
    }
    plain = {
        (row["variant"], row["metric"]): row
        for row in summary.filter(pl.col("rank") == pl.col("rank").min()).iter_rows(named=True)
    }
    table: list[dict[str, Any]] = []
    for name in (name for name in made["variant"].unique(maintain_order=True) if name != base):
        arms = made.filter(variant=name)["arm"].to_list()
        why = {arm: _told(notes, name, arm, base) for arm in arms}
        able = [arm for arm in arms if notes[name, arm][0] and notes.get((base, arm), (False,))[0]]
        table += [{"variant": name, "arm": arm, "note": why[arm]} for arm in arms if arm not in able]
        for metric in filter(is_effect, metrics_of(rows)):
            values = {arm: cells(rows.filter(arm=arm), metric, [base, name]) for arm in able}
            known = plain.get((name, metric), {})
            wanted = variants[name].targets.get(persona_of(metric))
            for arm, numbers in _judged(values, known.get("band") or 0.0, seed, n_boot).items():
                shown = known.get("verdict", NONE) != NONE
                numbers |= {"plain": known.get("difference"), "wanted": wanted, "note": why[arm]}
                numbers["share"] = numbers["difference"] / known["difference"] if shown else None
                table.append({"variant": name, "arm": arm, "metric": metric} | numbers)
    return pl.DataFrame(table, schema=ARM_EFFECT_SCHEMA)


def _told(notes: Mapping[tuple[str, str], tuple[bool, str]], name: str, arm: str, base: str) -> str:
    """What was done of a variant's and of base's rows, once where it is the same."""
    own, control = notes[name, arm][1], notes.get((base, arm), (False, "not made"))[1]
    return own if own == control else f"{name}: {own}; {base}: {control}"


def _judged(
    values: Mapping[str, np.ndarray], band: float, seed: int, n_boot: int
) -> dict[str, dict[str, Any]]:
    """arm -> numbers and verdict, judged together; none where no news item has all values.

    Args:
        values: arm -> float64 [news, seeds, base and variant].
        band: largest absolute difference that a control may show.
    """
    found: dict[str, dict[str, Any]] = {}
    for arm, own in values.items():
        whole = own[np.isfinite(own).all(axis=(1, 2))]
        if not len(whole):
            continue
        differences = whole[:, :, 1] - whole[:, :, 0]
        (one,) = crossed_intervals(differences[:, :, None], seed=seed, n_boot=n_boot)
        p = mean_test(differences.mean(axis=1))
        found[arm] = {
            "n_rows": len(whole),
            "n_seeds": whole.shape[1],
            "mean": float(whole[:, :, 1].mean()),
            "control": float(whole[:, :, 0].mean()),
            "difference": one.estimate,
            "low": one.low,
            "high": one.high,
            "detectable": minimum_detectable(differences),
            "p": p,
            "verdict": NONE if one.includes_zero or abs(one.estimate) <= band else _way(one.estimate),
        }
    if not found:
        return {}
    adjusted = holm([numbers["p"] for numbers in found.values()])
    for numbers, corrected in zip(found.values(), adjusted, strict=True):
        numbers["p_holm"] = float(corrected)
        if corrected >= ALPHA:
            numbers["verdict"] = NONE
    return found


def _way(difference: float) -> str:
    return UP if difference > 0 else DOWN
