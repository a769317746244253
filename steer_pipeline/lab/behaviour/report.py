"""`behaviour.md` and `behaviour.html`: what prompting and steering did to the answers, in words, tables and plots.

In: the behaviour tables, the versions that they were made from, and the likelihood tables of the vector
comparisons where there are some. Out: files. Says nothing that the stored tables do not hold.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import polars as pl

from steer_pipeline.lab.arms import LEARNED, PROMPTED, RANDOM, TRAINED, VANILLA, Arm
from steer_pipeline.lab.behaviour import figures
from steer_pipeline.lab.behaviour.schema import DOWN, SUMMARY_SCHEMA, UP, BehaviourTables
from steer_pipeline.lab.behaviour.table import MIN_EFFECT, arms_table
from steer_pipeline.lab.columns import completed
from steer_pipeline.lab.controls import STORED, moved_controls, read_controls, told_of_controls
from steer_pipeline.lab.report.document import (
    Block,
    Bullets,
    Figure,
    Heading,
    Paragraph,
    Table,
    to_html,
    to_markdown,
    write_pictures,
)

REPORT, PAGE, ARMS, VERSIONS, PLOTS = (
    "behaviour.md",
    "behaviour.html",
    "arms.parquet",
    "versions.json",
    "plots",
)
TITLE = "What steering does to behaviour"
CORRECTED = "corrected"  # a table that folders of older versions lack
LEARNED_ARM = Arm(TRAINED, scale=LEARNED).name


@dataclass(frozen=True)
class Written:
    """Where the report and its plots lie; `html` holds its plots itself."""

    markdown: Path
    html: Path
    plots: tuple[Path, ...]


def write_behaviour(
    tables: BehaviourTables,
    versions: Mapping[str, str],
    folder: Path,
    *,
    likelihood: Mapping[str, pl.DataFrame] | None = None,
    missing: Mapping[str, str] | None = None,
) -> Written:
    """Writes every table as Parquet, `arms.parquet`, `versions.json`, the plots, `behaviour.md` and `behaviour.html`.

    Args:
        versions: asset[partition] -> version that was read.
        likelihood: persona -> table of its vector comparison (arm, nll_gap_closed, nll_gap_low, nll_gap_high, ...).
        missing: persona -> why it has no averaged arms.
    """
    arms = arms_table(tables)
    for table in fields(tables):
        getattr(tables, table.name).write_parquet(folder / f"{table.name}.parquet")
    arms.write_parquet(folder / ARMS)
    (folder / VERSIONS).write_text(json.dumps(dict(versions), indent=1, sort_keys=True) + "\n")
    drawn = {
        "dose_response": figures.dose_response(arms),
        "trait_against_coherence": figures.trait_against_coherence(arms),
    }
    blocks = _blocks(tables, arms, versions, drawn, likelihood or {}, missing or {})
    return _write(folder, drawn, blocks)


def _write(folder: Path, drawn: Mapping[str, bytes], blocks: Sequence[Block]) -> Written:
    plots = write_pictures(drawn, folder / PLOTS)
    written = Written(folder / REPORT, folder / PAGE, plots)
    written.markdown.write_text(to_markdown(TITLE, blocks, PLOTS), encoding="utf-8")
    written.html.write_text(to_html(TITLE, blocks), encoding="utf-8")
    return written


def read_tables(folder: Path) -> BehaviourTables:
    """What `write_behaviour` wrote."""
    paths = {table.name: folder / f"{table.name}.parquet" for table in fields(BehaviourTables)}
    frames = {
        name: pl.read_parquet(path)
        for name, path in paths.items()
        if path.name != STORED and (name != CORRECTED or path.is_file())
    }
    frames[STORED.removesuffix(".parquet")] = read_controls(folder)
    frames["summary"] = completed(frames["summary"], SUMMARY_SCHEMA)
    return BehaviourTables(**frames)


def headline_rows(arms: pl.DataFrame) -> pl.DataFrame:
    """One row a persona: vanilla, prompted, the learned scale with its gap, and the scorer's AUC."""
    shown = {
        "vanilla": (VANILLA, "score"),
        "prompted": (PROMPTED, "score"),
        "trained": (LEARNED_ARM, "score"),
        "trait gap closed": (LEARNED_ARM, "trait_gap_closed"),
        "gap low": (LEARNED_ARM, "trait_gap_low"),
        "gap high": (LEARNED_ARM, "trait_gap_high"),
        "verdict": (LEARNED_ARM, "verdict"),
        "perplexity": (LEARNED_ARM, "perplexity"),
        "MiniLM AUC": (VANILLA, "auc"),
    }
    rows = []
    for persona in arms["persona"].unique(maintain_order=True):
        own = {row["arm_name"]: row for row in arms.filter(persona=persona).iter_rows(named=True)}
        rows.append(
            {"persona": persona}
            | {name: own.get(arm, {}).get(column) for name, (arm, column) in shown.items()}
        )
    return pl.DataFrame(rows)


