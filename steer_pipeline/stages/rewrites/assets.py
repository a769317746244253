"""Rewrites: every news item in every variant, the packs, what is worth keeping, and which version is released.

`rewrite_raw` costs the accelerator and runs once for all requested variants; everything below it is cheap,
per variant, and carries the gates.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import dagster as dg
import polars as pl
from pydantic import Field

from steer_pipeline import show
from steer_pipeline.execution import GPU_POOL, GPU_TAGS
from steer_pipeline.io.journals import open_journal
from steer_pipeline.io.reader import Reader
from steer_pipeline.io.store import ArtifactStore
from steer_pipeline.io.versioned import note_input
from steer_pipeline.keys import key
from steer_pipeline.lineage import MODEL, made_of
from steer_pipeline.partitions import TARGETED_PERSONAS, VARIANT, VARIANT_NEEDS, VARIANT_PROMPTED
from steer_pipeline.resources import ArtifactStoreResource, LanguageModelResource
from steer_pipeline.settings import settings
from steer_pipeline.stages.rewrites import comparing, making, release, verdicts

COMMON: dict[str, Any] = {"group_name": "rewrites", "owners": ["team:steering"]}
CPU, GPU = (
    {"steer/stage": "rewrites", "steer/device": "cpu"},
    {"steer/stage": "rewrites", "steer/device": "gpu"},
)
# How many rows a pack has, as its gates judge it.
SIZES = ("rewrites.pilot_rows", "rewrites.full_rows")
BASE_ONLY = dg.SpecificPartitionsPartitionMapping(["base"])


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


@dg.asset(
    **COMMON,
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
    pool=GPU_POOL,
    op_tags=GPU_TAGS,
    tags=GPU,
    kinds={"pytorch", "parquet"},
    code_version=made_of("1", "name", *MODEL, "model.chat_template", "rewrites", "corpus.max_tokens"),
    io_manager_key="parquet_io",
)
def rewrite_raw(
    context: dg.AssetExecutionContext,
    config: RewriteConfig,
    truncated_news: pl.LazyFrame,
    store: ArtifactStoreResource,
    language_model: LanguageModelResource,
) -> Any:
    """Every requested variant of the first N news items, from one model load and one call of the engine.

    One row is one news item in one variant. Finished rows are journalled: a killed run does only what is
    missing, and a full pack takes the pilot's rows as they are. Before anything is generated a probe compares
    steered with unsteered logits; a plan that changes nothing fails the run.
    """
    from steer_pipeline.lab.generation.fanout import FanoutError
    from steer_pipeline.lab.generation.probe import SteeringHasNoEffect

    now, shelf, model = settings(), store.store(), language_model.load()
    asked = {name: spec for name, spec in now.variants.items() if name in context.partition_keys}
    broken = {name: str(now.broken_variants[name]) for name in context.partition_keys if name not in asked}
    with _plain_failures(SteeringHasNoEffect, FanoutError):
        made = making.make_raw(
            truncated_news,
            asked,
            config.size,
            _reader(context, shelf),
            model,
            now,
            open_journal(shelf, "rewrite_raw"),
            lambda recipes: verdicts.pilot_problems(shelf, recipes),
            lambda progress: context.log.info(str(progress)),
            config.workers,
            broken,
        )
    for name, rows in made.packs.items():
        numbers = {"seed": now.profile.rewrites.sampling.seed, "size": config.size, **_numbers(rows)}
        context.add_asset_metadata(numbers | made.told_of(name), partition_key=name)
    return made.packs if len(made.packs) > 1 else next(iter(made.packs.values()))


@dg.asset(
    **COMMON,
    partitions_def=VARIANT,
    deps=["variant_spec", "news_facts"],
    tags=CPU,
    kinds={"polars", "parquet"},
    code_version=made_of("1", "gates", *SIZES, "rewrites.sampling.seed"),
    io_manager_key="parquet_io",
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
    recipe = identity_of(pack).recipe
    told = {"size": pack["size"][0], "recipe": recipe, "samples": _beside_news(pack), **_numbers(pack)}
    context.add_output_metadata(told)
    return pack


@dg.asset(
    **COMMON,
    partitions_def=VARIANT,
    deps=[
        "truncated_news",
        "variant_spec",
        "news_facts",
        dg.AssetDep("rewrite_raw", partition_mapping=BASE_ONLY),
    ],
    tags=CPU,
    kinds={"polars", "parquet"},
    code_version=made_of("1", "gates.min_kept_fraction"),
    io_manager_key="parquet_io",
)
def keep_set(
    context: dg.AssetExecutionContext, rewrite_pack: pl.LazyFrame, store: ArtifactStoreResource
) -> pl.DataFrame:
    """All rows of a pack with the value of every criterion, `keep`, and the reasons against those not kept.

    A steered rewrite that equals base's is not kept: nothing of the steering could be learnt from it.
    """
    from steer_pipeline.lab.quality import keep_filter, reason_counts

    now, read, pack = settings(), _reader(context, store.store()), rewrite_pack.collect()
    source = making.read_news_source(read, pack, now)
    steered = now.variants[context.partition_key].role == "steered"
    base = read.rows("rewrite_raw", "base") if steered else None
    judged = keep_filter(source.beside(pack), base, source.facts, source="source_text").drop("source_text")
    context.add_output_metadata(
        {"kept_rows": int(judged["keep"].sum()), "kept_fraction": float(judged["keep"].mean() or 0.0)}
        | {f"dropped_{reason}": count for reason, count in reason_counts(judged).items()}
    )
    return judged


@dg.asset(
    **COMMON,
    deps=[
        "rewrite_pack",
        "truncated_news",
        "variant_spec",
        "news_facts",
        dg.AssetDep("persona_scale", partition_mapping=TARGETED_PERSONAS),
        dg.AssetDep("contrast_set", partition_mapping=TARGETED_PERSONAS),
    ],
    tags=CPU,
    kinds={"polars", "parquet"},
    code_version=made_of("2", "rewrites.sampling.seed", "vector.seed"),
    io_manager_key="bundle_io",
)
def rewrite_comparison(
    context: dg.AssetExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.Output]:
    """All packs side by side: likeness to base, length, facts kept, and each trait on two scales.

    Files: `rows.parquet` (one row a variant and news item), `summary.parquet` (one row a variant and metric,
    paired differences with 95% intervals, controls beside them), `distances`, `agreement`, `alignment` and
    `scorers`; `versions.json` names the packs. The MiniLM scale is fitted on each persona's contrast set.
    """
    with _plain_failures(), tempfile.TemporaryDirectory(prefix="rewrite_comparison-") as folder:
        compared = comparing.compare_stored(_reader(context, store.store()), settings())
        tables = compared.tables
        comparing.write_tables(compared, Path(folder))
        metadata = comparing.numbers(tables) | {
            "pack_versions": dg.MetadataValue.json(compared.versions),
            "left_out": dg.MetadataValue.json(compared.left_out),
        }
        metadata |= {
            f"shifts_{name}": show.intervals(*drawn) for name, drawn in comparing.shifts(tables).items()
        }
        yield dg.Output(Path(folder), metadata=metadata)


@dg.asset(
    **COMMON,
    partitions_def=VARIANT,
    deps=["rewrite_pack"],
    tags=CPU,
    kinds={"json"},
    code_version="1",
)
def rewrite_release(
    context: dg.AssetExecutionContext, config: ReleaseConfig, store: ArtifactStoreResource
) -> Iterator[dg.MaterializeResult]:
    """The released version of a variant's pack: a pointer to an immutable version, nothing is copied.

    Materialise it to promote the newest pack; `action: rollback` goes back in the history, again and again;
    `version` names one. Only a version whose stored gates all passed, or that was released before, is accepted, and
    one that is released while its gates fail is not kept in silence. The list of materialisations is the log of
    promotions and rollbacks; the data version is the pack's. Both versions are read and compared first, then the
    log is written, and the pointer moves last.
    """
    shelf, variant = store.store(), context.partition_key
    with _plain_failures(LookupError, available=lambda: release.available(shelf, variant)):
        wanted = config.version
        if config.action == "rollback" and not wanted:
            wanted = release.former(release.history(context.instance, shelf, variant), variant)
        choice = release.choose(shelf, variant, config.action, wanted)
        metadata = {
            "version": choice.version.sha,
            "previous": choice.previous,
            "action": choice.action,
            "store": shelf.address,
            "size": release.size_of(shelf, variant, choice.version.sha) or "empty",
            "path": dg.MetadataValue.path(str(choice.version.path)),
            **release.difference(shelf, variant, choice),
        }
        pointer = release.prepare(shelf, variant, choice.version.sha, context.run_id, "1")
    yield dg.MaterializeResult(data_version=dg.DataVersion(choice.version.sha), metadata=metadata)
    # Here the materialisation is in the log.
    release.move(shelf, variant, pointer, context.run_id)


def _why_empty(context: dg.AssetExecutionContext) -> str:
    """What `rewrite_raw` said when it made no row of this variant."""
    wanted = dg.AssetRecordsFilter(key("rewrite_raw"), asset_partitions=[context.partition_key])
    found = context.instance.fetch_materializations(wanted, limit=1).records
    refused = found[0].asset_materialization.metadata.get("refused") if found else None
    reason = str(refused.value) if refused and refused.value else "there were no news to rewrite"
    return f"{context.partition_key}: rewrite_raw has no rows: {reason}"


def _reader(context: dg.AssetExecutionContext, shelf: ArtifactStore) -> Reader:
    return Reader(shelf, lambda version: note_input(context, version))


def _numbers(rows: pl.DataFrame) -> dict[str, float | int]:
    """Numbers that the UI plots over time."""
    if rows.is_empty() or not {"n_new_tokens", "truncated"} <= set(rows.columns):
        return {"rows": rows.height}
    return {
        "rows": rows.height,
        "mean_new_tokens": float(rows["n_new_tokens"].mean() or 0.0),
        "truncated_rate": float(rows["truncated"].mean() or 0.0),
    }


def _beside_news(pack: pl.DataFrame) -> dg.MetadataValue:
    """Three rewrites beside what was asked, for the eye of whoever promotes the pack."""
    shown = pack.head(3).select("source_index", "prompt", "output")
    return show.samples([{name: str(value) for name, value in row.items()} for row in shown.to_dicts()])


@contextmanager
def _plain_failures(*others: type[Exception], available: Callable[[], list[str]] = list) -> Iterator[None]:
    """What the user must mend becomes a failure that is not tried again, with its sentence as description."""
    try:
        yield
    except (ValueError, *others) as error:
        raise dg.Failure(
            str(error), metadata={"available": available()} if available() else {}, allow_retries=False
        ) from error


ASSETS = [rewrite_raw, rewrite_pack, keep_set, rewrite_comparison, rewrite_release]
