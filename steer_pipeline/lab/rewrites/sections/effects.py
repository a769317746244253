"""What the variants say: trait scores, marker words, content and form, and rewrites side by side."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from steer_pipeline.lab.report.document import Block, Figure, Heading, Paragraph, Samples
from steer_pipeline.lab.report.tables import Column, code, estimate, number, of, p_value, share, table, text
from steer_pipeline.lab.rewrites import figures
from steer_pipeline.lab.rewrites.comparison import (
    BASE,
    METRICS,
    RANDOM,
    RESAMPLE,
    ComparisonTables,
)

N_EXAMPLES = 3
N_SAMPLE_ROWS = 3
PROMPT_CHARS, OUTPUT_CHARS = 160, 360
DETECTABLE = "Smallest difference that so many rows find in four runs of five, from the spread seen."
MARKERS = "Markers of the {} pole a rewrite, {}."


def short(output: str, limit: int = OUTPUT_CHARS) -> str:
    """On one line, cut after a whole word with an ellipsis."""
    flat = " ".join(output.split())
    return flat if len(flat) <= limit else flat[: limit + 1].rpartition(" ")[0] + " …"


# ------------------------------------------------------------------------------------------ traits


def traits(tables: ComparisonTables) -> list[Block]:
    """Every trait, scale and variant beside both controls."""
    signed = number(signed=True)
    columns = [
        Column("trait", lambda row: figures.trait_title(row["metric"]), description="Persona and scale."),
        Column("variant", "variant", code),
        Column("N", "n", text, "News items that the difference stands on."),
        Column("mean", "mean", signed, "Mean score in [-1, 1]."),
        Column("median", "median", signed),
        Column("sd", "sd", number(), "Standard deviation over news items."),
        Column("shift [CI95]", of("difference", "low", "high"), estimate(), "Paired difference to base."),
        Column("detectable", "detectable", number(), DETECTABLE),
        Column("p", "p", p_value, "Two-sided test that its mean is zero."),
        Column("Holm", "p_holm", p_value, "p over all variants and metrics tested here; none of controls."),
        Column("resample", _control("resample"), estimate(), "Shift of base_resample on the same trait."),
        Column("random", _control("random"), estimate(), "Shift of random_direction on the same trait."),
    ]
    rows = [tables.of(name, metric) for metric in figures.trait_metrics(tables) for name in tables.variants]
    return [
        Heading("Traits"),
        Figure(
            "trait_shifts",
            figures.trait_shifts(tables),
            "Mean difference to base with its 95% interval. Grey band: the controls' simultaneous intervals.",
        ),
        table(
            columns,
            rows,
            "Shift: paired difference to base; `resample` and `random`: the controls' shifts on the same trait.",
        ),
        Figure(
            "trait_rows",
            figures.row_distributions(tables),
            "The same differences row by row: one dot a news item, the bar is the mean.",
        ),
    ]


def _control(name: str) -> Callable[[Any], tuple]:
    """A control's difference with its interval, from a row of the summary."""
    return of(f"{name}_difference", f"{name}_low", f"{name}_high")


# ---------------------------------------------------------------------------------------- keywords


def keywords(tables: ComparisonTables) -> list[Block]:
    """Janus's table of keyword hits, for every persona with a lexicon, at word boundaries and beside both controls."""
    personas = figures.personas_with_markers(tables)
    if not personas:
        return []
    rows = [row for persona in personas for row in _keyword_rows(tables, persona)]
    moved = [name for name in tables.variants if tables.roles[name] in ("steered", "prompted")]
    return [
        Heading("Keyword hits"),
        table(
            _keyword_columns(),
            rows,
            "Markers a rewrite, matched at word boundaries, with every persona's lexicon for every variant; "
            "the deltas of the controls beside each. Opposite: markers of the negative pole.",
        ),
        Heading("Largest changes in keywords", 3),
        Paragraph(
            f"For each steered or prompted variant the {N_EXAMPLES} news items whose markers change most against base, "
            "on the lexicon that changes most. These are the most extreme rows and no fair sample; for that see "
            "the side-by-side section."
        ),
        *(example for name in moved for example in _top_examples(tables, name)),
    ]


def _keyword_columns() -> list[Column]:
    plain, signed = number(2), number(2, signed=True)
    return [
        Column("lexicon", "persona"),
        Column("variant", "variant", code),
        Column("base", "base", plain, MARKERS.format("positive", "base")),
        Column("steered", "steered", plain, MARKERS.format("positive", "this variant")),
        Column("delta", "delta", signed, "Difference of the two."),
        Column("resample's", "resample", signed, "The same difference of base_resample."),
        Column("random's", "random", signed, "The same difference of random_direction."),
        Column("rows with a hit", "shown", share, "Rewrites with at least one marker of the positive pole."),
        Column("opposite: base", "opposite_base", plain, MARKERS.format("negative", "base")),
        Column("opposite: steered", "opposite", plain, MARKERS.format("negative", "this variant")),
        Column("opposite: delta", "opposite_delta", signed, "Difference of the two."),
    ]


