"""Plots of the behaviour table, drawn from its rows only. In: the wide table of arms. Out: PNG bytes.

A panel a persona. Learned and averaged vectors have a colour each; vanilla, random and what prompting achieves are
the background that they are read against.
"""

from collections.abc import Iterator
from math import ceil

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from steer_pipeline.lab.arms import AVERAGED, PROMPTED, RANDOM, TRAINED, VANILLA, family_of
from steer_pipeline.lab.report.figures import bare, labels_apart, png

COLOURS = {
    TRAINED: "#c0392b",
    AVERAGED: "#2f6db5",
    PROMPTED: "#1f7a5c",
    RANDOM: "#8a94a3",
    VANILLA: "#39424e",
}
MARKS = {TRAINED: "o", AVERAGED: "s", PROMPTED: "^", RANDOM: "x", VANILLA: "D"}
COLUMNS, MAX_LOOPS = 4, 0.05
ON_ONE_ANOTHER = 8  # pixels


def _panels(arms: pl.DataFrame) -> tuple[Figure, Iterator[tuple[Axes, str, pl.DataFrame]]]:
    """A figure and its panels: axes, persona, and the persona's arms."""
    personas = arms["persona"].unique(maintain_order=True).to_list()
    columns = min(COLUMNS, len(personas))
    rows = ceil(len(personas) / columns)
    figure = Figure(figsize=(0.8 + 2.9 * columns, 0.8 + 2.6 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes in grid.flat[len(personas) :]:
        axes.set_axis_off()

    def panels() -> Iterator[tuple[Axes, str, pl.DataFrame]]:
        for axes, persona in zip(grid.flat, personas, strict=False):
            axes.set_title(persona, fontsize=9)
            axes.set_ylim(-0.04, 1.04)
            bare(axes)
            yield axes, persona, arms.filter(persona=persona)
        for axes in grid[:, 0]:
            axes.set_ylabel("trait score (MiniLM probability)", fontsize=8)

    return figure, panels()


def _legend(figure: Figure, axes: Axes) -> None:
    """One legend for all panels, above them; below stands the shared label of the horizontal axes."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), fontsize=8, frameon=False)


def dose_response(arms: pl.DataFrame) -> bytes:
    """Trait score against the scale of the vector, 95% intervals over questions; vanilla and prompted as lines.

    Args:
        arms: as `table.arms_table` gives it.
    """
    figure, panels = _panels(arms)
    for axes, _, own in panels:
        for name, style, shown in (
            (VANILLA, "--", "vanilla"),
            (PROMPTED, ":", "prompted, mean of instructions"),
        ):
            for row in own.filter(arm_name=name).iter_rows(named=True):
                axes.axhline(row["score"], color=COLOURS[name], linestyle=style, linewidth=1.2, label=shown)
                axes.axhspan(
                    row["score_low"], row["score_high"], color=COLOURS[name], alpha=0.12, linewidth=0
                )
        for name, shown in ((TRAINED, "trained"), (AVERAGED, "averaged, scale 1 is its best dose")):
            line = own.filter(arm=name)
            if line.is_empty():
                continue
            # Scale 0 is vanilla by definition; a line from -1 to 0.5 without it would pass it by.
            at_zero = own.filter(arm=VANILLA).with_columns(scale=pl.lit(0.0))
            line = pl.concat([line, at_zero]).sort("scale")
            x, y = line["scale"].to_numpy(), line["score"].to_numpy()
            spread = np.abs(np.stack([line["score_low"].to_numpy(), line["score_high"].to_numpy()]) - y)
            axes.errorbar(
                x, y, yerr=spread, color=COLOURS[name], marker=MARKS[name], markersize=4, linewidth=1.3,
                elinewidth=1, label=shown,
            )  # fmt: skip
        random = own.filter(pl.col("arm") == RANDOM, ~pl.col("pooled"))
        if not random.is_empty():
            axes.plot(
                random["scale"], random["score"], MARKS[RANDOM], color=COLOURS[RANDOM], markersize=6,
                markeredgewidth=1.6, linestyle="none", label="random, each seed, trained vector's length",
            )  # fmt: skip
        axes.axvline(0, color="#c9ced6", linewidth=0.7, zorder=0)
    figure.supxlabel("scale: multiple of the vector", fontsize=8)
    _legend(figure, figure.axes[0])
    return png(figure, dpi=100)


def trait_against_coherence(arms: pl.DataFrame) -> bytes:
    """Trait score against perplexity under the unsteered model, one point an arm; a ring: answers loop.

    Args:
        arms: as `table.arms_table` gives it.
    """
    figure, panels = _panels(arms)
    labelled: list[tuple[Axes, pl.DataFrame]] = []
    for axes, _, own in panels:
        shown = own.filter(~pl.col("pooled"), pl.col("perplexity").is_not_null())
        shown = shown.with_columns(family=pl.col("arm").map_elements(family_of, return_dtype=pl.String))
        for name in (PROMPTED, RANDOM, AVERAGED, TRAINED, VANILLA):
            points = shown.filter(family=name)
            if points.is_empty():
                continue
            axes.scatter(
                points["perplexity"], points["score"], marker=MARKS[name], s=26, color=COLOURS[name],
                linewidth=1.3, label=name, alpha=0.85, zorder=3,
            )  # fmt: skip
        loops = shown.filter(pl.col("loop_rate") > MAX_LOOPS)
        axes.scatter(
            loops["perplexity"], loops["score"], s=90, facecolors="none", edgecolors="#111", linewidth=0.9
        )
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("{x:.3g}")
        axes.tick_params(axis="x", which="minor", labelsize=7)
        labelled.append((axes, shown))
    figure.supxlabel(
        f"perplexity under the unsteered model; number: scale; ring: more than {MAX_LOOPS:.0%} of answers loop",
        fontsize=8,
    )
    _legend(figure, figure.axes[0])
    figure.draw_without_rendering()  # the layout is settled: from here on places in pixels hold
    for axes, shown in labelled:
        label_scales(axes, shown)
    return png(figure, dpi=100)


def label_scales(axes: Axes, points: pl.DataFrame) -> None:
    """The scale beside each steered point, where it covers neither points nor other labels.

    Steered points that lie on one another share a label.
    """
    steered = points.filter(pl.col("family").is_in([TRAINED, AVERAGED]))
    labels = [label for family in (TRAINED, AVERAGED) for label in _labels(axes, steered, family)]
    labels_apart(
        axes,
        [at for at, _, _ in labels],
        [text for _, text, _ in labels],
        [colour for _, _, colour in labels],
        keep_off=points.select("perplexity", "score").rows(),
    )


def _labels(axes: Axes, points: pl.DataFrame, family: str) -> Iterator[tuple[tuple[float, float], str, str]]:
    """Place, text and colour of each label of a family."""
    groups: list[tuple[np.ndarray, tuple[float, float], list[str]]] = []
    for row in points.filter(family=family).sort("scale").iter_rows(named=True):
        at = (row["perplexity"], row["score"])
        pixels = axes.transData.transform(at)
        near = next(
            (names for place, _, names in groups if np.hypot(*(place - pixels)) < ON_ONE_ANOTHER), None
        )
        if near is None:
            groups.append((pixels, at, [row["arm_name"]]))
        else:
            near.append(row["arm_name"])
    for _, at, names in groups:
        yield at, ", ".join(name.partition("@")[2] for name in names), COLOURS[family]
