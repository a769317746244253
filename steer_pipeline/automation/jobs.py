"""Jobs, named after what a person wants done.

`pilot`, `behaviour`, `students`, `transport`, `heal`, `barrier_sweep`, `attribution` and `analysis` are `steer make
pilot` and so on, run by Dagster: chains of assets with personas, variants, arms, pairs and neither as partitions,
which no job of assets alone can hold. Each of their steps is a run of its own. The other jobs are the pieces, one
partition a run; backfills take many.
"""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, Literal

import dagster as dg
from pydantic import Field

from steer_pipeline.keys import key
from steer_pipeline.lab.rewrites import GATES
from steer_pipeline.partitions import PERSONA, TRAIT_OR_ROLE, VARIANT

NEEDS = {"definitions"}  # a function that gives the definitions which hold these jobs
PACK, RELEASE = key("rewrite_pack"), key("rewrite_release")


def _assets(*names: str) -> dg.AssetSelection:
    return dg.AssetSelection.assets(*(key(name) for name in names))


def _of_size(size: str) -> dict:
    return {"ops": {"rewrite_raw": {"config": {"size": size}}}}


class PilotConfig(dg.Config):
    """What `steer make pilot` takes."""

    size: Literal["pilot", "full"] = Field(default="pilot", description="Rows of the packs.")
    variants: list[str] = Field(default=[], description="None for all.")
    force: bool = Field(default=False, description="Make everything again, fresh or not.")


class BehaviourConfig(dg.Config):
    """What `steer make behaviour` takes."""

    personas: list[str] = Field(default=[], description="Traits and roles; none for all.")
    force: bool = Field(default=False, description="Make everything again, fresh or not.")


class TransportConfig(dg.Config):
    """What `steer make transport` takes."""

    personas: list[str] = Field(
        default=[], description="Of the profile's `transport.personas`; none for all."
    )
    force: bool = Field(default=False, description="Carry all vectors again, fresh or not.")


class StudentsConfig(dg.Config):
    """What `steer make students` takes."""

    variants: list[str] = Field(default=[], description="None for all.")
    force: bool = Field(default=False, description="Train all students again, fresh or not.")


class AttributionConfig(dg.Config):
    """What `steer make attribution` takes."""

    arms: list[str] = Field(default=[], description="Of the profile's `attribution`; none for all.")
    force: bool = Field(default=False, description="Train all arms again, fresh or not.")


class HealConfig(dg.Config):
    """What `steer make heal` takes."""

    arms: list[str] = Field(default=[], description="Of the profile's `heal`; none for all.")
    force: bool = Field(default=False, description="Heal again, fresh or not.")


class AnalysisConfig(dg.Config):
    """What `steer make analysis` takes."""

    pairs: list[str] = Field(default=[], description="Of the profile's `analysis`; none for all.")
    force: bool = Field(default=False, description="Analyse again, fresh or not.")


class SweepConfig(dg.Config):
    """What `steer make barrier_sweep` takes."""

    force: bool = Field(default=False, description="Heal again, fresh or not.")


def _made(context: dg.OpExecutionContext, make: Callable[..., Any]) -> None:
    """Runs a campaign of this code location on this run's instance; fails with what went wrong."""
    result = make(context.resources.definitions(), instance=context.instance, say=context.log.info)
    context.add_output_metadata({"numbers": dg.MetadataValue.json(result.numbers)})
    if result.problems:
        raise dg.Failure("\n".join(result.problems), allow_retries=False)


ONLY = {"variants", "personas", "arms", "pairs"}  # of what a campaign may be told to make a part


def _campaign(name: str, op: str, where: str, kind: type[dg.Config], makes: str) -> dg.JobDefinition:
    """The job that is one `steer make` command.

    Args:
        op: name of its one step, which run configs speak of.
        where: module and function of `campaigns/`, loaded when the job runs.
        kind: its options, of which `ONLY` are the function's `only`.
    """

    @dg.op(
        name=op,
        required_resource_keys=NEEDS,
        description=f"Brings it up to date in this process; see `steer make {name}`.",
    )
    def step(context: dg.OpExecutionContext, config: kind) -> None:
        module, function = where.split(".")
        make = getattr(import_module(f"steer_pipeline.campaigns.{module}"), function)
        how = {"only" if key in ONLY else key: value for key, value in config.model_dump().items()}
        _made(context, partial(make, **how))

    @dg.job(
        name=name,
        description=f"What `steer make {name}` makes: {makes}. What is fresh is left alone.",
    )
    def job() -> None:
        step()

    return job


pilot = _campaign(
    "pilot",
    "make_the_pilot",
    "pilot.make_pilot",
    PilotConfig,
    "vectors, checked and released packs in all variants and controls, comparison and report",
)
behaviour = _campaign(
    "behaviour",
    "make_the_behaviour_lab",
    "behaviour.make_behaviour",
    BehaviourConfig,
    "trained vectors and what they do, for every trait and role",
)
students = _campaign(
    "students",
    "make_the_students",
    "students.make_students",
    StudentsConfig,
    "students of all released packs and controls, and what they do",
)
transport = _campaign(
    "transport",
    "make_the_transport",
    "transport.make_transport",
    TransportConfig,
    "persona vectors carried to the model of the profile's `transport`, and what they do there",
)
heal = _campaign(
    "heal",
    "make_the_heal_loop",
    "heal.make_heal",
    HealConfig,
    "a trait steered, filtered and learned in all arms, their table, and rounds with the best arm",
)
attribution = _campaign(
    "attribution",
    "make_the_attribution",
    "attribution.make_attribution",
    AttributionConfig,
    "training rows ranked by all methods, adapters that learn a part of them, held-out games, one table",
)
analysis = _campaign(
    "analysis",
    "make_the_analysis",
    "analysis.make_analysis",
    AnalysisConfig,
    "which directions are in the weights of the profile's tuned models, within random directions and clean students",
)
barrier_sweep = _campaign(
    "barrier_sweep",
    "make_the_barrier_sweep",
    "heal.make_sweep",
    SweepConfig,
    "the kept texts learned again under a barrier of other strengths",
)


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
build_pilot_packs = dg.define_asset_job(
    "build_pilot_packs",
    TO_PACKS,
    partitions_def=VARIANT,
    config=_of_size("pilot"),
    description="One variant's pack in the pilot size, with its gates and keep set; nothing is released. base and "
    "base_resample come first: the others are compared with them.",
)
build_full_packs = dg.define_asset_job(
    "build_full_packs",
    TO_PACKS,
    partitions_def=VARIANT,
    config=_of_size("full"),
    description="One variant's pack in the full size; refused while its pilot's gates fail.",
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

train_students = dg.define_asset_job(
    "train_students",
    _assets("student_adapter", "student_transfer", "student_mechanism", "student_arms"),
    partitions_def=VARIANT,
    description="One variant: students of its released pack, what they write on held-out news, and by what.",
)
student_report = dg.define_asset_job(
    "student_report",
    _assets("student_comparison"),
    description="All students beside those of base and of the controls, from stored rows.",
)

JOBS = [
    pilot,
    behaviour,
    students,
    transport,
    heal,
    analysis,
    barrier_sweep,
    attribution,
    refresh_news,
    build_vectors,
    build_pilot_packs,
    build_full_packs,
    promote,
    report,
    train_vectors,
    study_behaviour,
    behaviour_report,
    train_students,
    student_report,
]
