"""What attribution has shown, from stored rows alone: arms, effects, methods, budgets; and whether it holds.

In: guesses of all players, budgets, rankings with their quality. Out: `Results` with four tables, verdicts, headline.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from steer_pipeline.catalogue.attribution import UNTRAINED, AttributionSpec, compared
from steer_pipeline.lab.attribution.word_eval import accuracies, best_reference, effects, measure_of
from steer_pipeline.lab.columns import described
from steer_pipeline.lab.limits import (
    MIN_CHEAP_LDS,
    MIN_MAGIC_LDS,
    MIN_MAGIC_LDS_LOW,
    MIN_PLANTED_RECALL,
    MIN_SEEDS,
)
from steer_pipeline.lab.verdict import Verdict

ACCURACIES, EFFECTS, METHODS, BUDGETS = (
    "arms.parquet",
    "effects.parquet",
    "methods.parquet",
    "budgets.parquet",
)
METHOD_SCHEMA, METHOD_COLUMNS = described(
    method=(pl.String(), "by which rows are ranked"),
    seconds=(pl.Float64(), "that the ranking took"),
    peak_memory_bytes=(pl.Int64(), "at most, meanwhile"),
    coverage=(pl.Float64(), "share of rows that have a score"),
    lds_small_drop=(
        pl.Float64(),
        "rank correlation of forecast and measured loss over trainings without few rows",
    ),
    lds_small_drop_low=(pl.Float64(), "lower end of its 95% interval, over trainings"),
    lds_small_drop_high=(pl.Float64(), "upper end"),
    lds_halves=(pl.Float64(), "the same over trainings without half of the rows"),
    lds_halves_low=(pl.Float64(), "lower end"),
    lds_halves_high=(pl.Float64(), "upper end"),
    effect=(
        pl.Float64(),
        "nats a token that queries lose without the first rows, beyond what random rows cost",
    ),
    effect_low=(pl.Float64(), "lower end of its 95% interval, over queries"),
    effect_high=(pl.Float64(), "upper end"),
    recall=(pl.Float64(), "share of the planted rows among as many first ones; null where none are planted"),
    recall_low=(pl.Float64(), "lower end of its 95% interval, over planted rows"),
    recall_high=(pl.Float64(), "upper end"),
    auc=(pl.Float64(), "chance that a planted row is above another one"),
    auc_low=(pl.Float64(), "lower end of its 95% interval"),
    auc_high=(pl.Float64(), "upper end"),
    arm=(pl.String(), "that learned its first rows; null: none"),
    rival=(pl.String(), "best of the other references by their means"),
    gain=(pl.Float64(), "of that arm over the rival"),
    gain_low=(pl.Float64(), "lower end of its interval; those over all rivals hold together at 95%"),
    gain_high=(pl.Float64(), "upper end"),
    verdict=(pl.String(), "beats | ties | loses"),
)


@dataclass(frozen=True, eq=False)
class Results:
    """Four tables; see their schemas."""

    arms: pl.DataFrame
    effects: pl.DataFrame
    methods: pl.DataFrame
    budgets: pl.DataFrame


def make_results(
    guesses: pl.DataFrame, quality: pl.DataFrame, budgets: pl.DataFrame, spec: AttributionSpec
) -> Results:
    """All tables of one run.

    Args:
        guesses: of all players, `GUESS_SCHEMA`.
        quality: a row a method, as `attribution_quality` has it.

    Raises:
        AttributionError: an arm has not played, or played other games.
    """
    arms = accuracies(guesses, seed=spec.seed)
    played = set(arms["arm"])
    references = [name for name in compared(spec) if name in played]
    found = [
        effects(guesses, arm, [name for name in references if name != arm], seed=spec.seed)
        for arm in spec.arms
        if arm in played
    ]
    every = pl.concat(found)
    methods = [_method(row, arms, guesses, references, spec) for row in quality.iter_rows(named=True)]
    table = pl.DataFrame(methods, schema=METHOD_SCHEMA)
    return Results(arms, every, table, budgets)


def _method(
    row: dict[str, Any],
    arms: pl.DataFrame,
    guesses: pl.DataFrame,
    references: Sequence[str],
    spec: AttributionSpec,
) -> dict[str, Any]:
    """A row of `METHOD_SCHEMA`: quality, and what the arm of the method's first rows gains over the best rival."""
    found = {name: row.get(name) for name in METHOD_SCHEMA}
    played = set(arms["arm"])
    own = [name for name in first_rows_of(row["method"], spec) if name in played]
    rivals = [name for name in references if name not in UNTRAINED and name not in own]
    if not own or not rivals:
        return found
    rival = best_reference(arms, rivals, measure_of(guesses))
    one = effects(guesses, own[0], rivals, seed=spec.seed).row(
        by_predicate=pl.col("reference") == rival, named=True
    )
    return found | {
        "arm": own[0],
        "rival": rival,
        "gain": one["difference"],
        "gain_low": one["low"],
        "gain_high": one["high"],
        "verdict": one["verdict"],
    }


