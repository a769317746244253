"""What a person sees of behaviour sets, sweeps, trained vectors and comparisons: plots first, then numbers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from steer_pipeline import show
from steer_pipeline.catalogue.specs import BehaviourSpec
from steer_pipeline.lab.dialogues.schema import BEHAVIOUR_COLUMNS
from steer_pipeline.stages.kit import picture

OF_SWEEP = (
    "learning_rate", "validation_nll", "vanilla_nll", "lane_epochs", "train_tokens", "residual_norm",
)  # fmt: skip
OF_TRAINED = (
    "learning_rate", "seed", "validation_nll", "vanilla_nll", "best_step", "norm", "norm_fraction", "residual_norm",
    "block", "train_rows", "train_tokens", "seed_cosine",
)  # fmt: skip


def of_dialogues(rows: pl.DataFrame, left_out: Mapping[str, int], spec: BehaviourSpec) -> dict[str, Any]:
    """Sizes of the splits, what was left out, and a few rows."""
    from steer_pipeline.lab.dialogues.selection import split_table

    statuses = dict(rows.group_by("score_status").len().iter_rows())
    answer = pl.col("messages").list.last().struct[1]
    shown = rows.select("label", "split", "score", "question", "instruction", answer=answer)
    return {
        "splits": show.markdown_table(split_table(rows, spec)),
        "preview": show.preview(shown, {**BEHAVIOUR_COLUMNS, "answer": "the assistant's turn"}),
        "rows_that_count": int(rows["counts"].sum()),
        "counted_tokens": int(rows.filter("counts")["n_response_tokens"].sum()),
        "refusals": statuses.get("refusal", 0),
        "missing_scores": statuses.get("missing", 0),
        "questions": rows["question_index"].n_unique(),
        "left_out": dg.MetadataValue.json(dict(left_out)),
    }


def of_sweep(choice: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The curve of every rate."""
    from steer_pipeline.lab.vectors.learned.sweep import HISTORY, SWEEP

    sweep = pl.read_parquet(folder / SWEEP)
    return {
        "curves": _curves(pl.read_parquet(folder / HISTORY), "learning_rate"),
        "sweep": show.markdown_table(sweep.drop("seed"), digits=4),
        **_named(choice, OF_SWEEP),
        "rates": sweep.height,
        "outpaced_rates": int((sweep["stopped"] == "outpaced").sum()),
    }


def of_trained(folder: Path) -> dict[str, Any]:
    """The curve of every seed."""
    from steer_pipeline.lab.vectors.learned.sweep import HISTORY, REPORT, SEEDS

    return {
        "curves": _curves(pl.read_parquet(folder / HISTORY), "seed"),
        "seeds": show.markdown_table(pl.read_parquet(folder / SEEDS), digits=4),
        **_named(json.loads((folder / REPORT).read_text()), OF_TRAINED),
    }


def of_comparison(folder: Path) -> dict[str, Any]:
    """Gaps and cosines as plots, the tables behind them, and the headline."""
    from steer_pipeline.lab.likelihood import tables

    plots = [folder / name for name in (tables.GAP_PLOT, tables.COSINE_PLOT)]
    cosines = pl.read_parquet(folder / tables.COSINES)
    summary = tables.summary(folder)
    return {
        **{f"plot_{path.stem}": picture(path) for path in plots if path.is_file()},
        "comparison": show.markdown_table(pl.read_parquet(folder / tables.TABLE)),
        "by_seed": show.markdown_table(pl.read_parquet(folder / tables.SEEDS)),
        "vector_as_classifier": show.markdown_table(pl.read_parquet(folder / tables.CLASSIFIER)),
        **({"cosines": show.markdown_table(cosines)} if cosines.height else {}),
        **_named(summary, tuple(summary)),
    }


def _named(facts: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Those of the facts that are known."""
    return {name: show.significant(facts[name]) for name in names if facts[name] is not None}


def _curves(history: pl.DataFrame, name: str) -> dg.MarkdownMetadataValue:
    """Validation NLL over steps, a line a lane; the training NLL of a lane that left before its first validation."""
    series = {}
    for lane in history.partition_by("lane", maintain_order=True):
        points = lane.with_columns(nll=pl.coalesce("validation_nll", "train_nll")).drop_nulls("nll")
        series[f"{lane[name][0]:g}"] = list(points.select("step", "nll").iter_rows())
    return show.curves(series, "optimizer step", "NLL, nats a token")
