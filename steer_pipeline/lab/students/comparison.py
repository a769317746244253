"""Every student against the student of base, next to what the controls' students show.

In: the stored transfer of each variant. Out: `StudentTables`, which reports and checks are made from; nothing here
runs a model. Differences are paired by news item and seed, at one rank, over the same recipe and number of rows; a
student without its controls is not shown.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from safetensors.numpy import load_file

from steer_pipeline.catalogue.specs import CoherenceSpec, VariantSpec
from steer_pipeline.lab.behaviour.schema import DOWN, NONE, UP
from steer_pipeline.lab.columns import completed, described
from steer_pipeline.lab.controls import (
    MOVED,
    STORED,
    Controls,
    judge_controls,
    read_controls,
    row_noise,
)
from steer_pipeline.lab.quality.coherence import coherence, text_costs
from steer_pipeline.lab.rewrites import Refused
from steer_pipeline.lab.rewrites.comparison import BASE, NEEDED, RESAMPLE
from steer_pipeline.lab.stats import crossed_intervals, holm, mean_interval, mean_tests, minimum_detectable
from steer_pipeline.lab.students.arm_comparison import ARM_EFFECT_SCHEMA, compare_arms
from steer_pipeline.lab.students.arms import Arms
from steer_pipeline.lab.students.cells import cells, is_effect, metrics_of, persona_of
from steer_pipeline.lab.students.mechanism import (
    ADDED,
    ARM_SCHEMA,
    REMOVED,
    SHARE_SCHEMA,
    SHIFT_SCHEMA,
    Mechanism,
    explained,
    read_mechanism,
)
from steer_pipeline.lab.students.readout import Readout, fit_readout
from steer_pipeline.lab.students.training import STUDENTS, history_of
from steer_pipeline.lab.students.transfer import FACTS, ITSELF, PACK, ROWS, STATES

ALPHA = 0.05
SAME = ("rows", "epochs", "recipe", "model")  # what students that are compared share
SUMMARY_SCHEMA, SUMMARY_COLUMNS = described(
    variant=(pl.String(), "whose rewrites the student has learned"),
    role=(pl.String(), "of the variant: steered, prompted or control"),
    rank=(pl.Int64(), "of the LoRA"),
    metric=(pl.String(), "trait_<persona>_<scale>, projection_<persona>, or what the text costs"),
    n_rows=(pl.Int64(), "held-out news items"),
    n_seeds=(pl.Int64(), "students"),
    mean=(pl.Float64(), "of the students"),
    control=(pl.Float64(), "of base's students, at the same rank and seeds"),
    itself=(pl.Float64(), "of the model without a student"),
    difference=(pl.Float64(), "student minus base's student, paired by news item and seed"),
    low=(pl.Float64(), "95% interval over news and seeds, simultaneous over variants"),
    high=(pl.Float64(), "its upper end"),
    detectable=(pl.Float64(), "smallest difference that would be found with 80% power, from the spread seen"),
    p=(pl.Float64(), "test of the mean over news, seeds averaged"),
    p_holm=(pl.Float64(), "the same after Holm over variants"),
    band=(pl.Float64(), "largest absolute difference of a control's student at this rank"),
    teacher=(pl.Float64(), "the same difference between the packs that were learned"),
    share=(pl.Float64(), "difference over the teacher's; null where the packs hardly differ"),
    wanted=(pl.String(), "up or down, where the variant targets this trait"),
    verdict=(pl.String(), "effect up | effect down | no effect"),
)
SEED_SCHEMA, SEED_COLUMNS = described(
    variant=(pl.String(), "whose rewrites the student has learned"),
    rank=(pl.Int64(), "of the LoRA"),
    seed=(pl.Int64(), "of its training"),
    metric=(pl.String(), "as in the summary"),
    mean=(pl.Float64(), "of the student"),
    difference=(pl.Float64(), "to base's student of this seed"),
)
COHERENCE_SCHEMA, COHERENCE_COLUMNS = described(
    variant=(pl.String(), "whose rewrites the student has learned"),
    rank=(pl.Int64(), "of the LoRA"),
    cost=(pl.String(), "what the text may lose"),
    mean=(pl.Float64(), "of the students, seeds averaged"),
    itself=(pl.Float64(), "of the model without a student"),
    difference=(pl.Float64(), "between them on the same news"),
    low=(pl.Float64(), "95% interval over news"),
    high=(pl.Float64(), "its upper end"),
    limit=(pl.Float64(), "of the profile; null: not judged"),
    within=(pl.Boolean(), "whether the difference keeps to it"),
)
READOUT_SCHEMA, READOUT_COLUMNS = described(
    persona=(pl.String(), "whose trait it reads"),
    teacher=(pl.String(), "variant whose pack it is fitted on"),
    against=(pl.String(), "variant that it is held against: the other pole where there is one, else base"),
    block=(pl.Int64(), "at whose output"),
    n_pairs=(pl.Int64(), "news items of the fit"),
    auc=(pl.Float64(), "of the two packs, cross-fitted over news"),
    auc_low=(pl.Float64(), "95% interval over news"),
    auc_high=(pl.Float64(), "its upper end"),
    shuffled_high=(pl.Float64(), "95th percentile of the AUC with sides exchanged within pairs"),
    teacher_shift=(pl.Float64(), "of the steered pack, in standard deviations of base's"),
    separates=(pl.Boolean(), "better than chance and than exchanged sides"),
)
ALIGNMENT_SCHEMA, ALIGNMENT_COLUMNS = described(
    variant=(pl.String(), "whose rewrites the student has learned"),
    rank=(pl.Int64(), "of the LoRA"),
    seed=(pl.Int64(), "of the student"),
    step=(pl.Int64(), "optimiser steps taken"),
    persona=(pl.String(), "whose vector the teacher was steered by"),
    block=(pl.Int64(), "at whose output it was added"),
    cosine=(pl.Float64(), "of the student's mean shift there with this vector"),
    norm=(pl.Float64(), "length of that shift"),
    band_low=(pl.Float64(), "lowest cosine of the clean students at this step: base's and both controls'"),
    band_high=(pl.Float64(), "their highest"),
    n_clean=(pl.Int64(), "clean students, of all ranks and seeds"),
    wanted=(pl.String(), "which way the variant moves this trait: up or down"),
)
TEACHER_LEVEL = 0.997  # of the interval of a difference of packs; one with zero is nothing to take a share of
Direction = Literal["up", "down"]


@dataclass(frozen=True, eq=False)
class Stored:
    """The transfer of one variant, and of which students it is.

    Attributes:
        states, pack_states: fp32 [rows, blocks, hidden], in the order of `rows` and `pack`.
        facts: `transfer.json`.
    """

    students: pl.DataFrame
    rows: pl.DataFrame
    pack: pl.DataFrame
    states: np.ndarray
    pack_states: np.ndarray
    facts: Mapping[str, Any]
    curves: pl.DataFrame
    mechanism: Mechanism | None = None

    @property
    def blocks(self) -> list[int]:
        """Those that were read."""
        return list(self.facts["blocks"])


@dataclass(frozen=True, eq=False)
class StudentTables:
    """What the students' comparison found; frames can be stored as they are.

    Attributes:
        rows: every stored row, with projections.
        mechanism: `SHARE_SCHEMA`, of students that have an effect. `shifts`: one row a student whose shift was taken.
        alignment: one row a student of a steered variant, step of training and persona.
        arms: `ARM_EFFECT_SCHEMA`, one row an arm of hidden transfer, variant and metric.
        control_shifts: `controls.CONTROL_SCHEMA`: students of controls at every rank and metric, judged together.
        summary: one row a variant, rank and metric. `seeds`: the same by seed, without tests.
        students: one row a student. `curves`: their losses.
        left_out: `variant` or `variant rank 8` -> why it is not shown.
    """

    rows: pl.DataFrame
    summary: pl.DataFrame
    seeds: pl.DataFrame
    coherence: pl.DataFrame
    readouts: pl.DataFrame
    students: pl.DataFrame
    curves: pl.DataFrame
    mechanism: pl.DataFrame
    shifts: pl.DataFrame
    alignment: pl.DataFrame
    arms: pl.DataFrame
    control_shifts: pl.DataFrame
    left_out: dict[str, str] = field(default_factory=dict)


def read_transfer(adapters: Path, transfer: Path, mechanism: Path | None = None) -> Stored:
    """What `train_students`, `write_transfer` and, where it was made, `write_mechanism` wrote."""
    states = load_file(transfer / STATES)
    return Stored(
        pl.read_parquet(adapters / STUDENTS),
        pl.read_parquet(transfer / ROWS),
        pl.read_parquet(transfer / PACK),
        states["rows"],
        states["pack"],
        json.loads((transfer / FACTS).read_text()),
        history_of(adapters),
        None if mechanism is None else read_mechanism(mechanism),
    )


def compare_students(
    stored: Mapping[str, Stored],
    variants: Mapping[str, VariantSpec],
    spec: CoherenceSpec,
    *,
    seed: int,
    arms: Mapping[str, Arms | None] | None = None,
    n_boot: int = 10_000,
    needed: Sequence[str] = NEEDED,
) -> StudentTables:
    """Compares the students of all variants with base's, rank by rank.

    Args:
        stored: variant -> its transfer, in the catalogue's order.
        arms: variant -> its arms, base's among them; None for one that was not made though it was asked for.
        needed: variants without whose students none is shown: base and controls.

    Raises:
        Refused: base or a control has no students, or no student can be shown.
    """
    if absent := [name for name in needed if name not in stored]:
        raise Refused(
            f"{', '.join(absent)}: no students; nothing is compared without its controls: make student_adapter and "
            "student_transfer of them (`steer make students` does)"
        )
    otherwise = made_otherwise(stored)
    stored = {name: one for name, one in stored.items() if name not in otherwise}
    if absent := [name for name in needed if name not in stored]:
        raise Refused("; ".join(f"{name}: {otherwise[name]}" for name in absent))
    students = pl.concat([one.students for one in stored.values()])
    shown, left_out = showable(students, needed)
    if shown.filter(pl.col("variant") != BASE).is_empty():
        raise Refused(f"no student has its controls: {'; '.join(f'{k}: {v}' for k, v in left_out.items())}")
    readouts, without = fit_readouts(stored, variants, seed)
    rows = pl.concat([_projected(stored[name], readouts) for name in stored])
    rows = rows.filter(pl.col("variant") != ITSELF).vstack(_itself(rows))
    pack = pl.concat([_with_readouts(one.pack, one.pack_states, readouts) for one in stored.values()])
    controls = _control_shifts(rows, shown, variants, seed, n_boot)
    summary = with_control_verdicts(_summary(rows, pack, shown, variants, seed, n_boot), controls)
    there, unmade = _made_arms(arms or {}, stored[BASE])
    made = [one.mechanism for one in stored.values() if one.mechanism is not None]
    return StudentTables(
        rows=rows,
        summary=summary,
        seeds=_seeds(rows, shown),
        coherence=_coherence(rows, shown, spec),
        readouts=pl.DataFrame([_readout_row(*one) for one in readouts.items()], schema=READOUT_SCHEMA),
        students=students,
        curves=pl.concat([one.curves for one in stored.values()]),
        mechanism=_mechanism(rows, summary, [one.arms for one in made], seed),
        shifts=_shifts(made),
        alignment=_alignment(stored, variants),
        arms=_arms(there, readouts, summary, variants, seed, n_boot),
        control_shifts=controls,
        left_out=otherwise | left_out | without | unmade,
    )


# ------------------------------------------------------------------------------------ who may be shown


def showable(students: pl.DataFrame, needed: Sequence[str] = NEEDED) -> tuple[pl.DataFrame, dict[str, str]]:
    """Students whose controls exist at their rank, with the same seeds, rows, epochs, recipe and model; and why not.

    Args:
        students: `STUDENT_SCHEMA`, of all variants.
    """
    shown, left_out = [], {}
    for (variant, rank), own in students.group_by("variant", "rank", maintain_order=True):
        lacking = [problem for name in needed if (problem := _unlike(own, students, name, rank))]
        if lacking:
            left_out[f"{variant} rank {rank}"] = "; ".join(lacking)
        else:
            shown.append(own)
    return pl.concat(shown) if shown else students.clear(), left_out


def made_otherwise(stored: Mapping[str, Stored]) -> dict[str, str]:
    """variant -> in what its transfer was made otherwise than base's: other news, model, decoding or blocks."""
    base, found = stored[BASE], {}
    for name, one in stored.items():
        wrong = [key for key in ("model", "decoding_hash", "blocks") if one.facts[key] != base.facts[key]]
        if set(one.rows["row_id"]) != set(base.rows["row_id"]):
            wrong.append("held-out news")
        if wrong:
            found[name] = (
                f"not made as base's transfer was ({', '.join(wrong)}): materialise student_transfer again"
            )
    return found


