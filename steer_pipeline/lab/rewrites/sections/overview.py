"""What a reader sees first: verdicts, one table of all variants, how to read the rest, what it was made from."""

from collections.abc import Iterator, Sequence
from typing import Any

from steer_pipeline.lab.controls import moved_controls, told_of_controls
from steer_pipeline.lab.report.document import Block, Bullets, Heading, Paragraph, Table, to_markdown
from steer_pipeline.lab.report.tables import Column, code, estimate, number, of, p_value, share, table
from steer_pipeline.lab.rewrites import figures
from steer_pipeline.lab.rewrites.aims import headline_scales, trait_column
from steer_pipeline.lab.rewrites.comparison import BASE, RANDOM, RESAMPLE, ComparisonTables
from steer_pipeline.lab.rewrites.headline import band_places, is_met
from steer_pipeline.lab.rewrites.off_target import told_off_target
from steer_pipeline.lab.rewrites.report_inputs import ReportContext, ReportInputs
from steer_pipeline.lab.rewrites.stored import is_mixed

LEXICON = (
    "The lexicon score is the share of sentences with a marker of the positive pole minus the share with one of the "
    "negative pole. It is exact about its markers and blind to everything else."
)

SHIFT = of("difference", "low", "high")
LEVEL = 0.05  # of tests that the verdicts go by


def head(inputs: ReportInputs) -> list[Block]:
    """Facts of the run, verdicts, and a row a variant."""
    facts = " · ".join(f"{label}: **{text}**" for label, text in inputs.context.facts.items())
    return [
        *([Paragraph(facts)] if facts else []),
        Heading("In short"),
        Bullets(_verdicts(inputs)),
        _variants(inputs, primary_traits(inputs.tables)),
    ]


def summary(inputs: ReportInputs) -> str:
    """Verdicts and the table of variants as Markdown: what fits a screen of the UI."""
    size = inputs.context.facts.get("size")
    blocks: list[Block] = [
        *([Paragraph(f"size: **{size}**")] if size else []),
        Bullets(_verdicts(inputs)),
        _variants(inputs, primary_traits(inputs.tables)),
        Paragraph("The whole report is `report.html`, beside the plots in this version's folder."),
    ]
    return to_markdown("In short", blocks)


def primary_traits(tables: ComparisonTables) -> list[str]:
    """Each persona's trait on its headline scale."""
    traits = figures.trait_metrics(tables)
    scales = headline_scales(traits)
    return [trait_column(persona, scale) for persona, scale in scales.items()]


def how_to_read(tables: ComparisonTables) -> list[Block]:
    return [
        Heading("How to read this"),
        Bullets(
            [
                f"`{BASE}` is the model as it is. `{RESAMPLE}` is the same model with other random numbers: what "
                f"differs there is chance. `{RANDOM}` adds random directions of the same length at the same block, "
                "another to every row of ten: what differs there is disturbance. A control moves where its interval "
                "lies beyond a margin; an effect counts where its interval leaves zero out and its shift lies beyond "
                "every direction of the random band and their spread.",
                "Every difference is paired: the same news item in both variants, matched by row id. Intervals are "
                "over news items, at 95%; p tests that the mean difference is zero, by the same rule: p is below 0.05 "
                "where the interval leaves zero out. What no row shows has an interval too: nothing in 50 rows "
                "leaves room for a few in 100. "
                "`Holm` corrects for all variants and metrics tested here, controls aside.",
                *([LEXICON] if figures.personas_with_markers(tables) else []),
                "The MiniLM score is 2p - 1 of a classifier of sentence embeddings; how well it separates texts that "
                "it has not seen stands in the section on vectors and scorers.",
                "Equal outputs and word overlap say how alike two texts are, not why. Read them against the "
                "resample's. In the page, point at a column's title to read what it holds.",
            ]
        ),
    ]


def made_from(context: ReportContext) -> list[Block]:
    columns = [Column("artefact", lambda one: one[0]), Column("version (sha)", lambda one: one[1], code)]
    caption = "Every number above comes from rows of these versions."
    return [Heading("Made from"), table(columns, sorted(context.versions.items()), caption)]


# ------------------------------------------------------------------------------------- the table


