"""Students of released packs: LoRA adapters at every rank and seed, what they write on held-out news, and how that
differs from what students of base and of the controls write.

One partition a variant, controls included; ranks and seeds are folders of one bundle. A killed run goes on from the
last checkpoint of the student that it was at, and keeps what was written.
"""

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import polars as pl

from steer_pipeline.io.journals import open_journal
from steer_pipeline.io.reader import Reader
from steer_pipeline.lineage import MODEL, made_of
from steer_pipeline.partitions import (
    ARMED,
    BASE,
    OF_ARMED,
    STEERED,
    STEERED_PERSONAS,
    TARGETED,
    TARGETED_PERSONAS,
    VARIANT,
    WITH_BASE,
)
from steer_pipeline.resources import ArtifactStoreResource, LanguageModelResource
from steer_pipeline.settings import settings
from steer_pipeline.stages.kit import cpu, folder, gpu, reader, told, user_errors
from steer_pipeline.stages.students import metadata

if TYPE_CHECKING:
    from steer_pipeline.lab.students.transfer import Task
    from steer_pipeline.lab.vectors.vector import PersonaVector

BUNDLE: dict[str, Any] = gpu("students", partitions_def=VARIANT, io_manager_key="bundle_io")
PACKS = ("keep_set", "rewrite_release")
LEARNED = [*PACKS, "truncated_news", "model_weights", "tokenizer", "chat_template"]
PROMPT = (*MODEL, "model.chat_template", "rewrites.prompt", "rewrites.system")
LESSON = tuple(
    f"students.{name}"
    for name in (
        "ranks",
        "seeds",
        "rows",
        "selection_rows",
        "epochs",
        "learning_rate",
        "batch_rows",
        "rows_at_once",
        "evaluations",
        "seed",
    )
)
# Which news are held out depends on what packs, vectors and doses take.
HELD_OUT = (
    "students.held_out_rows",
    "students.seed",
    "rewrites.pilot_rows",
    "rewrites.full_rows",
    "contrast.source",
    "contrast.contexts",
    "contrast.n_contexts",
    "dose.n_rows",
    "dose.seed",
    "corpus.near_duplicate_threshold",
)


@dg.asset(code_version=made_of("2", *PROMPT, *LESSON), deps=LEARNED, kinds={"pytorch", "parquet"}, **BUNDLE)
def student_adapter(
    context: dg.AssetExecutionContext, store: ArtifactStoreResource, language_model: LanguageModelResource
) -> Iterator[dg.Output[Path]]:
    """Students of one variant: they learn the kept rows of its released pack under the neutral prompt.

    `rank-8/seed-61/` and so on: a PEFT directory with `finetune.json` (recipe, model, data, libraries) and
    `history.parquet` (loss curves), and in `steps/` the adapter as it was earlier. `students.parquet`: one row a
    student; `lesson.json`: the rows by seed. Students of one seed learn equally many rows of the same news whatever
    their variant, so that they compare.
    """
    from steer_pipeline.lab.students.data import released_keep_set
    from steer_pipeline.lab.students.training import train_students

    read, variant = reader(context, store), context.partition_key
    work = store.store().work("student_adapter") / variant
    with user_errors(who=variant), folder("student_adapter") as made:
        trained = train_students(
            variant,
            released_keep_set(read, variant),
            read.made_rows("truncated_news"),
            language_model.spec(),
            settings().home,
            settings().profile,
            made,
            work=work,
            progress=context.log.info,
        )
        yield dg.Output(made, metadata=metadata.of_students(trained, made))
    shutil.rmtree(work, ignore_errors=True)  # the store has it all by now


@dg.asset(
    code_version=made_of(
        "2", *PROMPT, *HELD_OUT, "rewrites.sampling", "students.read_blocks", "vector.seed", "scales"
    ),
    deps=[
        *LEARNED,
        "news_facts",
        dg.AssetDep("persona_scale", partition_mapping=TARGETED_PERSONAS),
        dg.AssetDep("contrast_set", partition_mapping=TARGETED_PERSONAS),
    ],
    kinds={"pytorch", "parquet"},
    **BUNDLE,
)
def student_transfer(
    context: dg.AssetExecutionContext,
    student_adapter: Path,
    store: ArtifactStoreResource,
    language_model: LanguageModelResource,
) -> Iterator[dg.Output[Path]]:
    """What every student of a variant writes on news that nobody learned, row by row.

    `rows.parquet`: one row a student and news item, the model itself among them: text, traits on every scale, facts,
    suspects, loops, NLL under the unsteered model, and NLL of the unsteered model's rewrite under the student.
    `pack.parquet`: what was learned, measured alike. `states.safetensors`: how the unsteered model reads both.
    """
    from steer_pipeline.lab.students.transfer import measure_transfer, write_transfer

    read, variant = reader(context, store), context.partition_key
    with user_errors(who=variant), folder("student_transfer") as made:
        kept, task = _judged_on(read, variant)
        measured = measure_transfer(
            variant,
            student_adapter,
            kept,
            task,
            language_model.load,
            journal=partial(open_journal, store.store(), "student_transfer"),
            progress=told(context),
        )
        write_transfer(measured, made)
        yield dg.Output(made, metadata=metadata.of_transfer(measured))


