"""What a person sees of students, of their transfer and of their comparison: plots and texts first, then numbers."""

from typing import TYPE_CHECKING, Any

import dagster as dg
import polars as pl

from steer_pipeline import show
from steer_pipeline.stages.kit import picture

if TYPE_CHECKING:
    from pathlib import Path

    from steer_pipeline.lab.students.arms import Arms
    from steer_pipeline.lab.students.comparison import StudentTables
    from steer_pipeline.lab.students.mechanism import Mechanism
    from steer_pipeline.lab.students.report import Written
    from steer_pipeline.lab.students.training import Trained
    from steer_pipeline.lab.students.transfer import Transfer

SHOWN = ("rank", "seed", "rows", "steps", "selection_nll_first", "selection_nll_last")


def of_students(trained: "Trained", folder: "Path") -> dict[str, Any]:
    """Loss curves, one row a student, and what training cost."""
    from steer_pipeline.lab.students.training import STUDENT_COLUMNS, history_of

    curves = history_of(folder).filter(split="selection")
    series = {
        f"rank {rank}, seed {seed}": list(own.select("step", "nll").iter_rows())
        for (rank, seed), own in curves.group_by("rank", "seed", maintain_order=True)
    }
    costs = {name: cost for name, cost in trained.costs.items() if cost}
    numbers = {
        "students": trained.students.height,
        "rows": int(trained.students["rows"][0]),
        "selection_nll": float(trained.students["selection_nll_last"].mean() or 0.0),  # type: ignore[arg-type]
    }
    if costs:
        numbers |= {
            "training_seconds": sum(cost["seconds"] for cost in costs.values()),
            "tokens_per_second": sum(cost["tokens_per_second"] for cost in costs.values()) / len(costs),
            "training_peak_memory_mb": max(cost["peak_memory_bytes"] for cost in costs.values()) / 2**20,
        }
    return {
        "watched_loss": show.curves(series, "optimizer step", "NLL, nats a token"),
        "by_student": show.markdown_table(trained.students.select(SHOWN), STUDENT_COLUMNS),
        "model_below": trained.students["model"][0],
        "resumed_students": trained.students.height - len(costs),
        **show.rounded(numbers),
    }


def of_transfer(made: "Transfer") -> dict[str, Any]:
    """Texts side by side, and means by rank."""
    first = made.rows.filter(row_id=made.rows["row_id"][0]).select("variant", "rank", "seed", "output")
    traits = [name for name in made.rows.columns if name.startswith("trait_")]
    means = made.rows.group_by("variant", "rank", maintain_order=True).agg(
        pl.col(*traits, "facts_kept", "nll_output", "nll_reference").mean(),
        (pl.col("suspects").list.len() > 0).mean().alias("suspect"),
    )
    return {
        "texts": show.samples(
            [{name: str(value) for name, value in row.items()} for row in first.to_dicts()]
        ),
        "means": show.markdown_table(means),
        "held_out_rows": made.facts["held_out_rows"],
        "rewrites": made.rows.height,
        "blocks_read": dg.MetadataValue.json(made.blocks),
    }


def of_mechanism(made: "Mechanism") -> dict[str, Any]:
    """The shifts, and the traits of both arms."""
    traits = [name for name in made.arms.columns if name.startswith("trait_")]
    means = made.arms.group_by("arm", "rank", maintain_order=True).agg(pl.col(*traits).mean())
    return {
        "shifts": show.markdown_table(made.shifts.drop("variant")),
        **({"arms": show.markdown_table(means)} if made.arms.height else {}),
        "mean_norm_fraction": show.significant(float(made.shifts["norm_fraction"].to_numpy().mean())),
    }


def of_arms(made: "Arms") -> dict[str, Any]:
    """What was done for each arm, its texts for the first news item, and mean traits."""
    from steer_pipeline.lab.students.arms import MADE_COLUMNS

    traits = [name for name in made.rows.columns if name.startswith("trait_")]
    first = made.rows.filter(row_id=made.rows["row_id"][0]) if made.rows.height else made.rows
    texts = [
        {name: str(value) for name, value in row.items()}
        for row in first.select("arm", "seed", "output").iter_rows(named=True)
    ]
    means = made.rows.group_by("arm", maintain_order=True).agg(pl.col(*traits).mean())
    return {
        "done": show.markdown_table(made.made.drop("variant"), MADE_COLUMNS),
        **({"texts": show.samples(texts), "means": show.markdown_table(means)} if texts else {}),
        "arms": int(made.made["made"].sum()),
        "students": made.students.height,
    }


def of_comparison(tables: "StudentTables", written: "Written") -> dict[str, Any]:
    """The plots, targeted traits, who is left out, and a number a variant, rank and targeted trait."""
    from steer_pipeline.lab.students.comparison import SUMMARY_COLUMNS

    targeted = tables.summary.filter(pl.col("wanted").is_not_null())
    arms = tables.arms.filter(pl.col("wanted").is_not_null()).drop("note", "wanted")
    columns = ["variant", "rank", "metric", "difference", "low", "high", "p_holm", "wanted", "verdict"]
    plotted = {
        f"{row['metric']}_{row['variant']}_rank_{row['rank']}": row["difference"]
        for row in targeted.iter_rows(named=True)
    }
    return {
        **{path.stem: picture(path) for path in written.plots},
        "targeted_traits": show.markdown_table(targeted.select(columns), SUMMARY_COLUMNS),
        **({"mechanism": show.markdown_table(tables.mechanism)} if tables.mechanism.height else {}),
        **({"arms": show.markdown_table(arms)} if arms.height else {}),
        "left_out": dg.MetadataValue.json(tables.left_out),
        "students": tables.students.height,
        **show.rounded(plotted),
    }
