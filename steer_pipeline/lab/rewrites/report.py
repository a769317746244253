"""The vector evaluation report: what steering did to the news, next to what doing nothing does.

In: comparison tables, packs, and what is known of vectors and doses. Out: report.md with plots/*.png, and
report.html, which holds everything. Every number is read from the tables and frames handed in; the report
names the versions that they were made from.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from steer_pipeline.lab.quality import OUR_RULES, RULES
from steer_pipeline.lab.report.document import (
    Block,
    Bullets,
    Figure,
    Heading,
    Paragraph,
    Samples,
    Table,
    to_html,
    to_markdown,
)
from steer_pipeline.lab.rewrites import figures
from steer_pipeline.lab.rewrites.comparison import (
    BASE,
    LIKENESS,
    METRICS,
    RANDOM,
    RESAMPLE,
    ComparisonTables,
)
from steer_pipeline.lab.vectors.vector import best_block

TITLE = "Vector evaluation report"
N_EXAMPLES = 3
N_SAMPLE_ROWS = 3
PROMPT_CHARS, OUTPUT_CHARS = 160, 360


@dataclass(frozen=True)
class VectorInfo:
    """A persona vector's sidecar: `metadata` holds per-block lists (held_out_auc, split_half_cosine, ...)."""

    persona: str
    version: str
    metadata: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class DoseInfo:
    """A dose sweep (one row a direction, block and fraction) and what it recommends; None when nothing will do."""

    persona: str
    version: str
    sweep: pl.DataFrame
    block: int | None
    fraction: float | None
    alpha: float | None
    reason: str


@dataclass(frozen=True)
class ReportContext:
    """What the report names and cannot know from rows.

    Attributes:
        versions: artefact (`rewrite_pack/base`, `rewrite_comparison`, ...) -> content sha.
        facts: label -> text for the head of the report, such as profile, model, size, decoding hash.
        targets: variant -> persona -> `up` or `down`, the direction that the catalogue wants.
    """

    versions: Mapping[str, str]
    facts: Mapping[str, str] = field(default_factory=dict)
    targets: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class ReportFiles:
    """Paths of what was written."""

    markdown: Path
    html: Path
    plots: tuple[Path, ...]


def render_vector_eval_report(
    tables: ComparisonTables,
    packs: Mapping[str, pl.DataFrame],
    *,
    vectors: Sequence[VectorInfo],
    doses: Sequence[DoseInfo],
    context: ReportContext,
    out_dir: Path,
) -> ReportFiles:
    """Writes report.md, plots/*.png and report.html into `out_dir`, which is made when missing.

    Args:
        tables: what `compare_variants` found.
        packs: the packs compared; their `personas` column says what was added to each variant.
        vectors, doses: may be empty (imported vectors without a sweep); their sections then say so.

    Raises:
        ValueError: a variant of the tables has no pack, or there are no versions to name.
    """
    if missing := [name for name in tables.variants if name not in packs]:
        raise ValueError(f"report: no pack for variant {missing[0]}; hand in the packs that were compared")
    if not context.versions:
        raise ValueError(
            "report: context.versions is empty; name the versions that the tables were made from"
        )
    blocks: list[Block] = [
        *_head(tables, context),
        *_how_to_read(),
        *_traits(tables),
        *_keywords(tables),
        *_content(tables),
        *_validation(tables),
        *_doses(packs, vectors, doses, tables),
        *_vectors(vectors, tables),
        *_side_by_side(tables),
        *_versions(context),
    ]
    folder = out_dir / "plots"
    folder.mkdir(parents=True, exist_ok=True)
    figures = [block for block in blocks if isinstance(block, Figure)]
    paths = []
    for figure in figures:
        path = folder / f"{figure.name}.png"
        path.write_bytes(figure.png)
        paths.append(path)
    markdown, page = out_dir / "report.md", out_dir / "report.html"
    markdown.write_text(to_markdown(TITLE, blocks), encoding="utf-8")
    page.write_text(to_html(TITLE, blocks), encoding="utf-8")
    return ReportFiles(markdown, page, tuple(paths))


# ----------------------------------------------------------------------------------------- numbers


def _num(value: float | None, digits: int = 3, *, signed: bool = False) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    return text.lstrip("+-") if float(text) == 0 else text


def _share(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.1%}"


