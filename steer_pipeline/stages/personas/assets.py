"""Personas: what a persona looks like in the model, and how much of it to add.

One partition a persona. The steps of several personas in one process share one model load.
"""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import polars as pl

from steer_pipeline.catalogue import Persona
from steer_pipeline.lab.personas.schema import (
    CONTRAST_COLUMNS,
    CONTRAST_SCHEMA,
    GENERATED,
    PAIRS,
)
from steer_pipeline.lineage import MODEL, made_of
from steer_pipeline.partitions import PERSONA
from steer_pipeline.resources import ArtifactStoreResource, JudgeResource, LanguageModelResource
from steer_pipeline.settings import settings
from steer_pipeline.stages.kit import columns, folder, gpu, user_errors
from steer_pipeline.stages.personas import metadata

CONTRAST = settings().profile.contrast
GENERATES = GENERATED in CONTRAST.source
ON_NEWS = GENERATES and CONTRAST.contexts == "news"
FILTERS = GENERATES and CONTRAST.filter
EXAMPLES = ["persona_examples"] if FILTERS or PAIRS in CONTRAST.source else []
JUDGED = ("judge",) if FILTERS else ()
# News contexts are rows that neither the variants nor the dose sweep use.
RESERVED = ("dose.n_rows", "dose.seed", "rewrites.full_rows", "rewrites.prompt") if ON_NEWS else ()
REWRITING = (
    "rewrites.full_rows",
    "rewrites.system",
    "rewrites.prompt",
    "rewrites.scope",
    "rewrites.sampling",
)
SCORED = ("coherence", "scales", "vector.seed")


@dg.asset(
    deps=["model_weights", "tokenizer", "chat_template", *EXAMPLES],
    # 2: columns source, pair_id and dropped
    code_version=made_of(
        "2",
        *MODEL,
        "model.chat_template",
        "contrast",
        "vector.held_out_fraction",
        "vector.seed",
        "scales.minilm",  # its check scores completions on it
        *JUDGED,
        *RESERVED,
    ),
    **gpu(
        "personas",
        partitions_def=PERSONA,
        io_manager_key="parquet_io",
        kinds={"pytorch", "parquet"},
        metadata=columns(CONTRAST_SCHEMA, CONTRAST_COLUMNS),
    ),
)
def contrast_set(
    context: dg.AssetExecutionContext,
    persona_spec: Persona,
    truncated_news: pl.LazyFrame,
    language_model: LanguageModelResource,
    judge: JudgeResource,
    store: ArtifactStoreResource,
) -> Iterator[dg.Output[pl.DataFrame]]:
    """Matched prompts for both poles of a persona, and what is answered to them.

    One row is one side of one context: the same user turn on both sides. Generated: the model's answers under the
    instructions of the poles, with the same random numbers and instruction number; `dropped` says which pairs do not
    count, because a side does not show its pole. Pairs: given texts. Prefill: the same text, cut at several places,
    under the instructions. Pairs are split into train and held_out; token ids come along, so that nothing is tokenised
    twice. News contexts are rows that no variant rewrites, as far as the corpus allows.
    """
    from steer_pipeline.lab.personas.steps import make_contrast

    profile, home = settings().profile, settings().home
    ask = judge.asking(persona_spec, store.store()) if FILTERS else None
    with user_errors():
        made = make_contrast(
            language_model.load(), persona_spec, profile, truncated_news.collect(), home, ask
        )
    for line in made.bad_lines:
        context.log.warning(f"left out: {line}")
    yield dg.Output(made.rows, metadata=metadata.of_contrast(made))


@dg.asset(
    deps=["model_weights", "tokenizer", "chat_template"],
    # 2: candidates and pairwise cosine
    code_version=made_of(
        "2", *MODEL, "model.chat_template", "vector.method", "vector.readout", "vector.site", "vector.seed"
    ),
    **gpu("personas", partitions_def=PERSONA, io_manager_key="bundle_io", kinds={"pytorch", "numpy"}),
)
def persona_vector(
    persona_spec: Persona, contrast_set: pl.LazyFrame, language_model: LanguageModelResource
) -> Iterator[dg.Output[Path]]:
    """A direction for the output of every block: positive pole minus negative pole, in natural magnitude.

    `vector.safetensors` holds the directions (fp32), `vector.json` where they come from and how good they
    are, block by block: residual norms, split-half and pairwise cosine, held-out AUC and its shuffled-label null.
    Computed from the contrast set, or imported from the file that the catalogue names and judged on it. Of several
    sources and read-outs the evidence chooses one; the others stand beside it under `candidates`.
    """
    from steer_pipeline.lab.personas.steps import make_vector
    from steer_pipeline.lab.vectors.vector import save_vector

    profile, home = settings().profile, settings().home
    with user_errors(), folder("persona_vector") as made:
        vector = make_vector(language_model.load(), persona_spec, profile, contrast_set.collect(), home)
        save_vector(vector, made)
        yield dg.Output(made, metadata=metadata.of_vector(vector))


@dg.asset(
    deps=["model_weights", "tokenizer", "chat_template", "news_facts"],
    code_version=made_of(
        "4",
        *MODEL,
        "model.chat_template",
        "dose",
        "contrast.source",
        "contrast.contexts",
        "contrast.n_contexts",
        *REWRITING,
        *SCORED,
    ),
    **gpu("personas", partitions_def=PERSONA, io_manager_key="bundle_io", kinds={"pytorch", "parquet"}),
)
def dose_curve(
    persona_scale: Persona,
    persona_vector: Path,
    contrast_set: pl.LazyFrame,
    truncated_news: pl.LazyFrame,
    language_model: LanguageModelResource,
) -> Iterator[dg.Output[Path]]:
    """What the vector does at every block and dose of the profile's sweep, and the dose to use.

    Rewrites of held-out news, decoded as the packs are. `rows.parquet`: one row a news item and cell, with
    text, scores and costs. `sweep.parquet`: one row a cell: trait, shift to base with interval, opposite pole,
    what it costs against base (suspects, facts, loops, length, NLL under the unsteered model), KL to base, what
    lies beyond a limit; and random directions at the recommended block and norm. `recommendation.json`: the smallest
    coherent dose that reaches 90% of the best coherent shift, what stopped the next one and its rank among the random
    directions; or why there is none. `scale.json`: on which the trait is scored; a scale that says the same of all
    texts fails here. `probe.json`: proof that the vector changes logits; a vector that does not fails here.
    """
    from steer_pipeline.lab.personas.steps import make_dose_curve
    from steer_pipeline.lab.vectors.vector import load_vector

    with user_errors(), folder("dose_curve") as made:
        vector = load_vector(persona_vector)
        recommendation = make_dose_curve(
            language_model.load(),
            vector,
            persona_scale,
            settings().profile,
            truncated_news.collect(),
            contrast_set.collect(),
            made,
            settings().shipped / "facts.parquet",
        )
        yield dg.Output(made, metadata=metadata.of_dose(recommendation, vector, made))


ASSETS = [contrast_set, persona_vector, dose_curve]
