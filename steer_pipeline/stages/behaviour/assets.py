"""Behaviour of traits and roles: answers of every arm to held-out questions, their scores, and the table of all.

One partition a persona, but for the table. The personas of one process share one model load; a killed run does only
what is missing. The judge is asked over the network and needs no model here.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from steer_pipeline.catalogue import Persona
from steer_pipeline.execution import RETRY_NETWORK
from steer_pipeline.io.journals import open_journal
from steer_pipeline.lab.behaviour.schema import (
    JUDGE_COLUMNS,
    JUDGE_SCHEMA,
    MINILM_COLUMNS,
    MINILM_SCHEMA,
    ROLLOUT_COLUMNS,
    ROLLOUT_SCHEMA,
)
from steer_pipeline.lineage import MODEL, made_of
from steer_pipeline.partitions import TRAIT_OR_ROLE
from steer_pipeline.resources import ArtifactStoreResource, JudgeResource, LanguageModelResource
from steer_pipeline.settings import settings
from steer_pipeline.stages.behaviour import metadata
from steer_pipeline.stages.kit import columns, cpu, folder, gpu, reader, told, user_errors

ROWS: dict[str, Any] = {"partitions_def": TRAIT_OR_ROLE, "io_manager_key": "parquet_io"}


@dg.asset(
    deps=["model_weights", "tokenizer", "chat_template", "persona_scale"],
    code_version=made_of("2", *MODEL, "model.chat_template", "rollouts", "behaviour.allow_other_model"),
    **gpu(
        "behaviour", kinds={"pytorch", "parquet"}, metadata=columns(ROLLOUT_SCHEMA, ROLLOUT_COLUMNS), **ROWS
    ),
)
def rollouts(
    context: dg.AssetExecutionContext,
    persona_spec: Persona,
    behaviour_set: pl.LazyFrame,
    trained_vector: Path,
    vector_comparison: Path,
    store: ArtifactStoreResource,
    language_model: LanguageModelResource,
) -> Iterator[dg.Output[pl.DataFrame]]:
    """Answers of every arm to the persona's held-out questions: one row an answer.

    Arms, always: vanilla; prompted by each positive instruction; the trained vector at the profile's scales with
    both signs and the learned one; the averaged vector at multiples of its best dose, if there is one; random
    directions of the trained vector's length. All arms of a question share its prefill and draw from streams of
    their own. Perplexity is the unsteered model's, given the bare question.
    """
    from steer_pipeline.lab.behaviour.rollouts import roll_out

    read, persona, profile = reader(context, store), persona_spec, settings().profile
    vectors = {"trained": "trained_vector", "averaged": "vector_comparison"}
    made = {name: read.current(asset, persona.name) for name, asset in vectors.items()}
    with user_errors():
        rows, missing = roll_out(
            language_model.load(),
            persona,
            profile,
            behaviour_set,
            trained=trained_vector,
            comparison=vector_comparison,
            versions={name: version.sha for name, version in made.items() if version is not None},
            journal=open_journal(store.store(), "rollouts", persona.name),
            progress=told(context),
        )
    yield dg.Output(rows, metadata=metadata.of_rollouts(rows, missing))


@dg.asset(
    code_version=made_of("2", "rollouts.minilm_texts", "behaviour.seed"),
    **cpu("behaviour", kinds={"sklearn", "parquet"}, metadata=columns(MINILM_SCHEMA, MINILM_COLUMNS), **ROWS),
)
def minilm_scores(
    persona_spec: Persona, behaviour_set: pl.LazyFrame, rollouts: pl.LazyFrame
) -> Iterator[dg.Output[pl.DataFrame]]:
    """MiniLM's calibrated probability, for every rollout, that it shows the persona; one row a rollout.

    Trained on the behaviour set: rows that count against `neg` rows of a trait or `default` rows of a role, cut to
    excerpts of equal length, held out by question. How well it separates unseen questions, the same procedure on
    shuffled labels, what length alone tells, and its calibration stand beside every score.
    """
    from steer_pipeline.lab.behaviour.scoring import CalibratedScorer, score_rollouts, training_texts

    profile = settings().profile
    most, seed = profile.rollouts.minilm_texts, profile.behaviour.seed
    with user_errors():
        texts = training_texts(behaviour_set.collect(), persona_spec.kind, most, seed)
        scorer = CalibratedScorer(seed=seed).fit(texts)
        scores = score_rollouts(rollouts.collect(), scorer)
    yield dg.Output(scores, metadata=metadata.of_scores(scores, scorer))


@dg.asset(
    code_version=made_of("1", "judge"),
    retry_policy=RETRY_NETWORK,
    **cpu("behaviour", kinds={"openai", "parquet"}, metadata=columns(JUDGE_SCHEMA, JUDGE_COLUMNS), **ROWS),
)
def judge_scores(
    persona_scale: Persona, rollouts: pl.LazyFrame, judge: JudgeResource, store: ArtifactStoreResource
) -> Iterator[dg.Output[pl.DataFrame]]:
    """A judge's score for every rollout by the persona's rubric: 0 to 100 for a trait, 0 to 3 for a role.

    Asked at temperature 0 of the OpenAI-compatible endpoint that STEER_JUDGE_URL names; its replies are kept,
    so that a second run asks only what is missing. Refusals, unreadable replies and missing ones are counted
    apart and have no score. Without an endpoint every row is `not_asked`.
    """
    from steer_pipeline.lab.behaviour.judging import judged_rows
    from steer_pipeline.lab.evaluation.judge import JudgeUnavailable

    rows = rollouts.select("row_id", "arm", "question", "response").collect()
    try:
        with user_errors():
            pairs = list(rows.select("question", "response").iter_rows())
            judgements = judge.ask(persona_scale, pairs, store.store())
            scores = judged_rows(persona_scale, rows["row_id"].to_list(), judgements, judge.spec().model)
    except JudgeUnavailable as error:  # perhaps it is back when the retry policy tries again
        raise dg.Failure(str(error)) from error
    yield dg.Output(scores, metadata=metadata.of_judge(scores, rows["arm"], judge.endpoint()))


@dg.asset(
    deps=["rollouts", "minilm_scores", "judge_scores", "vector_comparison"],
    # 2: the share of the trait gap is called trait_gap_closed; behaviour.html
    code_version=made_of("4", "rollouts.sampling.seed"),
    **cpu("behaviour", kinds={"polars", "markdown"}, io_manager_key="bundle_io"),
)
def behaviour_table(
    context: dg.AssetExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.Output[Path]]:
    """What every arm did to trait and text, persona by persona, with intervals, tests and gaps closed.

    `arms.parquet`: one row a persona and arm. `summary.parquet`: one row a persona, metric and arm. `rows`,
    `agreement` (MiniLM, judge, ground truth), `judged` (refusals, invalid and missing apart), `corrected` (what the
    judge says, corrected by answers whose truth is known), `scorers`;
    `behaviour.html` holds the whole report, `behaviour.md` the same with its plots beside it; `versions.json` names
    what was read. Personas without rollouts are left out. Runs no model.
    """
    from steer_pipeline.lab.behaviour.report import write_behaviour
    from steer_pipeline.lab.behaviour.table import gather, make_tables
    from steer_pipeline.lab.likelihood.tables import read_comparisons

    read, seed = reader(context, store), settings().profile.rollouts.sampling.seed
    with user_errors(), folder("behaviour_table") as made:
        tables = make_tables(gather(TRAIT_OR_ROLE.get_partition_keys(), read.rows), seed=seed)
        compared = {name: read.current("vector_comparison", name) for name in tables.personas}
        paths = {name: version.path for name, version in compared.items() if version is not None}
        likelihood, missing = read_comparisons(paths)
        written = write_behaviour(tables, read.seen, made, likelihood=likelihood, missing=missing)
        yield dg.Output(made, metadata=metadata.of_table(tables, written))


ASSETS = [rollouts, minilm_scores, judge_scores, behaviour_table]
