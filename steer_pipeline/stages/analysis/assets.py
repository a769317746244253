"""Pairs of base and tuned, what tuned weights make of directions, and which directions are in the tuned model.

One partition a pair of the profile's `analysis.pairs`. Weights are read block by block from files; only the basis and
nothing else runs a model. Clean students say what training does to any model.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from steer_pipeline.io.reader import Reader
from steer_pipeline.lineage import MODEL, made_of
from steer_pipeline.partitions import (
    ANALYSIS,
    CLEAN,
    DICTIONARY,
    EXPERIMENTS,
    OF_CLEAN,
    OF_DICTIONARY,
    PAIR,
    PAIR_OF_ARM,
    PAIR_OF_STUDENT,
    TRAIT_OR_ROLE,
)
from steer_pipeline.resources import ArtifactStoreResource, LanguageModelResource
from steer_pipeline.settings import settings
from steer_pipeline.stages.analysis import metadata
from steer_pipeline.stages.kit import cpu, folder, gpu, reader, user_errors

if TYPE_CHECKING:
    from steer_pipeline.catalogue.specs import Persona
    from steer_pipeline.lab.analysis.audit_steps import Lab
    from steer_pipeline.lab.analysis.pairs import ModelPair
    from steer_pipeline.lab.vectors.vector import PersonaVector

BUNDLE: dict[str, Any] = gpu("analysis", io_manager_key="bundle_io", kinds={"pytorch", "parquet"})
OF_PAIR: dict[str, Any] = {**BUNDLE, "partitions_def": PAIR}
FILES: dict[str, Any] = cpu("analysis", io_manager_key="bundle_io", partitions_def=PAIR, kinds={"parquet"})
BASIS = ("analysis.n_null", "analysis.seed")
STUDENTS = ("students.ranks", "students.seeds", "heal.seeds")


@dg.asset(
    code_version=made_of(
        "1",
        *MODEL,
        "model.chat_template",
        "rewrites.prompt",
        "rewrites.system",
        *(f"analysis.{name}" for name in ("texts", "components", "published", "personas", "seed")),
    ),
    deps=[
        "model_weights",
        "tokenizer",
        "chat_template",
        "truncated_news",
        dg.AssetDep("persona_vector", partition_mapping=OF_DICTIONARY),
        "trained_vector",
    ],
    **BUNDLE,
)
def analysis_basis(
    context: dg.AssetExecutionContext, store: ArtifactStoreResource, language_model: LanguageModelResource
) -> Iterator[dg.Output[Path]]:
    """The dictionary of directions, and how base's stream looks on neutral news.

    `directions.safetensors`, `directions.parquet`: every direction at every block, under a name that says its kind:
    vectors of personas, trained ones, published roles and traits, principal components. `left_out.json`: what could
    not be read. `neutral.safetensors`: states and means, of which null directions and realistic states are made.
    """
    from steer_pipeline.lab.analysis.steps import make_basis

    read, profile = reader(context, store), settings().profile
    with user_errors(), folder("analysis_basis") as made:
        versions: dict[str, str] = {}
        vectors = {name: _vector(read, "persona", name, versions) for name in DICTIONARY}
        trained = {
            name: _vector(read, "trained", name, versions) for name in TRAIT_OR_ROLE.get_partition_keys()
        }
        directions, neutral = make_basis(
            language_model.load(),
            {name: vector for name, vector in vectors.items() if vector is not None},
            {name: vector for name, vector in trained.items() if vector is not None},
            versions,
            read.made_rows("truncated_news"),
            profile,
            settings().home,
            made,
        )
        yield dg.Output(made, metadata=metadata.of_basis(directions, neutral))


def _vector(read: Reader, kind: str, name: str, versions: dict[str, str]) -> "PersonaVector | None":
    """The current vector of a persona, where there is one; its version is noted."""
    from steer_pipeline.lab.vectors.vector import load_vector

    found = read.current(f"{kind}_vector", name)
    if found is None:
        return None
    versions[f"{kind}:{name}"] = found.sha
    return load_vector(found.path)


@dg.asset(
    code_version=made_of("1", "analysis.pairs", *STUDENTS),
    deps=[
        "model_weights",
        dg.AssetDep("student_adapter", partition_mapping=PAIR_OF_STUDENT),
        dg.AssetDep("heal_adapter", partition_mapping=PAIR_OF_ARM),
    ],
    **FILES,
)
def model_pair(
    context: dg.AssetExecutionContext, store: ArtifactStoreResource, language_model: LanguageModelResource
) -> Iterator[dg.Output[Path]]:
    """Base and tuned: `pair.json` names both by path and identity; `adapter/` is a student's adapter.

    Tuned is a student of the students or of the heal loop, or any checkpoint of base's shape, merged or with adapters.
    """
    from steer_pipeline.lab.analysis.sides import store_pair, student_of

    read, profile, pair = reader(context, store), settings().profile, context.partition_key
    with user_errors(who=pair), folder("model_pair") as made:
        spec = profile.analysis.pairs[pair]
        student = student_of(spec, profile)
        below = None if student is None else read.folder(student.asset, student.partition) / student.place
        told = store_pair(spec, language_model.spec(), below, settings().home, made)
        yield dg.Output(made, metadata=metadata.of_pair(told, student))


def _pair(folder: Path, language_model: LanguageModelResource) -> "ModelPair":
    from steer_pipeline.lab.analysis.sides import read_pair
    from steer_pipeline.lab.models.loading import pick_device

    return read_pair(folder, settings().home, pick_device(language_model.spec().device))


@dg.asset(code_version=made_of("1", *BASIS, "analysis.level"), **OF_PAIR)
def weight_susceptibility(
    context: dg.AssetExecutionContext,
    model_pair: Path,
    analysis_basis: Path,
    language_model: LanguageModelResource,
) -> Iterator[dg.Output[Path]]:
    """What tuned weights make of each direction otherwise than base's, module by module.

    `susceptibility.parquet`: one row a block, module, direction and measure (angle, length, change), with z and rank
    among random directions of the states' covariance, corrected over blocks; beside them what isotropic ones would
    claim. `found.parquet`: one row a direction and side. `weights.parquet`: how far weights moved. Every block was
    held against the model's own module.
    """
    from steer_pipeline.lab.analysis.steps import write_susceptibility

    with user_errors(who=context.partition_key), folder("weight_susceptibility") as made:
        tables = write_susceptibility(
            _pair(model_pair, language_model), analysis_basis, settings().profile.analysis, made
        )
        yield dg.Output(made, metadata=metadata.of_susceptibility(tables))


@dg.asset(code_version=made_of("1", *BASIS, "analysis.level", "analysis.fraction"), **OF_PAIR)
def mlp_interpretation(
    context: dg.AssetExecutionContext,
    model_pair: Path,
    analysis_basis: Path,
    language_model: LanguageModelResource,
) -> Iterator[dg.Output[Path]]:
    """What tuned MLPs make of each direction otherwise than base's, on the mean state and alone.

    `mlp.parquet`: one row a block, direction and state: change in length and angle, part along the direction and
    across. `projections.parquet`: the change as shares of the dictionary's directions, which add up.
    `pushed.parquet`: which way the mean state is moved.
    """
    from steer_pipeline.lab.analysis.steps import write_mlp

    with user_errors(who=context.partition_key), folder("mlp_interpretation") as made:
        pushed = write_mlp(
            _pair(model_pair, language_model), analysis_basis, settings().profile.analysis, made
        )
        yield dg.Output(made, metadata=metadata.of_mlp(pushed))


@dg.asset(
    code_version=made_of("1", *BASIS, *(f"analysis.{name}" for name in ("distances", "fraction", "top"))),
    **OF_PAIR,
)
def attention_patterns(
    context: dg.AssetExecutionContext,
    model_pair: Path,
    analysis_basis: Path,
    language_model: LanguageModelResource,
) -> Iterator[dg.Output[Path]]:
    """Which heads look at a direction, and what they write of it, in base, tuned, and between both.

    `attention.parquet`: one row a block, head, kind, state and pair of directions: QK logits with rotary positions at
    stated distances, self less opposite, VO along directions; z within each model's own null. Crossed pairs are those
    that moved most.
    """
    from steer_pipeline.lab.analysis.steps import write_attention

    with user_errors(who=context.partition_key), folder("attention_patterns") as made:
        table = write_attention(
            _pair(model_pair, language_model), analysis_basis, settings().profile.analysis, made
        )
        yield dg.Output(made, metadata=metadata.of_attention(table))


@dg.asset(
    code_version=made_of(
        "1",
        *BASIS,
        "analysis.level",
        "analysis.fraction",
        "analysis.clean_pairs",
        "students.controls",
        *STUDENTS,
    ),
    deps=["model_weights", dg.AssetDep("student_adapter", partition_mapping=OF_CLEAN)],
    **BUNDLE,
)
def clean_students(
    context: dg.AssetExecutionContext,
    analysis_basis: Path,
    store: ArtifactStoreResource,
    language_model: LanguageModelResource,
) -> Iterator[dg.Output[Path]]:
    """What training on clean texts does to every direction, and how often the verdicts' rule finds something in it.

    `statistics.parquet`: one row a student of base or a control, direction and statistic; and of pairs of two such
    students. `null_findings.parquet`, `rate.json`: pairs of two clean students with a finding, with an exact interval.
    """
    from steer_pipeline.lab.analysis.sides import side_of
    from steer_pipeline.lab.analysis.steps import write_clean
    from steer_pipeline.lab.models.loading import pick_device

    read = reader(context, store)
    with user_errors(), folder("clean_students") as made:
        students = {name: [one] for name, one in _clean(read).items()}
        spec = language_model.spec()
        base, device = side_of(spec, settings().home), pick_device(spec.device)
        rate = write_clean(base, students, analysis_basis, settings().profile.analysis, made, device=device)
        yield dg.Output(made, metadata=metadata.of_clean(rate, made))


def _clean(read: Reader) -> dict[str, Path]:
    """Adapters of all clean students by name, of those variants that have students; none where none are wanted."""
    found: dict[str, Path] = {}
    for variant in CLEAN if settings().profile.analysis.clean_pairs else ():
        if (version := read.current("student_adapter", variant)) is not None:
            lessons = sorted(version.path.glob("rank-*/seed-*"))
            found |= {_student(variant, one.parent.name, one.name): one for one in lessons}
    return found


def _own_name(pair: str) -> str | None:
    """Name of a pair's tuned model among students, if it is one."""
    from steer_pipeline.lab.analysis.sides import student_of

    profile = settings().profile
    own = student_of(profile.analysis.pairs[pair], profile)
    return None if own is None else _student(own.partition, *own.place.partition("/")[::2])


