"""What must hold of a comparison, judged from its stored files. In: a folder. Out: verdicts with numbers and limits."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from steer_pipeline.lab.arms import PROMPTED, RANDOM, TRAINED
from steer_pipeline.lab.likelihood.tables import ROWS, TABLE, missing_reason, unequal_tokens
from steer_pipeline.lab.limits import MAX_RANDOM_SHARE, MIN_GAP_CLOSED, MIN_SEEDS
from steer_pipeline.lab.verdict import Verdict


def judge_comparison(folder: Path) -> Iterator[Verdict]:
    """All verdicts on a vector_comparison's folder."""
    yield same_tokens(pl.read_parquet(folder / ROWS))
    table = pl.read_parquet(folder / TABLE)
    arms = {row["arm"]: row for row in table.iter_rows(named=True)}
    prompted, trained, random = (arms[name] for name in (PROMPTED, TRAINED, RANDOM))
    yield Verdict(
        "prompting_has_an_effect",
        prompted["gain_low"] > 0,
        f"prompting gains {_interval(prompted, 'gain')} nats a token; the interval must lie above 0",
        _numbers(prompted, "gain"),
    )
    yield trained_closes(trained)
    yield random_closes(random)
    missing = missing_reason(folder)
    yield Verdict("averaged_exists", missing is None, missing or "there is an averaged vector")
    yield enough_seeds(trained, random)


def same_tokens(rows: pl.DataFrame) -> Verdict:
    """Every arm on the same rows and response tokens as vanilla."""
    broken = unequal_tokens(rows)
    tokens = int(rows.filter(split="test").unique("row_id")["n_tokens"].sum())
    message = f"{tokens} test tokens in every arm"
    if broken.height:
        first = "{arm}, row {row_id}: {problem}".format(**broken.row(0, named=True))
        message = f"{broken.height} measurements differ (limit 0); {first}"
    return Verdict(
        "same_tokens_in_every_arm",
        broken.is_empty() and tokens > 0,
        message,
        {"unequal_measurements": broken.height, "test_tokens": tokens},
    )


def trained_closes(trained: Mapping[str, Any]) -> Verdict:
    """The trained vector closes a good part of the gap."""
    closed = trained["nll_gap_closed"]
    message = trained["reason"] or (
        f"trained closes {_interval(trained, 'nll_gap')} of the likelihood gap, at least {MIN_GAP_CLOSED:g} is wanted"
    )
    numbers = _numbers(trained, "nll_gap")
    return Verdict(
        "trained_closes_half_of_the_gap", closed is not None and closed >= MIN_GAP_CLOSED, message, numbers
    )


def random_closes(random: Mapping[str, Any]) -> Verdict:
    """Random directions close none of the gap, or less than counts; where there is no gap, by their gain on vanilla."""
    scale = "gain" if random["nll_gap_closed"] is None else "nll_gap"
    unit = "of the likelihood gap" if scale == "nll_gap" else "nats a token (there is no gap)"
    margin = MAX_RANDOM_SHARE if scale == "nll_gap" else 0.0
    message = f"random directions close {_interval(random, scale)} {unit}; the interval must not lie above {margin:g}"
    return Verdict("random_closes_none", random[f"{scale}_low"] <= margin, message, _numbers(random, scale))


def enough_seeds(trained: Mapping[str, Any], random: Mapping[str, Any]) -> Verdict:
    """What single vectors happen to do is no property of their kind."""
    counts = [int(arm["n_seeds"] or 0) for arm in (trained, random)]
    message = f"{counts[0]} trained and {counts[1]} random seeds, {MIN_SEEDS} of each are wanted"
    numbers = {"trained_seeds": counts[0], "random_seeds": counts[1]}
    return Verdict("at_least_three_seeds", min(counts) >= MIN_SEEDS, message, numbers)


def _value(row: Mapping[str, Any], scale: str) -> Any:
    return row["nll_gap_closed" if scale == "nll_gap" else scale]


def _interval(row: Mapping[str, Any], scale: str) -> str:
    return f"{_value(row, scale):.3f} [{row[f'{scale}_low']:.3f}, {row[f'{scale}_high']:.3f}]"


def _numbers(row: Mapping[str, Any], scale: str) -> dict[str, float]:
    if _value(row, scale) is None:
        return {}
    return {"estimate": _value(row, scale), "low": row[f"{scale}_low"], "high": row[f"{scale}_high"]}
