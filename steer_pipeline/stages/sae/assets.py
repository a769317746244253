"""A sparse autoencoder, the features of training rows in it, and the ranks that they tell."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from steer_pipeline.lineage import MODEL, made_of
from steer_pipeline.partitions import ATTRIBUTION
from steer_pipeline.resources import ArtifactStoreResource, LanguageModelResource
from steer_pipeline.settings import settings
from steer_pipeline.stages.kit import cpu, folder, gpu, reader, user_errors
from steer_pipeline.stages.sae import metadata

STAGE = "attribution"
BUNDLE: dict[str, Any] = gpu(STAGE, io_manager_key="bundle_io", kinds={"pytorch", "parquet"})
TABLES: dict[str, Any] = cpu(STAGE, io_manager_key="bundle_io", kinds={"scikitlearn", "parquet"})
LOSS = [name for name, method in ATTRIBUTION.scoring.methods.items() if method.kind == "loss"][:1]
RANKINGS = dg.SpecificPartitionsPartitionMapping(list(dict.fromkeys([ATTRIBUTION.predict, *LOSS])))


@dg.asset(
    code_version=made_of("1", *MODEL, "sae.folder", "sae.block", "sae.training", "sae.fidelity_rows"),
    deps=["model_weights", "tokenizer", "chat_template", "sft_manifest"],
    **BUNDLE,
)
def sae(
    context: dg.AssetExecutionContext, store: ArtifactStoreResource, language_model: LanguageModelResource
) -> Iterator[dg.Output[Path]]:
    """A sparse autoencoder of the model's states: a published one, or one that is trained on the pool.

    In the layout of sae-lens: `cfg.json`, `sae_weights.safetensors`. `fidelity.parquet`: variance explained, loss
    recovered and features a token on held-out rows; `history.parquet`: its training.
    """
    from steer_pipeline.lab.attribution.stage import read_manifest_rows
    from steer_pipeline.lab.sae.stage import make_sae

    with user_errors(), folder("sae") as made:
        rows = read_manifest_rows(reader(context, store))
        held_out = [*rows.queries, *rows.selection]
        found = make_sae(
            language_model.load(),
            settings().home,
            rows.pool,
            held_out,
            settings().profile.sae,
            made,
            context.log.info,
        )
        yield dg.Output(made, metadata=metadata.of_sae(found))


@dg.asset(
    code_version=made_of("1", *MODEL, "sae.features"),
    deps=["model_weights", "sft_manifest", "sae"],
    **BUNDLE,
)
def sae_features(
    context: dg.AssetExecutionContext, store: ArtifactStoreResource, language_model: LanguageModelResource
) -> Iterator[dg.Output[Path]]:
    """What the autoencoder sees in every row of the pool, on the ids that training sees.

    `features.parquet`: one row a row: its active features with mean, maximum and presence, ten summary statistics, and
    a digest of its ids.
    """
    from steer_pipeline.lab.attribution.stage import read_manifest_rows
    from steer_pipeline.lab.sae.stage import make_features

    read = reader(context, store)
    with user_errors(), folder("sae_features") as made:
        rows = read_manifest_rows(read)
        spec = settings().profile.sae.features
        path = make_features(language_model.load(), read.folder("sae"), rows.pool, spec, made)
        yield dg.Output(made, metadata=metadata.of_features(path))


@dg.asset(
    code_version=made_of("1", "sae.predictor", "attribution.predict", "attribution.scoring.methods"),
    deps=[
        "sft_manifest",
        "sae",
        "sae_features",
        dg.AssetDep("attribution_ranking", partition_mapping=RANKINGS),
    ],
    **TABLES,
)
def rank_predictor(
    context: dg.AssetExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.Output[Path]]:
    """How far features tell a row's rank, predicted from other groups of rows alone.

    `predictions.parquet`: one row a row with its held-out prediction. `quality.parquet`: rank correlation and overlap
    of the first rows, beside length, loss, metadata and shuffles; `gains.parquet`, `metadata.parquet`. Runs no model.
    """
    from steer_pipeline.lab.attribution.stage import rows_to_predict
    from steer_pipeline.lab.sae.features import FEATURES
    from steer_pipeline.lab.sae.stage import make_predictor

    read, now = reader(context, store), settings()
    with user_errors(), folder("rank_predictor") as made:
        rows = rows_to_predict(read, now.profile.attribution)
        features = read.folder("sae_features") / FEATURES
        found = make_predictor(rows, features, read.folder("sae"), now.profile.sae.predictor, made)
        yield dg.Output(made, metadata=metadata.of_prediction(found))


ASSETS = [sae, sae_features, rank_predictor]
