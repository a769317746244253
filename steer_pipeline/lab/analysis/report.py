"""The report of one pair and the numbers of the last line. In: stored tables. Out: `analysis.html`, `analysis.md`,
plots.

Says nothing that the tables do not hold; runs no model.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from steer_pipeline.lab.analysis import figures
from steer_pipeline.lab.analysis.attention import ATTENTION_COLUMNS, OPPOSITE, VO
from steer_pipeline.lab.analysis.findings import (
    FINDING_COLUMNS,
    MIN_CLEAN,
    STATISTIC_SCHEMA,
    judged,
    summarised,
)
from steer_pipeline.lab.analysis.mlp import MEAN_STATE, PROJECTION_COLUMNS, REALISTIC
from steer_pipeline.lab.analysis.steps import (
    ATTENTION,
    FOUND,
    MLP,
    MODEL_ITSELF,
    PROJECTIONS,
    PUSHED,
    RATE,
    STATISTICS,
    SUSCEPTIBILITY,
    WEIGHTS,
)
from steer_pipeline.lab.analysis.susceptibility import FOUND_COLUMNS
from steer_pipeline.lab.report.document import (
    Block,
    Figure,
    Heading,
    Paragraph,
    to_html,
    to_markdown,
    write_pictures,
)
from steer_pipeline.lab.report.tables import Column, number, p_value, table, text

PAGE, REPORT, PLOTS, FINDINGS = "analysis.html", "analysis.md", "plots", "findings.parquet"
VERSIONS = "versions.json"
_TOP = 12  # crossed interactions of the report


@dataclass(frozen=True, eq=False)
class PairTables:
    """All tables of one pair, and its findings."""

    pair: str
    susceptibility: pl.DataFrame
    found: pl.DataFrame
    weights: pl.DataFrame
    mlp: pl.DataFrame
    projections: pl.DataFrame
    pushed: pl.DataFrame
    attention: pl.DataFrame
    findings: pl.DataFrame
    rate: Mapping[str, Any]

    @property
    def judges(self) -> int:
        """Clean students that it is held against."""
        return max(self.findings["clean_n"].to_list(), default=0)

    @property
    def directions(self) -> list[str]:
        """Those that are judged."""
        return self.findings["direction"].unique(maintain_order=True).to_list()


def read_pair_tables(
    pair: str,
    susceptibility: Path,
    mlp: Path,
    attention: Path,
    clean: Path,
    student: str | None,
    level: float,
) -> PairTables:
    """The tables of a pair from the folders of its assets, judged by clean students but its own.

    Args:
        student: name of the tuned model among the clean students, if it is one.
    """
    found, pushed = pl.read_parquet(susceptibility / FOUND), pl.read_parquet(mlp / PUSHED)
    others = (
        pl.read_parquet(clean / STATISTICS)
        if (clean / STATISTICS).is_file()
        else pl.DataFrame(schema=STATISTIC_SCHEMA)
    )
    others = others.filter(pl.col("base") == MODEL_ITSELF, pl.col("tuned") != (student or ""))
    return PairTables(
        pair,
        pl.read_parquet(susceptibility / SUSCEPTIBILITY),
        found,
        pl.read_parquet(susceptibility / WEIGHTS),
        pl.read_parquet(mlp / MLP),
        pl.read_parquet(mlp / PROJECTIONS),
        pushed,
        pl.read_parquet(attention / ATTENTION),
        judged(pair, summarised(found, pushed), others, level=level),
        json.loads((clean / RATE).read_text()),
    )


def write_report(tables: PairTables, versions: Mapping[str, str], folder: Path) -> dict[str, Path]:
    """Writes `findings.parquet`, plots, `analysis.md` and `analysis.html`; returns the plots by name.

    Args:
        versions: asset[partition] -> version that was read.
    """
    tables.findings.write_parquet(folder / FINDINGS)
    (folder / VERSIONS).write_text(json.dumps(dict(versions), indent=1, sort_keys=True) + "\n")
    nearest = tables.attention.filter(kind=OPPOSITE)["distance"].min()
    drawn = {
        "susceptibility": figures.susceptibility(tables.susceptibility),
        "bands": figures.bands(tables.susceptibility, tables.directions),
        "shares": figures.shares(tables.projections),
        "attention": figures.heads(tables.attention, OPPOSITE, REALISTIC, nearest),  # type: ignore[arg-type]
        "writes": figures.heads(tables.attention, VO, REALISTIC, None),
        "weights": figures.weights(tables.weights),
    }
    plots = write_pictures(drawn, folder / PLOTS)
    title, blocks = f"What tuning changed: {tables.pair}", _blocks(tables, versions, drawn)
    (folder / PAGE).write_text(to_html(title, blocks), encoding="utf-8")
    (folder / REPORT).write_text(to_markdown(title, blocks, PLOTS), encoding="utf-8")
    return dict(zip(drawn, plots, strict=True))


def headline(findings: pl.DataFrame) -> dict[str, Any]:
    """What the last line shows of a pair: what is found, and z and p of every direction."""
    numbers: dict[str, Any] = {}
    for row in findings.iter_rows(named=True):
        keys = ("value", "null_p", "clean_t", "clean_p_holm", "found")
        numbers.setdefault(row["direction"], {})[row["statistic"]] = {key: row[key] for key in keys}
    found = findings.filter("found")["direction"].unique(maintain_order=True).to_list()
    return {"found": found, "directions": numbers}


# ------------------------------------------------------------------------------------------ blocks


def _blocks(tables: PairTables, versions: Mapping[str, str], drawn: Mapping[str, bytes]) -> list[Block]:
    crossed = tables.attention.filter(pl.col("query") != pl.col("key"))
    crossed = crossed.sort(pl.col("delta_z").abs(), descending=True).head(_TOP)
    moved = tables.projections.filter(changed=MEAN_STATE)
    return [
        Paragraph(_opening(tables)),
        Heading("Findings"),
        table(_FINDING, tables.findings.iter_rows(named=True), _judgement(tables)),
        Heading("Weights on directions"),
        Figure("susceptibility", drawn["susceptibility"], "z of the change of what each module makes of a direction."),
        Figure("bands", drawn["bands"], "The change itself, over base's length; grey: 95% of the null directions."),
        table(_FOUND, tables.found.iter_rows(named=True), "Means over all blocks, within random directions alone."),
        Figure("weights", drawn["weights"], "How far weights moved, whatever the direction."),
        Heading("MLPs"),
        Figure("shares", drawn["shares"], "Of how tuned MLPs move the mean state otherwise than base's."),
        table(_PROJECTION, moved.iter_rows(named=True), "Shares of a block add up to 1."),
        Heading("Attention"),
        Figure("attention", drawn["attention"], "Attention to the direction less that to its opposite."),
        Figure("writes", drawn["writes"], "What a head writes along a direction that it looks at, tuned less base."),
        table(_CROSSED, crossed.iter_rows(named=True), "Crossed interactions that moved most; they are not tested."),
        Heading("Made of"),
        Paragraph(", ".join(f"`{name}` {sha[:16]}" for name, sha in sorted(versions.items()))),
    ]  # fmt: skip


def _opening(tables: PairTables) -> str:
    found = headline(tables.findings)["found"]
    named = ", ".join(f"**{name}**" for name in found) or "none"
    judges = tables.judges
    return (
        f"Directions found in the tuned model: {named}. {len(tables.directions)} directions are judged, within random "
        f"directions of the states' covariance and against {judges} clean students."
    )


def _judgement(tables: PairTables) -> str:
    rate = tables.rate
    judges = tables.judges
    if judges < MIN_CLEAN:
        return (
            f"Only {judges} clean students: random directions alone decide, and what training does to any model is not "
            "told apart from what it taught this one."
        )
    return (
        f"By the same rule {rate['hits']} of {rate['n']} pairs of two clean students have a finding, 95% interval "
        f"{rate['low']:.1%} to {rate['high']:.1%}, at level {rate['level']:g}."
    )


def _columns(described: Mapping[str, str], *shown: tuple[str, str, Any]) -> list[Column]:
    return [Column(title, name, how, described.get(name, "")) for title, name, how in shown]


_Z = number(2, signed=True)
_FINDING = _columns(
    FINDING_COLUMNS,
    ("direction", "direction", text),
    ("statistic", "statistic", text),
    ("mean z", "value", _Z),
    ("p, random directions", "null_p", p_value),
    ("p, Holm", "null_p_holm", p_value),
    ("clean mean", "clean_mean", _Z),
    ("clean sd", "clean_sd", number(2)),
    ("t", "clean_t", _Z),
    ("p, clean", "clean_p", p_value),
    ("p, Holm", "clean_p_holm", p_value),
    ("found", "found", text),
)
_FOUND = _columns(
    FOUND_COLUMNS,
    ("direction", "direction", text),
    ("side", "side", text),
    ("mean z", "mean_z", _Z),
    ("z of it", "z", _Z),
    ("block", "block", text),
    ("module", "module", text),
    ("rank", "rank", text),
    ("p, Holm", "p_holm", p_value),
)
_PROJECTION = _columns(
    PROJECTION_COLUMNS,
    ("block", "block", text),
    ("direction", "direction", text),
    ("coefficient", "coefficient", number(3, signed=True)),
    ("cosine", "cosine", number(3, signed=True)),
    ("share", "share", number(3, signed=True)),
    ("z", "z", _Z),
    ("p", "p", p_value),
)
_CROSSED = _columns(
    ATTENTION_COLUMNS,
    ("block", "block", text),
    ("head", "head", text),
    ("kind", "kind", text),
    ("state", "state", text),
    ("distance", "distance", text),
    ("query", "query", text),
    ("key", "key", text),
    ("base", "base", number(3, signed=True)),
    ("tuned", "tuned", number(3, signed=True)),
    ("z", "delta_z", _Z),
)
