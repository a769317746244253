"""The pilot's headline under every defensible analysis, and the same analyses where there is nothing to find.

In: stored rows of `rewrite_comparison`, keep sets and dose curves. Out: a table on stderr and, in `make null`'s JSON
line, for each steered variant and trait the share of analyses that give the wanted effect, and the shares of those that
find one in base_resample and random_direction, which did not aim at it. No analysis is picked by what it says.

An analysis is a choice of rows (all, kept ones, those not cut by the token limit, those that break no rule), of the
scale, of the reference (base or its resample), of the part of the news (all, and random halves by seed), and of how the
shift is measured (the mean, or the share of rows that moved). Other sites and doses come from the dose curve.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import numpy as np
import polars as pl

from steer_pipeline.io.reader import Reader
from steer_pipeline.lab.personas.steps import SWEEP
from steer_pipeline.lab.rewrites import Refused
from steer_pipeline.lab.rewrites.aims import SIGNS, TRAIT
from steer_pipeline.lab.rewrites.comparison import BASE, RANDOM, RESAMPLE
from steer_pipeline.lab.rewrites.stored import read_tables
from steer_pipeline.lab.stats import mean_interval
from steer_pipeline.resources import open_store
from steer_pipeline.settings import settings

FILTERS = ("all rows", "kept", "not cut", "not suspect")
REFERENCES = (BASE, RESAMPLE)
PARTS = (None, 1, 2)  # all news, or the half that a seed draws
MEASURES = ("mean", "moved rows")
LEAST = 48  # analyses of a variant and trait
LEAST_ROWS = 8
LEVEL, AGREE = (
    0.05,
    0.9,
)  # of the analyses, that may find something where nothing is, and that must where it is


def multiverse(options: argparse.Namespace) -> dict[str, Any]:
    """Shares of analyses that agree, by variant and trait and over all; and under the null."""
    read = Reader(open_store())
    version = read.current("rewrite_comparison")
    if version is None:
        raise Refused("no rewrite_comparison is stored: run `make pilot` first")
    rows = read_tables(version.path).tables.rows
    keep = {name: read.rows("keep_set", name) for name in rows["variant"].unique(maintain_order=True)}
    rows = _with_kept(rows, keep)
    told: list[dict[str, Any]] = []
    for name, spec in settings().variants.items():
        if spec.role != "steered":
            continue
        for persona, way in spec.targets.items():
            scales = _scales(rows, persona)
            own = [_agrees(rows, name, SIGNS[way], one) for one in _analyses(scales, name)]
            doses = list(_doses(read, persona, SIGNS[way]))
            told.append(_row(name, persona, way, [*own, *doses], len(doses)))
            for control in (RESAMPLE, RANDOM):
                null = [
                    _agrees(rows, control, sign, one)
                    for sign in (1, -1)
                    for one in _analyses(scales, control)
                ]
                told.append(_row(control, persona, way, null, 0))
    table = pl.DataFrame(told).unique(maintain_order=True)
    _show(table)
    return _summary(table)


def _with_kept(rows: pl.DataFrame, keep: Mapping[str, pl.DataFrame | None]) -> pl.DataFrame:
    """With `kept`; rows of a variant without a keep set are all kept."""
    sets = [one.select("row_id", "variant", kept="keep") for one in keep.values() if one is not None]
    if not sets:
        return rows.with_columns(kept=pl.lit(True))
    joined = rows.join(pl.concat(sets), on=["row_id", "variant"], how="left", maintain_order="left")
    return joined.with_columns(pl.col("kept").fill_null(True))


def _scales(rows: pl.DataFrame, persona: str) -> list[str]:
    return [name for name in rows.columns if name.startswith(f"{TRAIT}{persona}_")]


Analysis = tuple[str, str, str, int | None, str]  # filter, metric, reference, part, measure


def _analyses(scales: list[str], variant: str) -> Iterator[Analysis]:
    references = [name for name in REFERENCES if name != variant]
    yield from product(FILTERS, scales, references, PARTS, MEASURES)


def _agrees(rows: pl.DataFrame, variant: str, sign: int, analysis: Analysis) -> bool | None:
    """Whether the analysis finds the effect; None where it has too few rows to be made."""
    kept, metric, reference, part, measure = analysis
    wanted = {
        "all rows": pl.lit(True),
        "kept": pl.col("kept"),
        "not cut": ~pl.col("truncated"),
        "not suspect": ~pl.col("suspect"),
    }[kept]
    sides = [rows.filter(pl.col("variant") == name, wanted) for name in (variant, reference)]
    both = sides[0].select("row_id", own=metric).join(sides[1].select("row_id", base=metric), on="row_id")
    both = both.drop_nulls().sort("row_id")
    if part is not None:
        order = np.random.default_rng(part).permutation(both.height)
        both = both[np.sort(order[: both.height // 2])]
    if both.height < LEAST_ROWS:
        return None
    differences = sign * (both["own"] - both["base"]).to_numpy()
    return mean_interval(np.sign(differences) if measure == "moved rows" else differences).low > 0


def _doses(read: Reader, persona: str, sign: int) -> Iterator[bool]:
    """Other sites and doses: every coherent cell of the dose curve on all of its rows."""
    version = read.current("dose_curve", persona)
    if version is None:
        return
    cells = pl.read_parquet(version.path / SWEEP).filter(
        pl.col("direction") == "persona", pl.col("fraction") * sign > 0, "coherent"
    )
    for row in cells.filter(pl.col("n") == pl.col("n").max()).iter_rows(named=True):
        yield row["shift_low"] > 0 if sign > 0 else row["shift_high"] < 0


def _row(variant: str, persona: str, way: str, found: list[bool | None], doses: int) -> dict[str, Any]:
    known = [one for one in found if one is not None]
    null = variant in (RESAMPLE, RANDOM)
    return {
        "variant": variant, "persona": persona, "wanted": "either" if null else way, "analyses": len(known),
        "sites_and_doses": doses, "agree": sum(known), "share": round(sum(known) / max(len(known), 1), 4), "null": null,
    }  # fmt: skip


def _show(table: pl.DataFrame) -> None:
    print("", file=sys.stderr)
    for row in table.iter_rows(named=True):
        print(
            f"{row['variant']:24}{row['persona']:16}{row['wanted']:8}{row['agree']:4} of {row['analyses']:3} analyses "
            f"({row['share']:.1%}), {row['sites_and_doses']} of other sites and doses",
            file=sys.stderr,
        )


def _summary(table: pl.DataFrame) -> dict[str, Any]:
    """In the form of the other nulls; `holds` where no more than `LEVEL` of the null analyses find something."""
    null, own = table.filter("null"), table.filter(~pl.col("null"))
    share = {
        "null": float(null["agree"].sum() / max(1, int(null["analyses"].sum()))),
        "planted": float(own["agree"].sum() / max(1, int(own["analyses"].sum()))),
    }
    return {
        "table": table.drop("null").to_dicts(),
        "analyses": int(own["analyses"].min() or 0),  # type: ignore[arg-type]
        "share_null": round(share["null"], 4),
        "holds": share["null"] <= LEVEL,
        "planted": {
            "share": round(share["planted"], 4),
            "holds": share["planted"] >= AGREE and int(own["analyses"].min() or 0) >= LEAST,  # type: ignore[arg-type]
        },
    }
