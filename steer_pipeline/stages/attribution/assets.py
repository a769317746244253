"""Which training rows help: every method ranks the pool, arms learn their part of it and play held-out games.

Partitions are methods, arms and players; seeds are folders of an arm's bundle. A killed run goes on from the last
checkpoint of the adapter, the last batch of the ranking, or the last training that it was at.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg

from steer_pipeline.catalogue.attribution import tried
from steer_pipeline.io.journals import open_journal
from steer_pipeline.lineage import MODEL, made_of
from steer_pipeline.partitions import (
    ATTRIBUTION,
    LEARNER,
    METHOD,
    PLAYER,
    PREDICTS,
    SAME_LEARNER,
    USED_METHODS,
)
from steer_pipeline.resources import ArtifactStoreResource, LanguageModelResource
from steer_pipeline.settings import settings
from steer_pipeline.stages.attribution import metadata
from steer_pipeline.stages.kit import cpu, folder, gpu, of_adapters, reader, user_errors

STAGE = "attribution"
BUNDLE: dict[str, Any] = gpu(STAGE, io_manager_key="bundle_io", kinds={"pytorch", "parquet"})
TABLES: dict[str, Any] = cpu(STAGE, io_manager_key="bundle_io", kinds={"polars", "parquet"})
WEIGHTS = ["model_weights", "tokenizer", "chat_template"]
LEARNED = (*MODEL, "attribution.learn")
PACKS = [one.variant for one in ATTRIBUTION.sources if one.kind == "pack"]
PLAYED = any(one.kind == "word_games" for one in ATTRIBUTION.sources)
AIMED = [ATTRIBUTION.direction] if ATTRIBUTION.direction else []


def _only(asset: str, partitions: list[str]) -> list[dg.AssetDep]:
    """Some partitions of an asset, or nothing of it."""
    mapping = dg.SpecificPartitionsPartitionMapping(partitions)
    return [dg.AssetDep(asset, partition_mapping=mapping)] if partitions else []


@dg.asset(
    code_version=made_of(
        "1",
        "attribution.sources",
        "attribution.splits",
        "model.chat_template",
        *(("rewrites.system",) if PACKS else ()),
    ),
    deps=[
        "tokenizer",
        "chat_template",
        *_only("keep_set", PACKS),
        *_only("rewrite_release", PACKS),
        *(["word_games"] if PLAYED else []),
    ],
    **TABLES,
)
def sft_manifest(
    context: dg.AssetExecutionContext, store: ArtifactStoreResource, language_model: LanguageModelResource
) -> Iterator[dg.Output[Path]]:
    """Rows of prompt and completion in four splits that share no group: the pool, queries, selection and eval.

    `rows.parquet`: one row a prompt with its completion, outcome, target word and what its source says of it.
    `ids.parquet`: the same rows as token ids and labels, which everything downstream and other tools read.
    `manifest.json`: how splits were made and what was left out. Runs no model.
    """
    from steer_pipeline.lab.attribution.encoding import encoder
    from steer_pipeline.lab.attribution.stage import make_rows
    from steer_pipeline.lab.models.loading import load_tokenizer

    now = settings()
    with user_errors(), folder("sft_manifest") as made:
        tokenizer = load_tokenizer(language_model.spec(), now.home)
        encode = encoder(tokenizer, chat_template=now.profile.model.chat_template)
        manifest = make_rows(reader(context, store), now.profile, now.home, encode, made)
        yield dg.Output(made, metadata=metadata.of_manifest(manifest))


@dg.asset(code_version=made_of("1", *LEARNED, "attribution.seed"), deps=[*WEIGHTS, "sft_manifest"], **BUNDLE)
def base_adapter(
    context: dg.AssetExecutionContext, store: ArtifactStoreResource, language_model: LanguageModelResource
) -> Iterator[dg.Output[Path]]:
    """The adapter that learns the whole pool: rankings are made on it, and continued arms stand on it.

    One PEFT directory with `finetune.json` and `history.parquet`; `adapters.parquet`; `seen.parquet`, the ids that it
    was given.
    """
    from steer_pipeline.lab.attribution.adapters import ADAPTER_COLUMNS, Below, train_adapters
    from steer_pipeline.lab.attribution.stage import forget, read_manifest_rows

    spec, work = settings().profile.attribution, store.store().work("base_adapter")
    with user_errors(), folder("base_adapter") as made:
        rows = read_manifest_rows(reader(context, store))
        below = Below(language_model.spec(), settings().home)
        learned = {spec.seed: rows.pool}
        done = train_adapters(
            "base_adapter",
            learned,
            rows.selection,
            spec.learn,
            below,
            made,
            work=work,
            progress=context.log.info,
        )
        yield dg.Output(made, metadata=of_adapters(done, made, ADAPTER_COLUMNS))
    forget(work)


@dg.asset(
    code_version=made_of("1", *MODEL, "attribution.scoring", "attribution.seed", "attribution.direction"),
    deps=[*WEIGHTS, "sft_manifest", "base_adapter", *_only("persona_vector", AIMED)],
    partitions_def=METHOD,
    **BUNDLE,
)
def attribution_ranking(
    context: dg.AssetExecutionContext, store: ArtifactStoreResource, language_model: LanguageModelResource
) -> Iterator[dg.Output[Path]]:
    """The pool, ranked by one method for the queries.

    `ranking.parquet`: one row a row of the pool with score and rank, or why it has none. `numbers.json`: seconds, peak
    memory, coverage. `seen.parquet`: the ids that were scored.
    """
    from steer_pipeline.lab.attribution.scoring.methods import score
    from steer_pipeline.lab.attribution.stage import forget, read_manifest_rows, scoring_of, write_ranking

    read, name, now = reader(context, store), context.partition_key, settings()
    work = store.store().work("attribution_ranking")
    with user_errors(who=name), folder("attribution_ranking") as made:
        rows = read_manifest_rows(read)
        scoring = scoring_of(read, rows, language_model.spec(), now.home, now.profile.attribution, name)
        found = score(name, scoring, work, context.log.info)
        write_ranking(found, scoring, made)
        yield dg.Output(made, metadata=metadata.of_ranking(found, rows.manifest))
    forget(work / name)


@dg.asset(
    code_version=made_of(
        "1",
        *LEARNED,
        "attribution.scoring",
        "attribution.seed",
        "attribution.direction",
        "attribution.sanity",
        "model.chat_template",
        "attribution.predict",
    ),
    deps=[*WEIGHTS, "sft_manifest", "base_adapter", *_only("persona_vector", AIMED)],
    **BUNDLE,
)
def attribution_sanity(
    context: dg.AssetExecutionContext, store: ArtifactStoreResource, language_model: LanguageModelResource
) -> Iterator[dg.Output[Path]]:
    """Whether methods pass the tests of any sound attribution on this pool: `sanity.parquet`, a row a method and test.

    Another model gives other scores, rows with wrong completions score low, copies score alike, rows of a shortcut are
    found by queries that take it. Two adapters are trained for it, on pools with planted faults.
    """
    from steer_pipeline.lab.attribution.soundness import SOUND, try_methods
    from steer_pipeline.lab.attribution.stage import forget, make_trial, read_manifest_rows
    from steer_pipeline.lab.models.loading import load_tokenizer
    from steer_pipeline.lab.rewrites import Refused

    read, now, work = reader(context, store), settings(), store.store().work("attribution_sanity")
    with user_errors(), folder("attribution_sanity") as made:
        spec = now.profile.attribution.sanity
        if spec is None:
            raise Refused("the profile has no sanity tests; give attribution.sanity a section")
        model = language_model.spec()
        tokenizer = load_tokenizer(model, now.home)
        trial = make_trial(
            read, read_manifest_rows(read), model, now.home, now.profile, tokenizer, work, context.log.info
        )
        found = try_methods(trial, tried(now.profile.attribution), spec)
        found.write_parquet(made / SOUND)
        yield dg.Output(made, metadata=metadata.of_sanity(found))
    forget(work)


@dg.asset(
    code_version=made_of(
        "1", "attribution.arms", "attribution.k", "attribution.seeds", "attribution.token_budget"
    ),
    deps=[
        "sft_manifest",
        *_only("attribution_ranking", USED_METHODS),
        *(["rank_predictor"] if PREDICTS else []),
    ],
    **TABLES,
)
def attribution_subsets(
    context: dg.AssetExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.Output[Path]]:
    """Which rows of the pool every arm learns, under every seed.

    `subsets.parquet`: one row an arm, seed and row, with its rank. `budgets.parquet`: rows, tokens, lost games and
    overlap of each. Runs no model.
    """
    from steer_pipeline.lab.attribution.rows import TRAIN
    from steer_pipeline.lab.attribution.stage import read_manifest_rows, scores_of_arms
    from steer_pipeline.lab.attribution.subsets import BUDGETS, SUBSETS, budgets, draw_subsets

    read, spec = reader(context, store), settings().profile.attribution
    with user_errors(), folder("attribution_subsets") as made:
        pool = read_manifest_rows(read).manifest.split(TRAIN)
        subsets = draw_subsets(spec, pool, scores_of_arms(read, spec))
        table = budgets(subsets, pool, spec.arms)
        subsets.write_parquet(made / SUBSETS)
        table.write_parquet(made / BUDGETS)
        yield dg.Output(made, metadata=metadata.of_subsets(table))


@dg.asset(
    code_version=made_of("1", *LEARNED, "attribution.arms", "attribution.seed", "attribution.seeds"),
    deps=[*WEIGHTS, "sft_manifest", "attribution_subsets", "base_adapter"],
    partitions_def=LEARNER,
    **BUNDLE,
)
def continuation_adapter(
    context: dg.AssetExecutionContext, store: ArtifactStoreResource, language_model: LanguageModelResource
) -> Iterator[dg.Output[Path]]:
    """Adapters of one arm, one a seed: on the model itself (scratch), or on top of the base adapter (continued).

    `seed-81/` and so on: PEFT directories with `finetune.json` and `history.parquet`; `adapters.parquet` says of each
    what it lies on; `seen.parquet`: the ids that were given.
    """
    import polars as pl

    from steer_pipeline.lab.attribution.adapters import ADAPTER_COLUMNS, below_arm, train_adapters
    from steer_pipeline.lab.attribution.stage import base_adapter, forget, learned_rows, read_manifest_rows
    from steer_pipeline.lab.attribution.subsets import SUBSETS

    read, arm, spec = reader(context, store), context.partition_key, settings().profile.attribution
    work = store.store().work("continuation_adapter") / arm
    with user_errors(who=arm), folder("continuation_adapter") as made:
        rows = read_manifest_rows(read)
        subsets = pl.read_parquet(read.folder("attribution_subsets") / SUBSETS)
        below = below_arm(
            language_model.spec(), settings().home, spec.arms[arm].mode, base_adapter(read, spec)
        )
        learned = learned_rows(rows, subsets, arm)
        done = train_adapters(
            arm, learned, rows.selection, spec.learn, below, made, work=work, progress=context.log.info
        )
        yield dg.Output(made, metadata=of_adapters(done, made, ADAPTER_COLUMNS))
    forget(work)


@dg.asset(
    code_version=made_of(
        "1",
        *MODEL,
        "attribution.arms",
        "attribution.max_new_tokens",
        "attribution.seed",
        "attribution.seeds",
    ),
    deps=[
        *WEIGHTS,
        "sft_manifest",
        "base_adapter",
        dg.AssetDep("continuation_adapter", partition_mapping=SAME_LEARNER),
    ],
    partitions_def=PLAYER,
    **BUNDLE,
)
def word_eval(
    context: dg.AssetExecutionContext, store: ArtifactStoreResource, language_model: LanguageModelResource
) -> Iterator[dg.Output[Path]]:
    """What one player says in the held-out games, greedy: the model itself, the base adapter, or an arm's adapters.

    `guesses.parquet`: one row a seed and game: the guess, whether it is the true target, whether it is the logged word,
    and the loss on what the log says. `seen.parquet`: the ids that were read.
    """
    from steer_pipeline.lab.attribution.playing import play_all, players_of
    from steer_pipeline.lab.attribution.stage import read_manifest_rows

    read, arm, spec = reader(context, store), context.partition_key, settings().profile.attribution
    with user_errors(who=arm), folder("word_eval") as made:
        rows = read_manifest_rows(read)
        found = play_all(
            arm,
            players_of(read, spec, arm),
            rows,
            language_model.load,
            made,
            max_new_tokens=spec.max_new_tokens,
            journal=partial(open_journal, store.store(), "word_eval"),
        )
        yield dg.Output(made, metadata=metadata.of_guesses(found))


@dg.asset(
    code_version=made_of(
        "1",
        *MODEL,
        "attribution.scoring.batch_tokens",
        "attribution.scoring.replay",
        "attribution.scoring.quality",
    ),
    deps=[*WEIGHTS, "sft_manifest", "base_adapter"],
    **BUNDLE,
)
def subset_losses(
    context: dg.AssetExecutionContext, store: ArtifactStoreResource, language_model: LanguageModelResource
) -> Iterator[dg.Output[Path]]:
    """What trainings without some rows of the pool cost the queries: rankings are judged by how they foretell it.

    `retrained.parquet`: one row a training with the rows that it lacked and the queries' loss. `protocol.json`: how
    they were trained and drawn. Eval takes no part in it.
    """
    from steer_pipeline.lab.attribution.quality_table import retrain
    from steer_pipeline.lab.attribution.stage import forget, read_manifest_rows, retrainings_of

    read, now = reader(context, store), settings()
    work, spec = store.store().work("subset_losses"), now.profile.attribution
    with user_errors(), folder("subset_losses") as made:
        rows = read_manifest_rows(read)
        retrainings = retrainings_of(rows, language_model.spec(), now.home, spec, work, context.log.info)
        found = retrain(retrainings, spec.scoring.quality, made)
        yield dg.Output(made, metadata=metadata.of_retrained(found))
    forget(work)


@dg.asset(
    code_version=made_of("1", *MODEL, "attribution.scoring"),
    deps=[
        *WEIGHTS,
        "sft_manifest",
        "subset_losses",
        dg.AssetDep("attribution_ranking", partition_mapping=dg.AllPartitionMapping()),
    ],
    **BUNDLE,
)
def attribution_quality(
    context: dg.AssetExecutionContext, store: ArtifactStoreResource, language_model: LanguageModelResource
) -> Iterator[dg.Output[Path]]:
    """How good every ranking is: `quality.parquet`, one row a method.

    The linear datamodeling score under each protocol, what queries lose without the first rows, and how many of the
    rows that are known to help stand first; all with intervals, beside a random ranking.
    """
    import polars as pl

    from steer_pipeline.lab.attribution.quality_table import QUALITY, RETRAINED, planted_rows, quality_table
    from steer_pipeline.lab.attribution.stage import forget, read_manifest_rows, read_rankings, retrainings_of

    read, now = reader(context, store), settings()
    work, spec = store.store().work("attribution_quality"), now.profile.attribution
    with user_errors(), folder("attribution_quality") as made:
        rows = read_manifest_rows(read)
        rankings = read_rankings(read, list(spec.scoring.methods), all_of_them=False)
        retrained = pl.read_parquet(read.folder("subset_losses") / RETRAINED)
        retrainings = retrainings_of(rows, language_model.spec(), now.home, spec, work, context.log.info)
        table = quality_table(
            rankings, retrained, retrainings, planted_rows(rows.manifest), spec.scoring.quality
        )
        table.write_parquet(made / QUALITY)
        yield dg.Output(made, metadata=metadata.of_quality(table))
    forget(work)


@dg.asset(
    code_version=made_of(
        "2", "attribution.arms", "attribution.references", "attribution.seed", "attribution.seeds"
    ),
    deps=[
        "sft_manifest",
        "attribution_subsets",
        "subset_losses",
        "attribution_quality",
        dg.AssetDep("word_eval", partition_mapping=dg.AllPartitionMapping()),
    ],
    **TABLES,
)
def attribution_table(
    context: dg.AssetExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.Output[Path]]:
    """Methods, arms and comparisons beside each other, from stored rows alone.

    `methods.parquet`: one row a method with costs, quality and what its first rows teach beyond the best rival.
    `arms.parquet`, `effects.parquet`, `budgets.parquet`. `attribution.html` holds the report. Runs no model.
    """
    from steer_pipeline.lab.attribution.report import write_report
    from steer_pipeline.lab.attribution.stage import read_table_inputs
    from steer_pipeline.lab.attribution.table import make_results, write_results

    read, spec = reader(context, store), settings().profile.attribution
    with user_errors(), folder("attribution_table") as made:
        found = read_table_inputs(read, PLAYER.get_partition_keys())
        results = make_results(found.guesses, found.quality, found.budgets, spec)
        write_results(results, made)
        write_report(results, found.protocol, found.manifest, read.seen, made)
        yield dg.Output(made, metadata=metadata.of_results(results))


ASSETS = [
    sft_manifest,
    base_adapter,
    attribution_ranking,
    attribution_sanity,
    attribution_subsets,
    continuation_adapter,
    word_eval,
    subset_losses,
    attribution_quality,
    attribution_table,
]