def _unlike(own: pl.DataFrame, students: pl.DataFrame, control: str, rank: Any) -> str:
    """In what a control differs from a variant's students of one rank; empty if in nothing."""
    its = students.filter(variant=control, rank=rank)
    if its.is_empty():
        return f"{control} has no student of rank {rank}"
    mine, theirs = sorted(own["seed"]), sorted(its["seed"])
    if mine != theirs:
        return f"seeds {mine}, those of {control} {theirs}"
    for name in SAME:
        mine, theirs = own[name].unique().to_list(), its[name].unique().to_list()
        if mine != theirs:
            return f"{name} {mine[0]}, of {control} {theirs[0]}"
    return ""


# ------------------------------------------------------------------------------------ projections


def teachers(variants: Mapping[str, VariantSpec]) -> dict[str, tuple[str, str]]:
    """persona -> the variants that show it and its opposite: the first steered ones whose only target is this trait.

    Where none steers the other way, base takes its place.
    """
    found: dict[str, dict[str, str]] = {}
    for name, spec in variants.items():
        if spec.role == "steered" and len(spec.targets) == 1:
            ((persona, way),) = spec.targets.items()
            found.setdefault(persona, {}).setdefault(way, name)
    return {one: (ways["up"], ways.get("down", BASE)) for one, ways in found.items() if "up" in ways}


