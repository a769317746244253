"""Plots of screening and prevention, from stored rows alone. In: tables. Out: PNG bytes."""

import polars as pl
from matplotlib.figure import Figure

from steer_pipeline.lab.report.figures import DARK, GREY, PALETTE, bare, interval_row, png


def predicted_and_actual(shifts: pl.DataFrame) -> bytes:
    """Actual over predicted shift, a dot a student and direction; coloured: what its rows were steered along.

    Args:
        shifts: of `predicting.SHIFT_SCHEMA`.
    """
    figure = Figure(figsize=(4.6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.axvline(0, color=GREY, linewidth=0.8)
    others = shifts.filter(~pl.col("own"))
    axes.scatter(
        others["predicted"],
        others["actual"],
        s=8,
        color=GREY,
        alpha=0.5,
        linewidth=0,
        label="other directions",
    )
    for place, name in enumerate(shifts["direction"].unique().sort()):
        own = shifts.filter("own", direction=name)
        if own.height:
            axes.scatter(
                own["predicted"], own["actual"], s=26, color=PALETTE[place % len(PALETTE)], label=name
            )
    axes.set_xlabel("projection of the rows, predicted", fontsize=8)
    axes.set_ylabel("shift of the trait score, actual", fontsize=8)
    axes.legend(fontsize=6.5, frameon=False, ncols=2)
    bare(axes)
    return png(figure)


def prevention(table: pl.DataFrame) -> bytes:
    """Unwanted and wanted trait of every arm beyond the clean arm's, and its loss.

    Args:
        table: of `preventing.PREVENTION_SCHEMA`.
    """
    figure = Figure(figsize=(9.0, 0.9 + 0.34 * table.height), layout="constrained")
    unwanted, wanted, loss = figure.subplots(1, 3, sharey=True)
    for place, row in enumerate(table.iter_rows(named=True)):
        for axes, name, colour in ((unwanted, "unwanted", PALETTE[0]), (wanted, "wanted", PALETTE[3])):
            interval_row(axes, -place, row[name], row[f"{name}_low"], row[f"{name}_high"], colour)
        loss.plot(row["nll"], -place, "o", color=DARK, markersize=5)
    for axes, label in ((unwanted, "unwanted trait"), (wanted, "wanted trait"), (loss, "loss, nats a token")):
        axes.axvline(0, color=GREY, linewidth=0.8)
        axes.set_xlabel(f"{label}, less the clean arm's", fontsize=8)
        bare(axes)
    unwanted.set_yticks([-place for place in range(table.height)], table["arm"].to_list())
    return png(figure)
