"""Whether the packs are whole, alike and free of suspect rows."""

from collections.abc import Iterator
from typing import Any

import polars as pl

from steer_pipeline.lab.quality import OUR_RULES, RULES
from steer_pipeline.lab.report.document import Block, Bullets, Heading, Paragraph, Samples, Table
from steer_pipeline.lab.report.tables import Column, code, interval, number, of, p_value, share, table, text
from steer_pipeline.lab.rewrites.comparison import ComparisonTables
from steer_pipeline.lab.rewrites.sections.effects import N_EXAMPLES, short

ANY_OF_OURS = "any of ours"


def validation(tables: ComparisonTables) -> list[Block]:
    """Counts, agreement, distance to base against the resample's, and suspects by rule with examples."""
    return [
        Heading("Validation"),
        _packs(tables),
        _agreement(tables),
        Heading("Differs from base more than a resample does", 3),
        _distances(tables),
        Heading("Suspects by rule", 3),
        _suspects(tables),
        Bullets([f"`{rule.name}`: {rule.description}" for rule in RULES.values()]),
        *(_suspect_examples(tables) or [Paragraph("No output breaks a rule of ours.")]),
    ]


def _packs(tables: ComparisonTables) -> Table:
    def share_of(column: str) -> Any:
        def counted(row: Any) -> str:
            own = tables.rows.filter(pl.col("variant") == row["variant"])
            return f"{int(own[column].sum())} of {own.height}"

        return counted

    columns = [
        Column("variant", "variant", code),
        Column("rows", "rows", text, "Rows of the pack that are compared."),
        Column("missing", "missing", text, "Row ids of base that it lacks."),
        Column("extra", "extra", text, "Row ids that base lacks."),
        Column("duplicated", "duplicated", text, "Row ids that occur twice."),
        Column("equal to base", share_of("exact_match"), text, "Rows equal to base's output."),
        Column(
            "overlap with base",
            lambda row: tables.of(row["variant"], "overlap")["mean"],
            number(),
            "Mean multiset Jaccard of words.",
        ),
        Column(
            "words, delta",
            lambda row: tables.of(row["variant"], "n_words")["difference"],
            number(1, signed=True),
            "Mean paired difference in words.",
        ),
        Column("truncated", share_of("truncated"), text, "Rows cut by the token limit."),
    ]
    caption = (
        "Counts, alignment with base by row id, likeness, mean change in words, rows cut by the token limit."
    )
    return table(columns, tables.alignment.iter_rows(named=True), caption)


def _agreement(tables: ComparisonTables) -> Paragraph:
    all_differ, n = int(tables.agreement["all_differ"].sum()), tables.agreement.height
    compared = [f"`{name}`" for name in tables.variants if tables.roles[name] in ("base", "steered")]
    return Paragraph(
        f"In **{all_differ} of {n}** news items ({share(all_differ / n if n else None)}) all of "
        f"{', '.join(compared)} have different outputs."
    )


def _distances(tables: ComparisonTables) -> Table:
    columns = [
        Column("variant", "variant", code),
        Column("N", "n"),
        Column("distance", "distance", number(), "Mean 1 - word overlap with base."),
        Column("resample's", "resample_distance", number(), "The same of base_resample."),
        Column("difference", "difference", number(signed=True), "Mean of the paired differences."),
        Column("CI95", of("low", "high"), interval()),
        Column(
            "p, one-sided", "p", p_value, "Sign-flip test that the variant is no further than the resample."
        ),
        Column("Holm", "p_holm", p_value, "The same after Holm over these variants."),
    ]
    caption = (
        "Distance: 1 - word overlap with base, row by row, against that of `base_resample` in the same row."
    )
    return table(columns, tables.distances.iter_rows(named=True), caption)


def _suspects(tables: ComparisonTables) -> Table:
    def count_in(variant: str) -> Any:
        own = tables.rows.filter(pl.col("variant") == variant)

        def counted(rule: tuple[str, str]) -> int:
            hit = own["suspect"] if rule[0] == ANY_OF_OURS else own["suspects"].list.contains(rule[0])
            return int(hit.sum())

        return counted

    columns = [
        Column("rule", lambda rule: rule[0], lambda name: name if name == ANY_OF_OURS else code(name)),
        Column("origin", lambda rule: rule[1], text, "Whose rule it is; gates count ours."),
        *(Column(name, count_in(name)) for name in tables.variants),
    ]
    rules = [*((rule.name, rule.origin) for rule in RULES.values()), (ANY_OF_OURS, "ours")]
    caption = "Rows that break each rule. Gates count ours; Janus's are kept for comparison."
    return table(columns, rules, caption)


def _suspect_examples(tables: ComparisonTables) -> list[Block]:
    """Up to three examples a rule, in row order."""

    def examples() -> Iterator[Samples]:
        for rule in OUR_RULES:
            hit = tables.rows.filter(pl.col("suspects").list.contains(rule)).head(N_EXAMPLES)
            entries = [
                (f"{row['variant']}, row {row['row_id']}", short(row["output"]))
                for row in hit.iter_rows(named=True)
            ]
            if entries:
                yield Samples(f"Suspects: {rule}", entries)

    return list(examples())
