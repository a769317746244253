"""Tables of a vector comparison, computed from its stored rows and from nothing else. No model, no torch.

In: `rows.parquet`, one row an arm, seed and dialogue, with the summed negative log-likelihood of its response
tokens. Out: NLL, perplexity and the fraction of the vanilla-to-prompted gap that each arm closes, with intervals.
Every mean is a ratio of sums over tokens; perplexity is exp of that mean, never a mean of anything else.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy.stats import t

from steer_pipeline.lab.arms import ARMS, AVERAGED, PROMPTED, RANDOM, TRAINED, VANILLA
from steer_pipeline.lab.stats import bootstrap_means, percentiles
from steer_pipeline.lab.stats.power import quantiles

ROWS, TABLE, SEEDS, SELECTION = "rows.parquet", "table.parquet", "seeds.parquet", "selection.parquet"
COSINES, CLASSIFIER = "cosines.parquet", "classifier.parquet"
AVERAGED_FOLDER, MISSING, SCALES_FILE = "averaged", "MISSING.json", "scales.json"
GAP_PLOT, COSINE_PLOT = "nll_gap_closed.png", "cosines.png"
REFERENCES = (VANILLA, PROMPTED)
N_BOOT = 4_000

LIKELIHOOD_SCHEMA = pl.Schema(
    {
        "row_id": pl.String(),
        "question_index": pl.Int64(),
        "split": pl.String(),  # validation (choices) | test (results)
        "arm": pl.String(),
        "seed": pl.Int64(),  # of a trained or random vector
        "block": pl.Int64(),  # site; null where nothing is added, as the three below
        "scale": pl.Float64(),  # multiple of the vector's natural magnitude
        "alpha": pl.Float64(),  # length that is added
        "residual_norm": pl.Float64(),  # mean norm of the residual stream at the site
        "nll_sum": pl.Float64(),  # nats, over the response tokens
        "n_tokens": pl.Int64(),
        "response_sha": pl.String(),  # which tokens those are
    }
)


class TableError(ValueError):
    """Stored rows from which no table can be made. The message names arm and row."""


def unequal_tokens(rows: pl.DataFrame) -> pl.DataFrame:
    """Measurements that do not cover the same tokens as vanilla does: columns split, arm, seed, row_id, problem.

    Empty when every arm, seed and dose of a split has each of vanilla's rows once, with equal tokens.
    """
    key = ["split", "row_id"]
    vanilla = rows.filter(arm=VANILLA).select(*key, "n_tokens", "response_sha")
    cells = rows.select("split", "arm", "seed", "block", "scale").unique()
    wanted = cells.join(vanilla.rename({"n_tokens": "tokens", "response_sha": "sha"}), on="split", how="left")
    cell = [*key, "arm", "seed", "block", "scale"]
    measured = rows.group_by(cell).agg(pl.len().alias("times"), pl.col("n_tokens", "response_sha").first())
    both = wanted.join(measured, on=cell, how="full", nulls_equal=True, coalesce=True)
    problem = (
        pl.when(pl.col("times").is_null())
        .then(pl.lit("not measured"))
        .when(pl.col("tokens").is_null())
        .then(pl.lit("not among vanilla's rows"))
        .when(pl.col("times") > 1)
        .then(pl.lit("measured more than once"))
        .when((pl.col("tokens") != pl.col("n_tokens")) | (pl.col("sha") != pl.col("response_sha")))
        .then(pl.lit("other response tokens than vanilla"))
    )
    return (
        both.with_columns(problem=problem)
        .filter(pl.col("problem").is_not_null())
        .select("split", "arm", "seed", "row_id", "problem")
        .sort("split", "arm", "seed", "row_id", nulls_last=True)
    )


# ------------------------------------------------------------------------------------------ gaps


class _Gains:
    """What each arm gains on vanilla, with bootstrap draws in nats a token; whole questions are drawn, the same
    ones for all arms.
    """

    def __init__(self, rows: pl.DataFrame, *, seed: int, level: float) -> None:
        broken = unequal_tokens(rows)
        if broken.height:
            one = broken.row(0, named=True)
            raise TableError(
                f"arm {one['arm']}, seed {one['seed']}, row {one['row_id']}: {one['problem']} "
                f"({broken.height} such rows); materialise vector_comparison again"
            )
        missing = [arm for arm in REFERENCES if arm not in rows["arm"]]
        if missing:
            raise TableError(f"no rows of arm {missing[0]}; the gap needs {' and '.join(REFERENCES)}")
        cells = rows.sort("row_id").partition_by("arm", "seed", as_dict=True)
        self.sums = {cell: part["nll_sum"].to_numpy() for cell, part in cells.items()}
        vanilla = cells[(VANILLA, None)]
        self.tokens = vanilla["n_tokens"].to_numpy().astype(np.float64)
        self.questions = vanilla["question_index"].to_numpy()
        self.n_questions = len(np.unique(self.questions))
        if self.n_questions < 2:
            raise TableError(
                f"{self.n_questions} question with rows; intervals need two, so raise the split's token budget"
            )
        self._level = level
        order = [cell for cell in self.sums if cell[0] != VANILLA]
        gains = [self.sums[(VANILLA, None)] - self.sums[cell] for cell in order]
        matrix = np.stack([*gains, self.tokens], axis=1)
        drawn = bootstrap_means(matrix, seed=seed, n_boot=N_BOOT, clusters=self.questions)
        self._draws = {cell: drawn[:, i] / drawn[:, -1] for i, cell in enumerate(order)}

    def seeds(self, arm: str) -> list[int | None]:
        return sorted((cell[1] for cell in self.sums if cell[0] == arm), key=lambda s: (s is not None, s))

    def nll(self, arm: str, seeds: Sequence[int | None]) -> float:
        """Nats a token, seeds averaged."""
        return float(np.mean([self.sums[(arm, s)].sum() for s in seeds]) / self.tokens.sum())

    def draws(self, arm: str, seeds: Sequence[int | None]) -> np.ndarray:
        """[N_BOOT] gains in nats a token, seeds averaged."""
        return np.mean([self._draws[(arm, s)] for s in seeds], axis=0)

    def detectable(self, draws: np.ndarray, by_seed: Sequence[float]) -> float:
        """The smallest gain that would be found with 80% power; arguments as those of `bounds`."""
        n, seeds = self.n_questions, len(by_seed)
        spread = np.std(by_seed, ddof=1) / np.sqrt(seeds) if seeds > 1 else 0.0
        error = float(np.hypot(np.std(draws) * np.sqrt(n / (n - 1)), spread))
        return error * float(quantiles(n, level=self._level))

    def bounds(self, draws: np.ndarray, by_seed: Sequence[float]) -> tuple[float, float]:
        """Bounds of the mean of `by_seed`, for new questions and new seeds.

        Args:
            draws: the same number in resamples of the questions; NaN where it is undefined.
            by_seed: estimates of the single seeds.
        """
        centre, n = float(np.mean(by_seed)), len(by_seed)
        low, high = percentiles(draws, self.n_questions, self._level)
        spread = np.std(by_seed, ddof=1) * t.ppf((1 + self._level) / 2, n - 1) / np.sqrt(n) if n > 1 else 0.0
        return centre - float(np.hypot(centre - low, spread)), centre + float(np.hypot(high - centre, spread))


def _measured(
    gains: _Gains, arm: str, seeds: Sequence[int | None], prompted: dict[str, Any]
) -> dict[str, Any]:
    """NLL, gain and fraction of one arm over `seeds`; `prompted` is the same of the prompted arm."""
    nll = gains.nll(arm, seeds)
    row: dict[str, Any] = {"arm": arm, "nll": nll, "perplexity": float(np.exp(nll))}
    if arm == VANILLA:
        return row | {"reason": "the reference: closes nothing by definition"}
    draws, by_seed = (
        gains.draws(arm, seeds),
        [gains.nll(VANILLA, [None]) - gains.nll(arm, [s]) for s in seeds],
    )
    low, high = gains.bounds(draws, by_seed)
    row |= {"gain": float(np.mean(by_seed)), "gain_low": low, "gain_high": high}
    row["detectable"] = gains.detectable(draws, by_seed)
    if arm == PROMPTED:
        return row | {"reason": "the reference: closes all by definition"}
    if prompted["gain_low"] <= 0:
        return row | {
            "reason": f"prompting gains {prompted['gain']:.4f} nats a token, interval "
            f"[{prompted['gain_low']:.4f}, {prompted['gain_high']:.4f}] includes 0: there is no gap to close"
        }
    reference = gains.draws(PROMPTED, [None])
    closed = np.full(len(draws), np.nan)
    np.divide(draws, reference, out=closed, where=reference > 0)
    low, high = gains.bounds(closed, [gain / prompted["gain"] for gain in by_seed])
    return row | {"nll_gap_closed": row["gain"] / prompted["gain"], "nll_gap_low": low, "nll_gap_high": high}


_NUMBERS = (
    "nll",
    "perplexity",
    "gain",
    "gain_low",
    "gain_high",
    "detectable",
    "nll_gap_closed",
    "nll_gap_low",
    "nll_gap_high",
)
_SCHEMA = {name: pl.Float64() for name in _NUMBERS} | {"reason": pl.String()}
_SITE = {"block": pl.Int64(), "scale": pl.Float64(), "norm": pl.Float64(), "norm_fraction": pl.Float64()}
_SIZES = {"n_rows": pl.Int64(), "n_questions": pl.Int64(), "n_tokens": pl.Int64()}


def _site(rows: pl.DataFrame) -> dict[str, Any]:
    """Where a vector was added and how long it is, averaged over seeds."""
    first = rows.row(0, named=True)
    return {
        "block": first["block"],
        "scale": first["scale"],
        "norm": rows["alpha"].mean(),
        "norm_fraction": (rows["alpha"] / rows["residual_norm"]).mean(),
    }


def _sizes(gains: _Gains) -> dict[str, int]:
    return {
        "n_rows": len(gains.tokens),
        "n_questions": gains.n_questions,
        "n_tokens": int(gains.tokens.sum()),
    }


def comparison_table(rows: pl.DataFrame, *, seed: int = 0, level: float = 0.95) -> pl.DataFrame:
    """One row an arm, over the test rows and all seeds of the arm.

    Columns: arm, n_seeds, nll and perplexity (per token), gain (vanilla's NLL minus this arm's, nats a token),
    nll_gap_closed (gain over the prompted arm's gain), each with bounds; detectable (smallest gain that would be found
    with 80% power); block, scale, norm, norm_fraction (of the
    mean residual norm); n_rows, n_questions, n_tokens; reason, where nll_gap_closed is null.

    Intervals: bootstrap of whole questions, percentiles expanded for few of them; where there are several seeds,
    joined with the t interval of the mean over seeds (Zou and Donner 2008, MOVER: distances to the bounds add in
    squares), for what a few random directions happen to do is no property of random directions. Where the interval
    of the prompted gain includes 0 there is no gap, and no fraction of it.

    Raises:
        TableError: no vanilla or prompted rows, fewer than two questions, or arms that cover other tokens.
    """
    test = rows.filter(split="test")
    gains = _Gains(test, seed=seed, level=level)
    prompted = _measured(gains, PROMPTED, [None], {})
    records = []
    for arm in [arm for arm in ARMS if arm in test["arm"]]:
        seeds = gains.seeds(arm)
        own = test.filter(arm=arm)
        row = prompted if arm == PROMPTED else _measured(gains, arm, seeds, prompted)
        records.append(
            {**row, "n_seeds": len(seeds) if seeds != [None] else None, **_site(own), **_sizes(gains)}
        )
    schema = {"arm": pl.String(), "n_seeds": pl.Int64(), **_SCHEMA, **_SITE, **_SIZES}
    return pl.DataFrame(records, schema=schema)


def seed_table(rows: pl.DataFrame, *, seed: int = 0, level: float = 0.95) -> pl.DataFrame:
    """`comparison_table` of every single seed of the trained and random arms; intervals over questions only."""
    test = rows.filter(split="test")
    gains = _Gains(test, seed=seed, level=level)
    prompted = _measured(gains, PROMPTED, [None], {})
    records = [
        {**_measured(gains, arm, [one], prompted), "seed": one, **_site(test.filter(arm=arm, seed=one))}
        for arm in (TRAINED, RANDOM)
        for one in gains.seeds(arm)
    ]
    return pl.DataFrame(records, schema={"arm": pl.String(), "seed": pl.Int64(), **_SCHEMA, **_SITE})


def selection_table(rows: pl.DataFrame) -> pl.DataFrame:
    """Validation NLL of every block and scale of the averaged arm, best first.

    Columns: block, scale, alpha, nll, gain (on vanilla, nats a token).
    """
    own = rows.filter(split="validation")
    per_token = pl.col("nll_sum").sum() / pl.col("n_tokens").sum()
    vanilla = own.filter(arm=VANILLA).select(per_token).item()
    return (
        own.filter(arm=AVERAGED)
        .group_by("block", "scale", "alpha")
        .agg(nll=per_token)
        .with_columns(gain=vanilla - pl.col("nll"))
        .sort("nll", "block", "scale")
    )


def missing_reason(folder: Path) -> str | None:
    """Why a vector_comparison has no averaged vector; None where it has one."""
    path = folder / AVERAGED_FOLDER / MISSING
    return json.loads(path.read_text())["reason"] if path.is_file() else None


def read_comparisons(folders: Mapping[str, Path]) -> tuple[dict[str, pl.DataFrame], dict[str, str]]:
    """persona -> likelihood table, and persona -> why it has no averaged vector.

    Args:
        folders: persona -> its vector_comparison.
    """
    tables = {
        name: pl.read_parquet(folder / TABLE)
        for name, folder in folders.items()
        if (folder / TABLE).is_file()
    }
    reasons = {name: missing_reason(folder) for name, folder in folders.items()}
    return tables, {name: reason for name, reason in reasons.items() if reason is not None}


def summary(folder: Path) -> dict[str, float | None]:
    """The numbers of a vector_comparison's folder in one line; None for what is missing or undefined.

    Keys: nll_gap_closed, low, high (trained); random_gap, random_gap_low, random_gap_high; averaged_gap;
    vanilla_nll, prompted_nll, trained_nll; cosine (trained against averaged, at the trained block).
    """
    table = pl.read_parquet(folder / TABLE)
    arms = {row["arm"]: row for row in table.iter_rows(named=True)}
    cosine = pl.read_parquet(folder / COSINES).filter("same_site")["cosine"]
    return {
        "nll_gap_closed": arms[TRAINED]["nll_gap_closed"],
        "low": arms[TRAINED]["nll_gap_low"],
        "high": arms[TRAINED]["nll_gap_high"],
        "random_gap": arms[RANDOM]["nll_gap_closed"],
        "random_gap_low": arms[RANDOM]["nll_gap_low"],
        "random_gap_high": arms[RANDOM]["nll_gap_high"],
        "averaged_gap": arms[AVERAGED]["nll_gap_closed"] if AVERAGED in arms else None,
        "vanilla_nll": arms[VANILLA]["nll"],
        "prompted_nll": arms[PROMPTED]["nll"],
        "trained_nll": arms[TRAINED]["nll"],
        "cosine": cosine.item() if len(cosine) else None,
    }


def headline(folder: Path) -> dict[str, float | None]:
    """The numbers of a persona that `make behaviour` prints: nll_gap_closed, low, high, random_gap, random_gap_low.

    All None where prompting has no effect, so that there is no gap.
    """
    numbers = summary(folder)
    return {name: numbers[name] for name in ("nll_gap_closed", "low", "high", "random_gap", "random_gap_low")}
