"""The stage table for readers: tables, and the target against the worst coherence. In: a `StageTable`. Out: blocks.

All numbers come from its frames; figures can be drawn again from stored ones.
"""

from collections.abc import Mapping
from typing import Any

import polars as pl
from matplotlib.figure import Figure as Plot

from steer_pipeline.lab.heal.table import SEED_COLUMNS, SIGNAL_COLUMNS, STAGE_COLUMNS, StageTable
from steer_pipeline.lab.heal.verdicts import CONTROL, GOOD, HEALED, PROMPTED, STEERED
from steer_pipeline.lab.limits import (
    MAX_HEALED_LOSS,
    MAX_NO_EFFECT,
    MIN_COHERENCE,
    MIN_RETAINED,
)
from steer_pipeline.lab.report.document import Block, Figure, Heading, Paragraph
from steer_pipeline.lab.report.figures import DARK, GREY, PALETTE, bare, labels_apart, png
from steer_pipeline.lab.report.tables import Column, code, estimate, number, of, p_value, table, text

COLOURS = {STEERED: PALETTE[0], HEALED: PALETTE[3], PROMPTED: PALETTE[4], CONTROL: GREY}
EXPECTED = (
    "What success looks like: a healed arm moves the target as far as the steered one (retain "
    f"{MIN_RETAINED} or more) with coherence within {MAX_HEALED_LOSS} of base, and controls stay within "
    f"{MAX_NO_EFFECT:.0%} of the steered shift. Otherwise: controls that move too say that any disturbance does it; "
    "little movement at full coherence says that base was restored, which is undoing and not healing; much movement "
    f"below {MIN_COHERENCE} is a broken model, of which no other number means anything."
)

VERDICT = ("reading", "arm", "stage", "verdict", "reason")


def stage_blocks(tables: StageTable) -> list[Block]:
    """A section of a report."""
    return [
        Heading("Base, steered, healed"),
        Paragraph(EXPECTED),
        table(_verdict_columns(STAGE_COLUMNS), tables.table.iter_rows(named=True)),
        table(
            _columns(STAGE_COLUMNS),
            tables.table.iter_rows(named=True),
            "Differences are arm less base on the same rows, with 95% intervals over rows and seeds.",
        ),
        Figure(
            "heal_pareto",
            pareto(tables.table),
            "Movement of the target against the worst coherence, with 95% intervals; base is at (1, 0). Up and to the "
            "right is better. The dashed line is the floor of coherence, the grey band what controls reach.",
        ),
        Heading("Seeds", 3),
        table(_seed_columns(SEED_COLUMNS), tables.seeds.iter_rows(named=True)),
        Heading("Signals of coherence", 3),
        table(_signal_columns(SIGNAL_COLUMNS), tables.signals.iter_rows(named=True)),
    ]


def _columns(told: Mapping[str, str]) -> list[Column]:
    signed = number(signed=True)
    return [
        Column("reading", "reading", text, told["reading"]),
        Column("arm", "arm", code, told["arm"]),
        Column("stage", "stage", text, told["stage"]),
        Column("rows", "n_rows", text, told["n_rows"]),
        Column("seeds", "n_seeds", text, told["n_seeds"]),
        Column("base", "base", signed, told["base"]),
        Column("↑ target", of("difference", "low", "high"), estimate(), told["difference"]),
        Column("seed sd", "seed_sd", number(), told["seed_sd"]),
        Column("Holm", "p_holm", p_value, told["p_holm"]),
        Column("detectable", "detectable", number(), told["detectable"]),
        Column(
            "↓ off-target",
            of("off_target", "off_low", "off_high"),
            estimate(signed=False),
            told["off_target"],
        ),
        Column("moved most", "off_name", text, told["off_name"]),
        Column(
            "↑ coherence",
            of("coherence", "coherence_low", "coherence_high"),
            estimate(signed=False),
            told["coherence"],
        ),
        Column("worst signal", "worst_signal", text, told["worst_signal"]),
        Column("↓ cost", "coherence_cost", number(), told["coherence_cost"]),
        Column(
            "↑ retain", of("retain", "retain_low", "retain_high"), estimate(2, signed=False), told["retain"]
        ),
    ]


