"""Jobs, named after what a person wants done. Each takes one partition a run; backfills take many."""

import dagster as dg

from steer_pipeline.lab.rewrites import GATES
from steer_pipeline.partitions import PERSONA, VARIANT

PACK, RELEASE = dg.AssetKey("rewrite_pack"), dg.AssetKey("rewrite_release")
TO_PACKS = dg.AssetSelection.assets("rewrite_raw", "rewrite_pack", "keep_set")


def _of_size(size: str) -> dict:
    return {"ops": {"rewrite_raw": {"config": {"size": size}}}}


refresh_news = dg.define_asset_job(
    "refresh_news",
    dg.AssetSelection.assets("cc_news", "news_quarantine", "truncated_news"),
    description="Read the news source again and truncate what is new.",
)
build_vectors = dg.define_asset_job(
    "build_vectors",
    dg.AssetSelection.assets("contrast_set", "persona_vector", "dose_curve"),
    partitions_def=PERSONA,
    description="One persona: contrast set, vector and recommended dose.",
)
pilot = dg.define_asset_job(
    "pilot",
    TO_PACKS,
    partitions_def=VARIANT,
    config=_of_size("pilot"),
    description="One variant in the pilot size, with its gates and keep set. base and base_resample come "
    "first: the others are compared with them.",
)
build_packs = dg.define_asset_job(
    "build_packs",
    TO_PACKS,
    partitions_def=VARIANT,
    config=_of_size("full"),
    description="One variant in the full size; refused while its pilot's gates fail.",
)
promote = dg.define_asset_job(
    "promote",
    dg.AssetSelection.checks(*(dg.AssetCheckKey(PACK, gate) for gate in GATES))
    | dg.AssetSelection.assets(RELEASE),
    partitions_def=VARIANT,
    description="One variant: judge the newest pack by its gates, without making it again, and release it if "
    "they pass.",
)
report = dg.define_asset_job(
    "report",
    dg.AssetSelection.assets("rewrite_comparison", "vector_eval_report"),
    description="Compare all packs and render the report.",
)

JOBS = [refresh_news, build_vectors, pilot, build_packs, promote, report]
