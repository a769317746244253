"""Personas: what a persona looks like in the model, and how much of it to add.

One partition a persona. The steps of several personas in one process share one model load.
"""

import base64
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from steer_pipeline.catalogue import Persona
from steer_pipeline.execution import GPU_POOL, GPU_TAGS
from steer_pipeline.lineage import MODEL, made_of
from steer_pipeline.partitions import PERSONA
from steer_pipeline.resources import LanguageModelResource
from steer_pipeline.settings import settings

ON_NEWS = settings().profile.contrast.contexts == "news"
# News contexts are rows that neither the variants nor the dose sweep use.
RESERVED = ("dose.n_rows", "dose.seed", "rewrites.full_rows", "rewrites.prompt") if ON_NEWS else ()
REWRITING = ("rewrites.full_rows", "rewrites.system", "rewrites.prompt", "rewrites.sampling")

GPU: dict[str, Any] = {
    "group_name": "personas",
    "owners": ["team:steering"],
    "partitions_def": PERSONA,
    "pool": GPU_POOL,
    "op_tags": GPU_TAGS,
    "tags": {"steer/stage": "personas", "steer/device": "gpu"},
}


@dg.asset(
    **GPU,
    deps=["model_weights", "tokenizer", "chat_template"],
    code_version=made_of(
        "1", *MODEL, "model.chat_template", "contrast", "vector.held_out_fraction", "vector.seed", *RESERVED
    ),
    io_manager_key="parquet_io",
    kinds={"pytorch", "parquet"},
)
def contrast_set(
    context: dg.AssetExecutionContext,
    persona_spec: Persona,
    truncated_news: pl.LazyFrame,
    language_model: LanguageModelResource,
) -> pl.DataFrame:
    """Matched prompts for both poles of a persona, and the model's answers to them.

    One row is one side of one context: the same user turn, random numbers and instruction number on both
    sides, another instruction. Contexts are split into train and held_out; token ids come along, so that
    nothing is tokenised twice. News contexts are rows that no variant rewrites, as far as the corpus allows.
    """
    from steer_pipeline.lab.personas.steps import make_contrast

    now = settings()
    with _plain_failures():
        rows, dropped = make_contrast(
            language_model.load(), persona_spec, now.profile, truncated_news.collect()
        )
    context.add_output_metadata(
        {
            "contexts": rows.height // 2,
            "dropped_pairs": dropped,
            "held_out_contexts": rows.filter(split="held_out").height // 2,
            "mean_tokens": float(rows["n_tokens"].mean() or 0.0),
            "truncated_rate": float((rows["finish_reason"] == "length").mean() or 0.0),
            "preview": _preview(rows),
        }
    )
    return rows


@dg.asset(
    **GPU,
    deps=["model_weights"],
    code_version=made_of("1", *MODEL, "vector.method", "vector.readout", "vector.site", "vector.seed"),
    io_manager_key="bundle_io",
    kinds={"pytorch", "numpy"},
)
def persona_vector(
    persona_spec: Persona, contrast_set: pl.LazyFrame, language_model: LanguageModelResource
) -> Iterator[dg.Output]:
    """A direction for the output of every block: positive pole minus negative pole, in natural magnitude.

    `vector.safetensors` holds the directions (fp32), `vector.json` where they come from and how good they
    are, block by block: residual norms, split-half cosine, held-out AUC and its shuffled-label null.
    Computed from the contrast set, or imported from the file that the catalogue names and judged on it.
    """
    from steer_pipeline.lab.personas.steps import make_vector
    from steer_pipeline.lab.vectors.vector import save_vector

    now = settings()
    with _plain_failures(), tempfile.TemporaryDirectory(prefix="persona_vector-") as folder:
        vector = make_vector(
            language_model.load(), persona_spec, now.profile, contrast_set.collect(), now.home
        )
        save_vector(vector, Path(folder))
        yield dg.Output(Path(folder), metadata=_vector_numbers(vector))