def _student(variant: str, rank: str, seed: str) -> str:
    """Name of a student among the clean ones."""
    return f"{variant} {rank}/{seed}"


@dg.asset(
    code_version=made_of("1", "analysis.level", "analysis.pairs", *STUDENTS),
    **FILES,
)
def pair_report(
    context: dg.AssetExecutionContext,
    weight_susceptibility: Path,
    mlp_interpretation: Path,
    attention_patterns: Path,
    clean_students: Path,
    store: ArtifactStoreResource,
) -> Iterator[dg.Output[Path]]:
    """Which directions are in the tuned model, and the report of the pair, from stored rows alone.

    `findings.parquet`: one row a direction and statistic: p among random directions, p among clean students, both
    corrected; found where both are small. `analysis.html` holds heat maps over blocks, modules and heads, curves with
    null bands, and the interactions that moved most. Runs no model.
    """
    from steer_pipeline.lab.analysis.report import read_pair_tables, write_report

    read, pair = reader(context, store), context.partition_key
    with user_errors(who=pair), folder("pair_report") as made:
        tables = read_pair_tables(
            pair,
            weight_susceptibility,
            mlp_interpretation,
            attention_patterns,
            clean_students,
            _own_name(pair),
            settings().profile.analysis.level,
        )
        plots = write_report(tables, read.seen, made)
        yield dg.Output(made, metadata=metadata.of_report(tables, plots))