def _p(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _interval(low: float | None, high: float | None, digits: int = 3) -> str:
    return (
        "–"
        if low is None or high is None
        else f"[{_num(low, digits, signed=True)}, {_num(high, digits, signed=True)}]"
    )


def _shift(row: Mapping[str, Any], digits: int = 3) -> str:
    """The difference of a row of the summary with its interval."""
    if row["difference"] is None:
        return "–"
    return f"{_num(row['difference'], digits, signed=True)} {_interval(row['low'], row['high'], digits)}"


def _beside(row: Mapping[str, Any], control: str, digits: int = 3) -> str:
    """A control's difference with its interval, from a row of the summary."""
    difference = row[f"{control}_difference"]
    if difference is None:
        return "–"
    interval = _interval(row[f"{control}_low"], row[f"{control}_high"], digits)
    return f"{_num(difference, digits, signed=True)} {interval}"


def _personas(tables: ComparisonTables) -> list[str]:
    """Personas with marker counts, in column order."""
    ending = "_positive"
    return [
        c[len("hits_") : -len(ending)]
        for c in tables.rows.columns
        if c.startswith("hits_") and c.endswith(ending)
    ]


def _short(text: str, limit: int) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[:limit].rstrip() + "…"


# ------------------------------------------------------------------------------------------- parts


def _head(tables: ComparisonTables, context: ReportContext) -> list[Block]:
    traits = figures.trait_metrics(tables)
    primary = [name for name in traits if name.endswith("_lexicon")] or traits
    columns = ["variant", "role", "rows", "suspects", "facts kept", "equal to base"]
    columns += [f"shift {figures.trait_title(metric)}" for metric in primary]
    rows = []
    for name in tables.variants:
        line = [
            f"`{name}`",
            tables.roles[name],
            str(tables.of(name, "n_words")["n"]),
            _share(tables.of(name, "suspect")["mean"]),
            _share(tables.of(name, "facts_kept")["mean"]),
            _share(tables.of(name, "exact_match")["mean"]),
        ]
        for metric in primary:
            row = tables.of(name, metric)
            line.append(_shift(row))
        rows.append(line)
    blocks: list[Block] = []
    if context.facts:
        blocks.append(Paragraph(" · ".join(f"{label}: **{text}**" for label, text in context.facts.items())))
    blocks += [
        Heading("In short"),
        Bullets(_verdicts(tables, context, primary)),
        Table(
            columns,
            rows,
            "Shift: paired difference to base of the signed trait score in [-1, 1], with a 95% interval. Intervals of "
            f"{' and '.join(tables.controls)} hold simultaneously over these controls and all personas of a scale.",
        ),
    ]
    return blocks


def _verdicts(tables: ComparisonTables, context: ReportContext, primary: Sequence[str]) -> list[str]:
    """Sentences that say whether targets are met and whether controls stay silent."""
    found = []
    for variant, targets in context.targets.items():
        if variant not in tables.variants:
            continue
        for persona, direction in targets.items():
            for metric in primary:
                if metric.removeprefix("trait_").rpartition("_")[0] != persona:
                    continue
                row = tables.of(variant, metric)
                met = row["low"] > 0 if direction == "up" else row["high"] < 0
                told = f"moves {persona} {direction}" if met else f"does **not** move {persona} {direction}"
                found.append(
                    f"`{variant}` {told}: {_shift(row)}, p {_p(row['p'])}, after Holm {_p(row['p_holm'])}."
                )
    moved = [
        f"`{control}` moves {figures.trait_title(metric)}"
        for control in tables.controls
        for metric in figures.trait_metrics(tables)
        if not tables.of(control, metric)["low"] <= 0 <= tables.of(control, metric)["high"]
    ]
    found.append(
        "Controls: **"
        + "; ".join(moved)
        + "**. Trait shifts of this run are no evidence before that is explained."
        if moved
        else f"Controls: {' and '.join(f'`{c}`' for c in tables.controls)} include zero on every trait and scale."
    )
    distances = {row["variant"]: row for row in tables.distances.iter_rows(named=True)}
    alike = [
        f"`{name}`"
        for name, row in distances.items()
        if tables.roles[name] == "steered" and row["p_holm"] > 0.05
    ]
    found.append(
        f"No further from base than a resample is: {', '.join(alike)}."
        if alike
        else "Every steered variant differs from base more than a resample does (after Holm)."
    )
    return found


def _how_to_read() -> list[Block]:
    return [
        Heading("How to read this"),
        Bullets(
            [
                f"`{BASE}` is the model as it is. `{RESAMPLE}` is the same model with other random numbers: what "
                f"differs there is chance. `{RANDOM}` adds a random direction of the same length at the same block: "
                "what differs there is disturbance. An effect counts when it is larger than both.",
                "Every difference is paired: the same news item in both variants, matched by row id. Intervals are "
                "bootstrap intervals over news items at 95%; p values flip the signs of the paired differences. "
                "`Holm` corrects for all variants and metrics tested here, controls aside.",
                "The lexicon score is the share of sentences with a marker of the positive pole minus the share with "
                "one of the negative pole. It is exact about its markers and blind to everything else. The MiniLM "
                "score is 2p - 1 of a classifier of sentence embeddings; how well it separates texts that it has not "
                "seen stands in the section on vectors and scorers.",
                "Equal outputs and word overlap say how alike two texts are, not why. Read them against the "
                "resample's.",
            ]
        ),
    ]


def _traits(tables: ComparisonTables) -> list[Block]:
    rows = []
    for metric in figures.trait_metrics(tables):
        for name in tables.variants:
            row = tables.of(name, metric)
            rows.append(
                [
                    figures.trait_title(metric),
                    f"`{name}`",
                    str(row["n"]),
                    _num(row["mean"], signed=True),
                    _num(row["median"], signed=True),
                    _num(row["sd"]),
                    _shift(row),
                    _p(row["p"]),
                    _p(row["p_holm"]),
                    _beside(row, "resample") if name != BASE else "–",
                    _beside(row, "random") if name != BASE else "–",
                ]
            )
    columns = [
        "trait",
        "variant",
        "N",
        "mean",
        "median",
        "sd",
        "shift [CI95]",
        "p",
        "Holm",
        "resample",
        "random",
    ]
    return [
        Heading("Traits"),
        Figure(
            "trait_shifts",
            figures.trait_shifts(tables),
            "Mean difference to base with its 95% interval. Grey band: the controls' simultaneous intervals.",
        ),
        Table(
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


def _keywords(tables: ComparisonTables) -> list[Block]:
    """Janus's table of keyword hits, for every persona, at word boundaries and beside both controls."""
    rows = tables.rows
    table, examples = [], []
    for persona in _personas(tables):
        means = {
            side: dict(rows.group_by("variant").agg(pl.col(f"hits_{persona}_{side}").mean()).iter_rows())
            for side in ("positive", "negative")
        }
        shown = dict(
            rows.group_by("variant").agg((pl.col(f"hits_{persona}_positive") > 0).mean()).iter_rows()
        )
        for name in tables.variants:
            if name == BASE:
                continue
            hits, opposite = means["positive"], means["negative"]
            table.append(
                [
                    persona,
                    f"`{name}`",
                    _num(hits[BASE], 2),
                    _num(hits[name], 2),
                    _num(hits[name] - hits[BASE], 2, signed=True),
                    _num(hits[RESAMPLE] - hits[BASE], 2, signed=True),
                    _num(hits[RANDOM] - hits[BASE], 2, signed=True),
                    _share(shown[name]),
                    _num(opposite[BASE], 2),
                    _num(opposite[name], 2),
                    _num(opposite[name] - opposite[BASE], 2, signed=True),
                ]
            )
    for name in tables.variants:
        if tables.roles[name] in ("steered", "prompted"):
            examples += _top_examples(tables, name)
    columns = [
        "lexicon", "variant", "base", "steered", "delta", "resample's", "random's", "rows with a hit",
        "opposite: base", "opposite: steered", "opposite: delta",
    ]  # fmt: skip
    return [
        Heading("Keyword hits"),
        Table(
            columns,
            table,
            "Markers a rewrite, matched at word boundaries, with every persona's lexicon for every variant; "
            "the deltas of the controls beside each. Opposite: markers of the negative pole.",
        ),
        Heading("Largest changes in keywords", 3),
        Paragraph(
            f"For each steered or prompted variant the {N_EXAMPLES} news items whose markers change most against base, "
            "on the lexicon that changes most. These are the most extreme rows and no fair sample; for that see "
            "the side-by-side section."
        ),
        *examples,
    ]


def _top_examples(tables: ComparisonTables, variant: str) -> list[Block]:
    own = tables.rows.filter(pl.col("variant") == variant)
    base = tables.rows.filter(pl.col("variant") == BASE)
    net = {p: pl.col(f"hits_{p}_positive") - pl.col(f"hits_{p}_negative") for p in _personas(tables)}
    if not net:
        return []
    joined = own.select("row_id", "source", "output", **net).join(
        base.select("row_id", base="output", **{f"base_{p}": e for p, e in net.items()}), on="row_id"
    )
    deltas = {p: (joined[p] - joined[f"base_{p}"]) for p in net}
    persona = max(deltas, key=lambda p: abs(float(deltas[p].sum())))
    top = joined.with_columns(delta=deltas[persona]).sort(
        pl.col("delta").abs(), "row_id", descending=[True, False]
    )
    return [
        Samples(
            f"{variant}, {persona} lexicon, {row['delta']:+d} markers (row {row['row_id']})",
            [
                ("prompt", _short(row["source"], PROMPT_CHARS)),
                (BASE, _short(row["base"], OUTPUT_CHARS)),
                (variant, _short(row["output"], OUTPUT_CHARS)),
            ],
        )
        for row in top.head(N_EXAMPLES).iter_rows(named=True)
    ]


def _content(tables: ComparisonTables) -> list[Block]:
    rows = []
    for metric in METRICS:
        digits = 1 if metric == "n_words" else 3
        for name in tables.variants:
            row = tables.of(name, metric)
            own = name == BASE or (metric in LIKENESS and name == RESAMPLE)
            rows.append(
                [
                    metric,
                    f"`{name}`",
                    str(row["n"]),
                    _num(row["mean"], digits),
                    _num(row["median"], digits),
                    row["reference"] or "–",
                    _shift(row, digits),
                    _p(row["p"]),
                    _p(row["p_holm"]),
                    "–" if own else _beside(row, "resample", digits),
                    "–" if own else _beside(row, "random", digits),
                ]
            )
    columns = [
        "metric",
        "variant",
        "N",
        "mean",
        "median",
        "against",
        "difference [CI95]",
        "p",
        "Holm",
        "resample",
        "random",
    ]
    return [
        Heading("Content and form"),
        Table(columns, rows, "; ".join(f"`{name}`: {meaning}" for name, meaning in METRICS.items()) + "."),
        Figure(
            "text_distributions",
            figures.text_distributions(tables),
            "One dot a row, the bar is the mean. Overlap of `base` with itself is 1 by definition.",
        ),
    ]


def _validation(tables: ComparisonTables) -> list[Block]:
    facts = []
    for row in tables.alignment.iter_rows(named=True):
        name = row["variant"]
        own = tables.rows.filter(pl.col("variant") == name)
        delta = tables.of(name, "n_words")["difference"]
        facts.append(
            [
                f"`{name}`",
                str(row["rows"]),
                str(row["missing"]),
                str(row["extra"]),
                str(row["duplicated"]),
                f"{int(own['exact_match'].sum())} of {own.height}",
                _num(tables.of(name, "overlap")["mean"]),
                _num(delta, 1, signed=True),
                f"{int(own['truncated'].sum())} of {own.height}",
            ]
        )
    suspects = []
    for rule in RULES.values():
        counts = [
            int(tables.rows.filter(pl.col("variant") == name)["suspects"].list.contains(rule.name).sum())
            for name in tables.variants
        ]
        suspects.append([f"`{rule.name}`", rule.origin, *map(str, counts)])
    ours = [int(tables.rows.filter(pl.col("variant") == name)["suspect"].sum()) for name in tables.variants]
    suspects.append(["any of ours", "ours", *map(str, ours)])
    all_differ, n = int(tables.agreement["all_differ"].sum()), tables.agreement.height
    compared = [name for name in tables.variants if tables.roles[name] in ("base", "steered")]
    distances = [
        [
            f"`{row['variant']}`",
            str(row["n"]),
            _num(row["distance"]),
            _num(row["resample_distance"]),
            _num(row["difference"], signed=True),
            _interval(row["low"], row["high"]),
            _p(row["p"]),
            _p(row["p_holm"]),
        ]
        for row in tables.distances.iter_rows(named=True)
    ]
    return [
        Heading("Validation"),
        Table(
            [
                "variant",
                "rows",
                "missing",
                "extra",
                "duplicated",
                "equal to base",
                "overlap with base",
                "words, delta",
                "truncated",
            ],
            facts,
            "Counts, alignment with base by row id, likeness, mean change in words, rows cut by the token limit.",
        ),
        Paragraph(
            f"In **{all_differ} of {n}** news items ({_share(all_differ / n if n else None)}) all of "
            f"{', '.join(f'`{name}`' for name in compared)} have different outputs."
        ),
        Heading("Differs from base more than a resample does", 3),
        Table(
            ["variant", "N", "distance", "resample's", "difference", "CI95", "p, one-sided", "Holm"],
            distances,
            "Distance: 1 - word overlap with base, row by row, against that of `base_resample` in the same row.",
        ),
        Heading("Suspects by rule", 3),
        Table(
            ["rule", "origin", *tables.variants],
            suspects,
            "Rows that break each rule. Gates count ours; Janus's are kept for comparison.",
        ),
        Bullets([f"`{rule.name}`: {rule.description}" for rule in RULES.values()]),
        *_suspect_examples(tables),
    ]


def _suspect_examples(tables: ComparisonTables) -> list[Block]:
    """Up to three examples a rule, in row order."""
    blocks: list[Block] = []
    for rule in OUR_RULES:
        hit = tables.rows.filter(pl.col("suspects").list.contains(rule)).head(N_EXAMPLES)
        if hit.height:
            entries = [
                (f"{row['variant']}, row {row['row_id']}", _short(row["output"], OUTPUT_CHARS))
                for row in hit.iter_rows(named=True)
            ]
            blocks.append(Samples(f"Suspects: {rule}", entries))
    return blocks or [Paragraph("No output breaks a rule of ours.")]


def _doses(
    packs: Mapping[str, pl.DataFrame],
    vectors: Sequence[VectorInfo],
    doses: Sequence[DoseInfo],
    tables: ComparisonTables,
) -> list[Block]:
    norms = {info.persona: info.metadata.get("residual_norms") or [] for info in vectors}
    applied = []
    for name in tables.variants:
        terms = (
            packs[name]["personas"].explode().drop_nulls().unique(maintain_order=True).to_list()
            if packs[name].height
            else []
        )
        for term in terms:
            known = norms.get(term["name"].removeprefix("random:"), [])
            # A logit bias is dosed in norms of the last block, which its fraction already says.
            at_block = term.get("site") != "logits" and term["block"] < len(known)
            norm = known[term["block"]] if at_block else None
            ratio = term["alpha"] / norm if norm else term["dose_fraction"]
            applied.append(
                [
                    f"`{name}`",
                    term["name"],
                    f"`{term['version'][:16]}`" if term["version"] else "–",
                    str(term["block"]),
                    _num(term["alpha"], signed=True),
                    _num(norm, 2),
                    _share(ratio),
                    _share(term["dose_fraction"]),
                ]
            )
        if not terms:
            applied.append([f"`{name}`", "nothing added", "–", "–", "–", "–", "–", "–"])
    blocks: list[Block] = [
        Heading("Doses"),
        Table(
            [
                "variant",
                "vector",
                "version",
                "block",
                "alpha",
                "residual norm",
                "alpha / norm",
                "as recorded",
            ],
            applied,
            "Alpha is the length added to the residual stream at the block's output; the residual norm is the mean "
            "length of that stream there. A dose far below 1% of it can hardly do anything.",
        ),
    ]
    if not doses:
        return [*blocks, Paragraph("No dose sweep was handed to this report.")]
    recommended = [
        [
            d.persona,
            f"`{d.version[:16]}`",
            str(d.block if d.block is not None else "–"),
            _share(d.fraction),
            _num(d.alpha),
            d.reason,
        ]
        for d in doses
    ]
    blocks.append(
        Table(["persona", "version", "block", "dose", "alpha", "why"], recommended, "Recommended doses.")
    )
    sweeps = {d.persona: d.sweep for d in doses}
    blocks.append(
        Figure(
            "dose_response",
            figures.dose_response(sweeps, {d.persona: (d.fraction, d.block) for d in doses}),
            "Dose and response. Dotted: the recommended dose. Dashed grey: random directions.",
        )
    )
    for d in doses:
        lines = [
            [
                row["direction"],
                str(row["block"] if row["block"] is not None else "–"),
                _num(row["fraction"], 2, signed=True),
                _num(row["alpha"], 2, signed=True),
                str(row["n"]),
                f"{_num(row['shift'], signed=True)} {_interval(row['shift_low'], row['shift_high'])}",
                _share(row["shown_rate"]),
                _share(row["opposite_rate"]),
                _share(row["suspect_rate"]),
                _share(row["facts_kept"]),
                _num(row["kl"], 2),
                "yes" if row["coherent"] else "no",
            ]
            for row in d.sweep.iter_rows(named=True)
        ]
        columns = [
            "direction",
            "block",
            "dose",
            "alpha",
            "N",
            "shift",
            "shown",
            "opposite shown",
            "suspects",
            "facts",
            "KL",
            "coherent",
        ]
        blocks += [
            Heading(f"Sweep of {d.persona}", 3),
            Table(columns, lines, "KL: mean nats a token to base."),
        ]
    return blocks


def _vectors(vectors: Sequence[VectorInfo], tables: ComparisonTables) -> list[Block]:
    blocks: list[Block] = [Heading("Vectors and scorers")]
    if vectors:
        rows = []
        for info in vectors:
            data = info.metadata
            best = best_block(data)
            at = {name: (data.get(name) or [None] * (best + 1))[best] if best is not None else None for name in
                  ("held_out_auc", "auc_null_95th", "split_half_cosine", "raw_norms", "residual_norms")}  # fmt: skip
            rows.append(
                [
                    info.persona,
                    f"`{info.version[:16]}`",
                    str(data.get("model", "–")),
                    str(data.get("method", data.get("source", "–"))),
                    str(data.get("readout", "–")),
                    str(data.get("n_train", "–")),
                    str(data.get("n_held_out", "–")),
                    str(best if best is not None else "–"),
                    _num(at["held_out_auc"]),
                    _num(at["auc_null_95th"]),
                    _num(at["split_half_cosine"]),
                    _num(at["raw_norms"], 2),
                    _num(at["residual_norms"], 2),
                ]
            )
        columns = [
            "persona", "version", "model", "method", "read-out", "train", "held out", "best block", "AUC there",
            "null, 95th", "split-half cosine", "vector norm", "residual norm",
        ]  # fmt: skip
        blocks += [
            Table(
                columns,
                rows,
                "AUC: held-out contexts projected on the direction; null: the same with shuffled labels.",
            ),
            Figure(
                "vectors",
                figures.vector_quality({v.persona: v.metadata for v in vectors}),
                "Vectors by block.",
            ),
        ]
    else:
        blocks.append(Paragraph("No vector was handed to this report."))
    if tables.scorers.height:
        lines = [
            [
                row["persona"],
                row["scale"],
                str(row["n_texts"]),
                str(row["n_contexts"]),
                f"{_num(row['auc'])} {_interval(row['auc_low'], row['auc_high'])}".replace("+", ""),
                _num(row["shuffled_mean"]),
                _num(row["shuffled_high"]),
                _num(row["length_auc"]),
            ]
            for row in tables.scorers.iter_rows(named=True)
        ]
        columns = [
            "persona",
            "scale",
            "texts",
            "contexts",
            "held-out AUC",
            "shuffled, mean",
            "shuffled, 95th",
            "length alone",
        ]
        blocks.append(
            Table(
                columns,
                lines,
                "How well each trained scorer separates the poles in contexts it has not seen.",
            )
        )
    return blocks


def _side_by_side(tables: ComparisonTables) -> list[Block]:
    ids = sorted(tables.agreement["row_id"].to_list())
    chosen = [ids[(2 * i + 1) * len(ids) // (2 * N_SAMPLE_ROWS)] for i in range(min(N_SAMPLE_ROWS, len(ids)))]
    blocks: list[Block] = [
        Heading("Side by side"),
        Paragraph(
            f"{len(chosen)} news items in every variant, evenly spaced in the order of row ids (hashes): not chosen by "
            "what the outputs say."
        ),
    ]
    for row_id in chosen:
        rows = tables.rows.filter(pl.col("row_id") == row_id)
        outputs = dict(zip(rows["variant"], rows["output"], strict=True))
        entries = [("news", _short(rows["source"][0], 2 * OUTPUT_CHARS))]
        entries += [(name, outputs[name]) for name in tables.variants if name in outputs]
        blocks.append(Samples(f"row {row_id}", entries))
    return blocks


def _versions(context: ReportContext) -> list[Block]:
    rows = [[name, f"`{sha}`"] for name, sha in sorted(context.versions.items())]
    return [
        Heading("Made from"),
        Table(["artefact", "version (sha)"], rows, "Every number above comes from rows of these versions."),
    ]
