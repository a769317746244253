"""What steering cost and what it moved beside its aim: costs against base, one number, the random band, all axes."""

from collections.abc import Callable, Mapping
from typing import Any

import polars as pl

from steer_pipeline.lab.quality.coherence import COSTS
from steer_pipeline.lab.report.document import Block, Bullets, Figure, Heading, Paragraph
from steer_pipeline.lab.report.tables import Column, code, estimate, number, of, p_value, share, table, text
from steer_pipeline.lab.rewrites import cost_figures
from steer_pipeline.lab.rewrites.comparison import ComparisonTables
from steer_pipeline.lab.rewrites.costs import COSTS_COLUMNS
from steer_pipeline.lab.rewrites.report_inputs import ReportContext

SHARES = ("suspects", "facts_lost", "loops")  # of texts or facts; the others are differences of logarithms
NOT_MADE = "Not in this comparison: materialise rewrite_comparison again."


def costs(tables: ComparisonTables, context: ReportContext) -> list[Block]:
    """Costs of every variant with their limits, and the combined score."""
    blocks: list[Block] = [Heading("What it costs")]
    if tables.costs.is_empty():
        return [*blocks, Paragraph(NOT_MADE)]
    beyond = tables.costs.filter(~pl.col("within"))
    outside = [f"`{row['variant']}`: {row['cost'].replace('_', ' ')}" for row in beyond.iter_rows(named=True)]
    blocks += [
        Paragraph(
            f"Beyond the profile's limits: **{'; '.join(outside)}**."
            if outside
            else "Every cost that was measured lies within the profile's limits."
        ),
        Figure(
            "costs",
            cost_figures.costs(tables),
            "Paired difference to base with its 95% interval. Green: what the profile's `coherence` allows.",
        ),
        table(_cost_columns(), [row for cost in COSTS for row in _of(tables, cost)], _meanings()),
        Heading("Trait, facts and fluency in one number", 3),
        table(_combined_columns(), tables.combined.iter_rows(named=True), COMBINED_SAYS),
    ]
    return [*blocks, *_band(tables, context)]


def _of(tables: ComparisonTables, cost: str) -> list[dict[str, Any]]:
    return tables.costs.filter(cost=cost).to_dicts()


def _meanings() -> str:
    said = "; ".join(f"`{name}`: {meaning}" for name, meaning in COSTS.items())
    return f"All against base on the same rows. {said}."


def _cost_columns() -> list[Column]:
    return [
        Column("cost", "cost", code),
        Column("variant", "variant", code),
        Column("N", "n", text, "News items of which both texts have the cost."),
        Column("base", _by_cost("base"), _shown, "Base's mean."),
        Column("variant's", _by_cost("mean"), _shown, "The variant's mean."),
        Column(
            "difference [CI95]", of("difference", "low", "high"), estimate(), "Paired difference to base."
        ),
        Column("detectable", "detectable", number(), COSTS_COLUMNS["detectable"]),
        Column("limit", "limit", number(), "Largest difference allowed; of length and nll either way."),
        Column("within", lambda row: {True: "yes", False: "**no**", None: None}[row["within"]]),
    ]


def _by_cost(name: str) -> Callable[[Mapping[str, Any]], tuple[bool, float | None]]:
    return lambda row: (row["cost"] in SHARES, row[name])


def _shown(value: tuple[bool, float | None]) -> str:
    return (share if value[0] else number())(value[1])


COMBINED_SAYS = (
    "Harmonic mean of three parts, each from 0 to 2, as AxBench has it: the trait that the variant aims at first (1 "
    "where the text shows neither pole), facts kept, and fluency, which falls with the ratio of perplexities to base's "
    "text under the unsteered model. Base: its own texts by the same trait. Prompted: what asking for it achieves."
)


def _combined_columns() -> list[Column]:
    score = estimate(2, signed=False)
    return [
        Column("variant", "variant", code),
        Column("trait", lambda row: f"{row['persona']} {row['wanted']}, {row['scale']}"),
        Column("N", "n", text, "News items with a score."),
        Column("score [CI95]", of("score", "low", "high"), score),
        Column("base", "base", number(2), "Base's own score on this trait."),
        Column("prompted", "prompted", code, "Variant that is prompted for the same."),
        Column("its score [CI95]", of("prompted_score", "prompted_low", "prompted_high"), score),
    ]


