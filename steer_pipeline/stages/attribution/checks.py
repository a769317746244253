"""What must hold of attribution. What makes a comparison unfair stops what comes after; what methods do not show warns,
with its numbers.
"""

from collections.abc import Iterator

import dagster as dg

from steer_pipeline.lab.limits import (
    MIN_CHEAP_LDS,
    MIN_MAGIC_LDS,
    MIN_MAGIC_LDS_LOW,
    MIN_PLANTED_RECALL,
    MIN_SEEDS,
)
from steer_pipeline.partitions import LEARNER, METHOD, PLAYER
from steer_pipeline.resources import ArtifactStoreResource
from steer_pipeline.settings import settings
from steer_pipeline.stages.kit import Claims, must, ought, reader, should, user_errors

MANIFEST = Claims(
    "sft_manifest",
    must("splits_are_disjoint", "No group has rows in two splits.", "mend group_id in the source"),
    must(
        "eval_is_not_learned",
        "No row of the pool has a text or a word of selection or eval.",
        "set attribution.splits.eval_words: drop, or give the source more words",
    ),
    must(
        "every_row_teaches",
        "Every row has a token to learn, and none is of an aborted game.",
        "raise attribution.splits.max_tokens, or mend the source",
    ),
)
BASE = Claims(
    "base_adapter",
    must("every_seed_is_trained", "There is an adapter of the whole pool.", "materialise base_adapter again"),
    should(
        "selection_loss_falls",
        "The loss on selection falls while the pool is learned.",
        "read the curve; lower attribution.learn.learning_rate or epochs",
    ),
)
RANKING = Claims(
    "attribution_ranking",
    ought(
        "every_row_is_scored",
        "Every row of the pool has a score; none that failed was given one.",
        "read `failed` in the ranking, then drop or shorten these rows",
    ),
    partitions_def=METHOD,
)
SANITY = Claims(
    "attribution_sanity",
    should(
        "methods_are_sound",
        "Methods give another model other scores, wrong completions low ones, copies alike ones, and find shortcuts.",
        "read `told` of the test that fails before the method's ranking",
    ),
    should(
        "an_empty_ranking_fails",
        "A random ranking finds neither wrong completions nor shortcuts: the tests can fail.",
        "plant more rows (attribution.sanity.share)",
    ),
)
SUBSETS = Claims(
    "attribution_subsets",
    must(
        "token_budgets_match",
        "Matched arms learn as many tokens as the arms that they match, within the profile's budget.",
        "materialise attribution_subsets again, or raise attribution.token_budget",
    ),
    must(
        "subsets_are_apart",
        "Only arms that may learn a row of the arm that they stand beside.",
        "set overlap for that arm, or materialise attribution_subsets again",
    ),
)
ADAPTER = Claims(
    "continuation_adapter",
    must(
        "every_seed_is_trained",
        "There is an adapter of every seed.",
        "materialise continuation_adapter again",
    ),
    should(
        "selection_loss_falls",
        "The loss on selection falls while the arm's rows are learned; of rows that do not help it need not.",
        "read the curve before the arm's accuracy",
    ),
    partitions_def=LEARNER,
)
EVAL = Claims(
    "word_eval",
    must(
        "every_game_is_played",
        "Every seed has answered every held-out game, once.",
        "materialise word_eval again",
    ),
    partitions_def=PLAYER,
)
QUALITY = Claims(
    "attribution_quality",
    should(
        "magic_foretells_trainings",
        f"The method that differentiates through training has an LDS of {MIN_MAGIC_LDS} at small drops, its lower end "
        f"above {MIN_MAGIC_LDS_LOW}.",
        "raise attribution.scoring.replay.eps_root, or lower its learning rate: trainings must be smooth",
    ),
    should(
        "a_cheap_method_foretells",
        f"The best of the other methods has an LDS of {MIN_CHEAP_LDS}.",
        "try another preconditioner or a larger projection",
    ),
    should(
        "planted_rows_are_found",
        f"The best method has {MIN_PLANTED_RECALL} of the rows that are known to help among as many first ones; where "
        "none are known there is nothing to find.",
        "read the first rows of the rankings",
    ),
)
TABLE = Claims(
    "attribution_table",
    must(
        "ids_are_seen_alike",
        "Training, scoring and evaluation saw the manifest's token ids, row by row.",
        "materialise what differs again; all of it reads `ids.parquet`",
    ),
    should(
        "chosen_rows_beat_every_rival",
        "The first rows of some method teach more than those of the best rival (matched random, length, loss, RDS+), "
        "with an interval above zero.",
        "a tie is a result: read it as such",
    ),
    should(
        "enough_seeds",
        f"Every arm has {MIN_SEEDS} seeds: fewer say nothing of other ones.",
        "name more in attribution.seeds",
    ),
    reads=["base_adapter", "attribution_ranking", "continuation_adapter", "word_eval", "sft_manifest"],
)


