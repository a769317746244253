"""What must hold of autoencoders and features; what features do not tell is a warning."""

from collections.abc import Iterator

import dagster as dg

from steer_pipeline.lab.limits import MAX_ACTIVE, MAX_DEAD, MIN_EXPLAINED, MIN_LOSS_RECOVERED
from steer_pipeline.resources import ArtifactStoreResource
from steer_pipeline.stages.kit import Claims, must, reader, should, user_errors

SAE = Claims(
    "sae",
    should(
        "sae_reconstructs",
        f"Features explain {MIN_EXPLAINED} of the variance of held-out states and recover {MIN_LOSS_RECOVERED} of the "
        "loss.",
        "raise sae.training.tokens, epochs or expansion, or read another block",
    ),
    should(
        "sae_is_sparse",
        f"At most {MAX_ACTIVE:.0%} of the features are active at a token, and at most {MAX_DEAD:.0%} of a trained "
        "one's at none.",
        "lower sae.training.l0 or expansion",
    ),
)
FEATURES = Claims(
    "sae_features",
    must(
        "features_on_training_ids",
        "Features were read on the token ids that training sees, row by row.",
        "materialise sae_features again",
    ),
    must(
        "every_row_has_features",
        "Every row has features, and its numbers are finite.",
        "look at these rows; lower sae.training.learning_rate, or take another block",
    ),
    reads=["sft_manifest"],
)
PREDICTOR = Claims(
    "rank_predictor",
    must(
        "groups_stay_whole",
        "Rows of one group are never learned from and predicted at once.",
        "materialise rank_predictor again",
    ),
    should(
        "features_tell_ranks",
        "Features tell ranks better than length, loss and shuffled ranks do.",
        "read `quality`: where length or loss alone tell as much, features are not worth their cost",
    ),
)


@SAE.check()
def sae_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether the autoencoder is faithful and sparse."""
    from steer_pipeline.lab.sae.stage import read_made

    with user_errors():
        made = read_made(reader(context, store).folder("sae"))
    yield from map(SAE.judged, made.verdicts)


@FEATURES.check()
def sae_features_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether features are of the rows that training sees."""
    import polars as pl

    from steer_pipeline.lab.attribution.stage import read_manifest_rows
    from steer_pipeline.lab.sae.features import FEATURES as FILE
    from steer_pipeline.lab.sae.stage import judge_features

    read = reader(context, store)
    with user_errors():
        features = pl.read_parquet(read.folder("sae_features") / FILE)
        found = judge_features(features, read_manifest_rows(read).pool)
    yield from map(FEATURES.judged, found)


@PREDICTOR.check()
def rank_predictor_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether groups stay whole, and what features tell."""
    from steer_pipeline.lab.sae.stage import judge_predictor, read_predictor

    with user_errors():
        found = judge_predictor(read_predictor(reader(context, store).folder("rank_predictor")))
    yield from map(PREDICTOR.judged, found)


CHECKS = [sae_checks, sae_features_checks, rank_predictor_checks]
