"""What all plots share: colours, a bare frame, PNG bytes, intervals as lines, and labels that do not overlap.

In: matplotlib axes. Out: shapes on them. Knows nothing of what is plotted.
"""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

PALETTE = ("#c0392b", "#d9822b", "#7d3c98", "#1f7a5c", "#2f6db5", "#8d6e3f", "#b03a78", "#4b7f1f")
GREY, DARK = "#8a94a3", "#39424e"
LABEL_STEPS = 9  # of a label's height that it may be moved up or down


def png(figure: Figure, *, dpi: int = 110) -> bytes:
    """The figure as a file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def bare(axes: Axes) -> None:
    """No frame but the two axes, small tick labels."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=8)


def interval_row(axes: Axes, y: float, estimate: float, low: float, high: float, colour: str) -> None:
    """An estimate as a dot on its interval, at height `y`."""
    axes.plot([low, high], [y, y], color=colour, linewidth=2.2, solid_capstyle="butt")
    axes.plot(estimate, y, "o", color=colour, markersize=5)


def dots(axes: Axes, values: np.ndarray, y: float, colour: str) -> None:
    """Values as dots, spread evenly over the height of their line so that ties stay visible; bar: the mean."""
    if not len(values):
        return
    order = np.argsort(values, kind="stable")
    spread = np.empty(len(values))
    # The golden ratio fills the height evenly without a random number.
    spread[order] = ((np.arange(len(values)) * 0.6180339887) % 1 - 0.5) * 0.62
    size = float(np.clip(600 / len(values), 2, 11))
    axes.scatter(values, y + spread, s=size, color=colour, alpha=0.45, linewidth=0)
    axes.plot([values.mean()] * 2, [y - 0.36, y + 0.36], color=DARK, linewidth=1.6)


def labels_apart(
    axes: Axes,
    points: Sequence[tuple[float, float]],
    texts: Sequence[str],
    colours: Sequence[str],
    *,
    keep_off: Sequence[tuple[float, float]] = (),
    fontsize: float = 6.5,
) -> None:
    """A label beside each point, moved until it covers neither another label, nor another point, nor an axis.

    A label that has moved up or down is joined to its point by a thin line. Call it when the limits and scales of
    `axes` are final and the figure is laid out (`figure.draw_without_rendering()`).

    Args:
        points: in data coordinates.
        keep_off: points without a label, which stay visible too.
    """
    if not len(points):
        return
    scale = axes.figure.dpi / 72
    at = axes.transData.transform([*points, *keep_off])
    marks = [(x - 3 * scale, y - 3 * scale, x + 3 * scale, y + 3 * scale) for x, y in at]
    frame = axes.bbox
    outside = [(-1e9, -1e9, 1e9, frame.y0), (-1e9, -1e9, frame.x0, 1e9)]  # where the axes' own labels stand
    taken: list[_Box] = []
    for index in np.argsort(-at[: len(points), 1]):
        others = taken + outside + [mark for place, mark in enumerate(marks) if place != index]
        spots = _spots(at[index], texts[index], fontsize, scale)
        box, side, step = min(spots, key=lambda spot: (_covered(spot[0], others), abs(spot[2]), -spot[1]))
        taken.append(box)
        line = {"arrowstyle": "-", "color": colours[index], "linewidth": 0.4}
        axes.annotate(
            texts[index],
            points[index],
            xytext=(5 * side, (step - 0.3) * fontsize),
            textcoords="offset points",
            fontsize=fontsize,
            color=colours[index],
            horizontalalignment="left" if side > 0 else "right",
            annotation_clip=False,
            arrowprops=line if step else None,
        )


_Box = tuple[float, float, float, float]  # left, low, right, high, in pixels


def _spots(point: Sequence[float], text: str, fontsize: float, scale: float) -> list[tuple[_Box, int, int]]:
    """Where a label may stand: its box, 1 for right and -1 for left of the point, and steps up from it."""
    (x, y), height = point, fontsize * scale
    width = TextPath((0, 0), text, prop=FontProperties(size=fontsize)).get_extents().width * scale
    lefts = {1: x + 5 * scale, -1: x - 5 * scale - width}
    return [
        ((left, y + (step - 0.4) * height, left + width, y + (step + 0.6) * height), side, step)
        for side, left in lefts.items()
        for step in range(-LABEL_STEPS, LABEL_STEPS + 1)
    ]


def _covered(box: _Box, others: Sequence[_Box]) -> float:
    """Area of `box` that `others` lie on."""
    left, low, right, high = box
    return sum(
        max(0.0, min(right, other[2]) - max(left, other[0]))
        * max(0.0, min(high, other[3]) - max(low, other[1]))
        for other in others
    )