def fit_readouts(
    stored: Mapping[str, Stored], variants: Mapping[str, VariantSpec], seed: int
) -> tuple[dict[str, Readout], dict[str, str]]:
    """persona -> read-out, fitted on what students have learned; and why there is none."""
    found: dict[str, Readout] = {}
    problems: dict[str, str] = {}
    for persona, (teacher, against) in teachers(variants).items():
        if absent := [name for name in (teacher, against) if name not in stored]:
            problems[f"projection of {persona}"] = f"{' and '.join(absent)}: no students"
            continue
        packs = {name: stored[name].pack for name in (teacher, against, BASE)}
        common = sorted(set.intersection(*(set(pack["row_id"]) for pack in packs.values())))
        states = {name: stored[name].pack_states[_places(pack, common)] for name, pack in packs.items()}
        try:
            found[persona] = fit_readout(teacher, against, states, BASE, stored[BASE].blocks, seed=seed)
        except Refused as error:
            problems[f"projection of {persona}"] = str(error)
    return found, problems


def _places(frame: pl.DataFrame, row_ids: Sequence[str]) -> list[int]:
    at = {row_id: place for place, row_id in enumerate(frame["row_id"])}
    return [at[row_id] for row_id in row_ids]


def _projected(one: Stored, readouts: Mapping[str, Readout]) -> pl.DataFrame:
    return _with_readouts(one.rows, one.states, readouts)


