"""Gates of packs and keep sets, and what must hold of the comparison. The gates of `rewrite_pack` block its release;
their verdicts are stored beside the version that they judged, so that a roll-back needs no new run of them.
"""

from collections.abc import Iterator
from typing import Any

import dagster as dg
import polars as pl

from steer_pipeline.io.reader import Reader
from steer_pipeline.keys import key
from steer_pipeline.lab.rewrites import GATES
from steer_pipeline.partitions import VARIANT
from steer_pipeline.resources import ArtifactStoreResource
from steer_pipeline.settings import settings
from steer_pipeline.stages.kit import Claims, must, ought, should

PACK = Claims(
    "rewrite_pack",
    *(must(name, gate.says, gate.cure) for name, gate in GATES.items()),
    partitions_def=VARIANT,
)
KEEP = Claims(
    "keep_set",
    must(
        "enough_rows_are_kept",
        "At least the profile's share of rows is kept.",
        "`reasons` of its rows says why: mend that (most often the dose), or lower gates.min_kept_fraction",
    ),
    should(
        "kept_rows_differ_from_base",
        "What is kept of a steered variant is worded unlike base: mean word overlap below 1.",
        "raise the variant's dose, then make rewrite_raw of it again",
    ),
    partitions_def=VARIANT,
)
COMPARISON = Claims(
    "rewrite_comparison",
    ought(
        "controls_show_nothing",
        "Neither base_resample nor random_direction moves a trait on any scale: no interval, simultaneous over all of "
        "them, lies beyond its margin.",
        "explain that first: trait shifts of this run are no evidence before",
    ),
    ought(
        "targets_are_met",
        "Each steered variant moves its traits the way the catalogue says: interval beyond zero, and the shift beyond "
        "all random directions and their spread.",
        "raise the variant's dose, or look at dose_curve of its persona: the model may not be able to show the trait",
    ),
    should(
        "every_pack_is_compared",
        "Every pack stands in the comparison; one that was made otherwise than base is left out, and named.",
        "make rewrite_raw and rewrite_pack of those variants again, with the settings of base",
    ),
)


@PACK.check(name="rewrite_pack_gates", can_subset=True)
def rewrite_pack_gates(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Judges the current version of a pack and stores the verdicts beside it.

    All gates are judged and stored, whichever of them were asked for.
    """
    from steer_pipeline.lab.rewrites.judging import judge

    packs, variant = store.store(), context.partition_key
    version = packs.current("rewrite_pack", variant)
    if version is None:
        message = f"rewrite_pack [{variant}] has not been made: materialise it, then judge it"
        raise dg.Failure(message, allow_retries=False)
    judged = judge(packs, variant, version, settings())
    selected = context.selected_asset_check_keys
    for verdict in judged:
        if dg.AssetCheckKey(key("rewrite_pack"), verdict.claim) in selected:
            yield PACK.judged(verdict, version=version.sha, **_table(verdict.examples))


@KEEP.check()
def keep_set_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether a keep set is large enough to learn from, and unlike base."""
    rows = Reader(store.store()).made_rows("keep_set", context.partition_key)
    kept, limit = rows.filter("keep"), settings().profile.gates.min_kept_fraction
    share = kept.height / max(rows.height, 1)
    yield KEEP.result(
        "enough_rows_are_kept",
        kept.height > 0 and share >= limit,
        f"{kept.height} of {rows.height} rows are kept ({share:.1%}), limit {limit:.1%}",
        {"kept_rows": kept.height, "kept_fraction": share},
    )
    overlap = kept["overlap_with_base"].drop_nulls()
    mean = float(overlap.mean() or 0.0)
    yield KEEP.result(
        "kept_rows_differ_from_base",
        overlap.is_empty() or mean < 1.0,
        f"mean word overlap with base {mean:.3f}, limit 1" if overlap.len() else "not compared with base",
        {"overlap_with_base": mean} if overlap.len() else {},
    )


@COMPARISON.check()
def rewrite_comparison_checks(store: ArtifactStoreResource) -> Iterator[dg.AssetCheckResult]:
    """Whether controls are silent, steering did what it was meant to do, and nothing is missing."""
    from steer_pipeline.lab.controls import controls_verdict
    from steer_pipeline.lab.rewrites.headline import missed_targets
    from steer_pipeline.lab.rewrites.stored import read_tables

    compared = read_tables(Reader(store.store()).folder("rewrite_comparison"))
    summary = compared.tables.summary
    yield COMPARISON.judged(controls_verdict("controls_show_nothing", compared.tables.control_shifts))
    targets = {name: spec.targets for name, spec in settings().variants.items()}
    yield _none(
        "targets_are_met",
        missed_targets(summary, targets, compared.tables.band),
        f"every target's interval lies beyond zero{_band(compared.tables.band)}",
        "missed_targets",
    )
    left_out = [f"{name} is left out: {why}" for name, why in compared.left_out.items()]
    yield _none("every_pack_is_compared", left_out, compared.description(), "left_out")


def _band(band: pl.DataFrame) -> str:
    return "" if band.is_empty() else f" and beyond {band['directions'].max()} random directions"


def _none(name: str, problems: list[str], otherwise: str, counted: str) -> dg.AssetCheckResult:
    """Holds where there are no problems."""
    return COMPARISON.result(name, not problems, "; ".join(problems) or otherwise, {counted: len(problems)})


def _table(examples: list[dict[str, Any]]) -> dict[str, dg.MetadataValue]:
    if not examples:
        return {}
    records = [dg.TableRecord({name: str(value) for name, value in row.items()}) for row in examples]
    return {"examples": dg.MetadataValue.table(records)}


CHECKS = [rewrite_pack_gates, keep_set_checks, rewrite_comparison_checks]
