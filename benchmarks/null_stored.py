"""Verdicts of dose curves, likelihoods and behaviour where nothing is to be found, from stored rows alone.

In: a store in which `make pilot` and, for the last two, `make behaviour` have run. Out: what each verdict says of one
seeded run. Null: a random direction takes the place of the vector (doses, likelihoods), or answers of vanilla and of
random directions are dealt out anew to all arms, question by question (behaviour). Planted: what is stored.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.null_counting import counted
from steer_pipeline.io.reader import Reader
from steer_pipeline.lab.arms import PROMPTED, RANDOM, TRAINED, VANILLA, family_of
from steer_pipeline.lab.behaviour.report import LEARNED_ARM
from steer_pipeline.lab.behaviour.schema import MINILM, TRUTH, UP
from steer_pipeline.lab.behaviour.table import gather, joined, random_shifts, summarise
from steer_pipeline.lab.controls import moved_controls, place_among
from steer_pipeline.lab.likelihood.claims import random_closes, trained_closes
from steer_pipeline.lab.likelihood.tables import ROWS, comparison_table
from steer_pipeline.lab.personas.steps import ROWS as SWEPT_ROWS
from steer_pipeline.lab.rewrites import Refused
from steer_pipeline.lab.stats import mean_interval
from steer_pipeline.partitions import TRAIT_OR_ROLE
from steer_pipeline.resources import open_store
from steer_pipeline.settings import settings

TAKEN = 3  # random seeds that stand for trained ones
N_BOOT = 1_000


def dose(options: argparse.Namespace) -> dict[str, Any]:
    """Level and power of `beyond_random_directions`."""
    read = Reader(open_store())
    shifts = {}
    for persona in settings().persona_names:
        version = read.current("dose_curve", persona)
        if version is not None and (found := _sweep_shifts(version.path)) is not None:
            shifts[persona] = found
    if not shifts:
        raise Refused("no dose curve with a band of random directions is stored: run `make pilot` first")

    def claims(run: int, planted: bool) -> dict[str, bool]:
        rng = np.random.default_rng([run, int(planted)])
        band, own = list(shifts.values())[run % len(shifts)]
        rows = rng.integers(0, len(own), len(own))
        one, others = (own, band) if planted else _one_of(band, rng)
        place = place_among(float(one[rows].mean()), others[rows].mean(axis=0), 1)
        return {"beyond_random": place.beyond and mean_interval(one[rows]).low > 0}

    return {"personas": list(shifts)} | counted("dose", claims, options.runs)


def _sweep_shifts(folder: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Differences to base: [rows, random directions], and [rows] of the persona's cell at their block and dose."""
    rows = pl.read_parquet(folder / SWEPT_ROWS)
    band = rows.filter(direction="random")
    if band.is_empty():
        return None
    block, fraction = band.select("block", "fraction").row(0)
    cell = rows.filter(
        pl.col("direction") == "persona",
        pl.col("block") == block,
        (pl.col("fraction") - fraction).abs() < 1e-9,
    )
    base = rows.filter(direction="base").select("row_id", base="trait")
    wide = band.pivot(on="draw", index="row_id", values="trait").join(base, on="row_id")
    wide = wide.join(cell.select("row_id", own="trait"), on="row_id").sort("row_id")
    drawn = wide.drop("row_id", "base", "own").to_numpy() - wide["base"].to_numpy()[:, None]
    return drawn, (wide["own"] - wide["base"]).to_numpy()


