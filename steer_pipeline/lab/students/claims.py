"""What must hold of students, of their transfer and of their comparison. In: stored folders. Out: verdicts."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import polars as pl

from steer_pipeline.catalogue.specs import StudentSpec, VariantSpec
from steer_pipeline.lab.behaviour.schema import DOWN, UP
from steer_pipeline.lab.controls import controls_verdict
from steer_pipeline.lab.limits import MIN_CLEAN, MIN_SEEDS, MIN_TRANSFER_ROWS
from steer_pipeline.lab.students.comparison import StudentTables, at_the_end, read_tables
from steer_pipeline.lab.students.training import LESSON, STUDENTS, all_rows, wanted
from steer_pipeline.lab.students.transfer import FACTS, ROWS
from steer_pipeline.lab.verdict import Verdict

SHOWN = 3


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"


# ------------------------------------------------------------------------------------ student_adapter


def adapter_verdicts(folder: Path, spec: StudentSpec, role: str) -> Iterator[Verdict]:
    """Whether all students are there, saw what generation sees, and got better on rows that they did not learn.

    Args:
        role: of the variant; what the model says by itself, base and its resample, has nothing new in it.
    """
    students = pl.read_parquet(folder / STUDENTS)
    differing = json.loads((folder / LESSON).read_text())["differing_rows"]
    count = len(all_rows(folder))
    good = f"{count} rows, the same token ids in training and generation"
    bad = f"{len(differing)} of {count} rows have other token ids in training than in generation: {_listed(differing)}"
    yield Verdict(
        "same_ids_everywhere", not differing, bad if differing else good, {"differing_rows": len(differing)}
    )
    there = set(students.select("rank", "seed").iter_rows())
    lacking = [f"rank {rank} seed {seed}" for rank, seed in wanted(spec) if (rank, seed) not in there]
    yield Verdict(
        "every_rank_and_seed",
        not lacking,
        f"missing: {_listed(lacking)}" if lacking else f"{len(there)} students, {count} rows in all",
        {"students": len(there)},
    )
    worse = students.filter(pl.col("selection_nll_last") >= pl.col("selection_nll_first"))
    gain = float((students["selection_nll_first"] - students["selection_nll_last"]).to_numpy().mean())
    yield Verdict(
        "selection_loss_falls",
        worse.is_empty() or role in ("base", "control"),
        f"NLL of the watched rows falls by {gain:.4f} nats a token from the first evaluation to the last"
        + (f"; not of {worse.height} of {students.height} students" if worse.height else "")
        + (", and need not: there is nothing new to learn" if role in ("base", "control") else ""),
        {"selection_nll_gain": gain, "not_better": worse.height},
    )


# ------------------------------------------------------------------------------------ student_transfer


def transfer_verdicts(folder: Path, students: Path) -> Iterator[Verdict]:
    """Whether every student answered, on news that nobody learned."""
    rows, facts = pl.read_parquet(folder / ROWS), json.loads((folder / FACTS).read_text())
    shared = sorted(set(rows["row_id"]) & set(all_rows(students))) + facts["overlap"]
    yield Verdict(
        "news_are_held_out",
        not shared,
        f"learned as well: {_listed(shared)}"
        if shared
        else f"{facts['held_out_rows']} news, none learned and none nearly so",
        {"held_out_rows": facts["held_out_rows"], "shared": len(shared)},
    )
    counts = rows.group_by("variant", "rank", "seed").agg(pl.col("row_id").n_unique().alias("rows"), pl.len())
    short = counts.filter((pl.col("rows") != facts["held_out_rows"]) | (pl.col("len") != pl.col("rows")))
    made = pl.read_parquet(students / STUDENTS).height
    whole = short.is_empty() and counts.height == made + 1
    yield Verdict(
        "every_student_answers",
        whole,
        f"{counts.height - 1} of {made} students and the model itself, {facts['held_out_rows']} rewrites each"
        + ("" if whole else f"; {short.height} of them do not have one for each news item"),
        {"students": counts.height - 1, "incomplete": short.height},
    )
    enough = facts["held_out_rows"] >= MIN_TRANSFER_ROWS
    yield Verdict(
        "enough_news",
        enough,
        f"{facts['held_out_rows']} held-out news, at least {MIN_TRANSFER_ROWS} are wanted",
        {"held_out_rows": facts["held_out_rows"]},
    )


# ------------------------------------------------------------------------------------ student_comparison


def comparison_verdicts(folder: Path, variants: Mapping[str, VariantSpec]) -> Iterator[Verdict]:
    """Whether all students stand beside their controls, and what they say."""
    tables = read_tables(folder)
    yield _beside_controls(tables, list(variants))
    yield controls_verdict("controls_stay", tables.control_shifts)
    yield _effects(tables.summary.filter(pl.col("verdict").is_not_null()))
    yield _arms(tables.arms)
    yield _alignment(at_the_end(tables.alignment))
    beyond = tables.coherence.filter(~pl.col("within"))
    names = [f"{row['variant']} rank {row['rank']} {row['cost']}" for row in beyond.iter_rows(named=True)]
    yield Verdict(
        "students_stay_coherent",
        not names,
        f"beyond its limit: {_listed(names)}" if names else "every cost of every student keeps to its limit",
        {"beyond": len(names)},
    )
    unclear = tables.readouts.filter(~pl.col("separates"))
    yield Verdict(
        "readouts_separate",
        unclear.is_empty() and tables.readouts.height > 0,
        f"{tables.readouts.height} read-outs"
        + (f"; no better than chance: {_listed(unclear['persona'].to_list())}" if unclear.height else ""),
        {f"auc_{row['persona']}": row["auc"] for row in tables.readouts.iter_rows(named=True)},
    )
    seeds = int(tables.summary["n_seeds"].min() or 0)  # type: ignore[arg-type]
    yield Verdict(
        "at_least_three_seeds",
        seeds >= MIN_SEEDS,
        f"{seeds} seeds a variant and rank, at least {MIN_SEEDS} are wanted",
        {"seeds": seeds},
    )


def _arms(arms: pl.DataFrame) -> Verdict:
    """Whether every arm has students of the variant and of base."""
    without = arms.filter(pl.col("metric").is_null())
    names = [f"{row['variant']} {row['arm']} ({row['note']})" for row in without.iter_rows(named=True)]
    made = arms.drop_nulls("metric").select("variant", "arm").unique().height
    return Verdict(
        "arms_are_compared",
        not names,
        f"no students: {_listed(names)}"
        if names
        else f"{made} arms, each beside base's"
        if made
        else "no arms were asked for (students.arm_variants)",
        {"arms": made, "without": len(names)},
    )


def _alignment(last: pl.DataFrame) -> Verdict:
    """Whether every student of a steered variant points along its teacher's vector more than clean ones do."""
    up = pl.col("lowest") > pl.col("band_high")
    down = pl.col("highest") < pl.col("band_low")
    targeted = last.filter(pl.col("wanted").is_not_null())
    within = targeted.filter(~pl.when(pl.col("wanted") == "up").then(up).otherwise(down).fill_null(False))
    clean = int(targeted["n_clean"].min() or 0)  # type: ignore[arg-type]
    names = [
        f"{row['variant']} rank {row['rank']} {row['cosine']:+.2f}, clean {row['band_low']:+.2f} to "
        f"{row['band_high']:+.2f}"
        for row in within.drop_nulls("band_low").iter_rows(named=True)
    ]
    message = (
        f"within the band of the clean students: {_listed(names)}"
        if names
        else (
            f"{targeted.height} variants and ranks, all beyond the clean students"
            if targeted.height
            else "no shift of a steered variant's students was taken"
        )
    )
    return Verdict(
        "shifts_align",
        within.is_empty() and clean >= MIN_CLEAN,
        f"{message}; {clean} clean students, at least {MIN_CLEAN} are wanted",
        {"within": within.height, "clean": clean},
    )


