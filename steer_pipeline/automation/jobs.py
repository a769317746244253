"""Jobs, named after what a person wants done. Each takes one partition a run; backfills take many."""

import dagster as dg

from steer_pipeline.keys import key
from steer_pipeline.lab.rewrites import GATES
from steer_pipeline.partitions import PERSONA, TRAIT_OR_ROLE, VARIANT

PACK, RELEASE = key("rewrite_pack"), key("rewrite_release")


def _assets(*names: str) -> dg.AssetSelection:
    return dg.AssetSelection.assets(*(key(name) for name in names))


def _of_size(size: str) -> dict:
    return {"ops": {"rewrite_raw": {"config": {"size": size}}}}


TO_PACKS = _assets("rewrite_raw", "rewrite_pack", "keep_set")
refresh_news = dg.define_asset_job(
    "refresh_news",
    _assets("cc_news", "news_quarantine", "truncated_news"),
    description="Read the news source again and truncate what is new.",
)
build_vectors = dg.define_asset_job(
    "build_vectors",
    _assets("contrast_set", "persona_vector", "dose_curve"),
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
    _assets("rewrite_comparison", "vector_eval_report"),
    description="Compare all packs and render the report.",
)

train_vectors = dg.define_asset_job(
    "train_vectors",
    _assets("behaviour_set", "lr_sweep", "trained_vector", "vector_comparison"),
    partitions_def=TRAIT_OR_ROLE,
    description="One trait or role: scored dialogues, learned vectors, and their comparison with the controls.",
)
study_behaviour = dg.define_asset_job(
    "study_behaviour",
    _assets("rollouts", "minilm_scores", "judge_scores"),
    partitions_def=TRAIT_OR_ROLE,
    description="One trait or role: what vanilla, prompted and steered models say, and how it scores.",
)
behaviour_report = dg.define_asset_job(
    "behaviour_report",
    _assets("behaviour_table"),
    description="The table of all traits and roles, from stored rows.",
)

JOBS = [
    refresh_news,
    build_vectors,
    pilot,
    build_packs,
    promote,
    report,
    train_vectors,
    study_behaviour,
    behaviour_report,
]
