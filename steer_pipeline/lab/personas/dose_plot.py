"""A dose sweep as a picture: trait against dose beside random directions, and what each shift costs.

In: the table of a sweep and its recommendation. Out: a PNG or SVG file.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from steer_pipeline.catalogue.specs import CoherenceSpec
from steer_pipeline.lab.personas.dose_table import EXTRA, band_of
from steer_pipeline.lab.quality.coherence import TWO_SIDED, limits
from steer_pipeline.lab.vectors.doses import Recommendation

_COSTS = {
    "nll": "extra NLL, nats a token",
    "suspects": "extra suspects, share",
    "facts_lost": "facts lost, share",
    "loops": "extra loops, share",
    "length": "length, log words against base",
}


def plot_sweep(table: pl.DataFrame, recommendation: Recommendation, spec: CoherenceSpec, path: Path) -> None:
    """Trait and KL against dose, and shift against strain and each cost, a colour a block; PNG or SVG by suffix.

    Random directions are grey dots at their dose, limits are dotted lines, a red cross is not coherent, the line in the
    strain panel joins the frontier.

    Args:
        table: what `sweep_table` returns.
    """
    figure = Figure(figsize=(13, 5.6), layout="constrained")
    panels = figure.subplots(2, 4).ravel()
    persona = table.filter(direction="persona")
    blocks = sorted(persona["block"].unique())
    shades = {block: colormaps["viridis"](i / max(len(blocks), 2)) for i, block in enumerate(blocks)}
    lines = [(shades[block], persona.filter(block=block).sort("fraction")) for block in blocks]
    _against_dose(panels[0], lines, band_of(table), recommendation, "trait", "trait score")
    diverged = ("kl", "KL to base, nats a token") if persona["kl"].count() else (f"{EXTRA}nll", _COSTS["nll"])
    _against_dose(panels[1], lines, None, recommendation, *diverged)
    _frontier(panels[2], lines)
    for axes, (cost, label) in zip(panels[3:], _COSTS.items(), strict=True):
        _against_cost(axes, lines, band_of(table), cost, label, limits(spec)[cost])
    advice = (
        f"recommended {recommendation.fraction:+g} at block {recommendation.block}"
        if recommendation.found
        else "no dose will do"
    )
    if recommendation.random_n:
        advice += (
            f", rank p {recommendation.random_rank_p:.2g} among {recommendation.random_n} random directions"
        )
    figure.suptitle(
        f"{recommendation.persona}: {advice} (grey: random; red cross: not coherent)", fontsize=10
    )
    panels[0].legend(fontsize=7)
    figure.savefig(path, dpi=72)


_Lines = Sequence[tuple[Any, pl.DataFrame]]  # colour, cells of a block by dose


def _against_dose(
    axes: Axes, lines: _Lines, band: pl.DataFrame | None, chosen: Recommendation, name: str, label: str
) -> None:
    for colour, line in lines:
        dose, values, low, high = (
            line.get_column(column) for column in ("fraction", name, f"{name}_low", f"{name}_high")
        )
        axes.plot(dose, values, marker=".", color=colour, label=f"block {line['block'][0]}")
        axes.fill_between(
            dose.to_numpy(), low.to_numpy(), high.to_numpy(), color=colour, alpha=0.15, linewidth=0
        )
        broken = line.filter(~pl.col("coherent"))
        axes.plot(broken["fraction"], broken[name], "x", color="crimson")
    if band is not None and band.height:
        label_of = f"{band.height} random, block {band['block'][0]}"
        axes.plot(band["fraction"], band[name], ".", color="grey", markersize=4, label=label_of, zorder=3)
    _named(axes, "dose, fraction of the mean residual norm", label)
    axes.axhline(0, color="black", linewidth=0.5)
    if chosen.fraction is not None:
        axes.axvline(chosen.fraction, color="black", linestyle=":", linewidth=1)


def _frontier(axes: Axes, lines: _Lines) -> None:
    """Shift against the largest share of a limit that is used, and the cells that nothing beats."""
    for colour, line in lines:
        steered = line.filter(pl.col("fraction") > 0, pl.col("strain").is_finite())
        axes.plot(steered["strain"], steered["shift"], ".", color=colour)
    best = (
        pl.concat([line for _, line in lines]).filter("frontier", pl.col("strain").is_finite()).sort("strain")
    )
    axes.plot(best["strain"], best["shift"], "-", color="black", linewidth=0.8)
    axes.axvline(1, color="black", linestyle=":", linewidth=1)
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(left=-0.05)
    _named(axes, "strain: share of the nearest limit used", "trait shift to base")


def _against_cost(
    axes: Axes, lines: _Lines, band: pl.DataFrame, cost: str, label: str, limit: float | None
) -> None:
    name = f"{EXTRA}{cost}"
    axes.plot(band[name], band["shift"], ".", color="grey", markersize=4)
    for colour, line in lines:
        axes.plot(line[name], line["shift"], marker=".", color=colour, linewidth=0.8)
        broken = line.filter(~pl.col("coherent"))
        axes.plot(broken[name], broken["shift"], "x", color="crimson")
    if limit is not None:
        for edge in (limit, -limit) if cost in TWO_SIDED else (limit,):
            axes.axvline(edge, color="black", linestyle=":", linewidth=1)
    axes.axhline(0, color="black", linewidth=0.5)
    _named(axes, label, "trait shift to base")


def _named(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.tick_params(labelsize=7)
