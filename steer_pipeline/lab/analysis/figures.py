"""Plots of one pair, drawn from its stored rows only: heat maps over blocks, modules and heads, curves with null
bands.

In: tables of susceptibility, MLP and attention. Out: PNG bytes.
"""

from collections.abc import Sequence
from math import ceil

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from steer_pipeline.lab.analysis.architecture import LINEAR
from steer_pipeline.lab.analysis.mlp import MEAN_STATE, REST
from steer_pipeline.lab.analysis.susceptibility import CHANGE
from steer_pipeline.lab.report.figures import DARK, GREY, PALETTE, bare, png

COLUMNS = 3
SHOWN = 9  # directions; more make no figure that anybody reads
_LIMIT = 5.0  # of z in colours


def _grid(n: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """n panels in rows of `COLUMNS`."""
    columns = max(1, min(COLUMNS, n))
    rows = max(1, ceil(n / columns))
    figure = Figure(figsize=(0.8 + width * columns, 0.6 + height * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels[n:]:
        axes.set_axis_off()
    return figure, panels


def _heat(
    axes: Axes, table: pl.DataFrame, rows: Sequence[object], across: str, value: str, title: str
) -> object:
    """One panel: `rows` of column `across` against blocks, colour by z."""
    blocks = table["block"].unique().sort().to_list()
    cells = np.full((len(rows), len(blocks)), np.nan)
    for row, block, number in table.select(across, "block", value).iter_rows():
        cells[rows.index(row), blocks.index(block)] = number
    image = axes.imshow(cells, cmap="RdBu_r", vmin=-_LIMIT, vmax=_LIMIT, aspect="auto")
    axes.set_title(title.replace("_", " "), fontsize=9)
    axes.set_yticks(range(len(rows)), [str(row) for row in rows], fontsize=7)
    every = max(1, ceil(len(blocks) / 12))
    axes.set_xticks(range(0, len(blocks), every), [str(block) for block in blocks[::every]], fontsize=7)
    axes.set_xlabel("block", fontsize=8)
    return image


def susceptibility(rows: pl.DataFrame) -> bytes:
    """A panel a direction: z of `change` within the matched null, modules against blocks."""
    own = rows.filter(measure=CHANGE)
    names = own["direction"].unique(maintain_order=True).to_list()[:SHOWN]
    figure, panels = _grid(len(names), 2.6, 2.0)
    modules = [module for module in LINEAR if module in set(own["module"])]
    image = None
    for axes, name in zip(panels, names, strict=False):
        image = _heat(axes, own.filter(direction=name), modules, "module", "z", name)
    if image is not None:
        figure.colorbar(image, ax=panels, label="z of change", shrink=0.7)  # type: ignore[arg-type]
    return png(figure)


def bands(rows: pl.DataFrame, directions: Sequence[str]) -> bytes:
    """A panel a module: how much each direction's reaction changes over blocks, and the null's 95% in grey."""
    own = rows.filter(pl.col("measure") == CHANGE, pl.col("direction").is_in(list(directions)))
    modules = [module for module in LINEAR if module in set(own["module"])]
    figure, panels = _grid(len(modules), 2.6, 2.0)
    for axes, module in zip(panels, modules, strict=False):
        table = own.filter(module=module).sort("block")
        band = table.unique("block", maintain_order=True)
        axes.fill_between(
            band["block"], band["null_low"], band["null_high"], color=GREY, alpha=0.3, label="null"
        )
        for at, name in enumerate(directions):
            one = table.filter(direction=name)
            axes.plot(one["block"], one["value"], color=PALETTE[at % len(PALETTE)], linewidth=1.2, label=name)
        axes.set_title(module, fontsize=9)
        axes.set_xlabel("block", fontsize=8)
        bare(axes)
    if panels:
        panels[0].set_ylabel("change over base", fontsize=8, color=DARK)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=4, fontsize=7, frameon=False)
    return png(figure)


def heads(rows: pl.DataFrame, kind: str, state: str, distance: int | None) -> bytes:
    """A panel a direction: z of the difference between models, heads against blocks, of self rows."""
    own = rows.filter(pl.col("query") == pl.col("key"), pl.col("kind") == kind, pl.col("state") == state)
    own = own.filter(pl.col("distance").eq_missing(distance))
    names = own["key"].unique(maintain_order=True).to_list()[:SHOWN]
    figure, panels = _grid(len(names), 2.6, 2.0)
    numbers = own["head"].unique().sort().to_list()
    image = None
    for axes, name in zip(panels, names, strict=False):
        image = _heat(axes, own.filter(key=name), numbers, "head", "delta_z", name)
    if image is not None:
        figure.colorbar(image, ax=panels, label="z of tuned less base", shrink=0.7)  # type: ignore[arg-type]
    return png(figure)


def shares(projections: pl.DataFrame) -> bytes:
    """Of how MLPs move the mean state otherwise: what the dictionary's directions hold of it, by block."""
    own = projections.filter(pl.col("changed") == MEAN_STATE, pl.col("direction") != REST)
    names = own["direction"].unique(maintain_order=True).to_list()
    figure = Figure(figsize=(7.0, 3.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    for at, name in enumerate(names):
        one, colour = own.filter(direction=name).sort("block"), PALETTE[at % len(PALETTE)]
        left.plot(one["block"], one["share"], color=colour, linewidth=1.2, label=name)
        right.plot(one["block"], one["z"], color=colour, linewidth=1.2)
    right.axhspan(-1.96, 1.96, color=GREY, alpha=0.3)
    for axes, title in ((left, "share of the change"), (right, "z of its cosine")):
        axes.set_ylabel(title, fontsize=8, color=DARK)
        axes.set_xlabel("block", fontsize=8)
        axes.axhline(0, color=GREY, linewidth=0.8)
        bare(axes)
    figure.legend(loc="outside upper center", ncols=4, fontsize=7, frameon=False)
    return png(figure)


def weights(rows: pl.DataFrame) -> bytes:
    """How far each module's weights moved, over their norm: modules against blocks."""
    modules = [module for module in LINEAR if module in set(rows["module"])]
    blocks = rows["block"].unique().sort().to_list()
    cells = np.zeros((len(modules), len(blocks)))
    for module, block, relative in rows.select("module", "block", "relative").iter_rows():
        cells[modules.index(module), blocks.index(block)] = relative
    figure = Figure(figsize=(1.6 + 0.25 * len(blocks), 2.4), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(cells, cmap="viridis", aspect="auto")
    axes.set_yticks(range(len(modules)), modules, fontsize=7)
    axes.set_xlabel("block", fontsize=8)
    figure.colorbar(image, ax=axes, label="difference over norm")
    return png(figure)
