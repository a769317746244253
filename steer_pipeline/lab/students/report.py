"""The students' report and the numbers of the last line. In: stored tables. Out: `students.html`, `students.md`, plots.

Says nothing that the tables do not hold; runs no model.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from steer_pipeline.lab.controls import moved_controls, told_of_controls
from steer_pipeline.lab.report.document import (
    Block,
    Bullets,
    Figure,
    Heading,
    Paragraph,
    Samples,
    to_html,
    to_markdown,
    write_pictures,
)
from steer_pipeline.lab.report.tables import Column, code, estimate, number, of, p_value, share, table
from steer_pipeline.lab.students import figures
from steer_pipeline.lab.students.arm_comparison import ARM_EFFECT_COLUMNS
from steer_pipeline.lab.students.cells import is_effect
from steer_pipeline.lab.students.comparison import (
    ALIGNMENT_COLUMNS,
    COHERENCE_COLUMNS,
    READOUT_COLUMNS,
    SUMMARY_COLUMNS,
    StudentTables,
    at_the_end,
    write_tables,
)
from steer_pipeline.lab.students.mechanism import SHARE_COLUMNS, SHIFT_COLUMNS
from steer_pipeline.lab.students.training import STUDENT_COLUMNS
from steer_pipeline.lab.students.transfer import ITSELF

PAGE, REPORT, PLOTS, VERSIONS = "students.html", "students.md", "plots", "versions.json"
TITLE = "What students learn from steered packs"
SAMPLED = 3  # news items


@dataclass(frozen=True)
class Written:
    """Where the report and its plots lie."""

    html: Path
    plots: tuple[Path, ...]


def write_report(tables: StudentTables, versions: Mapping[str, str], folder: Path) -> Written:
    """Writes the tables, `versions.json`, plots, `students.md` and `students.html`.

    Args:
        versions: asset[partition] -> version that was read.
    """
    write_tables(tables, folder)
    (folder / VERSIONS).write_text(json.dumps(dict(versions), indent=1, sort_keys=True) + "\n")
    drawn = {"shifts": figures.shifts(tables.summary), "losses": figures.losses(tables.curves)}
    if tables.alignment.height:
        drawn["alignment"] = figures.alignment(tables.alignment)
    if tables.arms["wanted"].count():
        drawn["arms"] = figures.arms(tables.arms)
    plots = write_pictures(drawn, folder / PLOTS)
    blocks = _blocks(tables, versions, drawn)
    (folder / PAGE).write_text(to_html(TITLE, blocks), encoding="utf-8")
    (folder / REPORT).write_text(to_markdown(TITLE, blocks, PLOTS), encoding="utf-8")
    return Written(folder / PAGE, plots)


# ------------------------------------------------------------------------------------ the last line


def headline(tables: StudentTables) -> dict[str, dict[str, Any]]:
    """variant -> rank -> traits (difference to the control's student, with interval), projections and coherence."""
    found: dict[str, dict[str, Any]] = {}
    for (variant, rank), own in tables.summary.group_by("variant", "rank", maintain_order=True):
        entry: dict[str, Any] = {"trait": {}, "projection": {}}
        for row in own.iter_rows(named=True):
            kind, _, name = row["metric"].partition("_")
            if is_effect(row["metric"]):
                keys = ("difference", "low", "high", "share", "verdict")
                entry[kind][name] = {key: row[key] for key in keys}
            else:
                entry[row["metric"]] = row["mean"]
        for row in tables.mechanism.filter(variant=variant, rank=rank).iter_rows(named=True):
            name = row["metric"].partition("_")[2]
            for part in ("necessity", "sufficiency"):
                entry.setdefault(part, {})[name] = row[part]
        for row in at_the_end(tables.alignment.filter(variant=variant, rank=rank)).iter_rows(named=True):
            told = {key: row[key] for key in ("cosine", "band_low", "band_high")}
            entry.setdefault("alignment", {})[row["persona"]] = told
        costs = tables.coherence.filter(variant=variant, rank=rank)
        entry["coherent"] = bool(costs["within"].all())
        entry["seeds"] = own["n_seeds"].max()
        found.setdefault(str(variant), {})[f"rank_{rank}"] = entry
    for (variant, arm), own in tables.arms.group_by("variant", "arm", maintain_order=True):
        keys = ("difference", "low", "high", "share", "verdict")
        told = {
            row["metric"].partition("_")[2] if row["metric"].startswith("trait_") else row["metric"]: {
                key: row[key] for key in keys
            }
            for row in own.drop_nulls("wanted").iter_rows(named=True)
        }
        if variant in found:
            found[str(variant)].setdefault("arms", {})[arm] = told or {"note": own["note"][0]}
    return found


# ------------------------------------------------------------------------------------ blocks


def _blocks(tables: StudentTables, versions: Mapping[str, str], drawn: Mapping[str, bytes]) -> list[Block]:
    effects = tables.summary.filter(
        pl.col("metric").is_in([m for m in tables.summary["metric"].unique() if is_effect(m)])
    )
    costs = tables.summary.filter(~pl.col("metric").is_in(effects["metric"].implode()))
    blocks: list[Block] = [
        Paragraph(_opening(tables)),
        Heading("Traits"),
        Figure("shifts", drawn["shifts"], "Targeted traits: student minus base's student, 95%, by rank."),
        table(_EFFECTS, effects.iter_rows(named=True), "Intervals hold for all variants of a rank at once."),
        Heading("Read-outs"),
        table(
            _READOUTS,
            tables.readouts.iter_rows(named=True),
            "Projections are in standard deviations of base's.",
        ),
        Heading("Mechanism"),
        table(_MECHANISM, tables.mechanism.iter_rows(named=True), "Of targeted traits that a student moves."),
        table(
            _shift_columns(tables.shifts),
            _seeds_averaged(tables.shifts).iter_rows(named=True),
            "Mean over seeds, at each block; controls are the band.",
        ),
        *_aligned(tables.alignment, drawn),
        *_hidden(tables.arms, drawn),
        Heading("Coherence"),
        table(_COHERENCE, tables.coherence.iter_rows(named=True), "Against the model without a student."),
        table(_COSTS, costs.iter_rows(named=True), "Against base's students."),
        Heading("Texts"),
        *_samples(tables.rows),
        Heading("Training"),
        Figure("losses", drawn["losses"], "NLL of watched rows, nats a token; a line a student."),
        table(_STUDENTS, tables.students.iter_rows(named=True)),
    ]
    if tables.left_out:
        blocks += [
            Heading("Not shown"),
            Bullets([f"{name}: {why}" for name, why in sorted(tables.left_out.items())]),
        ]
    blocks += [
        Heading("Made from"),
        Bullets([f"`{name}` version `{sha}`" for name, sha in sorted(versions.items())]),
    ]
    return blocks


def _aligned(alignment: pl.DataFrame, drawn: Mapping[str, bytes]) -> list[Block]:
    """Which way students go in training; nothing where no shift of a steered variant was taken."""
    if alignment.is_empty():
        return []
    return [
        Heading("Which way they go"),
        Figure(
            "alignment",
            drawn["alignment"],
            "Cosine of the mean shift with the vector that the teacher was steered by, over training; grey: the range "
            "of the students of base and of both controls.",
        ),
        table(
            _ALIGNMENT,
            at_the_end(alignment).iter_rows(named=True),
            "At the last step, mean over seeds, at the block where the teacher was steered.",
        ),
    ]


def _hidden(arms: pl.DataFrame, drawn: Mapping[str, bytes]) -> list[Block]:
    """The arms of hidden transfer; nothing where none were made."""
    if arms.is_empty():
        return []
    without = arms.filter(pl.col("metric").is_null())
    blocks: list[Block] = [
        Heading("Arms of hidden transfer"),
        Paragraph(
            "Each arm takes one way away in which the trait could travel, from the variant's rows and from base's "
            "alike, and holds the students of the two against each other. `filtered`: no scorer sees the trait in any "
            "row. `shuffled`: the completion's tokens in another order. `masked`: no loss at tokens at which the "
            "steered teacher and base would not say the same. `paraphrased`: the unsteered model has rewritten each "
            "completion once more. `in_context`: no training, rows of the pack stand before the news. `other_init`: "
            "students of another model of the same tokenizer."
        ),
    ]
    if "arms" in drawn:
        blocks.append(
            Figure("arms", drawn["arms"], "Targeted traits: difference to base's students of the same arm.")
        )
    blocks.append(
        table(_ARMS, arms.drop_nulls("metric").iter_rows(named=True), "Share: of the plain students' effect.")
    )
    said = (
        arms.select("variant", "arm", "note")
        .unique(maintain_order=True)
        .join(without, on=["variant", "arm"], how="anti")
    )
    blocks.append(
        Bullets([f"{row['variant']} {row['arm']}: {row['note']}" for row in said.iter_rows(named=True)])
    )
    if without.height:
        blocks.append(
            Bullets(
                [
                    f"{row['variant']} {row['arm']}, no student: {row['note']}"
                    for row in without.iter_rows(named=True)
                ]
            )
        )
    return blocks


def _opening(tables: StudentTables) -> str:
    first = tables.students.row(0, named=True)
    news, seeds = tables.rows["row_id"].n_unique(), tables.students["seed"].n_unique()
    ranks = " and ".join(map(str, tables.students["rank"].unique(maintain_order=True).to_list()))
    return (
        f"Each student is a LoRA (rank {ranks}, {seeds} seeds) that has learned {first['rows']} kept rewrites of one "
        f"variant under the neutral prompt, {first['epochs']:g} times over. All write on the same {news} news that "
        "nobody learned, with the packs' decoding and the same random numbers, and each is held against the student "
        "of base of its rank and seed. An effect is claimed where the interval over news and seeds, simultaneous "
        "over variants, leaves out zero, Holm's p is below 0.05, and the shift is larger than "
        "that of any control's student of this rank. The unsteered model writes the reference whose NLL is given. "
        + _controls(tables)
    )


def _controls(tables: StudentTables) -> str:
    if moved := moved_controls(tables.control_shifts):
        return (
            f"Controls: {'; '.join(moved)}. What other students show is no evidence before that is explained."
        )
    return f"Controls: {told_of_controls(tables.control_shifts)}."


def _samples(rows: pl.DataFrame) -> list[Block]:
    """What the model itself, base's students and the others write on the first news, by seed, at the smallest rank."""
    students = rows.filter(pl.col("variant") != ITSELF)
    rank = students["rank"].min()
    blocks: list[Block] = []
    for row_id in rows["row_id"].unique(maintain_order=True).head(SAMPLED):
        own = pl.concat(
            [rows.filter(variant=ITSELF, row_id=row_id), students.filter(rank=rank, row_id=row_id)]
        )
        entries = [(_label(row), row["output"]) for row in own.iter_rows(named=True)]
        blocks.append(Samples(f"{row_id!s}, rank {rank!s}", entries))
    return blocks


def _label(row: Mapping[str, Any]) -> str:
    return "the model itself" if row["variant"] == ITSELF else f"{row['variant']} seed {row['seed']}"


def _named(columns: Sequence[Column], descriptions: Mapping[str, str]) -> list[Column]:
    """The same columns with what the table of columns says of their field."""
    return [
        Column(one.title, one.value, one.format, descriptions.get(str(one.value), one.description))
        for one in columns
    ]


_WHO = [Column("variant", "variant", code), Column("rank", "rank")]
_DIFFERENCE = Column(
    "to base's student",
    of("difference", "low", "high"),
    estimate(),
    "Paired by news item and seed; 95% over both.",
)
_EFFECTS = _named(
    [
        *_WHO,
        Column("metric", "metric", code),
        Column("mean", "mean", number(signed=True)),
        Column("base's student", "control", number(signed=True)),
        Column("itself", "itself", number(signed=True)),
        _DIFFERENCE,
        Column("detectable", "detectable", number()),
        Column("p (Holm)", "p_holm", p_value),
        Column("controls within", "band", number()),
        Column("teacher", "teacher", number(signed=True)),
        Column("share", "share", share),
        Column("wanted", "wanted"),
        Column("verdict", "verdict"),
    ],
    SUMMARY_COLUMNS,
)
_COSTS = _named(
    [
        *_WHO,
        Column("metric", "metric", code),
        Column("mean", "mean", number()),
        Column("base's student", "control", number()),
        Column("itself", "itself", number()),
        _DIFFERENCE,
        Column("detectable", "detectable", number()),
        Column("p (Holm)", "p_holm", p_value),
    ],
    SUMMARY_COLUMNS,
)
_COHERENCE = _named(
    [
        *_WHO,
        Column("cost", "cost", code),
        Column("mean", "mean", number()),
        Column("itself", "itself", number()),
        Column(
            "difference", of("difference", "low", "high"), estimate(), "Between them on the same news, 95%."
        ),
        Column("limit", "limit", number()),
        Column("within", lambda row: "yes" if row["within"] else "no"),
    ],
    COHERENCE_COLUMNS,
)
_READOUTS = _named(
    [
        Column("persona", "persona", code),
        Column("teacher", "teacher", code),
        Column("against", "against", code),
        Column("block", "block"),
        Column("pairs", "n_pairs"),
        Column("AUC", of("auc", "auc_low", "auc_high"), estimate(signed=False), "Cross-fitted over news."),
        Column("shuffled, 95th", "shuffled_high", number()),
        Column("teacher's shift", "teacher_shift", number(2, signed=True)),
        Column("separates", lambda row: "yes" if row["separates"] else "no"),
    ],
    READOUT_COLUMNS,
)
_MECHANISM = _named(
    [
        *_WHO,
        Column("metric", "metric", code),
        Column("effect on the model itself", "effect", number(signed=True)),
        Column(
            "necessity",
            of("necessity", "necessity_low", "necessity_high"),
            estimate(2, signed=False),
            "Share of the effect that goes when the mean shift is taken out of the student; 95% over news.",
        ),
        Column(
            "sufficiency",
            of("sufficiency", "sufficiency_low", "sufficiency_high"),
            estimate(2, signed=False),
            "Share of the effect that the mean shift brings when it is added to the model itself; 95% over news.",
        ),
    ],
    SHARE_COLUMNS,
)


_ARMS = _named(
    [
        Column("variant", "variant", code),
        Column("arm", "arm", code),
        Column("metric", "metric", code),
        Column("mean", "mean", number(signed=True)),
        Column("base's", "control", number(signed=True)),
        Column(
            "difference",
            of("difference", "low", "high"),
            estimate(),
            "Paired by news item and seed; 95% over both.",
        ),
        Column("detectable", "detectable", number()),
        Column("p (Holm)", "p_holm", p_value),
        Column("plain students", "plain", number(signed=True)),
        Column("share", "share", share),
        Column("wanted", "wanted"),
        Column("verdict", "verdict"),
    ],
    ARM_EFFECT_COLUMNS,
)
_ALIGNMENT = _named(
    [
        *_WHO,
        Column("persona", "persona", code),
        Column("block", "block"),
        Column("step", "step"),
        Column(
            "cosine", of("cosine", "lowest", "highest"), estimate(2), "Mean, lowest and highest of the seeds."
        ),
        Column("clean, lowest", "band_low", number(2, signed=True)),
        Column("highest", "band_high", number(2, signed=True)),
        Column("clean students", "n_clean"),
        Column("length", "norm", number(2)),
    ],
    ALIGNMENT_COLUMNS,
)


def _seeds_averaged(shifts: pl.DataFrame) -> pl.DataFrame:
    return shifts.group_by("variant", "rank", "block", maintain_order=True).agg(pl.exclude("seed").mean())


def _shift_columns(shifts: pl.DataFrame) -> list[Column]:
    cosines = [name for name in shifts.columns if name.startswith("cosine_")]
    columns = [*_WHO, Column("block", "block")]
    columns += [Column("length over the stream's", "norm_fraction", number())]
    columns += [
        Column(f"cosine with {name.removeprefix('cosine_')}", name, number(2, signed=True))
        for name in cosines
    ]
    return _named(columns, SHIFT_COLUMNS)


_STUDENTS = _named(
    [
        *_WHO,
        Column("seed", "seed"),
        Column("rows", "rows"),
        Column("steps", "steps"),
        Column("watched NLL, first", "selection_nll_first", number()),
        Column("last", "selection_nll_last", number()),
        Column("adapter", lambda row: row["adapter"][:12], code),
    ],
    STUDENT_COLUMNS,
)