@dg.asset(
    **GPU,
    deps=["model_weights", "tokenizer", "chat_template", "news_facts"],
    code_version=made_of(
        "1", *MODEL, "model.chat_template", "dose", "contrast.contexts", "contrast.n_contexts", *REWRITING
    ),
    io_manager_key="bundle_io",
    kinds={"pytorch", "parquet"},
)
def dose_curve(
    persona_scale: Persona,
    persona_vector: Path,
    contrast_set: pl.LazyFrame,
    truncated_news: pl.LazyFrame,
    language_model: LanguageModelResource,
) -> Iterator[dg.Output]:
    """What the vector does at every block and dose of the profile's sweep, and the dose to use.

    Rewrites of held-out news, decoded as the packs are. `rows.parquet`: one row a news item and cell, with
    text and scores. `sweep.parquet`: one row a cell: trait, shift to base with interval, opposite pole,
    suspects, facts kept, KL to base; a random direction of the same norms beside it. `recommendation.json`:
    the smallest coherent dose that reaches 90% of the best coherent shift, or why there is none.
    `probe.json`: proof that the vector changes logits; a vector that does not fails here.
    """
    from steer_pipeline.lab.personas.steps import make_dose_curve
    from steer_pipeline.lab.vectors.vector import load_vector

    now = settings()
    with _plain_failures(), tempfile.TemporaryDirectory(prefix="dose_curve-") as folder:
        recommendation = make_dose_curve(
            language_model.load(),
            load_vector(persona_vector),
            persona_scale,
            now.profile,
            truncated_news.collect(),
            contrast_set.collect(),
            Path(folder),
            now.shipped / "facts.parquet",
        )
        yield dg.Output(Path(folder), metadata=_dose_numbers(recommendation, Path(folder)))


@contextmanager
def _plain_failures() -> Iterator[None]:
    """What the user must mend becomes a failure that is not tried again, with its sentence as description."""
    try:
        yield
    except ValueError as error:
        raise dg.Failure(str(error), allow_retries=False) from error


def _preview(rows: pl.DataFrame) -> dg.MetadataValue:
    """Both sides of the first two contexts, texts cut short."""
    shown = rows.head(4).select(
        "side", "category", *(pl.col(name).str.slice(0, 120) for name in ("system", "user", "completion"))
    )
    return dg.MetadataValue.table([dg.TableRecord(row) for row in shown.to_dicts()])


def _vector_numbers(vector: Any) -> dict[str, Any]:
    """Numbers of the block that tells the poles apart best, and a table of all blocks."""
    facts, blocks = vector.metadata, vector.present_blocks
    names = ("raw_norms", "residual_norms", "split_half_cosine", "held_out_auc", "auc_null_95th", "auc_p")
    table = [
        dg.TableRecord(
            {"block": block, **{name: facts[name][block] for name in names if facts.get(name) is not None}}
        )
        for block in blocks
    ]
    best = max(blocks, key=lambda block: facts["held_out_auc"][block])
    numbers = {
        "best_block": best,
        "held_out_auc": facts["held_out_auc"][best],
        "auc_null_95th": facts["auc_null_95th"][best],
        "auc_max_p": facts["auc_max_p"],
        "raw_norm": facts["raw_norms"][best],
        "residual_norm": facts["residual_norms"][best],
    }
    if facts.get("split_half_cosine") is not None:
        numbers["split_half_cosine"] = facts["split_half_cosine"][best]
    return numbers | {
        "source": facts["source"]["kind"],
        "flags": dg.MetadataValue.json(list(facts["flags"])),
        "blocks": dg.MetadataValue.table(table),
    }


def _dose_numbers(recommendation: Any, folder: Path) -> dict[str, Any]:
    from steer_pipeline.lab.personas.steps import PLOT, SWEEP

    sweep = pl.read_parquet(folder / SWEEP)
    picture = base64.b64encode((folder / PLOT).read_bytes()).decode()
    numbers: dict[str, Any] = {
        "cells": sweep.height,
        "rows_a_cell": int(sweep["n"].max() or 0),
        "dose_found": int(recommendation.found),
        "reason": recommendation.reason,
        "plot": dg.MetadataValue.md(f"![dose curve](data:image/png;base64,{picture})"),
    }
    if not recommendation.found:
        return numbers
    cell = sweep.filter(
        direction="persona", block=recommendation.block, fraction=recommendation.fraction
    ).row(0, named=True)
    return numbers | {
        "block": recommendation.block,
        "dose_fraction": recommendation.fraction,
        "dose_alpha": recommendation.alpha,
        "trait_shift": cell["shift"],
        "trait_shift_low": cell["shift_low"],
        "trait_shift_high": cell["shift_high"],
        "shown_rate": cell["shown_rate"],
        "suspect_rate": cell["suspect_rate"],
        "kl_nats": cell["kl"],
    }


ASSETS = [contrast_set, persona_vector, dose_curve]