def summary_text(arms: pl.DataFrame, controls: pl.DataFrame) -> str:
    """What the table says, in two sentences and one row a persona; Markdown.

    Args:
        controls: `controls.CONTROL_SCHEMA`.
    """
    told = "; ".join(moved_controls(controls)) or told_of_controls(controls)
    learned = arms.filter(arm_name=LEARNED_ARM)
    up = learned.filter(verdict=UP).height
    random = arms.filter(pl.col("arm") == RANDOM, ~pl.col("pooled"))
    moved = random.filter(pl.col("verdict").is_in([UP, DOWN])).height
    head = headline_rows(arms)
    table = to_markdown("", [Table(head.columns, [[_text(value) for value in row] for row in head.rows()])])
    lines = table.partition("\n")[2].strip()
    return (
        f"{up} of {arms['persona'].n_unique()} personas move up at the learned scale; of {random.height} random arms "
        f"{moved} move by themselves; {told}. The whole report is `{PAGE}` in this version's folder.\n\n{lines}"
    )


def _blocks(
    tables: BehaviourTables,
    arms: pl.DataFrame,
    versions: Mapping[str, str],
    drawn: Mapping[str, bytes],
    likelihood: Mapping[str, pl.DataFrame],
    missing: Mapping[str, str],
) -> list[Block]:
    head = headline_rows(arms)
    blocks: list[Block] = [
        Paragraph(_opening(tables)),
        Heading("At the learned scale"),
        Table(head.columns, [[_text(value) for value in row] for row in head.rows()]),
        Heading("Dose and response"),
        Figure("dose_response", drawn["dose_response"], "Trait score against the scale of the vector."),
        Heading("Trait and coherence"),
        Figure(
            "trait_against_coherence",
            drawn["trait_against_coherence"],
            "Trait score against perplexity under the unsteered model; numbers are scales.",
        ),
        Heading("Agreement of the scales"),
        _agreement(tables.agreement),
        *_corrections(tables.corrected),
        Heading("Arms"),
    ]
    for persona in tables.personas:
        blocks += [Heading(persona, 3), _arms(arms.filter(persona=persona))]
        if persona in missing:
            blocks.append(Paragraph(f"No averaged arms: {missing[persona]}"))
    if likelihood:
        blocks += [Heading("Likelihood"), _likelihood(likelihood)]
    blocks += [Heading("Scorers"), _scorers(tables.scorers), Heading("Made from")]
    blocks.append(Bullets([f"`{name}` version `{sha}`" for name, sha in sorted(versions.items())]))
    return blocks


def _opening(tables: BehaviourTables) -> str:
    asked = sum(tables.judged["rows"].to_list()) - sum(tables.judged["judge_not_asked"].to_list())
    judge = (
        f"A judge was asked about {asked} of {tables.rows.height} answers."
        if asked
        else "No judge was asked: the endpoint is not set."
    )
    return (
        f"{len(tables.personas)} personas, {tables.rows.height} answers to held-out questions. The trait score is "
        "MiniLM's calibrated probability; intervals (95%) and tests go over questions. An effect is claimed where "
        "Holm's p over the arms of a persona is below 0.05, an interval that holds for all of them at once excludes "
        f"zero, and the shift is at least {MIN_EFFECT:g}. {_controls(tables)} The trait gap is "
        "what prompting does to the trait score, the NLL gap what it does to the likelihood of held-out answers. "
        f"{judge}"
    )


def _controls(tables: BehaviourTables) -> str:
    if moved := moved_controls(tables.control_shifts):
        return f"Controls: {'; '.join(moved)}; no effect is evidence before that is explained."
    return f"Controls: {told_of_controls(tables.control_shifts)}."


