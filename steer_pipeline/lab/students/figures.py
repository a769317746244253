"""Plots of the students' comparison, drawn from its rows only. In: the summary and the loss curves. Out: PNG bytes."""

from math import ceil

import polars as pl
from matplotlib.figure import Figure

from steer_pipeline.lab.behaviour.schema import NONE
from steer_pipeline.lab.report.figures import DARK, GREY, PALETTE, bare, interval_row, png

COLUMNS = 3


def shifts(summary: pl.DataFrame) -> bytes:
    """A panel a trait or projection: every variant's shift with its interval, a line a rank; grey: no effect."""
    effects = summary.filter(pl.col("verdict").is_not_null())
    metrics = effects["metric"].unique(maintain_order=True).to_list()
    names = effects["variant"].unique(maintain_order=True).to_list()
    ranks = effects["rank"].unique(maintain_order=True).to_list()
    columns = max(1, min(COLUMNS, len(metrics)))
    rows = max(1, ceil(len(metrics) / columns))
    figure = Figure(
        figsize=(1.6 + 3.2 * columns, 0.6 + rows * (0.7 + 0.34 * len(names))), layout="constrained"
    )
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes in grid.flat[len(metrics) :]:
        axes.set_axis_off()
    for axes, metric in zip(grid.flat, metrics, strict=False):
        axes.set_title(metric.replace("_", " "), fontsize=9)
        axes.axvline(0, color=GREY, linewidth=0.8)
        for row in effects.filter(metric=metric).iter_rows(named=True):
            at = ranks.index(row["rank"])
            height = -names.index(row["variant"]) - 0.28 * (at - (len(ranks) - 1) / 2)
            colour = GREY if row["verdict"] == NONE else PALETTE[at % len(PALETTE)]
            interval_row(axes, height, row["difference"], row["low"], row["high"], colour)
        axes.set_yticks([-place for place in range(len(names))], [name.replace("_", " ") for name in names])
        axes.set_xlabel("to base's student", fontsize=8)
        bare(axes)
    return png(figure)


def losses(curves: pl.DataFrame) -> bytes:
    """NLL of the watched rows over steps: a panel a rank, a line a student, a colour a variant."""
    watched = curves.filter(split="selection")
    ranks = watched["rank"].unique(maintain_order=True).to_list()
    names = watched["variant"].unique(maintain_order=True).to_list()
    figure = Figure(figsize=(1.2 + 3.6 * max(1, len(ranks)), 3.2), layout="constrained")
    grid = figure.subplots(1, max(1, len(ranks)), squeeze=False, sharey=True)
    for axes, rank in zip(grid.flat, ranks, strict=False):
        axes.set_title(f"rank {rank}", fontsize=9)
        for (variant, seed), own in watched.filter(rank=rank).group_by(
            "variant", "seed", maintain_order=True
        ):
            colour = PALETTE[names.index(variant) % len(PALETTE)]
            first = seed == watched["seed"].min()
            axes.plot(own["step"], own["nll"], color=colour, linewidth=1.1, label=variant if first else None)
        axes.set_xlabel("optimiser step", fontsize=8)
        bare(axes)
    grid[0, 0].set_ylabel("NLL, nats a token", fontsize=8, color=DARK)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, fontsize=7, frameon=False)
    return png(figure)


def arms(effects: pl.DataFrame) -> bytes:
    """A panel a variant and targeted metric: each arm's difference to base's arm, below that of the plain students."""
    shown = effects.filter(pl.col("wanted").is_not_null())
    panels = shown.select("variant", "metric").unique(maintain_order=True).rows()
    columns, names = max(1, min(COLUMNS, len(panels))), shown["arm"].unique(maintain_order=True).to_list()
    lines = max(1, ceil(len(panels) / columns))
    figure = Figure(
        figsize=(1.6 + 3.2 * columns, 0.6 + lines * (0.7 + 0.26 * (len(names) + 1))), layout="constrained"
    )
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, (variant, metric) in zip(grid.flat, panels, strict=False):
        own = shown.filter(variant=variant, metric=metric)
        axes.set_title(f"{variant}: {metric}".replace("_", " "), fontsize=9)
        axes.axvline(0, color=GREY, linewidth=0.8)
        axes.plot([own["plain"][0]], [0], marker="o", color=DARK, markersize=4)
        for row in own.iter_rows(named=True):
            colour = GREY if row["verdict"] == NONE else PALETTE[0]
            height = -1 - names.index(row["arm"])
            interval_row(axes, height, row["difference"], row["low"], row["high"], colour)
        axes.set_yticks(range(0, -len(names) - 1, -1), ["plain students", *names])
        axes.set_xlabel("to base's of the same arm", fontsize=8)
        bare(axes)
    return png(figure)


def alignment(rows: pl.DataFrame) -> bytes:
    """Cosine of shifts with the teacher's vector over steps: a panel a variant and persona, a colour a rank.

    Grey: the range of the clean students at the same step and block.
    """
    panels = rows.select("variant", "persona").unique(maintain_order=True).rows()
    ranks = rows["rank"].unique(maintain_order=True).to_list()
    columns = max(1, min(COLUMNS, len(panels)))
    lines = max(1, ceil(len(panels) / columns))
    figure = Figure(figsize=(1.2 + 3.0 * columns, 0.5 + 2.5 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, (variant, persona) in zip(grid.flat, panels, strict=False):
        own = rows.filter(variant=variant, persona=persona).sort("step")
        band = own.unique("step", maintain_order=True)
        axes.fill_between(
            band["step"], band["band_low"], band["band_high"], color=GREY, alpha=0.3, label="clean students"
        )
        for (rank, seed), one in own.group_by("rank", "seed", maintain_order=True):
            colour = PALETTE[ranks.index(rank) % len(PALETTE)]
            label = f"rank {rank}" if seed == own["seed"].min() else None
            axes.plot(one["step"], one["cosine"], color=colour, linewidth=1.1, label=label)
        axes.set_title(f"{variant}, {persona}".replace("_", " "), fontsize=9)
        axes.axhline(0, color=GREY, linewidth=0.8)
        axes.set_xlabel("optimiser step", fontsize=8)
        bare(axes)
    grid[0, 0].set_ylabel("cosine", fontsize=8, color=DARK)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper center", ncols=4, fontsize=7, frameon=False)
    return png(figure)