@MANIFEST.check()
def sft_manifest_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether splits are apart and rows teach."""
    from steer_pipeline.lab.attribution.manifest import manifest_verdicts
    from steer_pipeline.lab.attribution.stage import read_manifest_rows

    with user_errors():
        manifest = read_manifest_rows(reader(context, store)).manifest
    yield from map(MANIFEST.judged, manifest_verdicts(manifest))


@BASE.check()
def base_adapter_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether the base adapter is there and learned."""
    from steer_pipeline.lab.attribution.adapters import adapter_verdicts

    with user_errors():
        folder = reader(context, store).folder("base_adapter")
    yield from map(BASE.judged, adapter_verdicts(folder, [settings().profile.attribution.seed]))


@RANKING.check()
def attribution_ranking_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether every row has a score."""
    from steer_pipeline.lab.attribution.stage import ranking_verdict, read_ranking

    with user_errors():
        folder = reader(context, store).folder("attribution_ranking", context.partition_key)
    yield RANKING.judged(ranking_verdict(read_ranking(context.partition_key, folder)))


@SANITY.check()
def attribution_sanity_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether methods pass what any sound one passes."""
    import polars as pl

    from steer_pipeline.lab.attribution.soundness import SOUND, empty_ranking_fails, soundness_verdict

    with user_errors():
        table = pl.read_parquet(reader(context, store).folder("attribution_sanity") / SOUND)
    yield SANITY.judged(soundness_verdict(table))
    yield SANITY.judged(empty_ranking_fails(table))


@SUBSETS.check()
def attribution_subsets_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether arms stand fairly beside each other."""
    import polars as pl

    from steer_pipeline.lab.attribution.subsets import BUDGETS, subset_verdicts

    with user_errors():
        table = pl.read_parquet(reader(context, store).folder("attribution_subsets") / BUDGETS)
    yield from map(SUBSETS.judged, subset_verdicts(table, settings().profile.attribution))


@ADAPTER.check()
def continuation_adapter_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether an arm's adapters are all there and learned."""
    from steer_pipeline.lab.attribution.adapters import adapter_verdicts

    with user_errors():
        folder = reader(context, store).folder("continuation_adapter", context.partition_key)
    yield from map(ADAPTER.judged, adapter_verdicts(folder, settings().profile.attribution.seeds))


@EVAL.check()
def word_eval_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether a player played all games."""
    import polars as pl

    from steer_pipeline.lab.attribution.playing import seeds_of
    from steer_pipeline.lab.attribution.rows import EVAL as SPLIT
    from steer_pipeline.lab.attribution.stage import read_manifest_rows
    from steer_pipeline.lab.attribution.word_eval import GUESSES, games_are_the_same

    read, arm = reader(context, store), context.partition_key
    with user_errors():
        guesses = pl.read_parquet(read.folder("word_eval", arm) / GUESSES)
        games = read_manifest_rows(read).manifest.split(SPLIT)["row_id"].to_list()
    seeds = seeds_of(settings().profile.attribution, arm)
    yield EVAL.judged(games_are_the_same(guesses, games, {arm: len(seeds)}))


@QUALITY.check()
def attribution_quality_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """How well rankings foretell trainings."""
    import polars as pl

    from steer_pipeline.lab.attribution.quality_table import QUALITY as ROWS
    from steer_pipeline.lab.attribution.table import quality_verdicts

    with user_errors():
        table = pl.read_parquet(reader(context, store).folder("attribution_quality") / ROWS)
        found = quality_verdicts(table, settings().profile.attribution)
    yield from map(QUALITY.judged, found)


@TABLE.check()
def attribution_table_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether all saw the same ids, and what methods gain."""
    from steer_pipeline.lab.attribution.encoding import alignment
    from steer_pipeline.lab.attribution.stage import read_manifest_rows, seen_by
    from steer_pipeline.lab.attribution.table import read_results, results_verdicts

    read = reader(context, store)
    places = [
        ("base_adapter", None),
        *(("attribution_ranking", name) for name in METHOD.get_partition_keys()),
        *(("continuation_adapter", name) for name in LEARNER.get_partition_keys()),
        *(("word_eval", name) for name in PLAYER.get_partition_keys()),
    ]
    with user_errors():
        results = read_results(read.folder("attribution_table"))
        yield TABLE.judged(alignment(read_manifest_rows(read).all, seen_by(read, places)))
    yield from map(TABLE.judged, results_verdicts(results, settings().profile.attribution))


CHECKS = [
    sft_manifest_checks,
    base_adapter_checks,
    attribution_ranking_checks,
    attribution_sanity_checks,
    attribution_subsets_checks,
    continuation_adapter_checks,
    word_eval_checks,
    attribution_quality_checks,
    attribution_table_checks,
]
