"""What a person sees of pairs, of what tuning changed in them, and of the findings: pictures first, then numbers."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import polars as pl

from steer_pipeline import show
from steer_pipeline.stages.kit import picture

if TYPE_CHECKING:
    from steer_pipeline.lab.analysis.directions import Directions
    from steer_pipeline.lab.analysis.neutral import Neutral
    from steer_pipeline.lab.analysis.report import PairTables
    from steer_pipeline.lab.analysis.sides import Student
    from steer_pipeline.lab.analysis.susceptibility import Susceptibility

NULLS = {"matched_null": "p", "isotropic_null": "p_isotropic"}


def _pictures(folder: Path) -> dict[str, Any]:
    """All plots of a bundle."""
    return {path.stem: picture(path) for path in sorted(folder.glob("*.png"))}


def of_basis(directions: "Directions", neutral: "Neutral") -> dict[str, Any]:
    """The dictionary, and what was left out of it."""
    from steer_pipeline.lab.analysis.directions import DIRECTION_COLUMNS

    return {
        "dictionary": show.markdown_table(directions.table(), DIRECTION_COLUMNS),
        "left_out": dg.MetadataValue.json(dict(directions.left_out)),
        "directions": len(directions.names),
        "neutral_states": len(neutral.states),
    }


def of_pair(told: Mapping[str, Any], student: "Student | None") -> dict[str, Any]:
    """Both sides."""
    named = "a checkpoint" if student is None else f"{student.asset}[{student.partition}] {student.place}"
    return {"tuned_model": named, **{f"{side}_identity": text for side, text in told["identities"].items()}}


def of_susceptibility(tables: "Susceptibility") -> dict[str, Any]:
    """Directions within random ones, how far weights moved, and how many changes lie beyond which null at 5%."""
    from steer_pipeline.lab.analysis.susceptibility import CHANGE, FOUND_COLUMNS

    moved = float(tables.weights["relative"].to_numpy().mean())
    changes = tables.rows.filter(measure=CHANGE)
    beyond = {
        f"beyond_{null}": float((changes[name] <= 0.05).to_numpy().mean()) for null, name in NULLS.items()
    }
    return {
        "within_random_directions": show.markdown_table(tables.found, FOUND_COLUMNS),
        **show.rounded({"rows": tables.rows.height, "mean_relative_difference": moved, **beyond}),
    }


def of_mlp(pushed: pl.DataFrame) -> dict[str, Any]:
    """Which way the mean state is moved."""
    from steer_pipeline.lab.analysis.susceptibility import FOUND_COLUMNS

    return {"pushed": show.markdown_table(pushed, FOUND_COLUMNS)}


def of_attention(table: pl.DataFrame) -> dict[str, Any]:
    """The interactions that moved most."""
    from steer_pipeline.lab.analysis.attention import ATTENTION_COLUMNS

    top = table.sort(pl.col("delta_z").abs(), descending=True).head(10)
    return {"moved_most": show.markdown_table(top, ATTENTION_COLUMNS), "rows": table.height}


def of_clean(rate: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """How often the rule finds something where nothing is, and what it finds there."""
    from steer_pipeline.lab.analysis.findings import FINDING_COLUMNS
    from steer_pipeline.lab.analysis.steps import NULL_FINDINGS

    hits = pl.read_parquet(folder / NULL_FINDINGS).filter("found")
    shown = {"false_findings": show.markdown_table(hits, FINDING_COLUMNS)} if hits.height else {}
    return {**shown, **show.rounded(dict(rate))}


def of_report(tables: "PairTables", plots: Mapping[str, Path]) -> dict[str, Any]:
    """The plots, the findings, and one number a direction and statistic to plot over versions."""
    from steer_pipeline.lab.analysis.findings import FINDING_COLUMNS
    from steer_pipeline.lab.analysis.report import headline

    found = headline(tables.findings)["found"]
    plotted = {
        f"{row['direction'].replace(':', '_')}_{row['statistic']}": row["value"]
        for row in tables.findings.iter_rows(named=True)
    }
    return {
        **{name: picture(path) for name, path in plots.items()},
        "findings": show.markdown_table(tables.findings, FINDING_COLUMNS),
        "found": ", ".join(found) or "nothing",
        **show.rounded(plotted),
    }


def of_activation(table: pl.DataFrame, folder: Path) -> dict[str, Any]:
    """Findings, the largest z, and what base says when it is steered with the difference."""
    from steer_pipeline.lab.analysis.activation import ACTIVATION_COLUMNS, STEERED_COLUMNS
    from steer_pipeline.lab.analysis.audit_steps import STEERED

    top = table.sort(pl.col("z").abs(), descending=True).head(10)
    steered = folder / STEERED
    told = show.markdown_table(pl.read_parquet(steered), STEERED_COLUMNS) if steered.is_file() else None
    return {
        **_pictures(folder),
        "furthest": show.markdown_table(top, ACTIVATION_COLUMNS),
        **({} if told is None else {"steered": told}),
        "found": int(table["found"].sum()),
    }


def of_plants(plants: pl.DataFrame) -> dict[str, Any]:
    """What was planted."""
    from steer_pipeline.lab.analysis.audit import PLANT_COLUMNS

    return {"plants": show.markdown_table(plants, PLANT_COLUMNS), "adapters": plants.height}


def of_audit(table: pl.DataFrame, folder: Path) -> dict[str, Any]:
    """Detection by share of steered rows."""
    from steer_pipeline.lab.analysis.audit import DETECTION_COLUMNS

    return {
        "detection": show.markdown_table(table, DETECTION_COLUMNS),
        "auc": show.significant(table["auc"][0]),
    }


def of_screening(correlations: pl.DataFrame, gate: pl.DataFrame, folder: Path) -> dict[str, Any]:
    """r of predicted and actual shifts, and the gate's precision and recall."""
    from steer_pipeline.lab.screening.gate import GATE_COLUMNS
    from steer_pipeline.lab.screening.predicting import CORRELATION_COLUMNS

    return {
        **_pictures(folder),
        "correlations": show.markdown_table(correlations, CORRELATION_COLUMNS),
        "gate": show.markdown_table(gate, GATE_COLUMNS),
        **{name: show.significant(value) for name, value in gate.select("measure", "value").iter_rows()},
    }


def of_prevention(table: pl.DataFrame, folder: Path) -> dict[str, Any]:
    """Every arm against the clean one."""
    from steer_pipeline.lab.screening.preventing import PREVENTION_COLUMNS

    return {**_pictures(folder), "arms": show.markdown_table(table, PREVENTION_COLUMNS)}