def _one_of(band: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A column, and the others."""
    place = int(rng.integers(band.shape[1]))
    return band[:, place], np.delete(band, place, axis=1)


def comparison(options: argparse.Namespace) -> dict[str, Any]:
    """Level and power of what vector_comparison claims: that trained vectors close the gap, and random ones do not."""
    read = Reader(open_store())
    stored = {name: read.current("vector_comparison", name) for name in TRAIT_OR_ROLE.get_partition_keys()}
    rows = {name: pl.read_parquet(one.path / ROWS) for name, one in stored.items() if one is not None}
    if not rows:
        raise Refused("no vector_comparison is stored: run `make behaviour` first")

    def claims(run: int, planted: bool) -> dict[str, bool]:
        own = list(rows.values())[run % len(rows)]
        if not planted:
            rng = np.random.default_rng(run)
            seeds = own.filter(arm=RANDOM)["seed"].unique().sort().to_list()
            taken = rng.choice(seeds, TAKEN, replace=False).tolist()
            drawn = pl.col("arm").eq(RANDOM) & pl.col("seed").is_in(taken)
            own = own.filter(pl.col("arm") != TRAINED)
            own = own.with_columns(pl.when(drawn).then(pl.lit(TRAINED)).otherwise("arm").alias("arm"))
        arms = {row["arm"]: row for row in comparison_table(own, seed=run).iter_rows(named=True)}
        closes = trained_closes(arms[TRAINED]).passed
        told = {"trained_closes": closes}
        return told if planted else told | {"random_closes": not random_closes(arms[RANDOM]).passed}

    return {"personas": list(rows)} | counted("comparison", claims, options.runs)


def behaviour(options: argparse.Namespace) -> dict[str, Any]:
    """Level and power of the behaviour table: arms that move, random directions that do, beyond their band."""
    read = Reader(open_store())
    stored = gather(TRAIT_OR_ROLE.get_partition_keys(), read.rows)
    if not stored:
        raise Refused("no rollouts are stored: run `make behaviour` first")
    rows = {name: _kept(joined(name, one)) for name, one in stored.items()}

    def claims(run: int, planted: bool) -> dict[str, bool]:
        own = list(rows.values())[run % len(rows)]
        if not planted:
            own = _dealt(own, np.random.default_rng(run))
        summary = summarise(own, seed=run, n_boot=N_BOOT).filter(metric=MINILM)
        learned = summary.filter(arm_name=LEARNED_ARM).row(0, named=True)
        drawn = summary.filter(pl.col("arm") == RANDOM, ~pl.col("pooled"))["difference"].to_numpy()
        beyond = place_among(learned["difference"], drawn, 1).beyond
        moves = {"trained_moves": learned["verdict"] == UP and beyond}
        if planted:
            return moves
        tested = summary.filter(pl.col("arm").is_in([TRAINED, RANDOM]), ~pl.col("pooled"))
        controls = random_shifts(own, seed=run, n_boot=N_BOOT)
        return moves | {
            "any_arm": bool(tested["verdict"].is_in(["effect up", "effect down"]).any()),
            "controls": bool(moved_controls(controls)),
        }

    return {"personas": list(rows)} | counted("behaviour", claims, options.runs)


def _kept(rows: pl.DataFrame) -> pl.DataFrame:
    """Vanilla, prompted, the learned scale and random directions."""
    wanted = pl.col("arm_name").is_in([VANILLA, LEARNED_ARM]) | (pl.col("arm") == RANDOM)
    prompted = pl.col("arm").map_elements(family_of, return_dtype=pl.String) == PROMPTED
    return rows.filter(wanted | prompted).sort("question_index", "sample", "arm_name")


def _dealt(rows: pl.DataFrame, rng: np.random.Generator) -> pl.DataFrame:
    """Answers of vanilla and of random directions dealt out to vanilla, trained and random arms, by question."""
    pool = pl.col("arm").is_in([VANILLA, RANDOM])
    parts = []
    for _, own in rows.group_by("question_index", "sample", maintain_order=True):
        from_pool = np.flatnonzero(own.select(pool).to_series().to_numpy())
        taking = np.flatnonzero((own.select(pool).to_series() | (own["arm"] == TRAINED)).to_numpy())
        source = np.arange(own.height)
        source[taking] = rng.permutation(np.resize(rng.permutation(from_pool), len(taking)))
        values = own[source].select(MINILM, TRUTH)
        parts.append(own.with_columns(values[MINILM], values[TRUTH]))
    return pl.concat(parts)
