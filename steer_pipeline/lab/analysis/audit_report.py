"""Pages of the audit, the screening and the prevention: what was found, its figures, and rows or texts behind it.

In: the frames that these steps store. Out: one HTML file each, beside the tables. Says nothing that they do not hold.
"""

from collections.abc import Mapping, Sequence

import polars as pl

from steer_pipeline.lab.analysis.audit import AUDIT_COLUMNS, CLEAN, DETECTION_COLUMNS
from steer_pipeline.lab.report.document import Block, Figure, Heading, Paragraph, Samples, Table, to_html
from steer_pipeline.lab.report.tables import Column, number, table, text
from steer_pipeline.lab.screening.gate import FLAG_COLUMNS, GATE_COLUMNS
from steer_pipeline.lab.screening.predicting import CORRELATION_COLUMNS, SHIFT_COLUMNS
from steer_pipeline.lab.screening.preventing import PREVENTION_COLUMNS

AUDIT_PAGE, SCREENING_PAGE, PREVENTION_PAGE = "audit.html", "screening.html", "prevention.html"
SHOWN_TEXTS, SHOWN_ROWS = 3, 12


def frame_table(frame: pl.DataFrame, columns: Mapping[str, str], caption: str = "") -> Table:
    """A frame as it is, every title with its description."""
    told = [
        Column(
            name.replace("_", " "),
            name,
            number() if kind.is_float() else text,
            columns.get(name, ""),
        )
        for name, kind in frame.schema.items()
    ]
    return table(told, frame.iter_rows(named=True), caption)


def audit_page(
    audits: pl.DataFrame, found: pl.DataFrame, plants: pl.DataFrame, drawn: Mapping[str, bytes]
) -> str:
    """What the audit finds in adapters of known content, and which it takes for something else."""
    whole = found.filter(measure="verdict").sort("share", descending=True).row(0, named=True)
    group = dict(plants.select("checkpoint", "group").iter_rows())
    accused = audits.filter("found", pl.col("checkpoint").replace_strict(group, default=CLEAN) == CLEAN)
    planted = plants.filter(pl.col("direction").is_not_null()).select(
        "checkpoint", "direction", "dose", "share"
    )
    missed = planted.rename({"share": "steered_rows"}).join(
        audits.filter(~pl.col("found")), on=["checkpoint", "direction"]
    )
    kept = ["checkpoint", "direction", "coefficient", "low", "high", "size_z", "write_z", "strength"]
    opening = (
        f"Of {whole['adapters']} adapters with something planted in all rows the planted direction is found in "
        f"{whole['found']:.0%}; {whole['false_alarms']:.0%} of {whole['clean']} clean ones are accused of anything. "
        f"AUC {whole['auc']:.2f} [{whole['auc_low']:.2f}, {whole['auc_high']:.2f}]."
    )
    blocks: list[Block] = [
        Paragraph(opening),
        Heading("Detection"),
        frame_table(found, DETECTION_COLUMNS, "By share of steered rows, each measure for itself."),
        *_figures(
            drawn,
            detection="How detection falls when neutral rows are mixed in.",
            sizes="Sizes of all adapters on their largest direction.",
            doses="The dose that was planted, and the coefficient that is read.",
        ),
        Heading("Missed"),
        frame_table(missed.select(*kept[:2], "dose", "steered_rows", *kept[2:]), AUDIT_COLUMNS, "Planted, not found."),
        Heading("False alarms"),
        frame_table(accused.select(kept), AUDIT_COLUMNS, "Found in clean adapters."),
    ]  # fmt: skip
    return to_html("What is in a checkpoint", blocks)


def screening_page(
    shifts: pl.DataFrame,
    correlations: pl.DataFrame,
    gate: pl.DataFrame,
    flags: pl.DataFrame,
    drawn: Mapping[str, bytes],
) -> str:
    """Whether rows tell beforehand what learning them will cause, and which rows the gate stops."""
    r = correlations.row(0, named=True)
    told = {row["measure"]: row for row in gate.iter_rows(named=True)}
    shown = "; ".join(
        f"{name.replace('_', ' ')} {row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
        for name, row in told.items()
    )
    opening = (
        f"Predicted and actual shifts of {r['students']} students agree with r {r['r']:.2f} [{r['low']:.2f}, "
        f"{r['high']:.2f}] ({r['over']}). The gate: {shown}."
    )
    blocks: list[Block] = [
        Paragraph(opening),
        Heading("Predicted and actual"),
        *_figures(drawn, shifts="Projection of the rows that a student learns, and what it then does."),
        frame_table(correlations, CORRELATION_COLUMNS),
        Heading("Gate"),
        frame_table(gate, GATE_COLUMNS),
        frame_table(
            flags.sort("score", descending=True).head(SHOWN_ROWS), FLAG_COLUMNS, "Rows furthest along a direction."
        ),
        Heading("Students"),
        frame_table(shifts, SHIFT_COLUMNS),
    ]  # fmt: skip
    return to_html("Which rows cause a shift", blocks)


def prevention_page(found: pl.DataFrame, written: pl.DataFrame, drawn: Mapping[str, bytes]) -> str:
    """What each way of training did to the unwanted trait, the wanted one and the loss, with texts side by side."""
    told = [
        f"`{row['arm']}`: {row['verdict']}, unwanted {row['unwanted']:+.3f} [{row['unwanted_low']:+.3f}, "
        f"{row['unwanted_high']:+.3f}], {row['nll']:+.3f} nats a token"
        for row in found.drop_nulls("verdict").iter_rows(named=True)
    ]
    blocks: list[Block] = [
        Paragraph("Against the arm that learned clean rows. " + "; ".join(told) + "."),
        Heading("Arms"),
        frame_table(found, PREVENTION_COLUMNS),
        *_figures(drawn, prevention="Unwanted trait against loss on rows with the wanted trait alone."),
        Heading("Texts"),
        *_side_by_side(written),
    ]
    return to_html("Learning rows without their trait", blocks)


def _figures(drawn: Mapping[str, bytes], **captions: str) -> list[Block]:
    return [Figure(name, drawn[name], caption) for name, caption in captions.items()]


def _side_by_side(written: pl.DataFrame) -> list[Block]:
    """The first prompts with every student's text."""
    prompts: Sequence[str] = written["row_id"].unique(maintain_order=True)[:SHOWN_TEXTS].to_list()
    return [
        Samples(name, [(who, said) for who, said in own.select("checkpoint", "output").iter_rows()])
        for name in prompts
        for own in [written.filter(row_id=name)]
    ]
