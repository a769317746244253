"""Labels of points that lie together do not cover one another."""

from itertools import combinations

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from steer_pipeline.lab.report.figures import bare, labels_apart, png


def boxes(figure, axes):
    """Of the texts alone, without the lines that join them to their points."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    return [Text.get_window_extent(text, renderer) for text in axes.texts]


def test_labels_of_close_points_are_placed_apart():
    figure = Figure(figsize=(4, 3))
    axes = figure.subplots()
    points = [(1.0 + 0.002 * i, 0.5 + 0.003 * i) for i in range(6)] + [(2.0, 0.9)]
    axes.scatter(*np.transpose(points))
    axes.set_xscale("log")
    axes.set_ylim(0, 1)
    bare(axes)
    figure.draw_without_rendering()
    labels_apart(axes, points, [f"{i / 4:g}" for i in range(7)], ["#333"] * 7)
    assert png(figure).startswith(b"\x89PNG")
    assert [text.get_text() for text in axes.texts if text.get_text() == "1.5"] == ["1.5"]
    # Extents of drawn text hold a line's whole height; two of them may touch by the space above letters.
    for one, other in combinations(boxes(figure, axes), 2):
        across = min(one.x1, other.x1) - max(one.x0, other.x0)
        along = min(one.y1, other.y1) - max(one.y0, other.y0)
        assert across <= 0 or along <= 0.25 * min(one.height, other.height)


def test_nothing_to_label_is_fine():
    labels_apart(Figure().subplots(), [], [], [])