# ------------------------------------------------------------------------ activations, audit, screening

TEXTS = ("rewrites.prompt", "rewrites.system", *MODEL, "model.chat_template", "vector.seed", "scales")
READ: list[Any] = [
    "model_weights",
    "tokenizer",
    "chat_template",
    "truncated_news",
    dg.AssetDep("persona_vector", partition_mapping=OF_DICTIONARY),
    dg.AssetDep("contrast_set", partition_mapping=OF_DICTIONARY),
    dg.AssetDep("persona_scale", partition_mapping=OF_DICTIONARY),
]


def _personas() -> "dict[str, Persona]":
    """All personas whose files are sound."""
    from steer_pipeline.catalogue.loading import read_personas

    return read_personas(profile=settings().profile)[0]


def _lab(read: Reader, language_model: LanguageModelResource) -> "Lab":
    """Vectors, scales and news of the dictionary."""
    from steer_pipeline.lab.analysis.audit_steps import Lab
    from steer_pipeline.lab.students.scoring import student_scorers

    profile, versions = settings().profile, dict[str, str]()
    vectors = {name: _vector(read, "persona", name, versions) for name in DICTIONARY}
    scales = student_scorers(read, DICTIONARY, profile)
    return Lab(
        language_model.load,
        {name: vector for name, vector in vectors.items() if vector is not None},
        {name: next(iter(own.values())) for name, own in scales.items() if own},
        read.made_rows("truncated_news"),
        profile,
        settings().home,
    )


