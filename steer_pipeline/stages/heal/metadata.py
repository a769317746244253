"""What a person sees of the heal loop: plots and texts first, then numbers."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import polars as pl

from steer_pipeline import show
from steer_pipeline.stages.kit import picture

if TYPE_CHECKING:
    from steer_pipeline.lab.heal.dosing import Dosed, Sampled
    from steer_pipeline.lab.heal.evaluating import Evaluation
    from steer_pipeline.lab.heal.keeping import KeepSet
    from steer_pipeline.lab.heal.rounds import State
    from steer_pipeline.lab.heal.stage import Stage

GATE = (
    "dose",
    "verdict",
    "shift",
    "noise_bound",
    "off_scale",
    "off_shift",
    "kl_p95",
    "collapsed_rate",
    "why",
)
STAGE = (
    "reading",
    "arm",
    "stage",
    "difference",
    "low",
    "high",
    "off_target",
    "coherence",
    "retain",
    "verdict",
)


def of_dose(dosed: "Dosed") -> dict[str, Any]:
    """The doses with their verdicts and a sample of each, and the calibration."""
    from steer_pipeline.lab.heal.calibration import CURVE_COLUMNS
    from steer_pipeline.lab.heal.gate import GATE_COLUMNS

    texts = [
        {"dose": f"{row['dose']:+g}", "verdict": row["verdict"], "text": row["example"] or ""}
        for row in dosed.gate.iter_rows(named=True)
    ]
    return {
        "gate": show.markdown_table(dosed.gate.select(GATE), GATE_COLUMNS),
        "samples": show.samples(texts),
        "calibration": show.markdown_table(dosed.calibration.curve.drop("example"), CURVE_COLUMNS),
        "calibrated_dose": show.significant(dosed.calibration.dose),
    }


def of_samples(sampled: "Sampled") -> dict[str, Any]:
    """Texts of each source, what the controller tested, and the doses."""
    from steer_pipeline.lab.heal.controller import PROBE_COLUMNS

    first = sampled.rows.filter(prompt_id=sampled.rows["prompt_id"][0], number=0)
    return {
        "texts": show.samples([dict(row) for row in first.select("source", "output").iter_rows(named=True)]),
        "tests": show.markdown_table(sampled.settled.probes, PROBE_COLUMNS),
        "doses": dg.MetadataValue.json(dict(sampled.doses)),
        "dose": show.significant(sampled.settled.dose),
        "samples": sampled.rows.height,
    }


def of_keep_set(kept: "KeepSet") -> dict[str, Any]:
    """Reasons and borderline texts of each source."""
    from steer_pipeline.lab.heal.filtering import BORDERLINE_COLUMNS, REASONS

    counts = pl.DataFrame(
        [{"source": source, **one.histogram} for source, one in kept.filtered.items()],
        schema_overrides=dict.fromkeys(REASONS, pl.Int64),
    )
    own = kept.filtered["persona"]
    return {
        "reasons": show.markdown_table(counts, REASONS),
        "borderline": show.markdown_table(own.borderline(), BORDERLINE_COLUMNS, chars=240),
        **{f"kept_{source}": one.kept.height for source, one in kept.filtered.items()},
        "samples": own.rows.height,
    }


def of_evaluation(found: "Evaluation") -> dict[str, Any]:
    """Texts by seed, and means of trait and signals."""
    rows = found.rows
    first = rows.filter(row_id=rows["row_id"][0])
    texts = [{"seed": str(row["seed"]), "text": row["output"]} for row in first.iter_rows(named=True)]
    numbers = rows.group_by("seed", maintain_order=True).agg(pl.col(pl.Float64).mean())
    return {
        "texts": show.samples(texts),
        "means": show.markdown_table(numbers),
        "answers": rows.height,
        "target": show.significant(float(rows["target"].to_numpy().mean())),
    }


def of_stage(stage: "Stage", folder: Path) -> dict[str, Any]:
    """The Pareto figure, the table, and a number an arm."""
    from steer_pipeline.lab.heal.stage import DIVERGENCE_COLUMNS
    from steer_pipeline.lab.heal.stage_report import PARETO
    from steer_pipeline.lab.heal.table import STAGE_COLUMNS

    first = stage.tables.table.filter(reading=stage.tables.table["reading"][0])
    moved = {f"target_{arm}": value for arm, value in first.select("arm", "difference").iter_rows()}
    return {
        "pareto": picture(folder / PARETO),
        "table": show.markdown_table(stage.tables.table.select(STAGE), STAGE_COLUMNS),
        "divergence": show.markdown_table(stage.divergence, DIVERGENCE_COLUMNS),
        "left_out": dg.MetadataValue.json(dict(stage.left_out)),
        **show.rounded({name: value for name, value in moved.items() if value is not None}),
    }


def of_sweep(sweep: pl.DataFrame) -> dict[str, Any]:
    """The table by strength."""
    from steer_pipeline.lab.heal.sweep import TABLE_COLUMNS

    return {"sweep": show.markdown_table(sweep, TABLE_COLUMNS), "rows": sweep.height}


def of_round(state: "State", folder: Path) -> dict[str, Any]:
    """What became of a round, and its first texts."""
    from dataclasses import asdict

    from steer_pipeline.lab.heal.rounds import read_texts

    texts = read_texts(folder)
    shown = [] if texts is None else texts.head(3).select("row_id", "output").to_dicts()
    numbers = {name: value for name, value in asdict(state).items() if isinstance(value, float | int | str)}
    return {**({"texts": show.samples(shown)} if shown else {}), **show.rounded(numbers)}


def of_trajectory(rows: pl.DataFrame, folder: Path) -> dict[str, Any]:
    """The figure and the table."""
    from steer_pipeline.lab.heal.rounds import TRAJECTORY_COLUMNS, last_good
    from steer_pipeline.lab.heal.rounds_report import PLOT

    found = last_good(rows)
    return {
        "trajectory": picture(folder / PLOT),
        "rounds": show.markdown_table(rows, TRAJECTORY_COLUMNS),
        "last_good": -1 if found is None else found,
    }