def _with_readouts(rows: pl.DataFrame, states: np.ndarray, readouts: Mapping[str, Readout]) -> pl.DataFrame:
    """`rows` with `suspect` and `projection_<persona>`; null for an empty rewrite."""
    empty = (pl.col("output").str.strip_chars() == "").alias("empty")
    columns = [
        pl.Series(f"projection_{persona}", readout.project(states), dtype=pl.Float64)
        for persona, readout in readouts.items()
    ]
    names = [column.name for column in columns]
    return (
        rows.with_columns(pl.col("suspects").list.len() > 0)
        .rename({"suspects": "suspect"})
        .with_columns(*columns, empty)
        .with_columns(pl.when("empty").then(None).otherwise(pl.col(name)).alias(name) for name in names)
        .drop("empty")
    )


def _itself(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows of the model without a student, once; every transfer holds the same."""
    return rows.filter(variant=ITSELF).unique("row_id", keep="first", maintain_order=True)


def _readout_row(persona: str, readout: Readout) -> dict[str, Any]:
    return {
        "persona": persona,
        "teacher": readout.teacher,
        "against": readout.against,
        "block": readout.block,
        "n_pairs": readout.n_pairs,
        "auc": readout.auc.estimate,
        "auc_low": readout.auc.low,
        "auc_high": readout.auc.high,
        "shuffled_high": readout.shuffled_high,
        "teacher_shift": readout.teacher_shift,
        "separates": readout.separates,
    }


# ------------------------------------------------------------------------------------ differences


def _summary(
    rows: pl.DataFrame,
    pack: pl.DataFrame,
    shown: pl.DataFrame,
    variants: Mapping[str, VariantSpec],
    seed: int,
    n_boot: int,
) -> pl.DataFrame:
    itself = rows.filter(variant=ITSELF)
    table: list[dict[str, Any]] = []
    for rank in shown["rank"].unique(maintain_order=True):
        names = shown.filter(rank=rank)["variant"].unique(maintain_order=True).to_list()
        names = [BASE, *(name for name in names if name != BASE)]
        for metric in metrics_of(rows):
            values = cells(rows.filter(rank=rank), metric, names)
            known = itself[metric].cast(pl.Float64).drop_nulls().mean()
            roles = {name: variants[name].role for name in names}
            for name, numbers in judge_family(values, roles, seed=seed, n_boot=n_boot).items():
                row = {"variant": name, "role": roles[name], "rank": rank, "metric": metric, "itself": known}
                row |= numbers | _of_teacher(pack, name, metric, numbers["difference"])
                if is_effect(metric):
                    row["wanted"] = variants[name].targets.get(persona_of(metric))
                else:
                    row["verdict"] = None
                table.append(row)
    return pl.DataFrame(table, schema=SUMMARY_SCHEMA).with_columns(pl.col(pl.Float64).fill_nan(None))


def judge_family(
    values: np.ndarray, roles: Mapping[str, str], *, seed: int, n_boot: int = 10_000
) -> dict[str, dict[str, Any]]:
    """Numbers of every variant but base, judged together; none where no news item has all values.

    An effect is what has an interval without zero, Holm's p below `ALPHA`, and a shift beyond the band, the largest
    that students of a control show; controls themselves need not be beyond it.

    Args:
        values: float64 [news, seeds, variants], NaN where there is none.
        roles: variant -> role, in the order of `values`, base first.
    """
    differences = values[:, :, 1:] - values[:, :, :1]
    complete = np.isfinite(differences).all(axis=(1, 2))
    if not complete.any():
        return {}
    differences, values, names = differences[complete], values[complete], list(roles)[1:]
    intervals = crossed_intervals(differences, seed=seed, n_boot=n_boot)
    ps = mean_tests(differences.mean(axis=1))
    controls = [
        abs(one.estimate) for name, one in zip(names, intervals, strict=True) if roles[name] == "control"
    ]
    band = max(controls, default=0.0)
    found: dict[str, dict[str, Any]] = {}
    for place, (name, one, p, adjusted) in enumerate(zip(names, intervals, ps, holm(ps), strict=True)):
        beyond = roles[name] == "control" or abs(one.estimate) > band
        sure = not one.includes_zero and adjusted < ALPHA and beyond
        found[name] = {
            "n_rows": len(differences),
            "n_seeds": differences.shape[1],
            "mean": float(values[:, :, place + 1].mean()),
            "control": float(values[:, :, 0].mean()),
            "difference": one.estimate,
            "low": one.low,
            "high": one.high,
            "detectable": minimum_detectable(differences[:, :, place]),
            "p": float(p),
            "p_holm": float(adjusted),
            "band": band,
            "verdict": NONE if not sure else UP if one.estimate > 0 else DOWN,
        }
    return found


def _control_shifts(
    rows: pl.DataFrame, shown: pl.DataFrame, variants: Mapping[str, VariantSpec], seed: int, n_boot: int
) -> pl.DataFrame:
    """`CONTROL_SCHEMA` of the students of controls, over all ranks, traits and projections together."""
    names = shown["variant"].unique(maintain_order=True).to_list()
    controls = [name for name in names if variants[name].role == "control"]
    ranks, metrics = shown["rank"].unique(maintain_order=True), [m for m in metrics_of(rows) if is_effect(m)]
    columns: dict[str, dict[tuple[str, str], np.ndarray]] = {name: {} for name in controls}
    for rank in ranks:
        here = [name for name in controls if not shown.filter(variant=name, rank=rank).is_empty()]
        for metric in metrics:
            values = cells(rows.filter(rank=rank), metric, [BASE, *here])
            for place, name in enumerate(here, start=1):
                columns[name][f"rank {rank}", metric] = values[:, :, place] - values[:, :, 0]
    noise = columns.get(RESAMPLE) or next(iter(columns.values()), {})
    blocks = [
        Controls(
            [(name, *key) for key in own],
            np.stack(list(own.values()), axis=2),
            np.concatenate([row_noise(noise.get(key, own[key])[:, :, None]) for key in own]),
        )
        for name, own in columns.items()
        if own
    ]
    return judge_controls(blocks, seed=seed, n_boot=n_boot)


def with_control_verdicts(summary: pl.DataFrame, controls: pl.DataFrame) -> pl.DataFrame:
    """`summary` with the verdicts of controls as the rule for controls has them: what table and check say is one."""
    up = pl.when(pl.col("difference") > 0).then(pl.lit(UP)).otherwise(pl.lit(DOWN))
    way = pl.when(pl.col("state") == MOVED).then(up).otherwise(pl.lit(NONE))
    told = controls.select(
        pl.col("control").alias("variant"),
        pl.col("part").str.strip_prefix("rank ").cast(pl.Int64).alias("rank"),
        "metric",
        way.alias("told"),
    )
    joined = summary.join(told, on=["variant", "rank", "metric"], how="left", maintain_order="left")
    return joined.with_columns(verdict=pl.coalesce("told", "verdict")).drop("told")


def _of_teacher(pack: pl.DataFrame, variant: str, metric: str, difference: float) -> dict[str, Any]:
    """What was learned, variant against base on the same news; the share of it that the student shows."""
    if metric == "nll_reference":
        return {}
    value = pl.col(metric).cast(pl.Float64)
    own, base = (
        pack.filter(variant=name).select("row_id", value.alias(side))
        for name, side in ((variant, "own"), (BASE, "base"))
    )
    both = own.join(base, on="row_id").drop_nulls()
    if both.is_empty():
        return {}
    differences = (both["own"] - both["base"]).to_numpy()
    teacher = mean_interval(differences, level=TEACHER_LEVEL)
    clear = is_effect(metric) and not teacher.includes_zero
    return {"teacher": teacher.estimate, "share": difference / teacher.estimate if clear else None}


def _seeds(rows: pl.DataFrame, shown: pl.DataFrame) -> pl.DataFrame:
    table = []
    own = rows.join(shown.select("variant", "rank", "seed"), on=["variant", "rank", "seed"], how="semi")
    for metric in metrics_of(rows):
        value = pl.col(metric).cast(pl.Float64).alias("value")
        values = own.select("variant", "rank", "seed", "row_id", value)
        base = values.filter(variant=BASE).drop("variant").rename({"value": "base"})
        paired = values.join(base, on=["rank", "seed", "row_id"], maintain_order="left")
        table.append(
            paired.group_by("variant", "rank", "seed", maintain_order=True)
            .agg(
                pl.lit(metric).alias("metric"),
                pl.col("value").mean().alias("mean"),
                (pl.col("value") - pl.col("base")).mean().alias("difference"),
            )
            .select(SEED_SCHEMA.names())
        )
    return pl.concat(table).cast(SEED_SCHEMA)


def _coherence(rows: pl.DataFrame, shown: pl.DataFrame, spec: CoherenceSpec) -> pl.DataFrame:
    """Costs of every student against the model without one, on the same news, seeds averaged."""
    measured = _costs(rows)
    costs, names = rows.hstack(measured), measured.columns
    itself = costs.filter(variant=ITSELF).sort("row_id").select(names)
    table: list[dict[str, Any]] = []
    for variant, rank in shown.select("variant", "rank").unique(maintain_order=True).iter_rows():
        own = costs.filter(variant=variant, rank=rank).group_by("row_id").agg(pl.col(names).mean())
        for cost in coherence(own.sort("row_id").select(names), itself, spec).values():
            difference = cost.difference
            table.append(
                {"variant": variant, "rank": rank, "cost": cost.name, "mean": cost.mean, "itself": cost.base}
                | {"limit": cost.limit, "within": cost.within}
                | (
                    {}
                    if difference is None
                    else {"difference": difference.estimate, "low": difference.low, "high": difference.high}
                )
            )
    return pl.DataFrame(table, schema=COHERENCE_SCHEMA)


def _costs(rows: pl.DataFrame) -> pl.DataFrame:
    return text_costs(
        rows["output"].to_list(),
        [["suspect"] if hit else [] for hit in rows["suspect"]],
        rows["facts_kept"].to_list(),
        rows["nll_output"].to_list(),
    )


def _mechanism(
    rows: pl.DataFrame, summary: pl.DataFrame, arms: Sequence[pl.DataFrame], seed: int
) -> pl.DataFrame:
    """Necessity and sufficiency of the shifts for every targeted trait that a student moves."""
    written = pl.concat(arms, how="diagonal") if arms else pl.DataFrame(schema=ARM_SCHEMA)
    moved = summary.filter(
        pl.col("wanted").is_not_null(), pl.col("verdict") != NONE, pl.col("metric").str.starts_with("trait_")
    )
    table: list[dict[str, Any]] = []
    for variant, rank, metric in moved.select("variant", "rank", "metric").iter_rows():
        own = written.filter(variant=variant, rank=rank)
        if own.is_empty() or metric not in own.columns:
            continue
        student = _by_seed(rows.filter(variant=variant, rank=rank), metric)
        removed, added = (_by_seed(own.filter(arm=arm), metric) for arm in (REMOVED, ADDED))
        itself = rows.filter(variant=ITSELF).sort("row_id")[metric].to_numpy()
        if student.shape == removed.shape == added.shape:
            shares = explained(student, removed, added, itself, seed=seed)
            table.append({"variant": variant, "rank": rank, "metric": metric} | shares)
    return pl.DataFrame(table, schema=SHARE_SCHEMA)


def _made_arms(arms: Mapping[str, Arms | None], base: Stored) -> tuple[dict[str, Arms], dict[str, str]]:
    """Arms that can be compared, and why others cannot."""
    found: dict[str, Arms] = {}
    problems: dict[str, str] = {}
    for name, one in arms.items():
        if one is None:
            problems[f"arms of {name}"] = "not made: materialise student_arms (`steer make students` does)"
        elif any(one.facts[key] != base.facts[key] for key in ("model", "decoding_hash", "blocks")):
            problems[f"arms of {name}"] = "not made as base's transfer was: materialise student_arms again"
        else:
            found[name] = one
    if BASE not in found:
        return {}, problems
    return found, problems


def _arms(
    arms: Mapping[str, Arms],
    readouts: Mapping[str, Readout],
    summary: pl.DataFrame,
    variants: Mapping[str, VariantSpec],
    seed: int,
    n_boot: int,
) -> pl.DataFrame:
    """Every arm against base's, with projections."""
    if not arms:
        return pl.DataFrame(schema=ARM_EFFECT_SCHEMA)
    rows = pl.concat([_with_readouts(one.rows, one.states, readouts) for one in arms.values()])
    made = pl.concat([one.made for one in arms.values()])
    return compare_arms(rows, made, summary, variants, base=BASE, seed=seed, n_boot=n_boot)


def _shifts(made: Sequence[Mechanism]) -> pl.DataFrame:
    if not made:
        return pl.DataFrame(schema=SHIFT_SCHEMA)
    return pl.concat([one.shifts for one in made], how="diagonal")


def _alignment(stored: Mapping[str, Stored], variants: Mapping[str, VariantSpec]) -> pl.DataFrame:
    """How students come to point along the vector that their teacher was steered by, beside those of clean rows."""
    known = {name: one.mechanism for name, one in stored.items() if one.mechanism is not None}
    clean = [known[name].stepwise for name in NEEDED if name in known]
    parts = []
    for name, mechanism in known.items():
        for persona, block in mechanism.steered_at.items():
            column = f"cosine_{persona}"
            if any(column not in one.columns for one in (mechanism.stepwise, *clean)):
                continue  # there was no vector to hold shifts against
            cosine = pl.col(column).alias("cosine")
            band = pl.concat(one.filter(block=block).select("step", cosine) for one in clean)
            band = band.group_by("step").agg(
                pl.col("cosine").min().alias("band_low"),
                pl.col("cosine").max().alias("band_high"),
                pl.col("cosine").count().cast(pl.Int64).alias("n_clean"),
            )
            own = mechanism.stepwise.filter(block=block).with_columns(
                cosine,
                persona=pl.lit(persona),
                wanted=pl.lit(variants[name].targets.get(persona), dtype=pl.String),
            )
            parts.append(own.join(band, on="step", how="left", maintain_order="left"))
    if not parts or not clean:
        return pl.DataFrame(schema=ALIGNMENT_SCHEMA)
    return pl.concat([part.select(ALIGNMENT_SCHEMA.names()).cast(ALIGNMENT_SCHEMA) for part in parts])


def at_the_end(alignment: pl.DataFrame) -> pl.DataFrame:
    """One row a variant, rank and persona: the last step, seeds averaged, with the least of them."""
    last = alignment.filter(pl.col("step") == pl.col("step").max().over("variant", "rank"))
    return last.group_by("variant", "rank", "persona", "block", "wanted", "step", maintain_order=True).agg(
        pl.col("cosine").min().alias("lowest"),
        pl.col("cosine").max().alias("highest"),
        pl.col("cosine", "norm").mean(),
        pl.col("band_low", "band_high", "n_clean").first(),
    )


def _by_seed(rows: pl.DataFrame, metric: str) -> np.ndarray:
    """[news, seeds], both in sorted order."""
    wide = rows.sort("row_id", "seed").select("row_id", "seed", metric)
    return wide[metric].to_numpy().reshape(wide["row_id"].n_unique(), -1)


# ------------------------------------------------------------------------------------ as a folder


def write_tables(tables: StudentTables, folder: Path) -> None:
    """One Parquet file a table, and `left_out.json`."""
    for table in fields(tables):
        value = getattr(tables, table.name)
        if isinstance(value, pl.DataFrame):
            value.write_parquet(folder / f"{table.name}.parquet")
    (folder / "left_out.json").write_text(json.dumps(tables.left_out, indent=1, sort_keys=True) + "\n")


def read_tables(folder: Path) -> StudentTables:
    """What `write_tables` wrote."""
    frames = {
        table.name: pl.read_parquet(folder / f"{table.name}.parquet")
        for table in fields(StudentTables)
        if table.name not in ("left_out", STORED.removesuffix(".parquet"))
    }
    frames[STORED.removesuffix(".parquet")] = read_controls(folder)
    frames["summary"] = completed(frames["summary"], SUMMARY_SCHEMA)
    frames["arms"] = completed(frames["arms"], ARM_EFFECT_SCHEMA)
    return StudentTables(**frames, left_out=json.loads((folder / "left_out.json").read_text()))
