"""The shares of all arms as a picture. In: the tables of shares and maps. Out: PNG bytes."""

import polars as pl
from matplotlib.figure import Figure

from steer_pipeline.lab.limits import MAX_RANDOM_SHARE, MIN_CARRIED_SHARE
from steer_pipeline.lab.report.figures import GREY, PALETTE, bare, dots, interval_row, png
from steer_pipeline.lab.transport.shares import CARRIED, NATIVE, RANDOM

_TEXTS = {"news": PALETTE[4], "others": PALETTE[3], "own": PALETTE[1]}


def shares_plot(shares: pl.DataFrame, maps: pl.DataFrame, title: str) -> bytes:
    """Left: the share of every arm with its interval, rotations as dots, limits dotted. Right: share against the
    held-out fit of the map, a colour a kind of texts.
    """
    arms = shares.filter(pl.col("kind") == CARRIED)
    draws = shares.filter(pl.col("kind") == RANDOM, pl.col("arm") != RANDOM)["share"].drop_nulls()
    names = [NATIVE, *arms["arm"], RANDOM]
    figure = Figure(figsize=(10, 1.4 + 0.3 * len(names)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.6, 1))
    for height, name in enumerate(reversed(names)):
        row = shares.row(by_predicate=pl.col("arm") == name, named=True)
        colour = _TEXTS.get(name.rpartition(".")[2], GREY)
        if name == RANDOM:
            dots(left, draws.to_numpy(), height, GREY)
        elif row["share_low"] is not None and row["share"] is not None:
            interval_row(left, height, row["share"], row["share_low"], row["share_high"], colour)
        elif row["share"] is not None:
            left.plot(row["share"], height, "o", color=colour, markersize=5)
    for limit in (MAX_RANDOM_SHARE, MIN_CARRIED_SHARE):
        left.axvline(limit, color=GREY, linewidth=0.8, linestyle=":")
    left.set_yticks(range(len(names)), [name.replace(".", ", fitted on ") for name in reversed(names)])
    left.set_xlabel("share of the own vector's effect", fontsize=8)
    fits = arms.join(
        maps.filter("chosen").with_columns(arm=pl.concat_str("way", "texts", separator=".")), on="arm"
    )
    for kind, colour in _TEXTS.items():
        own = fits.filter(texts=kind)
        right.scatter(own["r2"], own["share"], color=colour, s=18, label=kind)
        for way, r2, share in own.select("way", "r2", "share").iter_rows():
            right.annotate(way, (r2, share), fontsize=6, xytext=(4, 2), textcoords="offset points")
    right.set_xlabel("R² of the map on texts it was not fitted on", fontsize=8)
    right.set_ylabel("share", fontsize=8)
    right.legend(fontsize=7, frameon=False, title="fitted on", title_fontsize=7)
    for axes in (left, right):
        bare(axes)
    figure.suptitle(title, fontsize=10)
    return png(figure)