@dg.asset(
    code_version=made_of(
        "1",
        "analysis.clean_pairs",
        *TEXTS,
        "auditing.activation",
        "auditing.screening",
        "auditing.plant.sampling",
        "analysis.personas",
        "analysis.pairs",
        *STUDENTS,
    ),
    deps=[*READ, dg.AssetDep("student_adapter", partition_mapping=OF_CLEAN)],
    **OF_PAIR,
)
def activation_difference(
    context: dg.AssetExecutionContext,
    model_pair: Path,
    store: ArtifactStoreResource,
    language_model: LanguageModelResource,
) -> Iterator[dg.Output[Path]]:
    """How tuning moves the stream on texts that have nothing to do with what was taught, first tokens apart.

    `activation.parquet`: one row a block, position and direction: cosine of the mean difference within random
    directions, projection with interval. `steered.parquet`: what base says when it is steered with the difference.
    """
    from steer_pipeline.lab.analysis.audit_steps import write_activation
    from steer_pipeline.lab.analysis.sides import specs_of
    from steer_pipeline.lab.models.loading import load_model

    read = reader(context, store)
    with user_errors(who=context.partition_key), folder("activation_difference") as made:
        base, tuned = specs_of(model_pair, language_model.spec(), settings().home)
        home = settings().home
        clean = [one for name, one in _clean(read).items() if name != _own_name(context.partition_key)]
        table = write_activation(
            _lab(read, language_model), load_model(base, home), lambda: load_model(tuned, home), clean, made
        )
        yield dg.Output(made, metadata=metadata.of_activation(table, made))


@dg.asset(
    code_version=made_of("1", *TEXTS, "auditing.plant", "analysis.personas"),
    deps=[*READ, "persona_spec"],
    **BUNDLE,
)
def planted_adapters(
    context: dg.AssetExecutionContext, store: ArtifactStoreResource, language_model: LanguageModelResource
) -> Iterator[dg.Output[Path]]:
    """Adapters whose content is known: they learn texts that known vectors have steered, at known doses, or clean
    ones.

    `plants.parquet`: what each was taught; `texts.parquet`, `lessons.parquet`; a PEFT directory an adapter. Clean
    ones are brought to the norms of planted ones. A killed run goes on with those that are missing.
    """
    from steer_pipeline.lab.analysis.audit_steps import write_planted

    read, work = reader(context, store), store.store().work("planted_adapters")
    with user_errors(), folder("planted_adapters") as made:
        lab = _lab(read, language_model)
        plants = write_planted(lab, _personas(), made, work=work, progress=context.log.info)
        yield dg.Output(made, metadata=metadata.of_plants(plants))
    shutil.rmtree(work, ignore_errors=True)  # the store has it all by now