def _variants(inputs: ReportInputs, traits: Sequence[str]) -> Table:
    tables, sizes = inputs.tables, inputs.sizes

    def mean_of(metric: str) -> Any:
        return lambda name: tables.of(name, metric)["mean"]

    def shift_of(metric: str) -> Any:
        return lambda name: SHIFT(tables.of(name, metric))

    columns = [
        Column("variant", lambda name: name, code),
        Column("role", lambda name: tables.roles[name], description="What it is in the comparison."),
        Column(
            "pack",
            lambda name: f"{sizes[name].size}, {sizes[name].rows}",
            description="Its size, and its rows.",
        ),
        Column(
            "rows", lambda name: tables.of(name, "n_words")["n"], description="News items that are compared."
        ),
        Column("suspects", mean_of("suspect"), share, "Rows that break a rule of ours."),
        Column(
            "facts kept", mean_of("facts_kept"), share, "Share of the lead's facts that the output keeps."
        ),
        Column("equal to base", mean_of("exact_match"), share, "Rows equal to base's output."),
        *(Column(f"shift {figures.trait_title(one)}", shift_of(one), estimate()) for one in traits),
    ]
    caption = (
        "Shift: paired difference to base of the signed trait score in [-1, 1], with a 95% interval. Intervals of "
        f"{' and '.join(tables.controls)} hold simultaneously over these controls, all personas and all scales."
    )
    return table(columns, tables.variants, caption)


# ---------------------------------------------------------------------------------- the verdicts


def _verdicts(inputs: ReportInputs) -> list[str]:
    """Sentences: whether targets are met, controls stay silent, packs are alike; what is not compared."""
    tables, context = inputs.tables, inputs.context
    return [
        *_targets(tables, context),
        _controls(tables),
        _alike(tables),
        *([_mixed(inputs)] if is_mixed(inputs.sizes) else []),
        *(f"`{name}` is **not compared**: {why}." for name, why in context.left_out.items()),
    ]


def _targets(tables: ComparisonTables, context: ReportContext) -> Iterator[str]:
    places = band_places(tables.band)
    beside = {row["variant"]: told_off_target(row) for row in tables.off_target.iter_rows(named=True)}
    wanted = {name: targets for name, targets in context.targets.items() if name in tables.variants}
    for variant, targets in wanted.items():
        for persona, direction in targets.items():
            for metric in primary_traits(tables):
                if figures.persona_of(metric) != persona:
                    continue
                row = tables.of(variant, metric)
                met = is_met(row, direction, places.get((variant, persona)))
                moves = "moves" if met else "does **not** move"
                yield (
                    f"`{variant}` {moves} {persona} {direction}: {estimate()(SHIFT(row))}, p {p_value(row['p'])}, "
                    f"after Holm {p_value(row['p_holm'])}{_rank(tables, variant, persona)}"
                    f"{'; ' + beside[variant] if beside.get(variant) else ''}."
                )


def _rank(tables: ComparisonTables, variant: str, persona: str) -> str:
    """Where the shift stands among random directions; empty without a band."""
    found = tables.band.filter(variant=variant, persona=persona)
    if found.is_empty():
        return ""
    row = found.row(0, named=True)
    return (
        f"; among {row['directions']} random directions ({number(signed=True)(row['band_low'])} to "
        f"{number(signed=True)(row['band_high'])}) rank p {p_value(row['random_rank_p'])}, "
        f"against their spread p {p_value(row['spread_p'])}"
    )


def _controls(tables: ComparisonTables) -> str:
    if moved := moved_controls(tables.control_shifts):
        return f"Controls: **{'; '.join(moved)}**. Trait shifts of this run are no evidence before that is explained."
    return f"Controls: {told_of_controls(tables.control_shifts)}."


def _alike(tables: ComparisonTables) -> str:
    alike = [
        f"`{row['variant']}`"
        for row in tables.distances.iter_rows(named=True)
        if tables.roles[row["variant"]] == "steered" and row["p_holm"] > LEVEL
    ]
    if alike:
        return f"Nothing changed, beyond what a resample does: {', '.join(alike)}."
    return (
        "Something changed in every steered variant, by more than a resample does (after Holm); a random direction "
        "does that too."
    )


def _mixed(inputs: ReportInputs) -> str:
    common = inputs.tables.of(BASE, "n_words")["n"]
    return (
        f"Packs are of **several sizes**: every number is of the {common} news items that all of them have."
    )