def _arms(own: pl.DataFrame) -> Table:
    judged = bool(own["judge_scored"].sum())
    columns = ["arm", "score", "to vanilla", "detectable", "p (Holm)", "verdict", "trait gap closed", "truth"]
    columns += ["judge", "judge refusals, invalid, missing"] if judged else []
    rows = []
    for row in own.iter_rows(named=True):
        cells = [
            row["arm_name"],
            _with_interval(row, "score"),
            _with_interval(row, "difference"),
            _text(row["detectable"]),
            _text(row["p_holm"]),
            row["verdict"] or "–",
            _with_interval(row, "trait_gap_closed", "trait_gap"),
            _with_interval(row, "truth"),
        ]
        if judged:
            fates = [row[f"judge_{fate}"] for fate in ("refusal", "invalid", "missing")]
            cells += [_with_interval(row, "judge"), ", ".join(_text(fate) for fate in fates)]
        cells += [_with_interval(row, "perplexity"), _text(row["loop_rate"]), _text(row["new_tokens"])]
        rows.append(cells)
    return Table([*columns, "perplexity", "loops", "tokens"], rows)


def _agreement(table: pl.DataFrame) -> Block:
    if table.is_empty():
        return Paragraph("There is one scale only: no lexicon and no judge.")
    rows = [
        [
            row["persona"],
            f"{row['first']}, {row['second']}",
            _text(row["n_rows"]),
            _with_interval(row, "spearman"),
            _with_interval(row, "auc"),
            _with_interval(row, "kappa"),
        ]
        for row in table.iter_rows(named=True)
    ]
    return Table(
        ["persona", "scales", "answers", "Spearman", "AUC for truth", "weighted kappa"],
        rows,
        "Over all answers of all arms; intervals over questions.",
    )


def _corrections(corrected: pl.DataFrame) -> list[Block]:
    """Nothing without a judge or a ground truth."""
    if corrected.is_empty():
        return []
    rows = [
        [
            row["persona"],
            row["arm_name"],
            f"{row['n_gold']} of {row['n_questions']}",
            *(
                _with_interval(row, name)
                for name in ("sensitivity", "specificity", "judged", "corrected", "by_errors", "truth")
            ),
        ]
        for row in corrected.iter_rows(named=True)
    ]
    head = [
        "persona",
        "arm",
        "gold",
        "sensitivity",
        "specificity",
        "judge says",
        "corrected",
        "by errors",
        "truth",
    ]
    return [
        Heading("The judge, corrected"),
        Table(
            head,
            rows,
            "Share of answers that show the trait. The judge is heard on all questions and corrected by those that are "
            "gold: by its mean error there, or by its sensitivity and specificity. The truth is known here, and tells "
            "what such a correction is worth where it is not.",
        ),
    ]


def _likelihood(tables: Mapping[str, pl.DataFrame]) -> Table:
    rows = [
        [
            persona,
            str(row["arm"]),
            _text(row.get("perplexity")),
            _with_interval(row, "nll_gap_closed", "nll_gap"),
        ]
        for persona, table in tables.items()
        for row in table.iter_rows(named=True)
    ]
    return Table(
        ["persona", "arm", "perplexity", "NLL gap closed"],
        rows,
        "Held-out answers of the behaviour set, from vector_comparison.",
    )


def _scorers(scorers: pl.DataFrame) -> Table:
    rows = [
        [
            row["persona"],
            _with_interval(row, "auc"),
            f"{_text(row['shuffled_mean'])}, {_text(row['shuffled_high'])}",
            f"{_text(row['length_auc_before'])}, {_text(row['length_auc_after'])}",
            _text(row["brier"]),
            _text(row["calibration_error"]),
            _text(row["n_pairs"]),
        ]
        for row in scorers.iter_rows(named=True)
    ]
    return Table(
        [
            "persona",
            "held-out AUC",
            "shuffled: mean, 95th",
            "length AUC: whole, matched",
            "Brier",
            "ECE",
            "pairs",
        ],
        rows,
        "MiniLM on questions that it was not trained on.",
    )


def _with_interval(row: Mapping[str, Any], name: str, bounds: str = "") -> str:
    low, high = row.get(f"{bounds or name}_low"), row.get(f"{bounds or name}_high")
    if row.get(name) is None:
        return "–"
    return _text(row[name]) if low is None else f"{_text(row[name])} [{_text(low)}, {_text(high)}]"


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.2g}" if 0 < abs(value) < 0.01 else f"{value:.2f}"
    return str(value)
