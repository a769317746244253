"""What must hold of contrast sets, vectors and dose curves. Bad sides, broken directions and steering without effect
stop what is downstream; weak evidence warns, with its numbers.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from steer_pipeline.catalogue import load_persona
from steer_pipeline.keys import key
from steer_pipeline.partitions import PERSONA
from steer_pipeline.resources import ArtifactStoreResource

MIN_SPLIT_HALF_COSINE = 0.8
MIN_CONTRAST_AUC = 0.6
MIN_LOGIT_DELTA = 1e-3
WARN = dg.AssetCheckSeverity.WARN


def _spec(name: str, asset: str, claim: str, *, blocking: bool = False) -> dg.AssetCheckSpec:
    return dg.AssetCheckSpec(name, asset=asset, description=claim, blocking=blocking, partitions_def=PERSONA)


def _folder(context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource, asset: str) -> Path:
    version = store.store().current(asset, context.partition_key)
    if version is None:
        raise dg.Failure(
            f"{asset}[{context.partition_key}] is not in the store: materialise it first", allow_retries=False
        )
    return version.path


@dg.multi_asset_check(
    name="contrast_set_checks",
    specs=[
        _spec(
            "sides_share_their_contexts",
            "contrast_set",
            "Both sides hold the same contexts: same user turn, split and instruction number, one row a side; "
            "both splits are there.",
            blocking=True,
        ),
        _spec(
            "completions_show_the_contrast",
            "contrast_set",
            "What the model says under the two instructions differs in the trait: paired difference above "
            f"zero and AUC of at least {MIN_CONTRAST_AUC}.",
        ),
    ],
)
def contrast_set_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether a contrast set is matched, and whether its completions differ in the trait."""
    from steer_pipeline.lab.personas.contrast import measure_contrast, mismatched_contexts
    from steer_pipeline.lab.personas.steps import trait_scorer

    persona = load_persona(context.partition_key)
    rows = pl.read_parquet(_folder(context, store, "contrast_set") / "data.parquet")
    broken, splits = mismatched_contexts(rows), rows["split"].n_unique()
    yield dg.AssetCheckResult(
        asset_key=key("contrast_set"),
        check_name="sides_share_their_contexts",
        passed=broken.is_empty() and splits == 2,
        description=(
            f"{rows['context_id'].n_unique()} contexts, all on both sides"
            if broken.is_empty()
            else f"{broken.height} contexts differ; {broken['context_id'][0]}: {broken['problem'][0]}"
        ),
        metadata={
            "contexts": rows["context_id"].n_unique(),
            "mismatched_contexts": broken.height,
            "splits": splits,
        },
    )
    if not broken.is_empty():
        yield _warn("contrast_set", "completions_show_the_contrast", False, "the sides do not match", {})
        return
    found = measure_contrast(rows, trait_scorer(persona, rows))
    yield _warn(
        "contrast_set",
        "completions_show_the_contrast",
        found["difference_low"] > 0 and found["auc"] >= MIN_CONTRAST_AUC,
        f"trait score {found['positive']:+.2f} against {found['negative']:+.2f}, AUC {found['auc']:.2f}",
        found,
    )


def _warn(asset: str, check: str, passed: bool, told: str, metadata: dict[str, Any]) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        asset_key=key(asset),
        check_name=check,
        passed=passed,
        severity=WARN,
        description=told,
        metadata=metadata,
    )


