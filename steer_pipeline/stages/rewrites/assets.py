"""Rewrites: every news item in every variant, the packs, what is worth keeping, and which version is released.

`rewrite_raw` costs the accelerator and runs once for all requested variants; everything below it is cheap,
per variant, and carries the gates.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import dagster as dg
import polars as pl
from pydantic import Field

from steer_pipeline import show
from steer_pipeline.io.journals import open_journal
from steer_pipeline.io.versioned import COLUMNS
from steer_pipeline.keys import key
from steer_pipeline.lab.rewrites import columns
from steer_pipeline.lineage import MODEL, made_of
from steer_pipeline.partitions import (
    STEERED_PERSONAS,
    TARGETED,
    TARGETED_PERSONAS,
    VARIANT,
    VARIANT_NEEDS,
    VARIANT_PROMPTED,
)
from steer_pipeline.resources import ArtifactStoreResource, LanguageModelResource
from steer_pipeline.settings import settings
from steer_pipeline.stages.kit import cpu, folder, gpu, reader, told, user_errors

TABLE: dict[str, Any] = {"io_manager_key": "parquet_io", "kinds": {"polars", "parquet"}}
# How many rows a pack has, as its gates judge it.
SIZES = ("rewrites.pilot_rows", "rewrites.full_rows")
# What a rewrite depends on beside what is added to the model.
REWRITING = (
    "name",
    *MODEL,
    "model.chat_template",
    "rewrites.system",
    "rewrites.prompt",
    "rewrites.sampling",
    "corpus.max_tokens",
)
BASE_ONLY = dg.SpecificPartitionsPartitionMapping(["base"])
SUMMARY_SHOWN = ("facts_kept", "suspect")  # beside the traits


class RewriteConfig(dg.Config):
    """What `rewrite_raw` may be asked."""

    size: Literal["pilot", "full"] = Field(
        default="pilot",
        description="`pilot`, or `full` once the gates of pilot packs of the same recipe have passed.",
    )
    workers: int = Field(
        default=1,
        ge=1,
        description="Replicas of the model, one GPU each, through Ray (extra [ray]); 1: in this process. "
        "The packs are the same. RAY_ADDRESS names a cluster; without it this machine's GPUs are used.",
    )


class ReleaseConfig(dg.Config):
    """What `rewrite_release` may be asked."""

    action: Literal["promote", "rollback"] = Field(
        default="promote",
        description="What the log will call it. `rollback` without a version goes back to the one released before, "
        "and from there to the one before that.",
    )
    version: str | None = Field(
        default=None,
        description="Version of `rewrite_pack` to release (a hash or its beginning); default: the newest to promote, "
        "the one released before to roll back.",
    )
    despite: str | None = Field(
        default=None,
        description="Why a pack is released although gates fail that are a matter of judgement (suspect rate, "
        "difference from base). The reason and the failed gates go into the log and beside the pack.",
    )


@dg.asset(
    **gpu("rewrites", io_manager_key="parquet_io", kinds={"pytorch", "parquet"}),
    partitions_def=VARIANT,
    deps=[
        "variant_spec",
        "model_weights",
        "tokenizer",
        "chat_template",
        dg.AssetDep("persona_spec", partition_mapping=VARIANT_PROMPTED),
        dg.AssetDep("persona_vector", partition_mapping=VARIANT_NEEDS),
        dg.AssetDep("dose_curve", partition_mapping=VARIANT_NEEDS),
    ],
    backfill_policy=dg.BackfillPolicy.single_run(),
    code_version=made_of("3", *REWRITING, *SIZES),
)
def rewrite_raw(
    context: dg.AssetExecutionContext,
    config: RewriteConfig,
    truncated_news: pl.LazyFrame,
    store: ArtifactStoreResource,
    language_model: LanguageModelResource,
) -> dict[str, pl.DataFrame]:
    """Every requested variant of the first N news items, from one model load and one call of the engine.

    One row is one news item in one variant, with its likelihood under the unsteered model. Finished rows are
    journalled: a killed run generates only what is missing, and a full pack takes the pilot's rows as they are;
    likelihoods are measured anew, to the same values. Before anything is generated a probe compares steered with
    unsteered logits; a plan that changes nothing fails the run.
    """
    from steer_pipeline.lab.generation.fanout import FanoutError
    from steer_pipeline.lab.generation.probe import SteeringHasNoEffect
    from steer_pipeline.lab.rewrites.making import Request, make_raw

    request = Request(settings(), context.partition_keys, config.size, config.workers)
    model = language_model.load()
    with user_errors(SteeringHasNoEffect, FanoutError):
        made = make_raw(
            request,
            truncated_news,
            reader(context, store),
            model,
            open_journal(store.store(), "rewrite_raw"),
            told(context),
        )
    asked = {"seed": request.profile.rewrites.sampling.seed, "size": config.size}
    for name, rows in made.packs.items():
        facts = asked | _row_numbers(rows) | show.rounded(made.facts(name))
        context.add_asset_metadata(facts | _schema(rows, columns.PACK), partition_key=name)
    return made.packs


@dg.asset(
    **gpu("rewrites", io_manager_key="parquet_io", kinds={"pytorch", "parquet"}),
    deps=[
        "variant_spec",
        "model_weights",
        "tokenizer",
        "chat_template",
        dg.AssetDep("persona_vector", partition_mapping=STEERED_PERSONAS),
        dg.AssetDep("dose_curve", partition_mapping=STEERED_PERSONAS),
    ],
    code_version=made_of("1", *REWRITING, "rewrites.band_directions", "rewrites.band_rows"),
)
def random_band(
    context: dg.AssetExecutionContext,
    truncated_news: pl.LazyFrame,
    store: ArtifactStoreResource,
    language_model: LanguageModelResource,
) -> pl.DataFrame:
    """The first news items rewritten under several random directions: what any vector of that length does.

    One row is one news item under one direction, with text, token ids and likelihood under the unsteered model. All
    directions have the sites and norms of the strongest steered variant's terms, which is conservative for weaker
    variants: their shifts must lie beyond those of longer vectors. Journalled and probed as `rewrite_raw` is.
    """
    from steer_pipeline.lab.generation.probe import SteeringHasNoEffect
    from steer_pipeline.lab.rewrites.random_band import make_band

    model = language_model.load()
    with user_errors(SteeringHasNoEffect):
        rows, facts = make_band(
            settings(),
            truncated_news,
            reader(context, store),
            model,
            open_journal(store.store(), "random_band"),
            told(context),
        )
    context.add_output_metadata(_row_numbers(rows) | show.rounded(facts) | _schema(rows, columns.BAND))
    return rows


@dg.asset(
    **cpu("rewrites", **TABLE),
    partitions_def=VARIANT,
    deps=["variant_spec", "news_facts"],
    code_version=made_of("1", "gates", *SIZES, "rewrites.sampling.seed"),
)
def rewrite_pack(context: dg.AssetExecutionContext, rewrite_raw: pl.LazyFrame) -> pl.DataFrame:
    """The pack of one variant: one row a news item, in the schema of `RewriteRow`, sorted by source index.

    Its checks are the release gates. Each version is immutable; which one is released is `rewrite_release`'s
    business.
    """
    from steer_pipeline.lab.generation.schema import REWRITE_SCHEMA
    from steer_pipeline.lab.rewrites.work import identity_of

    rows = rewrite_raw.collect()
    if rows.is_empty():
        raise dg.Failure(_why_empty(context), allow_retries=False)
    known = [name for name in REWRITE_SCHEMA if name in rows.columns]
    pack = rows.select(known).sort("source_index") if "source_index" in known else rows.select(known)
    facts = {"size": pack["size"][0], "recipe": identity_of(pack).recipe, **_row_numbers(pack)}
    context.add_output_metadata({"samples": _beside_news(pack), **facts, **_schema(pack, columns.PACK)})
    return pack


@dg.asset(
    **cpu("rewrites", **TABLE),
    partitions_def=VARIANT,
    deps=[
        "truncated_news",
        "variant_spec",
        "news_facts",
        dg.AssetDep("rewrite_raw", partition_mapping=BASE_ONLY),
    ],
    code_version=made_of("1", "gates.min_kept_fraction"),
)
def keep_set(
    context: dg.AssetExecutionContext, rewrite_pack: pl.LazyFrame, store: ArtifactStoreResource
) -> pl.DataFrame:
    """All rows of a pack with the value of every criterion, `keep`, and the reasons against those not kept.

    A steered rewrite that equals base's is not kept: nothing of the steering could be learnt from it.
    """
    from steer_pipeline.lab.quality import keep_filter, reason_counts
    from steer_pipeline.lab.rewrites.source import source_of

    profile_settings, read, pack = settings(), reader(context, store), rewrite_pack.collect()
    with user_errors():
        source = source_of(read, pack, profile_settings.shipped)
        steered = profile_settings.variants[context.partition_key].role == "steered"
        base = read.rows("rewrite_raw", "base") if steered else None
        judged = keep_filter(source.beside(pack), base, source.facts, source="source_text")
    judged = judged.drop("source_text")
    kept = {"kept_rows": int(judged["keep"].sum()), "kept_fraction": float(judged["keep"].mean() or 0.0)}
    dropped = {f"dropped_{reason}": count for reason, count in reason_counts(judged).items()}
    context.add_output_metadata({**show.rounded(kept), **dropped, **_schema(judged, columns.KEEP)})
    return judged


@dg.asset(
    **cpu("rewrites", io_manager_key="bundle_io", kinds={"polars", "parquet"}),
    deps=[
        "rewrite_pack",
        "truncated_news",
        "variant_spec",
        "news_facts",
        "random_band",
        "persona_scale",
        "persona_examples",
        dg.AssetDep("contrast_set", partition_mapping=TARGETED_PERSONAS),
    ],
    code_version=made_of("7", "coherence", "rewrites.sampling.seed", "vector.seed", "scales"),
)
def rewrite_comparison(
    context: dg.AssetExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.Output[Path]]:
    """All packs side by side: likeness to base, length, facts kept, each trait on two scales, costs and side effects.

    Files: `rows.parquet` (one row a variant and news item), `summary.parquet` (one row a variant and metric,
    paired differences with 95% intervals, controls beside them), `distances`, `agreement`, `alignment` and
    `scorers`; `costs` (what a variant loses against base), `combined` (trait, facts and fluency in one number, beside
    prompting's), `band` (its shift among those of the random directions), `off_target` (what moved most beside its
    aim), `matrix` and `aims` (all axes that the profile studies); `control_shifts` (controls, judged together).
    `versions.json` names the packs, `sizes.json` their sizes: of packs of several sizes the rows that all have are
    compared. The MiniLM scale of what variants aim at is fitted on each persona's examples or
    contrast set, as the profile's `scales` say, of other axes on the persona's examples.
    """
    from steer_pipeline.lab.rewrites import stored
    from steer_pipeline.lab.rewrites.band import BAND_TABLE_COLUMNS
    from steer_pipeline.lab.rewrites.costs import COMBINED_COLUMNS, COSTS_COLUMNS

    with user_errors(), folder("rewrite_comparison") as made:
        compared = stored.compare_stored(reader(context, store), settings(), TARGETED)
        stored.write_tables(compared, made)
        drawn = {
            f"shifts_{trait}": show.intervals(rows, f"shift of {trait.replace('_', ' ')} to base, 95%")
            for trait, rows in stored.shifts(compared.tables).items()
        }
        notes = {
            "summary": _summary(compared.tables.summary),
            "packs": dg.MetadataValue.md(compared.description()),
            "pack_versions": dg.MetadataValue.json(compared.versions),
            "left_out": dg.MetadataValue.json(compared.left_out),
            "axes_left_out": dg.MetadataValue.json(compared.axes_left_out),
            "costs": show.markdown_table(compared.tables.costs, COSTS_COLUMNS),
            "combined": show.markdown_table(compared.tables.combined, COMBINED_COLUMNS),
            "random_band": show.markdown_table(compared.tables.band, BAND_TABLE_COLUMNS),
        }
        numbers = show.rounded(stored.plotted_numbers(compared.tables))
        yield dg.Output(made, metadata={**drawn, **notes, **numbers})


@dg.asset(
    **cpu("rewrites", kinds={"json"}),
    partitions_def=VARIANT,
    deps=["rewrite_pack"],
    code_version="1",
)
def rewrite_release(
    context: dg.AssetExecutionContext, config: ReleaseConfig, store: ArtifactStoreResource
) -> Iterator[dg.MaterializeResult]:
    """The released version of a variant's pack: a pointer to an immutable version, nothing is copied.

    Materialise it to promote the newest pack; `action: rollback` goes back in the history, again and again;
    `version` names one. Only a version whose stored gates all passed, or that was released before, is accepted, and
    one that is released while its gates fail is not kept in silence; `despite` gives a reason to release one all
    the same, which is logged with what it fails. The list of materialisations is the log of
    promotions and rollbacks; the data version is the pack's. Both versions are read and compared first, then the
    log is written, and the pointer moves last.
    """
    from steer_pipeline.lab.rewrites import release
    from steer_pipeline.stages.rewrites.history import history

    packs, variant = store.store(), context.partition_key
    with user_errors(LookupError, more=lambda: {"available": release.available(packs, variant)}):
        wanted = config.version
        if config.action == "rollback" and not wanted:
            wanted = release.former(history(context.instance, packs, variant), variant)
        choice = release.choose(packs, variant, config.action, wanted, config.despite)
        entry = release.log_entry(packs, variant, choice)
        pointer = release.prepare(packs, variant, choice.version.sha, context.run_id, "1")
    path = dg.MetadataValue.path(str(choice.version.path))
    yield dg.MaterializeResult(
        data_version=dg.DataVersion(choice.version.sha), metadata={**entry, "path": path}
    )
    # Here the materialisation is in the log.
    release.move(packs, variant, pointer, context.run_id, choice.overruled)


def _why_empty(context: dg.AssetExecutionContext) -> str:
    """What `rewrite_raw` noted when it made no row of this variant."""
    wanted = dg.AssetRecordsFilter(key("rewrite_raw"), asset_partitions=[context.partition_key])
    records = context.instance.fetch_materializations(wanted, limit=1).records
    refused = records[0].asset_materialization.metadata.get("refused") if records else None
    reason = str(refused.value) if refused and refused.value else "there were no news to rewrite"
    return f"{context.partition_key}: rewrite_raw has no rows: {reason}"


def _schema(rows: pl.DataFrame, descriptions: dict[str, str]) -> dict[str, dg.MetadataValue]:
    return {COLUMNS: dg.MetadataValue.table_schema(show.column_schema(rows, descriptions))}


def _row_numbers(rows: pl.DataFrame) -> dict[str, float | int]:
    """Numbers that the UI plots over time."""
    if rows.is_empty() or not {"n_new_tokens", "truncated"} <= set(rows.columns):
        return {"rows": rows.height}
    means = {
        "mean_new_tokens": float(rows["n_new_tokens"].mean() or 0.0),
        "truncated_rate": float(rows["truncated"].mean() or 0.0),
    }
    return {"rows": rows.height, **show.rounded(means)}


def _beside_news(pack: pl.DataFrame) -> dg.MetadataValue:
    """Three rewrites beside what was asked, for the eye of whoever promotes the pack."""
    shown = pack.head(3).select("source_index", "prompt", "output")
    return show.samples([{name: str(value) for name, value in row.items()} for row in shown.to_dicts()])


def _summary(summary: pl.DataFrame) -> dg.MarkdownMetadataValue:
    """Traits, facts and suspects of every variant, with what each column means."""
    wanted = pl.col("metric").is_in(SUMMARY_SHOWN) | pl.col("metric").str.starts_with("trait_")
    return show.markdown_table(summary.filter(wanted).select(list(columns.SUMMARY)), columns.SUMMARY)


ASSETS = [rewrite_raw, random_band, rewrite_pack, keep_set, rewrite_comparison, rewrite_release]
