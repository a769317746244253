"""What must hold of a comparison, judged from its stored files. In: a folder. Out: verdicts in plain words."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from steer_pipeline.lab.likelihood.tables import (
    AVERAGED_FOLDER,
    MISSING,
    PROMPTED,
    RANDOM,
    ROWS,
    TABLE,
    TRAINED,
    unequal_tokens,
)
from steer_pipeline.lab.verdict import Verdict


def judge(folder: Path, *, half: float, min_seeds: int) -> Iterator[Verdict]:
    """All verdicts on a vector_comparison's folder."""
    rows, table = pl.read_parquet(folder / ROWS), pl.read_parquet(folder / TABLE)
    broken = unequal_tokens(rows)
    first = (
        "" if broken.is_empty() else "; {arm}, row {row_id}: {problem}".format(**broken.row(0, named=True))
    )
    test = rows.filter(split="test")
    tokens = test.unique("row_id")["n_tokens"].sum()
    yield Verdict(
        "same_tokens_in_every_arm",
        broken.is_empty() and tokens > 0,
        f"{broken.height} measurements differ{first}" if first else f"{tokens} test tokens in every arm",
        {"unequal_measurements": broken.height, "test_tokens": int(tokens)},
    )
    arms = {row["arm"]: row for row in table.iter_rows(named=True)}
    prompted, trained, random = (arms[name] for name in (PROMPTED, TRAINED, RANDOM))
    yield Verdict(
        "prompting_has_an_effect",
        prompted["gain_low"] > 0,
        f"prompting gains {_told(prompted, 'gain')} nats a token",
        _numbers(prompted, "gain"),
    )
    yield Verdict(
        "trained_closes_half_of_the_gap",
        trained["gap_closed"] is not None and trained["gap_closed"] >= half,
        trained["reason"]
        or f"trained closes {_told(trained, 'gap')} of the gap, at least {half:g} is wanted",
        _numbers(trained, "gap"),
    )
    # Where there is no gap, what random directions gain on vanilla still says whether they do nothing.
    scale = "gap" if random["gap_closed"] is not None else "gain"
    yield Verdict(
        "random_closes_none",
        random[f"{scale}_low"] <= 0,
        f"random directions close {_told(random, scale)} "
        + ("of the gap" if scale == "gap" else "nats a token; there is no gap"),
        _numbers(random, scale),
    )
    missing = folder / AVERAGED_FOLDER / MISSING
    reason = json.loads(missing.read_text())["reason"] if missing.is_file() else None
    yield Verdict("averaged_exists", reason is None, reason or "there is an averaged vector")
    fewest = min(int(trained["n_seeds"] or 0), int(random["n_seeds"] or 0))
    yield Verdict(
        "at_least_three_seeds",
        fewest >= min_seeds,
        f"{trained['n_seeds']} trained and {random['n_seeds']} random seeds, {min_seeds} of each are wanted",
        {"trained_seeds": int(trained["n_seeds"] or 0), "random_seeds": int(random["n_seeds"] or 0)},
    )


def _value(row: Mapping[str, Any], scale: str) -> Any:
    return row["gap_closed" if scale == "gap" else "gain"]


def _told(row: Mapping[str, Any], scale: str) -> str:
    return f"{_value(row, scale):.3f} [{row[f'{scale}_low']:.3f}, {row[f'{scale}_high']:.3f}]"


def _numbers(row: Mapping[str, Any], scale: str) -> dict[str, float]:
    if _value(row, scale) is None:
        return {}
    return {"estimate": _value(row, scale), "low": row[f"{scale}_low"], "high": row[f"{scale}_high"]}