def _verdict_columns(told: Mapping[str, str]) -> list[Column]:
    return [Column(name, name, code if name == "arm" else text, told[name]) for name in VERDICT]


def _seed_columns(told: Mapping[str, str]) -> list[Column]:
    return [
        Column("reading", "reading", text, told["reading"]),
        Column("arm", "arm", code, told["arm"]),
        Column("seed", "seed", text, told["seed"]),
        Column("rows", "n_rows", text, told["n_rows"]),
        Column("target", of("difference", "low", "high"), estimate(), told["difference"]),
        Column("off-target", "off_target", number(), told["off_target"]),
        Column("coherence", "coherence", number(), told["coherence"]),
        Column("retain", "retain", number(2), told["retain"]),
    ]


def _signal_columns(told: Mapping[str, str]) -> list[Column]:
    return [
        Column("reading", "reading", text, told["reading"]),
        Column("arm", "arm", code, told["arm"]),
        Column("signal", "signal", text, told["signal"]),
        Column("rows", "n_rows", text, told["n_rows"]),
        Column("base", "base", number(), told["base"]),
        Column("difference", of("difference", "low", "high"), estimate(), told["difference"]),
        Column("loss", "loss", number(), told["loss"]),
    ]


def pareto(rows: pl.DataFrame) -> bytes:
    """A panel a reading: every arm's movement against its coherence; filled where the verdict is good.

    Args:
        rows: `STAGE_SCHEMA`.
    """
    readings = rows["reading"].unique(maintain_order=True).to_list()
    figure = Plot(figsize=(0.6 + 4.6 * len(readings), 3.8), layout="constrained")
    grid = figure.subplots(1, len(readings), squeeze=False)
    for axes, reading in zip(grid.flat, readings, strict=True):
        own = rows.filter(pl.col("reading") == reading, pl.col("difference").is_not_null()).to_dicts()
        band = max((row["band"] or 0.0 for row in own), default=0.0)
        axes.axhspan(-band, band, color=GREY, alpha=0.18, linewidth=0)
        axes.axhline(0, color=GREY, linewidth=0.8)
        axes.axvline(MIN_COHERENCE, color=DARK, linewidth=0.8, linestyle="--")
        for row in own:
            _point(axes, row)
        axes.plot(1, 0, "+", color=DARK, markersize=9)
        axes.set_title(reading, fontsize=9)
        axes.set_xlabel("worst coherence", fontsize=8)
        axes.set_xlim(min([MIN_COHERENCE - 0.05, *(row["coherence_low"] - 0.02 for row in own)]), 1.05)
        bare(axes)
    grid[0, 0].set_ylabel("movement of the target, arm less base", fontsize=8)
    figure.draw_without_rendering()
    for axes, reading in zip(grid.flat, readings, strict=True):
        own = rows.filter(pl.col("reading") == reading, pl.col("difference").is_not_null()).to_dicts()
        labels_apart(
            axes,
            [(row["coherence"], row["difference"]) for row in own],
            [row["arm"] for row in own],
            [COLOURS.get(row["stage"], DARK) for row in own],
            keep_off=[(1, 0)],
        )
    return png(figure)


def _point(axes: Any, row: Mapping[str, Any]) -> None:
    colour = COLOURS.get(row["stage"], DARK)
    x, y = row["coherence"], row["difference"]
    axes.plot([row["coherence_low"], row["coherence_high"]], [y, y], color=colour, linewidth=1.2)
    axes.plot([x, x], [row["low"], row["high"]], color=colour, linewidth=1.2)
    fill = colour if row["verdict"] == GOOD else "white"
    axes.plot(x, y, "o", color=colour, markerfacecolor=fill, markersize=6)
