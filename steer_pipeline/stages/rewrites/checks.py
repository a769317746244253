"""Gates of packs and keep sets. Those of `rewrite_pack` block its release; their verdicts are stored beside the
version that they judged, so that a roll-back needs no new run of them.
"""

from collections.abc import Iterator

import dagster as dg
import polars as pl

from steer_pipeline.catalogue.specs import VariantSpec
from steer_pipeline.io.reader import Reader, read_rows
from steer_pipeline.keys import key
from steer_pipeline.lab.rewrites import GATES
from steer_pipeline.partitions import VARIANT
from steer_pipeline.resources import ArtifactStoreResource
from steer_pipeline.settings import settings
from steer_pipeline.stages.rewrites import comparing, making, verdicts


@dg.multi_asset_check(
    name="rewrite_pack_gates",
    can_subset=True,
    specs=[
        dg.AssetCheckSpec(
            name, asset="rewrite_pack", description=claim, blocking=True, partitions_def=VARIANT
        )
        for name, claim in GATES.items()
    ],
)
def rewrite_pack_gates(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Judges the current version of a pack and stores the verdicts beside it.

    All gates are judged and stored, whichever of them were asked for.
    """
    from steer_pipeline.lab.rewrites import gates, work

    now, shelf, variant = settings(), store.store(), context.partition_key
    version = shelf.current(verdicts.PACK, variant)
    if version is None:
        raise dg.Failure(
            f"rewrite_pack [{variant}] has not been made: materialise it, then judge it", allow_retries=False
        )
    pack, profile = read_rows(version.path), now.profile
    read = Reader(shelf)
    base, resample = (read.rows("rewrite_raw", name) for name in ("base", "base_resample"))
    size = pack["size"][0] if "size" in pack.columns and pack.height else "pilot"
    found = gates.judge(
        pack,
        expected_rows=min(work.rows_wanted(profile, size), making.news_count(shelf)),
        base=base,
        resample=resample,
        suspects=making.read_news_source(read, pack, now).suspects(pack),
        role=difference_role(now.variants[variant]),
        max_suspect_rate=profile.gates.max_suspect_rate,
        level=profile.gates.alpha,
        seed=profile.rewrites.sampling.seed,
    )
    verdicts.record(shelf, variant, version, found, making.made_with(pack, size))
    for verdict in found:
        if dg.AssetCheckKey(key("rewrite_pack"), verdict.claim) not in context.selected_asset_check_keys:
            continue
        yield dg.AssetCheckResult(
            asset_key=key("rewrite_pack"),
            check_name=verdict.claim,
            passed=verdict.passed,
            severity=dg.AssetCheckSeverity.ERROR if verdict.blocking else dg.AssetCheckSeverity.WARN,
            description=verdict.message,
            metadata={"version": version.sha, **verdict.numbers, **_table(verdict.examples)},
        )


@dg.multi_asset_check(
    name="keep_set_checks",
    specs=[
        dg.AssetCheckSpec(
            "enough_rows_are_kept",
            asset="keep_set",
            description="At least the profile's share of rows is kept.",
            blocking=True,
            partitions_def=VARIANT,
        ),
        dg.AssetCheckSpec(
            "kept_rows_differ_from_base",
            asset="keep_set",
            description="What is kept of a steered variant is worded unlike base: mean word overlap below 1.",
            partitions_def=VARIANT,
        ),
    ],
)
def keep_set_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether a keep set is large enough to learn from, and unlike base."""
    rows = Reader(store.store()).rows("keep_set", context.partition_key)
    kept = rows.filter("keep")
    share, limit = kept.height / max(rows.height, 1), settings().profile.gates.min_kept_fraction
    passed = kept.height > 0 and share >= limit
    cure = (
        "; `reasons` of its rows says why: mend that (most often the dose), or lower gates.min_kept_fraction"
    )
    yield dg.AssetCheckResult(
        asset_key=key("keep_set"),
        check_name="enough_rows_are_kept",
        passed=passed,
        description=f"{kept.height} of {rows.height} rows are kept ({share:.1%}), limit {limit:.1%}"
        + ("" if passed else cure),
        metadata={"kept_rows": kept.height, "kept_fraction": share},
    )
    overlap = kept["overlap_with_base"].drop_nulls()
    mean = float(overlap.mean() or 0.0)
    yield dg.AssetCheckResult(
        asset_key=key("keep_set"),
        check_name="kept_rows_differ_from_base",
        passed=overlap.is_empty() or mean < 1.0,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"mean word overlap with base {mean:.3f}" if overlap.len() else "not compared with base",
        metadata={"overlap_with_base": mean} if overlap.len() else {},
    )


@dg.asset_check(
    asset="rewrite_comparison",
    description="Intervals of base_resample and random_direction include zero on the lexicon's scale.",
)
def controls_show_nothing(store: ArtifactStoreResource) -> dg.AssetCheckResult:
    """A control that moves a trait puts every other difference in doubt."""
    from steer_pipeline.lab.rewrites.headline import moved_controls

    moved = moved_controls(_summary(store))
    return dg.AssetCheckResult(
        passed=not moved, description="; ".join(moved) or "they do", metadata={"moved_controls": len(moved)}
    )


@dg.asset_check(
    asset="rewrite_comparison",
    description="Each steered variant moves its traits the way the catalogue says, interval beyond zero.",
)
def targets_are_met(store: ArtifactStoreResource) -> dg.AssetCheckResult:
    """Whether steering did what it was meant to do."""
    from steer_pipeline.lab.rewrites.headline import missed_targets

    targets = {name: spec.targets for name, spec in settings().variants.items()}
    missed = missed_targets(_summary(store), targets)
    return dg.AssetCheckResult(
        passed=not missed,
        description="; ".join(missed) or "they are",
        metadata={"missed_targets": len(missed)},
    )


@dg.asset_check(
    asset="rewrite_comparison",
    description="Every pack stands in the comparison; one that was made otherwise than base is left out, and named.",
)
def every_pack_is_compared(store: ArtifactStoreResource) -> dg.AssetCheckResult:
    """A difference between packs of two settings would be shown as the work of the steering."""
    left_out = comparing.read_tables(store.store().current("rewrite_comparison", None).path).left_out
    return dg.AssetCheckResult(
        passed=not left_out,
        severity=dg.AssetCheckSeverity.WARN,
        description="; ".join(f"{name} is left out: {why}" for name, why in left_out.items()) or "all are",
        metadata={"left_out": len(left_out)},
    )


def _summary(store: ArtifactStoreResource) -> pl.DataFrame:
    return pl.read_parquet(store.store().current("rewrite_comparison", None).path / "summary.parquet")


def difference_role(variant: VariantSpec) -> str:
    """How `differs_from_base` holds for a variant: `steered` gates, others inform, `exempt` is a reference."""
    if not variant.terms and not variant.prompted_by:
        return "exempt"
    return variant.role


def _table(examples: list[dict]) -> dict[str, dg.MetadataValue]:
    if not examples:
        return {}
    records = [dg.TableRecord({key: str(value) for key, value in row.items()}) for row in examples]
    return {"examples": dg.MetadataValue.table(records)}


CHECKS = [
    rewrite_pack_gates,
    keep_set_checks,
    controls_show_nothing,
    targets_are_met,
    every_pack_is_compared,
]