@dg.asset(
    code_version=made_of("2", *PROMPT, *HELD_OUT, "rewrites.sampling", "vector.seed", "scales"),
    deps=[
        *LEARNED,
        "news_facts",
        "variant_spec",
        dg.AssetDep("persona_scale", partition_mapping=TARGETED_PERSONAS),
        dg.AssetDep("contrast_set", partition_mapping=TARGETED_PERSONAS),
        dg.AssetDep("persona_vector", partition_mapping=STEERED_PERSONAS),
    ],
    kinds={"pytorch", "parquet"},
    **BUNDLE,
)
def student_mechanism(
    context: dg.AssetExecutionContext,
    student_adapter: Path,
    store: ArtifactStoreResource,
    language_model: LanguageModelResource,
) -> Iterator[dg.Output[Path]]:
    """By what a student does it: the mean shift of its residual stream, and what that shift does by itself.

    `shifts.parquet`: one row a student and block, with the shift's length and its cosine with each persona vector;
    those of controls are the band. `stepwise.parquet`: the same at each evaluation in training. `arms.parquet`, of
    steered variants: what the student writes on held-out news less its shift at the block that its teacher was steered
    at, and what the model itself writes with it.
    """
    from steer_pipeline.lab.students.mechanism import measure_mechanism, write_mechanism
    from steer_pipeline.lab.vectors.vector import load_vector

    read, variant = reader(context, store), context.partition_key
    with user_errors(who=variant), folder("student_mechanism") as made:
        kept, task = _judged_on(read, variant)
        vectors = {name: read.current("persona_vector", name) for name in STEERED}
        measured = measure_mechanism(
            variant,
            student_adapter,
            kept,
            task,
            language_model.load,
            {name: load_vector(version.path) for name, version in vectors.items() if version is not None},
            arms=settings().variants[variant].role == "steered",
            journal=partial(open_journal, store.store(), "student_mechanism"),
            progress=told(context),
        )
        write_mechanism(measured, made)
        yield dg.Output(made, metadata=metadata.of_mechanism(measured))


@dg.asset(
    code_version=made_of(
        "1",
        *PROMPT,
        *LESSON,
        *HELD_OUT,
        *(
            f"students.{name}"
            for name in ("arms", "arm_variants", "other_model", "context_rows", "read_blocks")
        ),
        "rewrites.sampling",
        "vector.seed",
        "scales",
    ),
    deps=[
        *(name for name in LEARNED if name not in PACKS),
        *(dg.AssetDep(name, partition_mapping=WITH_BASE) for name in PACKS),
        "news_facts",
        "variant_spec",
        dg.AssetDep("persona_scale", partition_mapping=TARGETED_PERSONAS),
        dg.AssetDep("contrast_set", partition_mapping=TARGETED_PERSONAS),
        dg.AssetDep("persona_vector", partition_mapping=STEERED_PERSONAS),
    ],
    kinds={"pytorch", "parquet"},
    output_required=False,
    **BUNDLE,
)
def student_arms(
    context: dg.AssetExecutionContext,
    student_adapter: Path,
    store: ArtifactStoreResource,
    language_model: LanguageModelResource,
) -> Iterator[dg.Output[Path]]:
    """Whether a trait travels where it should not: students of a pack that was changed in one way each.

    Of `students.arm_variants` and of base, whose arms are the controls; other variants have none, and nothing is made.
    `rows.parquet` as the transfer's, with `arm`: rows filtered until no scorer sees the trait, tokens shuffled, tokens
    masked at which the teacher shows, rewrites paraphrased, the pack in context, students of another model.
    `made.parquet`: what was done for each arm, or why there is no student.
    """
    from steer_pipeline.lab.students.arm_lessons import aims_of
    from steer_pipeline.lab.students.arms import Apprentices, make_arms, write_arms
    from steer_pipeline.lab.students.data import released_keep_set

    read, variant, variants = reader(context, store), context.partition_key, settings().variants
    if variant not in ARMED:
        context.log.info(f"{variant} has no arms: name it in students.arm_variants for some")
        return
    work = store.store().work("student_arms") / variant
    with user_errors(who=variant), folder("student_arms") as made:
        kept, task = _judged_on(read, variant)
        aims = aims_of([variants[name] for name in (ARMED[1:] if variant == BASE else [variant])])
        whose = Apprentices(
            variants[variant],
            kept,
            released_keep_set(read, BASE),
            student_adapter,
            task,
            language_model.spec(),
            settings().home,
            language_model.load,
            partial(_vector, read),
            aims,
        )
        book, tell = partial(open_journal, store.store(), "student_arms"), told(context)
        arms = make_arms(whose, made, work=work, journal=book, progress=tell)
        write_arms(arms, made)
        yield dg.Output(made, metadata=metadata.of_arms(arms))
    shutil.rmtree(work, ignore_errors=True)


