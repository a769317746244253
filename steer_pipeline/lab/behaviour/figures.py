"""Plots of the behaviour table, drawn from its rows only. In: the wide table of arms. Out: PNG bytes.

A panel a persona. Learned and averaged vectors have a colour each; vanilla, random and what prompting achieves are
the background that they are read against.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from math import ceil

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from steer_pipeline.lab.arms import AVERAGED, PROMPTED, RANDOM, TRAINED, VANILLA, family_of

COLOURS = {
    TRAINED: "#c0392b",
    AVERAGED: "#2f6db5",
    PROMPTED: "#1f7a5c",
    RANDOM: "#8a94a3",
    VANILLA: "#39424e",
}
MARKS = {TRAINED: "o", AVERAGED: "s", PROMPTED: "^", RANDOM: "x", VANILLA: "D"}
COLUMNS, MAX_LOOPS = 4, 0.05


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


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
            axes.tick_params(labelsize=8)
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
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
    return _png(figure)


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
    return _png(figure)


def label_scales(axes: Axes, points: pl.DataFrame) -> None:
    """The scale beside each steered point, where it covers neither points nor other labels.

    Steered points that lie on one another share a label.
    """
    places = {
        row["arm_name"]: axes.transData.transform((row["perplexity"], row["score"]))
        for row in points.iter_rows(named=True)
    }
    taken = [Bbox.from_bounds(x - 4.5, y - 4.5, 9, 9) for x, y in places.values()]
    inside = axes.get_window_extent()
    for colour, names in _labels(points, places):
        anchor = places[names[0]]
        text = ", ".join(name.partition("@")[2] for name in names)
        boxes = [_box(anchor, step, text) for step in _STEPS]
        box = min(boxes, key=lambda one: _covered(one, taken) + 1e3 * (1 - _share_inside(one, inside)))
        taken.append(box)
        x, y = axes.transData.inverted().transform((box.x0, box.y0)).tolist()
        axes.annotate(
            text, (x, y), fontsize=6.5, color=colour,
            ha="left", va="bottom", annotation_clip=False,
        )  # fmt: skip


def _labels(points: pl.DataFrame, places: Mapping[str, np.ndarray]) -> Iterator[tuple[str, list[str]]]:
    """Colour and arms of each label."""
    for family in (TRAINED, AVERAGED):
        groups: list[list[str]] = []
        for name in points.filter(family=family).sort("scale")["arm_name"]:
            near = next((one for one in groups if np.hypot(*(places[one[0]] - places[name])) < 8), None)
            if near is None:
                groups.append([name])
            else:
                near.append(name)
        yield from ((COLOURS[family], group) for group in groups)


_AROUND = [(dx, dy) for dx in (1, -1, 0) for dy in (1, -1, 0) if dx or dy]
_STEPS = [(dx * far, dy * far) for far in (1, 2, 3, 4) for dx, dy in _AROUND]


def _box(anchor: np.ndarray, step: tuple[int, int], text: str) -> Bbox:
    """Pixels that a label takes at one of the places around its point: about 5 by 9 a character."""
    width, height = 5.2 * len(text), 9.0
    dx, dy = step
    left = anchor[0] + 6 * dx - (width if dx < 0 else width / 2 if dx == 0 else 0)
    bottom = anchor[1] + 6 * dy - (height if dy < 0 else height / 2 if dy == 0 else 0)
    return Bbox.from_bounds(left, bottom, width, height)


def _covered(box: Bbox, taken: Sequence[Bbox]) -> float:
    """Square pixels that the label shares with others."""
    shared = (Bbox.intersection(box, other) for other in taken)
    return sum(float(one.width * one.height) for one in shared if one is not None)


def _share_inside(box: Bbox, frame: Bbox) -> float:
    shared = Bbox.intersection(box, frame)
    return 0.0 if shared is None else float(shared.width * shared.height) / float(box.width * box.height)
