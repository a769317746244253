"""Plots of costs, of the random band and of side effects, from a comparison's stored tables. Out: PNG bytes."""

from collections.abc import Sequence

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from steer_pipeline.lab.quality.coherence import COSTS, TWO_SIDED
from steer_pipeline.lab.report.figures import DARK, GREY, bare, interval_row, png
from steer_pipeline.lab.rewrites.comparison import ComparisonTables
from steer_pipeline.lab.rewrites.figures import colours

ALLOWED = "#1f7a5c"
TITLES = {
    "suspects": "suspects, share of texts",
    "facts_lost": "facts lost, share",
    "loops": "loops, share of texts",
    "length": "length, log words",
    "nll": "nats a token, unsteered",
}


def costs(tables: ComparisonTables) -> bytes:
    """Each cost's difference to base, a panel a cost, a line a variant; the allowed range is shaded."""
    names, shade = tables.costs["variant"].unique(maintain_order=True).to_list(), colours(tables)
    figure = Figure(figsize=(2.2 + 2.1 * len(COSTS), 1.1 + 0.36 * len(names)), layout="constrained")
    for i, (axes, cost) in enumerate(zip(figure.subplots(1, len(COSTS)), COSTS, strict=True)):
        rows = {row["variant"]: row for row in tables.costs.filter(cost=cost).iter_rows(named=True)}
        drawn = [row for row in rows.values() if row["difference"] is not None]
        limit = next((row["limit"] for row in rows.values()), None)
        reach = max([abs(row[side]) for row in drawn for side in ("low", "high")] + [limit or 0.0, 0.01])
        axes.set_xlim(-1.15 * reach, 1.15 * reach)
        if limit is not None:
            low = -limit if cost in TWO_SIDED else -1.15 * reach
            axes.axvspan(low, limit, color=ALLOWED, alpha=0.10, linewidth=0)
        axes.axvline(0, color=DARK, linewidth=0.6)
        for row in drawn:
            at = names.index(row["variant"])
            interval_row(axes, at, row["difference"], row["low"], row["high"], shade[row["variant"]])
        axes.set_title(TITLES[cost], fontsize=9)
        axes.locator_params(axis="x", nbins=4)
        _lines(axes, names if i == 0 else [""] * len(names))
    return png(figure)


def band(tables: ComparisonTables) -> bytes:
    """The shift of each variant and aim on the band's rows, over the range of the random directions."""
    rows, shade = tables.band.to_dicts(), colours(tables)
    figure = Figure(figsize=(7.2, 0.9 + 0.4 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color=DARK, linewidth=0.6)
    for y, row in enumerate(rows):
        axes.plot(
            [row["band_low"], row["band_high"]],
            [y, y],
            color=GREY,
            alpha=0.45,
            linewidth=9,
            solid_capstyle="butt",
        )
        axes.plot([row["band_mean"]] * 2, [y - 0.25, y + 0.25], color=DARK, linewidth=1.4)
        axes.plot(row["shift"], y, "o", color=shade[row["variant"]], markersize=7)
        axes.annotate(
            f"p {row['random_rank_p']:.2f}",
            (1.01, y),
            xycoords=("axes fraction", "data"),
            fontsize=8,
            va="center",
        )
    axes.set_xlabel("shift of the mean trait score to base", fontsize=8)
    _lines(axes, [f"{row['variant']}: {row['persona']} {row['wanted']}" for row in rows])
    return png(figure)


def matrix(tables: ComparisonTables) -> bytes:
    """Variants by axes: colour is movement in standard deviations of base."""
    axes_names = tables.matrix["axis"].unique().sort().to_list()
    names = tables.matrix["variant"].unique(maintain_order=True).to_list()
    scales = dict(tables.matrix.select("axis", "scale").iter_rows())
    figure = Figure(figsize=(2.6 + 0.95 * len(axes_names), 1.6 + 0.42 * len(names)), layout="constrained")
    axes = figure.subplots()
    moved = np.array(
        [[_cell(tables.matrix, name, axis)["moved"] for axis in axes_names] for name in names], dtype=float
    )
    reach = max(1.0, float(np.nanmax(np.abs(moved))))
    drawn = axes.imshow(moved, cmap="RdBu_r", vmin=-reach, vmax=reach, aspect="auto")
    for y, name in enumerate(names):
        for x, axis in enumerate(axes_names):
            cell = _cell(tables.matrix, name, axis)
            inside, strong = cell["beyond_band"] is False, abs(cell["moved"]) > 0.6 * reach
            colour = "white" if strong else "#9aa3af" if inside else "#1c232c"
            axes.text(x, y, f"{cell['moved']:+.2f}", ha="center", va="center", fontsize=7.5, color=colour)
            if cell["aimed"]:
                axes.add_patch(
                    Rectangle((x - 0.47, y - 0.45), 0.94, 0.9, fill=False, edgecolor="#111", linewidth=1.6)
                )
    axes.set_xticks(range(len(axes_names)), [f"{axis}\n{scales[axis]}" for axis in axes_names], fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.tick_params(length=0)
    bar = figure.colorbar(drawn, ax=axes, shrink=0.8)
    bar.set_label("standard deviations of base", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return png(figure)


def _cell(table: pl.DataFrame, variant: str, axis: str) -> dict:
    return table.row(by_predicate=(pl.col("variant") == variant) & (pl.col("axis") == axis), named=True)


def _lines(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    bare(axes)
