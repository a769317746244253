"""The heal loop's report: the stage table, divergence, texts side by side by seed. In: a `Stage`. Out: `heal.html`.

Says nothing that stored rows do not hold; runs no model.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from steer_pipeline.lab.heal.stage import DIVERGENCE_COLUMNS, Stage
from steer_pipeline.lab.heal.sweep import TABLE_COLUMNS
from steer_pipeline.lab.heal.table_report import pareto, stage_blocks
from steer_pipeline.lab.report.document import Block, Bullets, Heading, Paragraph, Samples, to_html
from steer_pipeline.lab.report.tables import Column, code, estimate, number, of, table

PAGE, VERSIONS, PARETO = "heal.html", "versions.json", "pareto.png"
SHOWN_PROMPTS = 4


def write_report(stage: Stage, versions: Mapping[str, str], folder: Path, *, title: str) -> Path:
    """Writes page, Pareto figure and `versions.json`; where the page lies.

    Args:
        versions: asset[partition] -> version that was read.
    """
    (folder / VERSIONS).write_text(json.dumps(dict(versions), indent=1, sort_keys=True) + "\n")
    (folder / PARETO).write_bytes(pareto(stage.tables.table))
    blocks: list[Block] = [
        *stage_blocks(stage.tables),
        Heading("Divergence", 3),
        table(_DIVERGENCE, stage.divergence.iter_rows(named=True)),
        Heading("Texts"),
        *samples(stage.texts),
        *_left_out(stage.left_out),
        Heading("Made from"),
        Bullets([f"`{name}` version `{sha}`" for name, sha in sorted(versions.items())]),
    ]
    page = folder / PAGE
    page.write_text(to_html(title, blocks), encoding="utf-8")
    return page


def write_sweep_report(sweep: pl.DataFrame, stage: Stage, folder: Path) -> Path:
    """The barrier sweep as a page; where it lies."""
    blocks: list[Block] = [
        Paragraph(
            "The same kept texts, learned again under barriers of several strengths. A stronger barrier should "
            "bring the student nearer to base and move the target less; where it does not, the table says so."
        ),
        table(_SWEEP, sweep.iter_rows(named=True)),
        *samples(stage.texts),
    ]
    page = folder / PAGE
    page.write_text(to_html("Barriers at several strengths", blocks), encoding="utf-8")
    return page


def samples(texts: pl.DataFrame, prompts: int = SHOWN_PROMPTS) -> list[Block]:
    """What every arm and seed says to the first prompts, side by side."""
    blocks: list[Block] = []
    for row_id in texts["row_id"].unique(maintain_order=True).head(prompts):
        own = texts.filter(row_id=row_id).iter_rows(named=True)
        entries = [
            (row["arm"] if row["seed"] is None else f"{row['arm']} seed {row['seed']}", row["output"])
            for row in own
        ]
        blocks.append(Samples(str(row_id), entries))
    return blocks


def _left_out(left_out: Mapping[str, str]) -> list[Block]:
    if not left_out:
        return []
    return [Heading("Not shown"), Bullets([f"{arm}: {why}" for arm, why in sorted(left_out.items())])]


_DIVERGENCE = [
    Column("arm", "arm", code, DIVERGENCE_COLUMNS["arm"]),
    Column("seeds", "n_seeds", description=DIVERGENCE_COLUMNS["n_seeds"]),
    Column("nats a token", "kl", number(), DIVERGENCE_COLUMNS["kl"]),
    Column("target", "difference", number(signed=True), DIVERGENCE_COLUMNS["difference"]),
    Column("nats for one of it", "kl_per_movement", number(), DIVERGENCE_COLUMNS["kl_per_movement"]),
]


def _yes_no(value: bool | None) -> str:
    return "–" if value is None else ("yes" if value else "no")


_SWEEP = [
    Column("barrier", "barrier", code, TABLE_COLUMNS["barrier"]),
    Column("strength", "strength", number(2), TABLE_COLUMNS["strength"]),
    Column("arm", "arm", code, TABLE_COLUMNS["arm"]),
    Column("seeds", "n_seeds", description=TABLE_COLUMNS["n_seeds"]),
    Column("target", of("difference", "low", "high"), estimate(), TABLE_COLUMNS["difference"]),
    Column("coherence", "coherence", number(), TABLE_COLUMNS["coherence"]),
    Column("nats a token", "kl", number(), TABLE_COLUMNS["kl"]),
    Column("nats fall", "kl_falls", _yes_no, TABLE_COLUMNS["kl_falls"]),
    Column("target falls", "movement_falls", _yes_no, TABLE_COLUMNS["movement_falls"]),
]
