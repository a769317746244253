"""The rounds' report: their trajectory, texts by round and prompt. In: stored states and texts. Out: `rounds.html`."""

from pathlib import Path

import polars as pl
from matplotlib.figure import Figure as Plot

from steer_pipeline.lab.heal.rounds import TRAJECTORY, TRAJECTORY_COLUMNS
from steer_pipeline.lab.heal.stage_report import samples
from steer_pipeline.lab.limits import MIN_COHERENCE
from steer_pipeline.lab.report.document import Block, Figure, Heading, Paragraph, to_html
from steer_pipeline.lab.report.figures import DARK, GREY, PALETTE, bare, png
from steer_pipeline.lab.report.tables import Column, estimate, number, of, table, text

PAGE, PLOT = "rounds.html", "trajectory.png"
EXPECTED = (
    "What success looks like: the target rises or stays while coherence stays near 1 and the vector keeps its "
    "direction (cosine above 0.5). Otherwise: a target that rises while coherence falls is a loop that feeds on its "
    "own damage; a cosine that falls says that later rounds follow another direction than the persona's."
)


def write_rounds(rows: pl.DataFrame, texts: pl.DataFrame, folder: Path) -> Path:
    """Writes table, figure and page; where the page lies.

    Args:
        rows: `rounds.TRAJECTORY_SCHEMA`.
        texts: base's, the steered model's and those of every round's student, as `evaluating` has them.
    """
    rows.write_parquet(folder / TRAJECTORY)
    drawn = figure(rows)
    (folder / PLOT).write_bytes(drawn)
    blocks: list[Block] = [
        Paragraph(EXPECTED),
        Figure(
            "trajectory",
            drawn,
            "Movement of the target, coherence and cosine with the first vector by round.",
        ),
        table(_COLUMNS, rows.iter_rows(named=True)),
        Heading("Texts by round"),
        *samples(texts),
    ]
    page = folder / PAGE
    page.write_text(to_html("Rounds of steering, filtering and healing", blocks), encoding="utf-8")
    return page


def figure(rows: pl.DataFrame) -> bytes:
    """Three panels over rounds; drawn from the rows alone."""
    plot = Plot(figsize=(9.6, 3.2), layout="constrained")
    known = rows.drop_nulls("difference")
    at = known["number"].to_list()
    panels = plot.subplots(1, 3)
    for axes, name, colour in zip(panels, ("difference", "coherence", "cosine"), PALETTE, strict=False):
        axes.plot(at, known[name].to_list(), "o-", color=colour)
        axes.set_xticks(rows["number"].to_list())
        axes.set_xlabel("round", fontsize=8)
        axes.set_title({"difference": "target, less base"}.get(name, name), fontsize=9)
        bare(axes)
    panels[0].vlines(at, known["low"].to_list(), known["high"].to_list(), color=PALETTE[0])
    panels[0].axhline(0, color=GREY, linewidth=0.8)
    panels[1].axhline(MIN_COHERENCE, color=DARK, linewidth=0.8, linestyle="--")
    return png(plot)


_COLUMNS = [
    Column(title, value, shown, TRAJECTORY_COLUMNS.get(str(value), ""))
    for title, value, shown in (
        ("round", "number", text),
        ("target", of("difference", "low", "high"), estimate()),
        ("coherence", "coherence", number()),
        ("worst signal", "worst_signal", text),
        ("nats a token", "kl", number()),
        ("cosine", "cosine", number(2)),
        ("dose", "dose", number()),
        ("learned", "kept", text),
        ("of", "sampled", text),
        ("verdict", "verdict", text),
        ("stopped", "stopped", text),
    )
]
