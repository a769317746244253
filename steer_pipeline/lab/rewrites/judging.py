"""Judges a stored pack by all gates: gathers what they look at, and records their verdicts beside the version.

In: the store, a version of `rewrite_pack` and the settings. Out: the verdicts, in the order of `GATES`.
"""

import polars as pl

from steer_pipeline.catalogue.specs import VariantSpec
from steer_pipeline.io.reader import Reader, read_rows
from steer_pipeline.io.store import ArtifactStore, Version
from steer_pipeline.lab.rewrites import gates, verdicts
from steer_pipeline.lab.rewrites.source import Source, news_count, source_of
from steer_pipeline.lab.rewrites.work import identity_of, rows_wanted
from steer_pipeline.lab.verdict import Verdict
from steer_pipeline.settings import Settings


def judge(store: ArtifactStore, variant: str, version: Version, settings: Settings) -> list[Verdict]:
    """Judges a version of a variant's pack by all gates, and records the verdicts beside it."""
    pack, profile, read = read_rows(version.path), settings.profile, Reader(store)
    size = pack["size"][0] if "size" in pack.columns and pack.height else "pilot"
    source = source_of(read, pack, settings.shipped)
    base = read.rows("rewrite_raw", "base")
    judged = gates.judge(
        pack,
        expected_rows=min(rows_wanted(profile, size), news_count(store)),
        base=base,
        resample=read.rows("rewrite_raw", "base_resample"),
        suspects=source.suspects(pack),
        reworded=source.reworded(pack),
        role=difference_role(settings.variants[variant]),
        limits=profile.gates,
        seed=profile.rewrites.sampling.seed,
        base_suspects=None if base is None or variant == "base" else _suspect_rows(base, pack, source),
    )
    verdicts.record(store, variant, version, judged, made_with(pack, size))
    return judged


def _suspect_rows(base: pl.DataFrame, pack: pl.DataFrame, source: Source) -> dict[str, bool]:
    """row_id -> whether base's rewrite of that row of the pack is suspect."""
    if "row_id" not in pack.columns:
        return {}
    same = base.join(pack.select("row_id"), on="row_id", how="semi")
    found = zip(same["row_id"], source.suspects(same), strict=True)
    return {row_id: gates.is_suspect(rules) for row_id, rules in found}


def difference_role(variant: VariantSpec) -> str:
    """How `something_changed` holds for a variant: `steered` gates, others inform, `exempt` is a reference."""
    if not variant.terms and not variant.prompted_by:
        return "exempt"
    return variant.role


def made_with(pack: pl.DataFrame, size: str) -> dict[str, str]:
    """Size, profile and recipe of a pack, to be recorded; one that is too broken to tell has no recipe."""
    try:
        made = identity_of(pack)
    except (ValueError, KeyError, TypeError):
        return {"size": size, "profile": "", "recipe": ""}
    return {"size": size, "profile": made.profile, "recipe": made.recipe}