# ------------------------------------------------------------------------------------------- band


def _band(tables: ComparisonTables, context: ReportContext) -> list[Block]:
    blocks: list[Block] = [Heading("Beside random directions", 3)]
    if tables.band.is_empty():
        return [*blocks, Paragraph(f"No random band: {context.without_band or 'none was made'}.")]
    first = tables.band.row(0, named=True)
    directions, rows = first["directions"], first["n"]
    columns = [
        Column("variant", "variant", code),
        Column("trait", lambda row: f"{row['persona']} {row['wanted']}, {row['scale']}"),
        Column("N", "n", text, "News items that the directions rewrote."),
        Column("shift", "shift", number(signed=True), "The variant's shift on these items."),
        Column("band, low", "band_low", number(signed=True), "Smallest shift of a random direction."),
        Column("mean", "band_mean", number(signed=True)),
        Column("high", "band_high", number(signed=True), "Largest shift of a random direction."),
        Column(
            "rank p", "random_rank_p", p_value, "(1 + directions that reach the shift) / (1 + directions)."
        ),
    ]
    return [
        *blocks,
        Figure(
            "random_band",
            cost_figures.band(tables),
            "Shift of each variant on the band's news items; grey: from the smallest to the largest shift of a random "
            "direction, the bar is their mean.",
        ),
        table(
            columns,
            tables.band.iter_rows(named=True),
            f"{directions} random directions with the sites and norms of the strongest steered variant rewrote the "
            f"first {rows} news items. Disturbance alone moves some scores: these directions, not zero, are the floor. "
            f"The smallest p that {directions} directions can give is {1 / (1 + directions):.3f}.",
        ),
    ]


# ------------------------------------------------------------------------------------------- axes


def side_effects(tables: ComparisonTables, context: ReportContext) -> list[Block]:
    """The matrix of variants by axes, and aim against side effects."""
    blocks: list[Block] = [Heading("Aim and side effects")]
    if tables.matrix.is_empty():
        return [*blocks, Paragraph(NOT_MADE)]
    signed = number(2, signed=True)
    columns = [
        Column("variant", "variant", code),
        Column(
            "aim [CI95]", of("aim", "aim_low", "aim_high"), estimate(2), "Movement along what it aims at."
        ),
        Column("side [CI95]", of("side", "side_low", "side_high"), estimate(2, signed=False)),
        Column(
            "random, largest", "random_side", number(2), "Furthest that a random direction moves, all axes."
        ),
        *(Column(axis, _on(axis), signed, f"Movement on {axis}.") for axis in _axes(tables)),
    ]
    moved = {
        variant: dict(part.select("axis", "moved").iter_rows())
        for (variant,), part in tables.matrix.partition_by("variant", as_dict=True).items()
    }
    rows = [row | {"moved": moved[row["variant"]]} for row in tables.aims.iter_rows(named=True)]
    return [
        *blocks,
        Figure(
            "side_effects",
            cost_figures.matrix(tables),
            "Movement of every variant on every axis, in standard deviations of base. Framed: what the variant aims "
            "at. Faint: within the band of random directions.",
        ),
        table(
            columns,
            rows,
            "In standard deviations of base's scores. Aim: movement along the traits that the variant aims at; side: "
            "length of what is left of its movement over all axes. Without a random band its column is empty.",
        ),
        *([Bullets(_unscored(context))] if context.axes_left_out else []),
    ]


def _on(axis: str) -> Callable[[Mapping[str, Any]], float]:
    return lambda row: row["moved"][axis]


def _axes(tables: ComparisonTables) -> list[str]:
    return tables.matrix["axis"].unique().sort().to_list()


def _unscored(context: ReportContext) -> list[str]:
    return [f"`{axis}` is no axis here: {why}." for axis, why in context.axes_left_out.items()]
