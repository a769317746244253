"""Plots of a vector comparison, drawn from its tables only. In: tables. Out: PNG bytes."""

import numpy as np
import polars as pl
from matplotlib.figure import Figure

from steer_pipeline.lab.arms import AVERAGED, PROMPTED, RANDOM, TRAINED, VANILLA
from steer_pipeline.lab.report.figures import DARK, bare, png

_COLOURS = {
    VANILLA: "#8a94a3",
    PROMPTED: "#39424e",
    TRAINED: "#1f7a5c",
    AVERAGED: "#2f6db5",
    RANDOM: "#8a94a3",
}


def plot_gaps(table: pl.DataFrame, seeds: pl.DataFrame, persona: str) -> bytes:
    """Fraction of the gap closed by each arm with its interval, single seeds as small dots; beside it the gain.

    Without a gap (prompting gains nothing) the left panel says so and the gains stand alone.
    """
    arms = table.filter(pl.col("gain").is_not_null())
    figure = Figure(figsize=(8.4, 1.2 + 0.42 * arms.height), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, (value, low, high), label in (
        (
            panels[0],
            ("nll_gap_closed", "nll_gap_low", "nll_gap_high"),
            "fraction of the vanilla-to-prompted gap closed",
        ),
        (panels[1], ("gain", "gain_low", "gain_high"), "gain on vanilla, nats a token"),
    ):
        axes.axvline(0, color=DARK, linewidth=0.6)
        for y, row in enumerate(arms.iter_rows(named=True)):
            colour = _COLOURS[row["arm"]]
            for one in seeds.filter(arm=row["arm"])[value].drop_nulls():
                axes.plot(one, y + 0.22, ".", color=colour, markersize=4, alpha=0.7)
            if row[value] is not None:
                axes.plot([row[low], row[high]], [y, y], color=colour, linewidth=2.2, solid_capstyle="butt")
                axes.plot(row[value], y, "o", color=colour, markersize=5)
        axes.set_yticks(
            range(arms.height), arms["arm"].to_list() if axes is panels[0] else [""] * arms.height
        )
        axes.set_ylim(arms.height - 0.5, -0.5)
        axes.set_xlabel(label, fontsize=8)
        bare(axes)
    if arms["nll_gap_closed"].is_not_null().any():
        for at in (0.5, 1.0):
            panels[0].axvline(at, color=DARK, linestyle=":", linewidth=0.9)
    else:
        panels[0].text(
            0.5, 0.5, "prompting has no effect: no gap", ha="center", transform=panels[0].transAxes
        )
    figure.suptitle(f"{persona}: held-out answers", fontsize=9)
    return png(figure)


def plot_cosines(cosines: pl.DataFrame, persona: str) -> bytes:
    """Cosine of the trained vectors to the averaged one by block; the band is what random directions reach."""
    figure = Figure(figsize=(4.6, 2.9), layout="constrained")
    axes = figure.subplots()
    blocks, mean = cosines["block"].to_numpy(), cosines["cosine"].to_numpy()
    bounds = np.stack([cosines["low"].to_numpy(), cosines["high"].to_numpy()])
    band = cosines["random_95th"].to_numpy()
    axes.axhline(0, color=DARK, linewidth=0.6)
    axes.fill_between(blocks, -band, band, color="#8a94a3", alpha=0.18, linewidth=0)
    axes.errorbar(
        blocks, mean, yerr=np.abs(bounds - mean), fmt="-o", color="#2f6db5", markersize=3.5, linewidth=1.3
    )
    own = cosines["same_site"].to_numpy()
    axes.plot(blocks[own], mean[own], "o", color="#c0392b", markersize=6, label="the trained vector's block")
    axes.set_xlabel("block of the averaged vector", fontsize=8)
    axes.set_ylabel("cosine", fontsize=8)
    axes.set_title(f"{persona}: trained against averaged", fontsize=9)
    axes.set_xticks(blocks if len(blocks) <= 12 else blocks[:: len(blocks) // 8])
    axes.legend(fontsize=7, frameon=False)
    bare(axes)
    return png(figure)
