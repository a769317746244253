"""Steer, filter, heal: a vector steers, a filter keeps what is coherent, students learn it, rounds repeat.

One persona, the profile's `heal.persona`. Partitions are arms; seeds are folders of an arm's bundle. A killed run goes
on from the last checkpoint of the student that it was at, and keeps what was written.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from steer_pipeline.catalogue.healing import needed_sources, swept_places
from steer_pipeline.io.journals import open_journal
from steer_pipeline.io.reader import Reader
from steer_pipeline.lineage import MODEL, made_of
from steer_pipeline.partitions import (
    ARM,
    HEAL,
    HEAL_SCALES,
    HEALED_PERSONA,
    SAME_ARM,
    SWEPT,
    TRAINED_ARM,
)
from steer_pipeline.resources import ArtifactStoreResource, LanguageModelResource
from steer_pipeline.settings import settings
from steer_pipeline.stages.heal import metadata
from steer_pipeline.stages.kit import cpu, folder, gpu, of_adapters, reader, user_errors

if TYPE_CHECKING:
    from steer_pipeline.lab.heal.evaluating import Exam
    from steer_pipeline.lab.heal.stage import Stage
    from steer_pipeline.lab.heal.task import Task

BUNDLE: dict[str, Any] = gpu("heal", io_manager_key="bundle_io", kinds={"pytorch", "parquet"})
TABLES: dict[str, Any] = cpu("heal", io_manager_key="bundle_io", kinds={"polars", "parquet"})
TASK: list[Any] = [
    "model_weights",
    "tokenizer",
    "chat_template",
    "truncated_news",
    "news_facts",
    dg.AssetDep("persona_spec", partition_mapping=HEALED_PERSONA),
    dg.AssetDep("persona_vector", partition_mapping=HEALED_PERSONA),
    dg.AssetDep("contrast_set", partition_mapping=HEALED_PERSONA),
]
SCALE = dg.AssetDep("persona_scale", partition_mapping=HEAL_SCALES)
PROMPTED = (
    *MODEL,
    "model.chat_template",
    "rewrites.prompt",
    "rewrites.system",
    "rewrites.scope",
    "heal.persona",
    "heal.operator",
    "heal.blocks",
    "heal.pool",
    "heal.prompts",
    # Which news are in no vector and no dose.
    "rewrites.full_rows",
    "contrast.source",
    "contrast.contexts",
    "contrast.n_contexts",
    "dose.n_rows",
    "dose.seed",
    "corpus.near_duplicate_threshold",
)
SCORED = ("scales", "vector.seed", "heal.evaluation.off_target")
LEARNED = ("heal.base_arm", "heal.arms", "heal.selection_rows", "heal.filter")
SOURCES = needed_sources(HEAL)
SHOWN_ARMS = [arm for arm in ARM.get_partition_keys() if arm not in SWEPT]
SWEEP_ARMS = ["base", *(arm for arm in ("steered", "nll", *SWEPT) if arm in ARM.get_partition_keys())]


@dg.asset(
    code_version=made_of("2", *PROMPTED, *SCORED, "heal.calibration", "heal.gate", "coherence"),
    deps=[*TASK, SCALE],
    **BUNDLE,
)
def heal_dose(
    context: dg.AssetExecutionContext, store: ArtifactStoreResource, language_model: LanguageModelResource
) -> Iterator[dg.Output[Path]]:
    """Which doses of the teacher move its trait, and the trait alone, in coherent texts.

    `calibration.json`, `curve.parquet`: the dose whose texts diverge from base by the target. `gate.parquet`: one row a
    dose: trait, other scales, coherence, thresholds by random directions, verdict, a sample. `gate_rows.parquet`: every
    text.
    """
    from steer_pipeline.lab.heal.dosing import make_dose

    with user_errors(), folder("heal_dose") as made:
        dosed = make_dose(language_model.load(), _task(reader(context, store)), made)
        yield dg.Output(made, metadata=metadata.of_dose(dosed))


@dg.asset(
    # Which sources arms need stands in it by name, so that another arm of the same ones samples nothing anew.
    code_version=made_of(
        "3", *PROMPTED, "heal.calibration", "heal.controller", "heal.filter", "heal.n_random"
    )
    + f" heal.sources={'+'.join(SOURCES)}",
    deps=[*TASK, "heal_dose"],
    **BUNDLE,
)
def heal_samples(
    context: dg.AssetExecutionContext, store: ArtifactStoreResource, language_model: LanguageModelResource
) -> Iterator[dg.Output[Path]]:
    """What students may learn from: texts of the model itself, of the persona at the dose that the controller settled
    on, and as far as arms need them of the negative pole and of random directions of the same divergence.

    `samples.parquet`: one row a text with its source, dose, prompt, number, token ids and their losses under the
    unsteered model. `probes.parquet`, `tested.parquet`: the controller's tests. `doses.json`: dose and divergence of
    each source.
    """
    from steer_pipeline.lab.heal.dosing import make_samples, read_dose

    read = reader(context, store)
    with user_errors(), folder("heal_samples") as made:
        sampled = make_samples(
            language_model.load(),
            _task(read),
            read_dose(read.folder("heal_dose")).gate,
            made,
            sources=SOURCES,
            journal=partial(open_journal, store.store(), "heal_samples"),
        )
        yield dg.Output(made, metadata=metadata.of_samples(sampled))


@dg.asset(
    code_version=made_of("1", *PROMPTED, "scales", "vector.seed", "heal.filter"),
    deps=[*TASK, SCALE, "heal_samples"],
    **TABLES,
)
def heal_keep_set(
    context: dg.AssetExecutionContext, store: ArtifactStoreResource, language_model: LanguageModelResource
) -> Iterator[dg.Output[Path]]:
    """Gate 2: which samples students learn from.

    `rows.parquet`: every sample with all scores, the reasons against it, its trait, whether it passes and is kept.
    `borderline.parquet`: the texts nearest each limit, on both sides. `criteria.json`: the limits. Runs no model.
    """
    from steer_pipeline.lab.heal.dosing import read_samples
    from steer_pipeline.lab.heal.keeping import make_keep_set
    from steer_pipeline.lab.models.loading import load_tokenizer

    read = reader(context, store)
    with user_errors(), folder("heal_keep_set") as made:
        special = load_tokenizer(language_model.spec(), settings().home).all_special_tokens
        kept = make_keep_set(read_samples(read.folder("heal_samples")), _task(read), special, made)
        yield dg.Output(made, metadata=metadata.of_keep_set(kept))


@dg.asset(
    code_version=made_of("2", *PROMPTED, *LEARNED, "heal.seeds", "heal.n_random", "heal.sweep.barriers"),
    deps=[*TASK, "heal_samples", "heal_keep_set"],
    partitions_def=TRAINED_ARM,
    **BUNDLE,
)
def heal_adapter(
    context: dg.AssetExecutionContext, store: ArtifactStoreResource, language_model: LanguageModelResource
) -> Iterator[dg.Output[Path]]:
    """Students of one arm: LoRAs that learn what the arm's configuration says, one a seed, or one a random direction.

    `seed-71/` and so on: a PEFT directory with `finetune.json` (recipe, model, data, libraries) and `history.parquet`
    (loss curves). `adapters.parquet`: one row a student; `arm.json`: the configuration as it was used; `lesson.json`:
    which texts were learned.
    """
    from steer_pipeline.lab.heal.dosing import read_samples
    from steer_pipeline.lab.heal.healing import ADAPTER_COLUMNS, Below, Teaching, heal_arm, taught_to
    from steer_pipeline.lab.heal.keeping import read_keep_set

    read, arm = reader(context, store), context.partition_key
    work = store.store().work("heal_adapter") / arm
    with user_errors(who=arm), folder("heal_adapter") as made:
        spec, dose = settings().profile.heal, read_samples(read.folder("heal_samples")).settled.dose
        below = Below(language_model.spec(), settings().home, _task(read).teacher.plan(dose))
        kept = read_keep_set(read.folder("heal_keep_set"))
        teaching = Teaching(kept, below, spec.selection_rows, spec.filter.min_kept, spec.filter.seed)
        config = _config(arm)
        students = taught_to(config, spec)
        healed = heal_arm(arm, config, students, teaching, made, work=work, progress=context.log.info)
        yield dg.Output(made, metadata=of_adapters(healed, made, ADAPTER_COLUMNS))
    shutil.rmtree(work, ignore_errors=True)  # the store has it all by now


@dg.asset(
    code_version=made_of(
        "1", *PROMPTED, *SCORED, *LEARNED, "heal.sweep.barriers", "heal.evaluation", "heal.foundations"
    ),
    deps=[*TASK, SCALE, "vignettes", "heal_samples", dg.AssetDep("heal_adapter", partition_mapping=SAME_ARM)],
    partitions_def=ARM,
    **BUNDLE,
)
def heal_evaluation(
    context: dg.AssetExecutionContext, store: ArtifactStoreResource, language_model: LanguageModelResource
) -> Iterator[dg.Output[Path]]:
    """What one arm says to held-out prompts, all seeds: the model itself, steered, prompted, or students.

    `rows.parquet`: one row a text: trait, other traits, coherence signals, divergence from the model itself.
    `choices.parquet`, where the profile asks for them: forced choices over moral foundations. `arm.json`: the
    configuration that the arm was made with.
    """
    from steer_pipeline.lab.heal.dosing import read_samples
    from steer_pipeline.lab.heal.evaluating import evaluate, students_of
    from steer_pipeline.lab.heal.healing import config_of

    read, arm = reader(context, store), context.partition_key
    with user_errors(who=arm), folder("heal_evaluation") as made:
        adapters = read.folder("heal_adapter", arm) if arm in TRAINED_ARM.get_partition_keys() else None
        config = None if arm == "base" else _config(arm)
        exam = _exam(context, _task(read), store, language_model, "heal_evaluation")
        dose = read_samples(read.folder("heal_samples")).settled.dose
        asked = students_of(arm, config, exam, dose, adapters, language_model.load)
        stored = config.model_dump(mode="json") if config is not None and adapters is None else None
        found = evaluate(exam, asked, made, stored if adapters is None else config_of(adapters))
        yield dg.Output(made, metadata=metadata.of_evaluation(found))


@dg.asset(
    code_version=made_of("6", "heal.evaluation", "heal.foundations", "heal.arms", "coherence.max_extra_nll"),
    deps=[
        dg.AssetDep("heal_evaluation", partition_mapping=dg.SpecificPartitionsPartitionMapping(SHOWN_ARMS))
    ],
    **TABLES,
)
def heal_stage_table(
    context: dg.AssetExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.Output[Path]]:
    """Gate 3: base, steered and healed beside each other, from stored rows alone.

    `table.parquet`: one row a reading and arm: movement of the target with interval, off-target, coherence and its
    worst signal, what is retained of the steered shift, verdict. `seeds.parquet`, `signals.parquet`,
    `divergence.parquet` (nats from base), `texts.parquet`. `heal.html` holds the whole report. Runs no model.
    """
    from steer_pipeline.lab.heal.stage import EXPECTED, write_stage
    from steer_pipeline.lab.heal.stage_report import write_report

    read = reader(context, store)
    with user_errors(), folder("heal_stage_table") as made:
        context.log.info("\n".join(EXPECTED))
        stage = _stage(read, SHOWN_ARMS)
        write_stage(stage, made)
        write_report(stage, read.seen, made, title="Steer, filter, heal")
        yield dg.Output(made, metadata=metadata.of_stage(stage, made))


@dg.asset(
    code_version=made_of("5", "heal.evaluation", "heal.foundations", "heal.sweep", "coherence.max_extra_nll"),
    deps=[
        dg.AssetDep("heal_evaluation", partition_mapping=dg.SpecificPartitionsPartitionMapping(SWEEP_ARMS))
    ],
    **TABLES,
)
def heal_barrier_sweep(
    context: dg.AssetExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.Output[Path]]:
    """Barriers at several strengths on the same kept texts: `sweep.parquet`, and whether strength orders divergence.

    `sweep_seeds.parquet`: divergence of every student. `heal.html`: the table with texts side by side. Runs no model.
    """
    from steer_pipeline.lab.heal.stage import write_stage
    from steer_pipeline.lab.heal.stage_report import write_sweep_report
    from steer_pipeline.lab.heal.sweep import SEEDS, TABLE, sweep_rows, sweep_table

    read = reader(context, store)
    with user_errors(), folder("heal_barrier_sweep") as made:
        stage, places = _stage(read, SWEEP_ARMS), swept_places(HEAL)
        sweep = sweep_table(stage, places)
        write_stage(stage, made)
        sweep.write_parquet(made / TABLE)
        sweep_rows(stage, places).write_parquet(made / SEEDS)
        write_sweep_report(sweep, stage, made)
        yield dg.Output(made, metadata=metadata.of_sweep(sweep))


# ------------------------------------------------------------------------------------ rounds

ROUNDS = [f"heal_round_{number}" for number in range(1, HEAL.rounds + 1)]
LOOPED = [arm for arm in TRAINED_ARM.get_partition_keys() if arm not in SWEPT]


def _round(number: int) -> dg.AssetsDefinition:
    """The asset of one round."""

    @dg.asset(
        name=ROUNDS[number - 1],
        description=f"""Round {number}: the vector from the student before it, its texts, filter, student and judgement.

    `round.json`: dose, cosine with the first vector, movement, coherence, whether the loop goes on and which round was
    the last good one. `student/`: the adapter, on top of those of all rounds before; `vector/`, `keep_set/`,
    `rows.parquet` as in the assets of round 0. After a round that stopped there is nothing but the reason.""",
        code_version=made_of(
            "3",
            *PROMPTED,
            *SCORED,
            *LEARNED,
            "heal.seeds",
            "heal.controller",
            "heal.evaluation",
            "heal.foundations",
            "vector",
        ),
        deps=[
            *TASK,
            SCALE,
            "heal_dose",
            "vignettes",
            "heal_samples",
            "heal_stage_table",
            dg.AssetDep("heal_adapter", partition_mapping=dg.SpecificPartitionsPartitionMapping(LOOPED)),
            *ROUNDS[: number - 1],
        ],
        **BUNDLE,
    )
    def heal_round(
        context: dg.AssetExecutionContext, store: ArtifactStoreResource, language_model: LanguageModelResource
    ) -> Iterator[dg.Output[Path]]:
        read, name = reader(context, store), ROUNDS[number - 1]
        work = store.store().work(name) / "student"
        with user_errors(), folder(name) as made:
            state = _run_round(context, read, store, language_model, number, made, work)
            yield dg.Output(made, metadata=metadata.of_round(state, made))
        shutil.rmtree(work, ignore_errors=True)

    return heal_round


def _run_round(
    context: dg.AssetExecutionContext,
    read: Reader,
    store: ArtifactStoreResource,
    language_model: LanguageModelResource,
    number: int,
    made: Path,
    work: Path,
) -> Any:
    from steer_pipeline.lab.finetune.bundles import place
    from steer_pipeline.lab.heal.dosing import read_dose, read_samples
    from steer_pipeline.lab.heal.rounds import Loop, first_round
    from steer_pipeline.lab.heal.stage import best_arm, read_stage

    task, spec = _task(read), settings().profile.heal
    stage = read_stage(read.folder("heal_stage_table"))
    arm, seed = best_arm(stage, spec), spec.seeds[0]
    loop = Loop(
        task,
        _exam(context, task, store, language_model, ROUNDS[number - 1]),
        stage,
        read_samples(read.folder("heal_samples")),
        read_dose(read.folder("heal_dose")).gate,
        language_model.load,
        language_model.spec,
        settings().home,
        partial(open_journal, store.store(), ROUNDS[number - 1]),
        context.log.info,
    )
    first = (
        first_round(stage, arm, seed, spec.evaluation.seed),
        read.folder("heal_adapter", arm) / place(seed),
    )
    before = [read.folder(name) for name in ROUNDS[: number - 1]]
    return loop.run(number, first, before, made, work=work)


@dg.asset(
    code_version=made_of("2", "heal.evaluation", "heal.base_arm", "heal.arms", "heal.seeds"),
    deps=["heal_stage_table", *ROUNDS],
    **TABLES,
)
def heal_trajectory(
    context: dg.AssetExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.Output[Path]]:
    """All rounds in one table and figure: target, coherence, cosine with the first vector, the last good round.

    `trajectory.parquet`: one row a round. `rounds.html` holds the report with texts by round and prompt. Runs no model.
    """
    from steer_pipeline.lab.heal.rounds import tell_rounds
    from steer_pipeline.lab.heal.rounds_report import write_rounds
    from steer_pipeline.lab.heal.stage import read_stage

    read, spec = reader(context, store), settings().profile.heal
    with user_errors(), folder("heal_trajectory") as made:
        stage = read_stage(read.folder("heal_stage_table"))
        rows, texts = tell_rounds(stage, [read.folder(name) for name in ROUNDS], spec)
        write_rounds(rows, texts, made)
        yield dg.Output(made, metadata=metadata.of_trajectory(rows, made))


# ------------------------------------------------------------------------------------ what all of them read


def _task(read: Reader) -> "Task":
    from steer_pipeline.lab.heal.task import read_task

    return read_task(read, settings().profile, settings().home, settings().shipped)


def _config(arm: str) -> Any:
    """All that an arm does, one of the sweep included."""
    from steer_pipeline.lab.heal.arms import configure

    return configure(settings().profile.heal, SWEPT)[arm]


def _exam(
    context: dg.AssetExecutionContext,
    task: "Task",
    store: ArtifactStoreResource,
    language_model: LanguageModelResource,
    asset: str,
) -> "Exam":
    from steer_pipeline.lab.heal.evaluating import Exam

    journal: Callable[[str], Any] = partial(open_journal, store.store(), asset)
    return Exam(task, language_model.load(), settings().home, journal, context.log.info)


def _stage(read: Reader, arms: Sequence[str]) -> "Stage":
    """The stage of those arms that have been evaluated."""
    from steer_pipeline.lab.heal.evaluating import read_evaluation
    from steer_pipeline.lab.heal.stage import make_stage, unjudged_signals

    profile = settings().profile
    stored = {arm: read.current("heal_evaluation", arm) for arm in arms}
    found = {arm: read_evaluation(version.path) for arm, version in stored.items() if version is not None}
    left_out = {arm: "has not been evaluated" for arm in arms if arm not in found}
    unjudged = unjudged_signals(profile.coherence)
    return make_stage(found, profile.heal, left_out=left_out, unjudged=unjudged)


LOOP = [_round(number) for number in range(1, HEAL.rounds + 1)]
ASSETS = [
    heal_dose,
    heal_samples,
    heal_keep_set,
    heal_adapter,
    heal_evaluation,
    heal_stage_table,
    heal_barrier_sweep,
    *LOOP,
    *([heal_trajectory] if ROUNDS else []),
]