@dg.multi_asset_check(
    name="persona_vector_checks",
    specs=[
        _spec(
            "directions_are_sound",
            "persona_vector",
            "Every direction is finite, not zero and as wide as the model, and the files are of one vector.",
            blocking=True,
        ),
        _spec(
            "halves_agree",
            "persona_vector",
            "Directions of random halves of the pairs point the same way: mean cosine of at least "
            f"{MIN_SPLIT_HALF_COSINE} at the block that separates best.",
        ),
        _spec(
            "separates_held_out_contexts",
            "persona_vector",
            "The best block tells the poles of unseen contexts apart better than 95% of refits on shuffled "
            "labels, search over blocks included.",
        ),
    ],
)
def persona_vector_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether a vector is whole, stable and better than chance."""
    from steer_pipeline.lab.vectors.vector import VectorError, load_vector

    folder = _folder(context, store, "persona_vector")
    try:
        vector = load_vector(folder)
    except VectorError as error:
        yield dg.AssetCheckResult(
            asset_key=key("persona_vector"),
            check_name="directions_are_sound",
            passed=False,
            description=str(error),
        )
        for check in ("halves_agree", "separates_held_out_contexts"):
            yield _warn("persona_vector", check, False, "the vector cannot be read", {})
        return
    facts, blocks = vector.metadata, vector.present_blocks
    yield dg.AssetCheckResult(
        asset_key=key("persona_vector"),
        check_name="directions_are_sound",
        passed=True,
        description=f"{len(blocks)} directions of {vector.raw.shape[1]} values",
        metadata={"directions": len(blocks), "width": int(vector.raw.shape[1])},
    )
    best = max(blocks, key=lambda block: facts["held_out_auc"][block])
    cosines = facts.get("split_half_cosine")
    if cosines is None:
        yield _warn("persona_vector", "halves_agree", True, "imported: there are no pairs to halve", {})
    else:
        yield _warn(
            "persona_vector",
            "halves_agree",
            cosines[best] >= MIN_SPLIT_HALF_COSINE,
            f"mean cosine of halves {cosines[best]:.3f} at block {best}, limit {MIN_SPLIT_HALF_COSINE}",
            {"split_half_cosine": cosines[best], "block": best},
        )
    auc, limit = facts["held_out_auc"][best], facts["auc_max_null_95th"]
    yield _warn(
        "persona_vector",
        "separates_held_out_contexts",
        auc > limit,
        f"AUC {auc:.3f} at block {best}; 95% of shuffled refits stay under {limit:.3f} at their best block",
        {"held_out_auc": auc, "auc_max_null_95th": limit, "auc_max_p": facts["auc_max_p"], "block": best},
    )


@dg.multi_asset_check(
    name="dose_curve_checks",
    specs=[
        _spec(
            "steering_takes_effect",
            "dose_curve",
            "At every block of the sweep the largest dose changes the model's logits.",
            blocking=True,
        ),
        _spec(
            "a_coherent_dose_exists",
            "dose_curve",
            "Some dose moves the trait and keeps the text coherent; its numbers, or why there is none.",
        ),
        _spec(
            "random_direction_moves_nothing",
            "dose_curve",
            "A random direction with the recommended norm leaves the trait where it is.",
        ),
    ],
)
def dose_curve_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether steering does something, whether a dose can be recommended, and whether it is the direction."""
    from steer_pipeline.lab.personas.steps import PROBE, SWEEP
    from steer_pipeline.lab.vectors.doses import load_recommendation

    folder = _folder(context, store, "dose_curve")
    weakest = min(probe["max_abs_logit_delta"] for probe in json.loads((folder / PROBE).read_text()))
    yield dg.AssetCheckResult(
        asset_key=key("dose_curve"),
        check_name="steering_takes_effect",
        passed=weakest >= MIN_LOGIT_DELTA,
        description=f"the weakest block changes a logit by {weakest:.3g}, floor {MIN_LOGIT_DELTA:g}",
        metadata={"min_logit_delta": weakest},
    )
    recommendation = load_recommendation(folder)
    yield dg.AssetCheckResult(
        asset_key=key("dose_curve"),
        check_name="a_coherent_dose_exists",
        passed=recommendation.found,
        description=recommendation.reason,
        metadata={"dose_fraction": recommendation.fraction or 0.0},
    )
    random = pl.read_parquet(folder / SWEEP).filter(direction="random")
    at_dose = random.filter(fraction=recommendation.fraction) if recommendation.found else random
    if at_dose.is_empty():
        yield _warn("dose_curve", "random_direction_moves_nothing", True, "no positive dose was swept", {})
        return
    row = at_dose.sort("fraction").row(-1, named=True)
    yield _warn(
        "dose_curve",
        "random_direction_moves_nothing",
        row["shift_low"] <= 0 <= row["shift_high"],
        f"shift {row['shift']:+.3f} [{row['shift_low']:+.3f}, {row['shift_high']:+.3f}] at {row['fraction']:+g}",
        {"random_shift": row["shift"], "dose_fraction": row["fraction"]},
    )


CHECKS = [contrast_set_checks, persona_vector_checks, dose_curve_checks]
