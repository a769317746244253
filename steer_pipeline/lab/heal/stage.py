"""Gate 3: all arms in one table, from stored rows alone, with divergence and claims. Runs no model.

In: evaluations by arm. Out: a folder with the stage table's frames,
`divergence.parquet`, all texts, and what a last line shows.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from steer_pipeline.catalogue.healing import HealSpec
from steer_pipeline.catalogue.specs import CoherenceSpec
from steer_pipeline.lab.columns import described
from steer_pipeline.lab.foundations import base_can_choose, metric_rows, readings
from steer_pipeline.lab.heal.arms import BASE_ARM, arms_differ_once, configure
from steer_pipeline.lab.heal.dosing import PERSONA
from steer_pipeline.lab.heal.evaluating import SHOWN, Evaluation, intent_of
from steer_pipeline.lab.heal.healing import sources_of
from steer_pipeline.lab.heal.pairs import OFF_TARGET
from steer_pipeline.lab.heal.table import (
    StageTable,
    read_stage_table,
    stage_table,
    stages_of,
    write_stage_table,
)
from steer_pipeline.lab.heal.verdicts import BASE, GOOD, claims, learns_directions, stage_of
from steer_pipeline.lab.limits import MAX_ON_POLICY_KL, MIN_COHERENCE
from steer_pipeline.lab.rewrites import Refused
from steer_pipeline.lab.verdict import Verdict

FREE_TEXT, FORCED_CHOICE = "free text", "forced choice"
TEXTS, DIVERGENCE, CONFIGS, CHOICES, NOTES = (
    "texts.parquet",
    "divergence.parquet",
    "configs.json",
    "base_choices.parquet",
    "notes.json",
)
ON_POLICY = "on_policy"
# Said before any number is seen: what success looks like, and which other truth its absence means.
EXPECTED = (
    "SHOULD steered move the target up and cost coherence. ELSE its dose is too weak to say anything of healing",
    "SHOULD nll retain most of that shift at base's coherence. ELSE the filter kept what is not steered, or students "
    "learned too little (read their watched losses)",
    "SHOULD on_policy pay fewer nats for the same movement than nll. ELSE what costs is the trait, not the way to it",
    "SHOULD random_direction and base_text_sft stay at zero. ELSE any training moves the scale, and no arm is evidence",
    "SHOULD shuffled move less than nll. ELSE students learned words, whatever they were asked",
)
DIVERGENCE_SCHEMA, DIVERGENCE_COLUMNS = described(
    arm=(pl.String(), "how the model was changed"),
    n_seeds=(pl.Int64(), "of the arm"),
    kl=(
        pl.Float64(),
        "nats a token from the model without changes, along the arm's own texts; mean over prompts",
    ),
    difference=(pl.Float64(), "mean movement of the target in free texts"),
    kl_per_movement=(pl.Float64(), "the first over the second; null where the target did not move up"),
)


@dataclass(frozen=True, eq=False)
class Stage:
    """All arms beside base.

    Attributes:
        texts: what every arm said, with trait, other traits and signals.
        divergence: `DIVERGENCE_SCHEMA`.
        configs: arm -> its configuration as it was stored.
        base_choices: base's forced choices, where they were asked for.
        left_out: arm -> why it is not in the table.
        unjudged: signals and silent scales of free texts that are shown in `texts` and judged by nobody.
    """

    tables: StageTable
    texts: pl.DataFrame
    divergence: pl.DataFrame
    configs: Mapping[str, Mapping[str, Any]]
    base_choices: pl.DataFrame | None
    left_out: Mapping[str, str]
    unjudged: Sequence[str] = ()


def unjudged_signals(limits: CoherenceSpec) -> list[str]:
    """Signals that a profile judges nobody by: of a model whose trait is unlikely text, its likelihood is no loss."""
    return ["nll"] if limits.max_extra_nll is None else []


def silent_scales(texts: pl.DataFrame) -> list[str]:
    """Off-target columns that say the same of every text of every arm: their zero is no evidence that nothing moved."""
    scales = [name for name in texts.columns if name.startswith(OFF_TARGET)]
    return [name for name in scales if texts.height > 1 and texts[name].n_unique() == 1]


def readings_of(texts: pl.DataFrame, unjudged: Sequence[str]) -> dict[str, pl.DataFrame]:
    """Rows of free texts as the stage table takes them."""
    shown = [name for name in SHOWN if name not in ("arm", "seed", "row_id")]
    return {FREE_TEXT: texts.drop(*shown, *unjudged)}


def make_stage(
    evaluations: Mapping[str, Evaluation],
    spec: HealSpec,
    *,
    left_out: Mapping[str, str],
    unjudged: Sequence[str] = (),
) -> Stage:
    """The table of all arms.

    Raises:
        Refused: base or the steered model has not been evaluated.
        StageError: arms that were not measured alike.
    """
    if BASE not in evaluations:
        raise Refused(
            "base has not been evaluated, and every number stands beside it; materialise heal_evaluation"
        )
    texts = pl.concat([one.rows for one in evaluations.values()])
    unjudged = [*unjudged, *silent_scales(texts)]
    frames = readings_of(texts, unjudged)
    asked = [one.choices for one in evaluations.values() if one.choices is not None]
    if spec.foundations is not None and len(asked) == len(evaluations):
        read = readings(pl.concat(asked))
        frames[FORCED_CHOICE] = metric_rows(read, intent_of(spec.foundations))
    configs = {arm: one.config for arm, one in evaluations.items() if one.config is not None}
    stages = stages_of(list(evaluations)) | {arm: stage_of(config) for arm, config in configs.items()}
    directions = [arm for arm, config in configs.items() if learns_directions(config)]
    tables = stage_table(frames, stages, directions=directions, seed=spec.evaluation.seed)
    return Stage(tables, texts, divergence_of(texts), configs, evaluations[BASE].choices, left_out, unjudged)


def divergence_of(texts: pl.DataFrame) -> pl.DataFrame:
    """`DIVERGENCE_SCHEMA`, an arm a row: what it costs in nats to move the target."""
    base = texts.filter(arm=BASE).select("row_id", base="target")
    own = texts.filter(pl.col("arm") != BASE).join(base, on="row_id", maintain_order="left")
    found = own.group_by("arm", maintain_order=True).agg(
        n_seeds=pl.col("seed").n_unique().cast(pl.Int64),
        kl=pl.col("kl").mean(),
        difference=(pl.col("target") - pl.col("base")).mean(),
    )
    moved = pl.when(pl.col("difference") > 0).then(pl.col("kl") / pl.col("difference"))
    return found.with_columns(kl_per_movement=moved).select(DIVERGENCE_SCHEMA.names())


def best_arm(stage: Stage, spec: HealSpec) -> str:
    """The arm that rounds go on with: of those that learn the persona's kept texts, a good one that moves the target
    most; where none is good, the one that moves it most above the floor of coherence.

    Raises:
        Refused: no such arm is coherent.
    """
    able = [
        arm
        for arm, config in configure(spec).items()
        if config.intervention == "train" and config.texts == "kept" and sources_of(config) == [PERSONA]
    ]
    first = stage.tables.table["reading"][0]
    rows = stage.tables.table.filter(
        pl.col("arm").is_in(able), pl.col("reading") == first, pl.col("coherence") >= MIN_COHERENCE
    ).drop_nulls("difference")
    if rows.is_empty():
        raise Refused(
            f"no arm that learns the kept texts is above the floor of coherence ({MIN_COHERENCE}): there is nothing to "
            "go on from; read heal_stage_table, then lower the dose or heal.base_arm's learning rate"
        )
    order = rows.with_columns(good=pl.col("verdict") == GOOD).sort("good", "difference", descending=True)
    return str(order["arm"][0])


# ------------------------------------------------------------------------------------ claims


def stage_verdicts(stage: Stage, seed: int) -> list[Verdict]:
    """What the table shows, judged."""
    found = [
        arms_differ_once(stage.configs),
        *claims(
            stage.tables.table.filter(reading=stage.tables.table["reading"][0]), stage.tables.control_shifts
        ),
        on_policy_needs_less(stage.divergence),
        all_arms_stand(stage),
        off_target_is_heard(stage),
    ]
    if stage.base_choices is None:
        told = Verdict("base_can_choose", True, "this profile reads free texts alone", blocking=False)
        return [*found, told]
    return [*found, base_can_choose(readings(stage.base_choices), seed=seed)]


def all_arms_stand(stage: Stage) -> Verdict:
    """No arm of the profile is missing."""
    told = "; ".join(f"{arm}: {why}" for arm, why in sorted(stage.left_out.items()))
    return Verdict(
        "heal_every_arm_stands_beside_base",
        not stage.left_out,
        told or f"{stage.texts['arm'].n_unique()} arms, base among them",
        {"left_out": len(stage.left_out)},
    )


def off_target_is_heard(stage: Stage) -> Verdict:
    """Every scale beside the target tells some texts from others."""
    silent = [name.removeprefix(f"{OFF_TARGET}_") for name in stage.unjudged if name.startswith(OFF_TARGET)]
    told = f"{', '.join(silent)}: the same score in all {stage.texts.height} texts, so they are left out"
    return Verdict(
        "heal_off_target_is_heard",
        not silent,
        told if silent else "every scale beside the target tells texts apart",
        {"silent": len(silent)},
        blocking=False,
    )


def on_policy_needs_less(divergence: pl.DataFrame) -> Verdict:
    """On-policy distillation pays fewer nats than supervised learning for the same movement of the target."""
    name = "on_policy_needs_less_kl"
    rows = {row["arm"]: row for row in divergence.iter_rows(named=True)}
    if lacking := [arm for arm in (ON_POLICY, BASE_ARM) if arm not in rows]:
        return Verdict(name, False, f"there is no arm {' nor '.join(lacking)}", blocking=False)
    ours, theirs = rows[ON_POLICY], rows[BASE_ARM]
    told = (
        f"on_policy {ours['kl']:.3g} nats a token for {ours['difference']:+.3f}, nll {theirs['kl']:.3g} for "
        f"{theirs['difference']:+.3f}"
    )
    if ours["kl_per_movement"] is None or not theirs["kl_per_movement"]:
        return Verdict(name, False, f"{told}: the target must move up in both to compare", blocking=False)
    share = ours["kl_per_movement"] / theirs["kl_per_movement"]
    return Verdict(
        name,
        share <= MAX_ON_POLICY_KL,
        f"{told}: {share:.2f} of nll's divergence for the same movement, {MAX_ON_POLICY_KL} at most is wanted",
        {"share": share, "kl_on_policy": ours["kl"], "kl_nll": theirs["kl"]},
        blocking=False,
    )


def headline(stage: Stage) -> dict[str, Any]:
    """arm -> what a last line shows of it, in the first reading."""
    found: dict[str, Any] = {}
    kl = dict(stage.divergence.select("arm", "kl").iter_rows())
    first = stage.tables.table["reading"][0]
    for row in stage.tables.table.filter(reading=first).iter_rows(named=True):
        keys = ("stage", "difference", "low", "high", "retain", "off_target", "coherence", "verdict")
        found[row["arm"]] = {key: row[key] for key in keys} | {"kl": kl.get(row["arm"])}
    return found


# ------------------------------------------------------------------------------------ as a folder


def write_stage(stage: Stage, folder: Path) -> None:
    """The frames, one Parquet file each, and the configurations."""
    write_stage_table(stage.tables, folder)
    stage.texts.write_parquet(folder / TEXTS)
    stage.divergence.write_parquet(folder / DIVERGENCE)
    (folder / CONFIGS).write_text(json.dumps(dict(stage.configs), indent=1, sort_keys=True) + "\n")
    notes = {"left_out": dict(stage.left_out), "unjudged": list(stage.unjudged)}
    (folder / NOTES).write_text(json.dumps(notes, indent=1, sort_keys=True) + "\n")
    if stage.base_choices is not None:
        stage.base_choices.write_parquet(folder / CHOICES)


def read_stage(folder: Path) -> Stage:
    """What `write_stage` wrote."""
    choices, notes = folder / CHOICES, json.loads((folder / NOTES).read_text())
    return Stage(
        read_stage_table(folder),
        pl.read_parquet(folder / TEXTS),
        pl.read_parquet(folder / DIVERGENCE),
        json.loads((folder / CONFIGS).read_text()),
        pl.read_parquet(choices) if choices.is_file() else None,
        notes["left_out"],
        notes["unjudged"],
    )