def first_rows_of(method: str, spec: AttributionSpec) -> list[str]:
    """Arms that learn the first `k` rows of a method from scratch."""
    return [
        name
        for name, arm in spec.arms.items()
        if (arm.pick, arm.ranking, arm.k, arm.mode) == ("top", method, None, "scratch")
    ]


def write_results(results: Results, folder: Path) -> None:
    """The four tables."""
    for name, table in _named(results).items():
        table.write_parquet(folder / name)


def read_results(folder: Path) -> Results:
    """What `write_results` wrote."""
    return Results(*(pl.read_parquet(folder / name) for name in (ACCURACIES, EFFECTS, METHODS, BUDGETS)))


def _named(results: Results) -> Mapping[str, pl.DataFrame]:
    return {
        ACCURACIES: results.arms,
        EFFECTS: results.effects,
        METHODS: results.methods,
        BUDGETS: results.budgets,
    }


def headline(results: Results) -> dict[str, Any]:
    """Numbers of the last line: accuracy an arm; LDS, recall, effect and gain a method, each with its interval."""
    measures = ("lds_small_drop", "lds_halves", "recall", "effect", "gain")
    return {
        "arms": {
            row["arm"]: {name: row[name] for name in ("accuracy", "low", "high", "agreement", "nll")}
            for row in results.arms.iter_rows(named=True)
        },
        "methods": {
            row["method"]: {"seconds": row["seconds"], "verdict": row["verdict"], "rival": row["rival"]}
            | {
                name: [row[name], row[f"{name}_low"], row[f"{name}_high"]]
                for name in measures
                if row[name] is not None
            }
            for row in results.methods.iter_rows(named=True)
        },
    }


# ------------------------------------------------------------------------------------ claims


def quality_verdicts(quality: pl.DataFrame, spec: AttributionSpec) -> list[Verdict]:
    """Whether the exact method foretells trainings, a cheap one does well enough, and planted rows are found."""
    kinds = {name: method.kind for name, method in spec.scoring.methods.items()}
    exact = quality.filter(pl.col("method").is_in([name for name, kind in kinds.items() if kind == "magic"]))
    cheap = quality.filter(~pl.col("method").is_in(exact["method"].implode()))
    best = cheap.sort("lds_small_drop", descending=True, nulls_last=True).row(0, named=True)
    found = [_magic(exact)]
    found.append(
        Verdict(
            "a_cheap_method_foretells",
            (best["lds_small_drop"] or 0.0) >= MIN_CHEAP_LDS,
            f"LDS of {best['method']} is {_shown(best, 'lds_small_drop')}, {MIN_CHEAP_LDS} is wanted of the best one",
            {"lds": best["lds_small_drop"] or 0.0},
        )
    )
    if "recall" not in quality.columns:
        found.append(
            Verdict("planted_rows_are_found", True, "no row of the pool is known to help", blocking=False)
        )
    else:
        top = quality.sort("recall", descending=True, nulls_last=True).row(0, named=True)
        found.append(
            Verdict(
                "planted_rows_are_found",
                (top["recall"] or 0.0) >= MIN_PLANTED_RECALL,
                f"recall of {top['method']} is {_shown(top, 'recall')}, {MIN_PLANTED_RECALL} is wanted of the best one",
                {"recall": top["recall"] or 0.0},
            )
        )
    return found


def _magic(exact: pl.DataFrame) -> Verdict:
    if not exact.height:
        return Verdict("magic_foretells_trainings", True, "no ranking is by that method", blocking=False)
    row = exact.row(0, named=True)
    value, low = row["lds_small_drop"], row["lds_small_drop_low"]
    return Verdict(
        "magic_foretells_trainings",
        value >= MIN_MAGIC_LDS and low >= MIN_MAGIC_LDS_LOW,
        f"LDS of {row['method']} is {_shown(row, 'lds_small_drop')}; {MIN_MAGIC_LDS} is wanted, and "
        f"{MIN_MAGIC_LDS_LOW} of its lower end",
        {"lds": value, "low": low},
    )


def results_verdicts(results: Results, spec: AttributionSpec) -> list[Verdict]:
    """Whether some method's rows beat every rival, and whether seeds are enough to say so."""
    judged = results.methods.drop_nulls("gain")
    shown = "; ".join(
        f"{row['arm']} {row['verdict']} {row['rival']}: {row['gain']:+.3f} "
        f"[{row['gain_low']:+.3f}, {row['gain_high']:+.3f}]"
        for row in judged.sort("gain", descending=True).iter_rows(named=True)
    )
    wins = judged.filter(verdict="beats")
    beats = Verdict(
        "chosen_rows_beat_every_rival",
        wins.height > 0,
        shown or "no arm learns the first rows of a method",
        {"methods": judged.height, "beat": wins.height},
    )
    enough = Verdict(
        "enough_seeds",
        len(spec.seeds) >= MIN_SEEDS,
        f"{len(spec.seeds)} seeds, {MIN_SEEDS} are wanted: fewer say nothing of other ones",
        {"seeds": len(spec.seeds)},
    )
    return [beats, enough]


def _shown(row: Mapping[str, Any], name: str) -> str:
    if row[name] is None:
        return "unknown"
    return f"{row[name]:.2f} [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]"