def _keyword_rows(tables: ComparisonTables, persona: str) -> Iterator[dict[str, Any]]:
    positive, negative = (pl.col(f"hits_{persona}_{side}") for side in ("positive", "negative"))
    hits, opposite, shown = (
        dict(tables.rows.group_by("variant").agg(value).iter_rows())
        for value in (positive.mean(), negative.mean(), (positive > 0).mean())
    )
    for name in (name for name in tables.variants if name != BASE):
        yield {
            "persona": persona,
            "variant": name,
            "base": hits[BASE],
            "steered": hits[name],
            "delta": hits[name] - hits[BASE],
            "resample": hits[RESAMPLE] - hits[BASE],
            "random": hits[RANDOM] - hits[BASE],
            "shown": shown[name],
            "opposite_base": opposite[BASE],
            "opposite": opposite[name],
            "opposite_delta": opposite[name] - opposite[BASE],
        }


def _top_examples(tables: ComparisonTables, variant: str) -> list[Block]:
    net = {
        persona: pl.col(f"hits_{persona}_positive") - pl.col(f"hits_{persona}_negative")
        for persona in figures.personas_with_markers(tables)
    }
    own, base = (tables.rows.filter(pl.col("variant") == name) for name in (variant, BASE))
    joined = own.select("row_id", "source", "output", **net).join(
        base.select("row_id", base="output", **{f"base_{name}": value for name, value in net.items()}),
        on="row_id",
    )
    deltas = {name: joined[name] - joined[f"base_{name}"] for name in net}
    persona = max(deltas, key=lambda name: abs(float(deltas[name].sum())))
    top = joined.with_columns(delta=deltas[persona]).sort(
        pl.col("delta").abs(), "row_id", descending=[True, False]
    )
    return [_example(variant, persona, row) for row in top.head(N_EXAMPLES).iter_rows(named=True)]


def _example(variant: str, persona: str, row: Mapping[str, Any]) -> Samples:
    return Samples(
        f"{variant}, {persona} lexicon, {row['delta']:+d} markers (row {row['row_id']})",
        [
            ("news", short(row["source"], PROMPT_CHARS)),
            (BASE, short(row["base"])),
            (variant, short(row["output"])),
        ],
    )


# ----------------------------------------------------------------------------------------- content


def content(tables: ComparisonTables) -> list[Block]:
    """Likeness, length, facts and faults of every variant."""
    shift = of("difference", "low", "high")
    columns = [
        Column("metric", "metric", description="Their meanings stand below the table."),
        Column("variant", "variant", code),
        Column("N", "n", text, "News items that the difference stands on."),
        Column("mean", *_by_metric(lambda row: row["mean"], number)),
        Column("median", *_by_metric(lambda row: row["median"], number)),
        Column("against", lambda row: row["reference"], text, "What it is compared with."),
        Column("difference [CI95]", *_by_metric(shift, _estimate), "Paired difference to that."),
        Column("detectable", *_by_metric(lambda row: row["detectable"], number), DETECTABLE),
        Column("p", "p", p_value, "Two-sided test that its mean is zero."),
        Column("Holm", "p_holm", p_value, "p over all variants and metrics tested here; none of controls."),
        Column("resample", *_by_metric(_control("resample"), _estimate), "The difference of base_resample."),
        Column("random", *_by_metric(_control("random"), _estimate), "The difference of random_direction."),
    ]
    rows = [tables.of(name, metric) for metric in METRICS for name in tables.variants]
    return [
        Heading("Content and form"),
        table(columns, rows, "; ".join(f"`{name}`: {meaning}" for name, meaning in METRICS.items()) + "."),
        Figure(
            "text_distributions",
            figures.text_distributions(tables),
            "One dot a row, the bar is the mean. Overlap of `base` with itself is 1 by definition.",
        ),
    ]


def _estimate(digits: int) -> Callable[[Any], str]:
    return estimate(digits)


def _by_metric(value: Callable[[Any], Any], style: Callable[[int], Callable[[Any], str]]) -> tuple[Any, Any]:
    """Value and format of a column whose digits hang on the row's metric: counts of words have one."""
    few, many = style(1), style(3)

    def valued(row: Mapping[str, Any]) -> tuple[bool, Any]:
        return row["metric"] == "n_words", value(row)

    return valued, lambda pair: (few if pair[0] else many)(pair[1])


# ------------------------------------------------------------------------------------ side by side


def side_by_side(tables: ComparisonTables) -> list[Block]:
    """A few news items in every variant, chosen without looking at them."""
    ids = sorted(tables.agreement["row_id"].to_list())
    chosen = [ids[(2 * i + 1) * len(ids) // (2 * N_SAMPLE_ROWS)] for i in range(min(N_SAMPLE_ROWS, len(ids)))]
    return [
        Heading("Side by side"),
        Paragraph(
            f"{len(chosen)} news items in every variant, evenly spaced in the order of row ids (hashes): not chosen by "
            "what the outputs say."
        ),
        *(_in_every_variant(tables, row_id, tables.variants) for row_id in chosen),
    ]


def _in_every_variant(tables: ComparisonTables, row_id: str, variants: Sequence[str]) -> Samples:
    rows = tables.rows.filter(pl.col("row_id") == row_id)
    outputs = dict(zip(rows["variant"], rows["output"], strict=True))
    entries = [("news", short(rows["source"][0], 2 * OUTPUT_CHARS))]
    return Samples(f"row {row_id}", [*entries, *((n, outputs[n]) for n in variants if n in outputs)])