def _vector(read: Reader, persona: str, version: str | None) -> "PersonaVector":
    """A persona's vector: of a version, or the one of today."""
    from steer_pipeline.lab.vectors.vector import load_vector

    if version is None:
        return load_vector(read.folder("persona_vector", persona))
    return load_vector(read.version("persona_vector", persona, version).path)


def _judged_on(read: Reader, variant: str) -> "tuple[pl.DataFrame, Task]":
    """The keep set that a variant's students learned from, and what all students are judged on."""
    from steer_pipeline.lab.rewrites.source import source_of
    from steer_pipeline.lab.students.data import held_out_news, released_keep_set
    from steer_pipeline.lab.students.scoring import student_scorers
    from steer_pipeline.lab.students.transfer import Task

    profile = settings().profile
    kept = released_keep_set(read, variant)
    news = held_out_news(read.made_rows("truncated_news"), profile)
    source = source_of(read, pl.concat([rows.select("row_id") for rows in (news, kept)]), settings().shipped)
    return kept, Task(profile, news, source, student_scorers(read, TARGETED, profile))


@dg.asset(
    code_version=made_of("4", "coherence", "students.seed", "students.controls"),
    deps=[
        "student_adapter",
        "student_transfer",
        "student_mechanism",
        dg.AssetDep("student_arms", partition_mapping=OF_ARMED),
        "variant_spec",
    ],
    **cpu("students", io_manager_key="bundle_io", kinds={"polars", "parquet"}),
)
def student_comparison(
    context: dg.AssetExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.Output[Path]]:
    """Every student against base's student of its rank and seed, beside the students of the controls.

    `summary.parquet`: one row a variant, rank and metric, with intervals over news and seeds that hold for all variants
    at once. `seeds`, `coherence` (against the model itself), `readouts`, `mechanism` (necessity and sufficiency of the
    students' shifts), `shifts`, `alignment` (shifts against the teacher's vector over training), `arms` (each against
    base's students of the same arm), `rows`, `students`, `curves`; `left_out.json`: who is not shown, for want of a
    control of the same rank, epochs and rows. `students.html` holds the whole report. Runs no model.
    """
    from steer_pipeline.lab.students.arms import read_arms
    from steer_pipeline.lab.students.comparison import compare_students, read_transfer
    from steer_pipeline.lab.students.report import write_report

    read, profile, variants = reader(context, store), settings().profile, settings().variants
    with user_errors(), folder("student_comparison") as made:
        stored = {}
        for name in variants:
            adapters, transfer = (
                read.current(asset, name) for asset in ("student_adapter", "student_transfer")
            )
            if adapters is not None and transfer is not None:
                mechanism = read.current("student_mechanism", name)
                stored[name] = read_transfer(
                    adapters.path, transfer.path, None if mechanism is None else mechanism.path
                )
        current = {name: read.current("student_arms", name) for name in ARMED}
        tables = compare_students(
            stored,
            variants,
            profile.coherence,
            seed=profile.students.seed,
            arms={name: None if one is None else read_arms(one.path) for name, one in current.items()},
            needed=("base", *profile.students.controls),
        )
        written = write_report(tables, read.seen, made)
        yield dg.Output(made, metadata=metadata.of_comparison(tables, written))


ASSETS = [student_adapter, student_transfer, student_mechanism, student_arms, student_comparison]
