"""Adapters of one arm in one folder, one a seed, with a table of them: as heal and attribution store what they train.

In: what `resumed.take` has put into `seed-71/` and so on. Out: names, rows, curves and a verdict
that all of them share.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from steer_pipeline.lab.finetune.training import HISTORY, RECORD
from steer_pipeline.lab.models.identity import adapter_identity
from steer_pipeline.lab.verdict import Verdict

ADAPTERS = "adapters.parquet"


@dataclass(frozen=True)
class Bundle:
    """What was trained: one row an adapter, and what each cost, by folder; {}: it lay there already."""

    adapters: pl.DataFrame
    costs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def place(seed: int) -> str:
    """Where the adapter of a seed lies in the bundle of its arm."""
    return f"seed-{seed}"


def trained_row(folder: Path, arm: str, seed: int) -> dict[str, Any]:
    """What the record of a finished adapter says of it: where it lies, hashes, steps and the watched loss."""
    name = place(seed)
    record = json.loads((folder / name / RECORD).read_text())
    return {
        "arm": arm,
        "seed": seed,
        "folder": name,
        "adapter": adapter_identity(folder / name),
        "model": record["model"],
        "steps": record["numbers"]["steps"],
        **{each: record["numbers"][each] for each in ("selection_nll_first", "selection_nll_last")},
    }


def history_of(folder: Path) -> pl.DataFrame:
    """Loss curves of all adapters of a bundle, with arm and seed."""
    return pl.concat(
        [
            pl.read_parquet(folder / row["folder"] / HISTORY).select(
                pl.lit(row["arm"]).alias("arm"), pl.lit(row["seed"]).alias("seed"), pl.all()
            )
            for row in pl.read_parquet(folder / ADAPTERS).iter_rows(named=True)
        ]
    )


def every_seed_is_trained(adapters: pl.DataFrame, seeds: Sequence[int]) -> Verdict:
    """Whether an arm has an adapter of each of its seeds."""
    lacking = sorted(set(seeds) - set(adapters["seed"]))
    return Verdict(
        "every_seed_is_trained",
        not lacking,
        f"no adapter of seed {', '.join(map(str, lacking))}" if lacking else f"{adapters.height} adapters",
        {"adapters": adapters.height, "rows": int(adapters["rows"][0])},
    )
