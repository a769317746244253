"""What a person sees of attribution: rows and texts first, then numbers."""

from typing import TYPE_CHECKING, Any

import dagster as dg
import polars as pl

from steer_pipeline import show

if TYPE_CHECKING:
    from steer_pipeline.lab.attribution.manifest import Manifest
    from steer_pipeline.lab.attribution.scoring.ranking import Ranking
    from steer_pipeline.lab.attribution.table import Results

SHOWN = 5
METHODS = (
    "method",
    "seconds",
    "lds_small_drop",
    "lds_halves",
    "recall",
    "effect",
    "gain",
    "rival",
    "verdict",
)
QUALITY = ("method", "seconds", "coverage", "lds_small_drop", "lds_small_drop_low", "effect")


def of_manifest(manifest: "Manifest") -> dict[str, Any]:
    """Some rows of each split, their sizes, and what was left out."""
    from steer_pipeline.lab.attribution.rows import SPLITS

    first = [manifest.split(name).head(2) for name in SPLITS]
    texts = pl.concat(first).select("split", "prompt", "completion", "target_word", "outcome", "truth")
    return {
        "rows": show.samples([{name: str(text) for name, text in row.items()} for row in texts.to_dicts()]),
        "left_out": dg.MetadataValue.json(dict(manifest.left_out)),
        **{f"rows_{name}": manifest.split(name).height for name in SPLITS},
    }


def of_ranking(found: "Ranking", manifest: "Manifest") -> dict[str, Any]:
    """First and last rows as texts, and what the ranking cost."""
    from steer_pipeline.lab.attribution.rows import TRAIN

    told = found.table.join(manifest.split(TRAIN), on="row_id").drop_nulls("rank").sort("rank")
    ends = pl.concat([told.head(SHOWN), told.tail(SHOWN)]).select(
        "rank", "score", "prompt", "completion", "truth"
    )
    return {
        "rows": show.markdown_table(ends, chars=160),
        "scored": len(found.scores),
        **show.rounded(dict(found.numbers)),
    }


def of_sanity(found: pl.DataFrame) -> dict[str, Any]:
    """Every test of every method."""
    from steer_pipeline.lab.attribution.soundness import SOUND_COLUMNS

    return {
        "tests": show.markdown_table(found, SOUND_COLUMNS),
        "passed": int(found["passed"].sum()),
        "of": found.height,
    }


def of_subsets(table: pl.DataFrame) -> dict[str, Any]:
    """Budgets of the first seed, and how many subsets there are."""
    from steer_pipeline.lab.attribution.subsets import BUDGET_COLUMNS

    first = table.filter(seed=table["seed"][0])
    return {"budgets": show.markdown_table(first, BUDGET_COLUMNS), "subsets": table.height}


def of_guesses(guesses: pl.DataFrame) -> dict[str, Any]:
    """Guesses beside their targets, and how many are right."""
    from steer_pipeline.lab.attribution.word_eval import GUESS_COLUMNS

    first = guesses.head(2 * SHOWN).select("seed", "output", "word", "target_word", "logged_word", "correct")
    shares = {
        name: show.significant(float(guesses[name].drop_nulls().to_numpy().mean()))
        for name in ("correct", "agrees", "nll")
        if guesses[name].drop_nulls().len()
    }
    return {"guesses": show.markdown_table(first, GUESS_COLUMNS, chars=80), "games": guesses.height, **shares}


def of_retrained(found: pl.DataFrame) -> dict[str, Any]:
    """Losses by protocol."""
    table = found.group_by("protocol", maintain_order=True).agg(
        trainings=pl.len(),
        base_loss=pl.col("base_loss").first(),
        mean=pl.col("loss").mean(),
        spread=pl.col("loss").std(),
    )
    return {"losses": show.markdown_table(table), "trainings": found.height}


def of_quality(table: pl.DataFrame) -> dict[str, Any]:
    """The table, and the best method."""
    from steer_pipeline.lab.attribution.table import METHOD_COLUMNS

    best = table.sort("lds_small_drop", descending=True, nulls_last=True).row(0, named=True)
    return {
        "quality": show.markdown_table(table.select(QUALITY), METHOD_COLUMNS),
        "best_method": best["method"],
        "best_lds": show.significant(best["lds_small_drop"]),
    }


def of_results(results: "Results") -> dict[str, Any]:
    """The tables of methods and arms, and a number an arm."""
    from steer_pipeline.lab.attribution.table import METHOD_COLUMNS
    from steer_pipeline.lab.attribution.word_eval import ACCURACY_COLUMNS

    numbers = {f"accuracy_{arm}": value for arm, value in results.arms.select("arm", "accuracy").iter_rows()}
    return {
        "methods": show.markdown_table(results.methods.select(METHODS), METHOD_COLUMNS),
        "arms": show.markdown_table(results.arms, ACCURACY_COLUMNS),
        **show.rounded({name: value for name, value in numbers.items() if value is not None}),
    }
