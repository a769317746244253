"""What a person sees of the personas' assets."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import polars as pl

from steer_pipeline import show
from steer_pipeline.stages.kit import picture

if TYPE_CHECKING:
    from steer_pipeline.lab.personas.steps import ContrastMade
    from steer_pipeline.lab.vectors.doses import Recommendation
    from steer_pipeline.lab.vectors.vector import PersonaVector

PREVIEWED = ("side", "category", "system", "user", "completion")
BAND = ("random_n", "random_mean", "random_min", "random_max", "random_rank_p", "negative_rank_p")
BY_BLOCK = (
    "held_out_auc", "auc_null_95th", "auc_p", "split_half_cosine", "pairwise_cosine", "raw_norms", "residual_norms"
)  # fmt: skip
PLOTTED = ("held_out_auc", "auc_null_95th", "pairwise_cosine")


def of_contrast(made: "ContrastMade") -> dict[str, Any]:
    """Sizes, which pairs count and why others do not, and both sides of the first two contexts."""
    from steer_pipeline.lab.personas.schema import CONTRAST_COLUMNS, counted, kept

    rows = kept(made.rows)
    told = {"filtered_by": made.filtered_by} if made.filtered_by else {}
    return {
        "preview": show.preview(rows.head(4).select(PREVIEWED), CONTRAST_COLUMNS),
        "pairs": show.markdown_table(counted(made.rows).with_columns(pl.col("reason").fill_null("kept"))),
        "contexts": rows.height // 2,
        "dropped_pairs": made.empty_pairs,
        "filtered_pairs": (made.rows.height - rows.height) // 2,
        "bad_lines": len(made.bad_lines),
        "held_out_contexts": rows.filter(split="held_out").height // 2,
        "mean_tokens": show.significant(float(rows["n_tokens"].mean() or 0.0)),
        "truncated_rate": show.significant(float((rows["finish_reason"] == "length").mean() or 0.0)),
        **told,
    }


def of_vector(vector: "PersonaVector") -> dict[str, Any]:
    """The block that tells the poles apart best, and all blocks: as a plot and as a table."""
    from steer_pipeline.lab.vectors.vector import best_block

    facts, best = vector.metadata, best_block(vector.metadata)
    measured = [name for name in BY_BLOCK if facts.get(name) is not None]
    blocks = pl.DataFrame(
        [
            {"block": block, **{name: facts[name][block] for name in measured}}
            for block in vector.present_blocks
        ]
    )
    at_best = {} if best is None else {name.removesuffix("s"): facts[name][best] for name in measured}
    return {
        "separation": show.curves(
            {
                name: list(blocks.select("block", name).iter_rows())
                for name in PLOTTED
                if name in blocks.columns
            },
            "block",
            "held-out AUC beside its null",
        ),
        "blocks": show.markdown_table(blocks),
        **_candidates(facts.get("candidates", [])),
        **({} if best is None else {"best_block": best}),
        **{name: show.significant(value) for name, value in at_best.items()},
        "auc_max_p": show.significant(facts["auc_max_p"]),
        "source": facts["source"]["kind"],
        "flags": dg.MetadataValue.json(list(facts["flags"])),
    }


def _candidates(candidates: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the evidence chose from: the chosen source and read-out first, each with the numbers of its best block."""
    if not candidates:
        return {}
    measured = [one for one in candidates if "skipped" not in one]
    at_best = ("held_out_auc", "auc_null_95th", "split_half_cosine", "pairwise_cosine")
    table = pl.DataFrame(
        [
            {
                "source": one["source"],
                "readout": one["readout"],
                "block": one["best_block"],
                **{name: one[name][one["best_block"]] for name in at_best},
                "above_null": one["above_null"],
            }
            for one in measured
        ]
    )
    lines = {
        f"{one['source']}, {one['readout']}: {name}": list(enumerate(one[field]))
        for one in measured
        for name, field in (("AUC", "held_out_auc"), ("cosine", "pairwise_cosine"))
    }
    skipped = [f"{one['source']}: {one['skipped']}" for one in candidates if "skipped" in one]
    return {
        "contrast_source": measured[0]["source"],
        "readout": measured[0]["readout"],
        "candidates": show.markdown_table(table),
        **(
            {"candidates_by_block": show.curves(lines, "block", "held-out AUC, cosine")}
            if len(measured) > 1
            else {}
        ),
        **({"skipped": "; ".join(skipped)} if skipped else {}),
    }


def of_dose(recommendation: "Recommendation", vector: "PersonaVector", folder: Path) -> dict[str, Any]:
    """The curve, and the numbers of the recommended cell: of a block that was swept, not always the vector's best."""
    from steer_pipeline.lab.personas.steps import PLOT, SCALE, SWEEP
    from steer_pipeline.lab.vectors.vector import best_block

    sweep = pl.read_parquet(folder / SWEEP)
    numbers: dict[str, Any] = {
        "plot": picture(folder / PLOT),
        "reason": recommendation.reason,
        **json.loads((folder / SCALE).read_text()),
        "dose_found": int(recommendation.found),
        "cells": sweep.height,
        "rows_a_cell": int(sweep["n"].max() or 0),
        "swept_blocks": ", ".join(map(str, sweep["block"].drop_nulls().unique().sort())),
    }
    if (best := best_block(vector.metadata)) is not None:
        numbers["best_block"] = best
    band = {name: getattr(recommendation, name) for name in BAND}
    numbers |= {name: show.significant(value) for name, value in band.items() if value is not None}
    return numbers | (_recommended(recommendation, sweep) if recommendation.found else {})


def _recommended(recommendation: "Recommendation", sweep: pl.DataFrame) -> dict[str, Any]:
    """The numbers of the recommended cell."""
    at_dose = {"direction": "persona", "block": recommendation.block, "fraction": recommendation.fraction}
    cell = sweep.filter(**at_dose).row(0, named=True)
    numbers = {
        "recommended_block": recommendation.block,
        "dose_fraction": recommendation.fraction,
        "dose_alpha": recommendation.alpha,
        "trait_shift": cell["shift"],
        "trait_shift_low": cell["shift_low"],
        "trait_shift_high": cell["shift_high"],
        "shown_rate": cell["shown_rate"],
        "suspect_rate": cell["suspect_rate"],
        "kl_nats": cell["kl"],
        "strain": cell["strain"],
        **{name: value for name, value in cell.items() if name.startswith("extra_")},
    }
    return {name: show.significant(value) for name, value in numbers.items() if value is not None}
