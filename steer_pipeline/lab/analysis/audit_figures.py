"""Plots of activation differences and audits, from stored rows alone. In: tables. Out: PNG bytes."""

import numpy as np
import polars as pl
from matplotlib.figure import Figure

from steer_pipeline.lab.analysis.activation import POSITIONS
from steer_pipeline.lab.analysis.audit import CLEAN
from steer_pipeline.lab.report.figures import DARK, GREY, PALETTE, bare, dots, png

WIDTH = 4.0  # of a colour scale, in standard deviations of the null


def activation_map(table: pl.DataFrame) -> bytes:
    """z of every direction over blocks, first and later tokens side by side; a dot: found.

    Args:
        table: of `activation.ACTIVATION_SCHEMA`.
    """
    names = table["direction"].unique(maintain_order=True).to_list()
    blocks = table["block"].unique().sort().to_list()
    figure = Figure(figsize=(2.6 + 0.7 * len(blocks), 1.2 + 0.24 * len(names)), layout="constrained")
    grid = figure.subplots(1, len(POSITIONS), squeeze=False, sharey=True)
    for axes, position in zip(grid.flat, POSITIONS, strict=True):
        own = table.filter(position=position)
        z = np.full((len(names), len(blocks)), np.nan)
        for row in own.iter_rows(named=True):
            at = names.index(row["direction"]), blocks.index(row["block"])
            z[at] = row["z"]
            if row["found"]:
                axes.plot(at[1], at[0], "o", color=DARK, markersize=3)
        shown = axes.imshow(z, cmap="RdBu_r", vmin=-WIDTH, vmax=WIDTH, aspect="auto")
        axes.set_title(f"{position} tokens", fontsize=9)
        axes.set_xticks(range(len(blocks)), blocks)
        axes.set_xlabel("block", fontsize=8)
        bare(axes)
    grid[0, 0].set_yticks(range(len(names)), names)
    figure.colorbar(shown, ax=list(grid.flat), label="z within the null", shrink=0.8)
    return png(figure)


def audit_sizes(audits: pl.DataFrame, plants: pl.DataFrame) -> bytes:
    """Largest measure over directions of every adapter: planted, mixed by share, clean; a panel a measure."""
    joined = audits.rename({"share": "of_length"}).join(plants, on="checkpoint", suffix="_planted")
    measures = {"size_z": "size", "write_z": "writes", "strength": "the smaller of the two"}
    shown = {name: label for name, label in measures.items() if not joined[name].null_count()}
    largest = joined.group_by("checkpoint", "group", "share").agg(pl.col(name).abs().max() for name in shown)
    groups = largest.select("group", "share").unique().sort("share", descending=True).rows()
    figure = Figure(figsize=(1.4 + 2.8 * len(shown), 0.9 + 0.42 * len(groups)), layout="constrained")
    names = [group if share in (0, 1) else f"{group}, {share:.3g} of rows" for group, share in groups]
    for axes, (column, label) in zip(
        figure.subplots(1, len(shown), sharey=True, squeeze=False).flat, shown.items(), strict=True
    ):
        for place, (group, share) in enumerate(groups):
            own = largest.filter(group=group, share=share)[column].to_numpy()
            dots(axes, own, -place, GREY if group == CLEAN else PALETTE[0])
        axes.set_xlabel(f"largest |z|: {label}", fontsize=8)
        axes.set_yticks([-place for place in range(len(groups))], names)
        bare(axes)
    return png(figure)


def doses(audits: pl.DataFrame, plants: pl.DataFrame) -> bytes:
    """Coefficient of the planted direction over the dose that its rows were steered with, a colour a direction."""
    joined = audits.join(plants.drop("share"), on="checkpoint", suffix="_planted")
    own = joined.filter((pl.col("direction") == pl.col("direction_planted")) & (pl.col("group") == "planted"))
    figure = Figure(figsize=(4.4, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color=GREY, linewidth=0.8)
    for place, name in enumerate(own["direction"].unique().sort()):
        part = own.filter(direction=name).sort("dose")
        colour = PALETTE[place % len(PALETTE)]
        bounds = np.abs(part.select("low", "high").to_numpy().T - part["coefficient"].to_numpy())
        axes.errorbar(
            part["dose"], part["coefficient"], yerr=bounds, fmt="o", color=colour, markersize=4, label=name
        )
    axes.set_xlabel("dose of the rows, fraction of the residual norm", fontsize=8)
    axes.set_ylabel("coefficient found", fontsize=8)
    axes.legend(fontsize=6.5, frameon=False, ncols=2)
    bare(axes)
    return png(figure)


def detection_curve(table: pl.DataFrame) -> bytes:
    """AUC over the share of steered rows, a line a measure.

    Args:
        table: of `audit.DETECTION_SCHEMA`.
    """
    figure = Figure(figsize=(4.4, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0.5, color=GREY, linewidth=0.8)
    for place, (name, own) in enumerate(table.group_by("measure", maintain_order=True)):
        part = own.sort("share")
        axes.fill_between(part["share"], part["auc_low"], part["auc_high"], color=PALETTE[place], alpha=0.15)
        axes.plot(part["share"], part["auc"], marker="o", markersize=4, color=PALETTE[place], label=name[0])
    axes.set_xscale("log", base=2)
    axes.set_xlabel("share of steered rows among those learned", fontsize=8)
    axes.set_ylabel("AUC against clean adapters", fontsize=8)
    axes.set_ylim(0.3, 1.03)
    axes.legend(fontsize=7, frameon=False)
    bare(axes)
    return png(figure)
