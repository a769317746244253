"""What must hold of a vector that was carried to another model. In: a made folder. Out: verdicts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from steer_pipeline.catalogue.specs import TransportSpec
from steer_pipeline.lab.limits import MAX_RANDOM_SHARE, MIN_CARRIED_ROWS, MIN_CARRIED_SHARE
from steer_pipeline.lab.transport.measuring import ROWS, read_summary, read_tables
from steer_pipeline.lab.transport.shares import BASE, CARRIED, NATIVE, RANDOM, best_of
from steer_pipeline.lab.verdict import Verdict


def transport_verdicts(folder: Path, spec: TransportSpec) -> Iterator[Verdict]:
    """Whether the arms compare, whether there is an effect to carry, and how much of it arrives."""
    shares, _ = read_tables(folder)
    rows, summary = pl.read_parquet(folder / ROWS), read_summary(folder)
    yield _same_rows(rows, spec)
    native = shares.row(by_predicate=pl.col("arm") == NATIVE, named=True)
    yield Verdict(
        "native_vector_works",
        native["shift_low"] > 0,
        f"the target's own vector moves its {summary['scale']} score by {_between(native, 'shift')}",
        {"native_shift": native["shift"]},
    )
    yield _carried(shares)
    together = shares.row(by_predicate=pl.col("arm") == RANDOM, named=True)
    draws = shares.filter(pl.col("kind") == RANDOM, pl.col("arm") != RANDOM)
    yield Verdict(
        "random_rotations_carry_none",
        together["share"] is not None and together["share"] < MAX_RANDOM_SHARE,
        f"{draws.height} random rotations keep {_between(together, 'share')} of the own vector's effect, the best of "
        f"them {_number(draws['share'].max())}; limit {MAX_RANDOM_SHARE:g}",
        {"random_share": together["share"] or 0.0, "rotations": draws.height},
    )
    yield Verdict(
        "enough_news",
        summary["rows"] >= MIN_CARRIED_ROWS,
        f"{summary['rows']} news items in every arm, {MIN_CARRIED_ROWS} are wanted",
        {"rows": summary["rows"]},
    )


def _same_rows(rows: pl.DataFrame, spec: TransportSpec) -> Verdict:
    wanted = set(rows.filter(direction=BASE)["row_id"])
    differing = [
        str(name)
        for (name,), own in rows.group_by("variant", maintain_order=True)
        if set(own["row_id"]) != wanted or own.height != len(wanted)
    ]
    lengths = rows.filter(pl.col("direction") != BASE).select("block", "alpha").unique().height
    draws = rows.filter(direction=RANDOM)["draw"].n_unique()
    fine = not differing and lengths == 1 and draws == spec.n_random
    return Verdict(
        "arms_compare",
        fine,
        f"{rows['variant'].n_unique()} arms of {len(wanted)} news items, {draws} of {spec.n_random} random rotations; "
        f"{lengths} different blocks and lengths, 1 is allowed"
        + (f"; other items in {', '.join(differing[:3])}" if differing else ""),
        {"arms": rows["variant"].n_unique(), "differing": len(differing)},
    )


def _carried(shares: pl.DataFrame) -> Verdict:
    best, knowing = best_of(shares, knowing=False), best_of(shares, knowing=True)
    tried = shares.filter(kind=CARRIED).height
    if best is None:
        return Verdict(
            "carried_keeps_the_effect", False, "no map was fitted on texts that know nothing of the trait"
        )
    draws = shares.filter(pl.col("kind") == RANDOM, pl.col("arm") != RANDOM)["share"].to_list()
    above = sum(one is not None and best["share"] is not None and best["share"] > one for one in draws)
    message = (
        f"the best of {tried} maps, {best['arm']}, keeps {_between(best, 'share')} of the own vector's effect, more "
        f"than {above} of {len(draws)} random rotations; {MIN_CARRIED_SHARE:g} is wanted"
    )
    if knowing is not None:
        message += f"; with texts of the trait itself {knowing['arm']} keeps {_between(knowing, 'share')}"
    return Verdict(
        "carried_keeps_the_effect",
        best["share"] is not None and best["share"] >= MIN_CARRIED_SHARE,
        message,
        {"carried_share": best["share"] or 0.0, "above_random": above},
    )


def _number(value: Any) -> str:
    return "?" if value is None else f"{value:.2f}"


def _between(row: dict[str, Any], name: str) -> str:
    return f"{_number(row[name])} [{_number(row[f'{name}_low'])}, {_number(row[f'{name}_high'])}]"
