"""Vectors of traits and roles: the scored dialogues, what is learned from them, and what it is worth.

One partition a persona. The steps of several personas in one process share one model load, and a bad persona fails
alone.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from steer_pipeline.catalogue import Persona
from steer_pipeline.execution import RETRY_NETWORK
from steer_pipeline.io.journals import open_journal
from steer_pipeline.lab.dialogues.schema import BEHAVIOUR_COLUMNS, BEHAVIOUR_SCHEMA
from steer_pipeline.lineage import MODEL, made_of
from steer_pipeline.partitions import TRAIT_OR_ROLE
from steer_pipeline.resources import ArtifactStoreResource, JudgeResource, LanguageModelResource
from steer_pipeline.settings import settings
from steer_pipeline.stages.kit import columns, cpu, folder, gpu, user_errors
from steer_pipeline.stages.vectors import metadata

FILES: dict[str, Any] = gpu(
    "vectors",
    partitions_def=TRAIT_OR_ROLE,
    io_manager_key="bundle_io",
    kinds={"pytorch", "parquet"},
    deps=["model_weights", "tokenizer", "chat_template"],
)
# 2: rows of a question come two by two
TRAINED = made_of(
    "2",
    *MODEL,
    "model.chat_template",
    "training",
    "behaviour.max_response_tokens",
    "behaviour.allow_other_model",
)
COMPARED = tuple(
    f"behaviour.{name}"
    for name in ("allow_other_model", "max_response_tokens", "min_count", "score_gap", "seed")
)
# Only a profile that has its dialogues made needs the model, and with it the accelerator, and perhaps a judge.
MADE = settings().profile.behaviour.source.kind == "generate"
READ = ["dialogue_source", "persona_scale", "tokenizer", "chat_template"]
DIALOGUES: dict[str, Any] = {
    "partitions_def": TRAIT_OR_ROLE,
    "io_manager_key": "parquet_io",
    "kinds": {"polars", "parquet"},
    "metadata": columns(BEHAVIOUR_SCHEMA, BEHAVIOUR_COLUMNS),
}


@dg.asset(
    deps=[*READ, "model_weights"] if MADE else READ,
    code_version=made_of(
        "1", "behaviour", "model.path", "model.chat_template", *([*MODEL, "judge"] if MADE else [])
    ),
    **(gpu("vectors", retry_policy=RETRY_NETWORK, **DIALOGUES) if MADE else cpu("vectors", **DIALOGUES)),
)
def behaviour_set(
    persona_spec: Persona,
    language_model: LanguageModelResource,
    judge: JudgeResource,
    store: ArtifactStoreResource,
) -> Iterator[dg.Output[pl.DataFrame]]:
    """Scored dialogues of a trait or role: which of them count, and which split their question is in.

    One row a dialogue. `messages` holds the bare question and the answer; the instruction under which it was
    asked stands in `instruction`. Only pos rows with a high enough score count; roles bring their default rows
    along, which never do. Splits are sized in supervised response tokens. The model is loaded only where the
    profile has the dialogues made.
    """
    from steer_pipeline.lab.dialogues.building import make_behaviour_set
    from steer_pipeline.lab.models.loading import load_tokenizer

    profile, home, kept = settings().profile, settings().home, store.store()
    with user_errors(who=persona_spec.name):
        rows, left_out = make_behaviour_set(
            persona_spec,
            profile,
            load_tokenizer(profile.model, home),
            home=home,
            shipped=settings().shipped,
            model=language_model.load,
            judge=partial(judge.ask, store=kept) if judge.endpoint() else None,
            journal=open_journal(kept, "behaviour_set", persona_spec.name),
        )
    yield dg.Output(rows, metadata=metadata.of_dialogues(rows, left_out, profile.behaviour))


@dg.asset(code_version=TRAINED, **FILES)
def lr_sweep(
    persona_spec: Persona, behaviour_set: pl.LazyFrame, language_model: LanguageModelResource
) -> Iterator[dg.Output[Path]]:
    """Every learning rate of the profile, trained side by side in one batched pass.

    `history.parquet`: the curve of each rate. `sweep.parquet`: one row a rate: best validation NLL, norm, why it
    stopped. `choice.json`: the rate that is best on validation. Rates that fall behind leave early
    (`training.prune`) and say so.
    """
    from steer_pipeline.lab.vectors.learned.sweep import make_sweep

    with user_errors(who=persona_spec.name), folder("lr_sweep") as made:
        rows, profile = behaviour_set.collect(), settings().profile
        choice = make_sweep(language_model.load(), rows, persona_spec, profile, made)
        yield dg.Output(made, metadata=metadata.of_sweep(choice, made))


@dg.asset(code_version=TRAINED, **FILES)
def trained_vector(
    persona_spec: Persona,
    behaviour_set: pl.LazyFrame,
    lr_sweep: Path,
    language_model: LanguageModelResource,
) -> Iterator[dg.Output[Path]]:
    """A vector learned at one block, everything else frozen: it makes the persona's answers likely unprompted.

    Trained at the sweep's rate with every seed. `vector.safetensors` and `vector.json`: the seed that is best on
    validation, in natural magnitude (fp32). `seeds/` and `last/`: the best and the last vector of each seed.
    `validation.parquet`: NLL of each validation row without a vector and with it.
    """
    from steer_pipeline.lab.vectors.learned.sweep import make_trained

    with user_errors(who=persona_spec.name), folder("trained_vector") as made:
        rows, profile = behaviour_set.collect(), settings().profile
        make_trained(language_model.load(), rows, persona_spec, profile, lr_sweep, made)
        yield dg.Output(made, metadata=metadata.of_trained(made))


@dg.asset(
    # 2: the share of the likelihood gap is called nll_gap_closed
    code_version=made_of("4", *MODEL, "model.chat_template", *COMPARED, "rollouts.random_seeds"),
    **FILES,
)
def vector_comparison(
    persona_spec: Persona,
    behaviour_set: pl.LazyFrame,
    trained_vector: Path,
    language_model: LanguageModelResource,
) -> Iterator[dg.Output[Path]]:
    """What each vector makes of held-out answers, on one estimator and the same response tokens.

    `rows.parquet`: summed NLL of every test answer under every arm and seed: vanilla, prompted (the instruction
    really in context), trained, averaged at its best block and scale on validation rows, random at the trained
    norm. `table.parquet`: NLL, perplexity and the share of the vanilla-to-prompted gap closed (`nll_gap_closed`),
    with intervals over questions and seeds; `seeds.parquet` the same by seed. `averaged/`: the averaged vector, or
    MISSING.json with the reason. `scales.json`: sites and lengths. `cosines.parquet`: trained against averaged by
    block. `classifier.parquet`: AUC of projections, the instruction not in context, beside shuffled labels.
    """
    from steer_pipeline.lab.likelihood.comparing import compare_vectors
    from steer_pipeline.lab.vectors.vector import load_seeds

    with user_errors(), folder("vector_comparison") as made:
        rows, profile = behaviour_set.collect(), settings().profile
        compare_vectors(language_model.load(), rows, load_seeds(trained_vector), persona_spec, profile, made)
        yield dg.Output(made, metadata=metadata.of_comparison(made))


ASSETS = [behaviour_set, lr_sweep, trained_vector, vector_comparison]