@dg.asset(code_version=made_of("2", *TEXTS, "auditing", "analysis.personas"), deps=READ, **BUNDLE)
def checkpoint_audit(
    context: dg.AssetExecutionContext,
    planted_adapters: Path,
    store: ArtifactStoreResource,
    language_model: LanguageModelResource,
) -> Iterator[dg.Output[Path]]:
    """Which known directions are in checkpoints, judged by clean adapters of their norm, tried on planted ones.

    `audits.parquet`: one row an adapter and direction. `detection.parquet`: AUC, false alarms and dose recovered, by
    the share of steered rows in the training data. `audit.html` holds figures, what is missed and false alarms.
    """
    from steer_pipeline.lab.analysis.audit_steps import write_audit

    read = reader(context, store)
    with user_errors(), folder("checkpoint_audit") as made:
        table = write_audit(_lab(read, language_model), planted_adapters, made)
        yield dg.Output(made, metadata=metadata.of_audit(table, made))


@dg.asset(code_version=made_of("2", *TEXTS, "auditing", "analysis.personas"), deps=READ, **BUNDLE)
def data_screening(
    context: dg.AssetExecutionContext,
    planted_adapters: Path,
    store: ArtifactStoreResource,
    language_model: LanguageModelResource,
) -> Iterator[dg.Output[Path]]:
    """Whether the projection of training rows on persona vectors predicts what training on them does.

    `shifts.parquet`: predicted and actual, a student and direction. `correlations.parquet`: r with interval over
    students. `gate.parquet`: precision and recall of flags on rows that are known; `flags.parquet`,
    `projections.parquet`: by row. `screening.html` holds the report.
    """
    from steer_pipeline.lab.analysis.audit_steps import write_screening

    read = reader(context, store)
    with user_errors(), folder("data_screening") as made:
        correlations, gate = write_screening(_lab(read, language_model), planted_adapters, made)
        yield dg.Output(made, metadata=metadata.of_screening(correlations, gate, made))


@dg.asset(
    code_version=made_of("2", *TEXTS, "auditing", "analysis.personas"), deps=[*READ, "persona_spec"], **BUNDLE
)
def preventative_steering(
    context: dg.AssetExecutionContext, store: ArtifactStoreResource, language_model: LanguageModelResource
) -> Iterator[dg.Output[Path]]:
    """One trait kept out while another is learned from the same rows: a vector added in training, and its rivals.

    `prevention.parquet`: one row an arm: both traits against the clean arm, loss, verdict. `arms.parquet`: one row a
    student; `students/`: their adapters; `texts.parquet`, `written.parquet`. `prevention.html`: texts side by side.
    """
    from steer_pipeline.lab.analysis.audit_steps import write_prevention

    read, work = reader(context, store), store.store().work("preventative_steering")
    with user_errors(), folder("preventative_steering") as made:
        lab = _lab(read, language_model)
        table = write_prevention(lab, _personas(), made, work=work, progress=context.log.info)
        yield dg.Output(made, metadata=metadata.of_prevention(table, made))
    shutil.rmtree(work, ignore_errors=True)


TRIED = (planted_adapters, checkpoint_audit, data_screening, preventative_steering)
ASSETS = (
    [
        analysis_basis,
        model_pair,
        weight_susceptibility,
        mlp_interpretation,
        attention_patterns,
        clean_students,
        activation_difference,
        pair_report,
        *(own for own in TRIED if own.key.path[-1] in EXPERIMENTS),
    ]
    if ANALYSIS.pairs
    else []
)
