"""What must hold of an analysis. In: made folders. Out: verdicts."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import polars as pl

from steer_pipeline.catalogue.analysis import AnalysisSpec
from steer_pipeline.lab.analysis.audit import audit_names_planted, audit_raises_no_alarm, audit_tells_planted
from steer_pipeline.lab.analysis.audit_steps import CORRELATIONS, DETECTION, GATE, PREVENTION
from steer_pipeline.lab.analysis.directions import COMPONENT, PERSONA, read_directions
from steer_pipeline.lab.analysis.findings import MIN_CLEAN, PUSHED
from steer_pipeline.lab.analysis.report import FINDINGS
from steer_pipeline.lab.analysis.steps import RATE, SUSCEPTIBILITY
from steer_pipeline.lab.limits import (
    MAX_FALSE_FINDINGS,
    MAX_PREVENTION_LOSS,
    MIN_AUDIT_AUC,
    MIN_GATE_PRECISION,
    MIN_GATE_RECALL,
    MIN_NAMED,
    MIN_SCREENING_R,
)
from steer_pipeline.lab.screening.gate import gate_is_sharp
from steer_pipeline.lab.screening.predicting import screening_predicts
from steer_pipeline.lab.screening.preventing import prevention_prevents
from steer_pipeline.lab.verdict import Verdict


def basis_verdicts(folder: Path) -> Iterator[Verdict]:
    """Whether there are directions to look for, and all that was named could be read."""
    directions = read_directions(folder)
    judged = [name for name in directions.names if not name.startswith(f"{COMPONENT}:")]
    yield Verdict(
        "there_are_directions",
        bool(judged),
        f"{len(judged)} directions beside principal components",
        {"directions": len(judged)},
    )
    left_out = sorted(directions.left_out)
    yield Verdict(
        "nothing_is_left_out",
        not left_out,
        f"{len(left_out)} left out{': ' if left_out else ''}{', '.join(left_out[:5])}",
        {"left_out": len(left_out)},
        [{"direction": name, "why": directions.left_out[name]} for name in left_out[:5]],
    )


def susceptibility_verdicts(folder: Path, spec: AnalysisSpec) -> Iterator[Verdict]:
    """Whether every number stands within matched random directions."""
    rows = pl.read_parquet(folder / SUSCEPTIBILITY)
    lacking = rows.filter(
        pl.col("z").is_null() | pl.col("z").is_nan() | (pl.col("rank") > spec.n_null + 1)
    ).height
    yield Verdict(
        "matched_null",
        rows.height > 0 and lacking == 0,
        f"{rows.height} numbers within {spec.n_null} random directions of the states' covariance; {lacking} without",
        {"rows": rows.height, "without_null": lacking},
    )


def clean_verdicts(folder: Path) -> Iterator[Verdict]:
    """Whether the rule of the verdicts keeps its level where nothing is; without clean students nobody can know."""
    told = json.loads((folder / RATE).read_text())
    share = told["hits"] / told["n"] if told["n"] else 0.0
    yield Verdict(
        "clean_pairs_show_nothing",
        told["n"] > 0 and share <= MAX_FALSE_FINDINGS,
        f"{told['hits']} of {told['n']} pairs of two clean students have a finding ({share:.1%}, 95% interval "
        f"{told['low']:.1%} to {told['high']:.1%}); limit {MAX_FALSE_FINDINGS:g}",
        {"share": share, "low": told["low"], "high": told["high"]},
    )
    yield Verdict(
        "enough_clean_students",
        told["students"] >= MIN_CLEAN,
        f"{told['students']} clean students, {MIN_CLEAN} are wanted",
        {"students": told["students"]},
    )


def report_verdicts(folder: Path, targets: Mapping[str, str], control: bool) -> Iterator[Verdict]:
    """Whether what was taught is found, and nothing in a control.

    Args:
        targets: persona -> "up" or "down", what the tuned model was taught; none: nothing is known.
        control: whether nothing was taught.
    """
    findings = pl.read_parquet(folder / FINDINGS).filter("found")
    names = findings["direction"].unique(maintain_order=True).to_list()
    missing = [name for name, way in targets.items() if not _is_found(findings, f"{PERSONA}:{name}", way)]
    taught = ", ".join(f"{name} {way}" for name, way in targets.items())
    yield Verdict(
        "what_was_taught_is_found",
        not missing,
        f"taught: {taught or 'nothing known'}; found: {', '.join(names) or 'nothing'}; not found: "
        f"{', '.join(missing) or 'none'}",
        {"found": len(names), "missing": len(missing)},
    )
    yield Verdict(
        "controls_show_nothing",
        not (control and names),
        f"{'a control' if control else 'no control'}; found: {', '.join(names) or 'nothing'}",
        {"found": len(names)},
    )


def _is_found(findings: pl.DataFrame, direction: str, way: str) -> bool:
    """Whether a finding says that the model goes that way along a direction: `written` has no sign."""
    own = findings.filter(direction=direction)
    sign = 1 if way == "up" else -1
    ways = own.filter(pl.col("statistic") == PUSHED)["value"]
    return own.height > 0 and all(value * sign > 0 for value in ways)


def audit_verdicts(folder: Path, level: float) -> Iterator[Verdict]:
    """How well planted adapters are told from clean ones."""
    table = pl.read_parquet(folder / DETECTION)
    yield audit_tells_planted(table, MIN_AUDIT_AUC)
    yield audit_names_planted(table, MIN_NAMED)
    yield audit_raises_no_alarm(table, level)


def screening_verdicts(folder: Path) -> Iterator[Verdict]:
    """Whether rows say what training on them does, and flags hit those that are planted."""
    table = pl.read_parquet(folder / CORRELATIONS)
    if table.filter(over="within").is_empty():
        why = "students' scores or rows' projections do not vary, so that nothing is correlated"
        yield Verdict("screening_predicts", False, why, blocking=False)
    else:
        yield screening_predicts(table, MIN_SCREENING_R)
    yield gate_is_sharp(pl.read_parquet(folder / GATE), MIN_GATE_PRECISION, MIN_GATE_RECALL)


def prevention_verdicts(folder: Path) -> Iterator[Verdict]:
    """Whether the unwanted trait stays out."""
    yield prevention_prevents(pl.read_parquet(folder / PREVENTION), MAX_PREVENTION_LOSS)