def _beside_controls(tables: StudentTables, variants: Sequence[str]) -> Verdict:
    left_out = [f"{name}: {why}" for name, why in tables.left_out.items()]
    absent = [name for name in variants if name not in set(tables.students["variant"])]
    left_out += [f"{name}: no students" for name in absent]
    ranks = tables.summary["rank"].unique().sort().to_list()
    return Verdict(
        "every_student_beside_its_controls",
        not left_out,
        f"not shown: {_listed(left_out)}"
        if left_out
        else f"ranks {', '.join(map(str, ranks))}: all variants, each beside the students of base and of the controls",
        {"left_out": len(left_out)},
    )


def _effects(traits: pl.DataFrame) -> Verdict:
    """Of targets; `traits` are the rows of the summary that have a verdict."""
    targeted = traits.filter(pl.col("wanted").is_not_null())
    as_wanted = pl.col("verdict") == pl.when(pl.col("wanted") == "up").then(pl.lit(UP)).otherwise(
        pl.lit(DOWN)
    )
    missed = targeted.filter(~as_wanted)
    return Verdict(
        "traits_travel",
        missed.is_empty() and targeted.height > 0,
        f"not as wanted: {_listed(_shifts(missed))}"
        if missed.height
        else f"{targeted.height} shifts of targeted traits, all as wanted"
        if targeted.height
        else "no variant with a target is shown",
        {"targeted": targeted.height, "missed": missed.height},
    )


def _shifts(rows: pl.DataFrame) -> list[str]:
    """`paranoid rank 8 trait_paranoid_minilm +0.12 [+0.02, +0.22]`"""
    return [
        f"{row['variant']} rank {row['rank']} {row['metric']} {row['difference']:+.3f} "
        f"[{row['low']:+.3f}, {row['high']:+.3f}]"
        for row in rows.iter_rows(named=True)
    ]
