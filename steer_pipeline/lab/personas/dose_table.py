"""What a dose sweep found: one row a cell, and the dose that it recommends. Made of stored rows, without a model.

In: rows of `dose.ROW_SCHEMA` and limits. Out: a table of trait, shift, costs against base with intervals and what lies
beyond a limit; a `Recommendation` with its place among random directions of the same norm.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from steer_pipeline.catalogue.specs import CoherenceSpec, DoseSpec
from steer_pipeline.lab.controls import place_among
from steer_pipeline.lab.quality.coherence import COSTS, beyond, coherence
from steer_pipeline.lab.stats import Interval, detectable, mean_interval, mean_intervals
from steer_pipeline.lab.vectors.doses import Recommendation

REACH = 0.9  # share of the best coherent shift that a recommended dose must reach
COST = "cost_"  # of a row; `EXTRA` of a cell: the paired difference to base
EXTRA = "extra_"
_NEAR = 1e-9


def sweep_table(rows: pl.DataFrame, spec: DoseSpec, limits: CoherenceSpec) -> pl.DataFrame:
    """One row a cell, from the scored rows.

    Columns: direction, draw, block, fraction, alpha, n; trait, trait_low, trait_high (mean score and 95% interval);
    shift, shift_low, shift_high (paired difference to base), shift_detectable (smallest that would be found with 80%
    power); shown_rate, opposite_rate, suspect_rate, truncated_rate, changed_rate (texts unlike base's), facts_kept,
    loop_rate, nll (nats a token under the unsteered model), kl, kl_low, kl_high (nats a token, of the rows where it is
    measured); extra_suspects, extra_facts_lost, extra_loops, extra_length, extra_nll, each with _low and _high (paired
    differences to base, `coherence.COSTS`);
    strain (the largest share of a relative limit that is used; 1 is all of it); beyond (sentences on what lies beyond
    a limit) and coherent (nothing does); frontier (no other cell of the persona has more shift for no more strain, nor
    as much for less). Base appears as fraction 0 of every block.
    """
    base = rows.filter(pl.col("direction") == "base").sort("row_id")
    names = [name for name in rows.get_column("variant").unique(maintain_order=True) if name != "base"]
    cells = {name: rows.filter(pl.col("variant") == name).sort("row_id") for name in names}
    bases = {
        name: base.filter(pl.col("row_id").is_in(cell["row_id"].implode())) for name, cell in cells.items()
    }
    table = []
    for same_rows in _with_same_rows(cells):
        own_base = bases[same_rows[0]]
        traits = np.stack(
            [own_base["trait"].to_numpy(), *(cells[name]["trait"].to_numpy() for name in same_rows)]
        )
        shifts = (traits - traits[0]).T
        trait, shift, found = mean_intervals(traits.T), mean_intervals(shifts), detectable(shifts).tolist()
        for i, name in enumerate(same_rows, start=1):
            row = _summary(cells[name], own_base, spec, limits, trait[i], shift[i])
            table.append(row | {"shift_detectable": found[i]})
    nothing = Interval(0.0, 0.0, 0.0, base.height)  # base is no sample of what base differs from base
    own = _summary(base, base, spec, limits, mean_interval(base["trait"].to_numpy()), nothing)
    own |= {"shift_detectable": None}
    blocks = sorted({int(cell["block"][0]) for cell in cells.values()})
    table += [own | {"direction": "persona", "block": block} for block in blocks]
    floats = [f"{name}{edge}" for name in ("kl", *(f"{EXTRA}{cost}" for cost in COSTS)) for edge in _EDGES]
    types = {
        "block": pl.Int32,
        "draw": pl.Int32,
        **dict.fromkeys(("facts_kept", "strain", "shift_detectable", *floats), pl.Float64),
    }
    made = pl.DataFrame(table, schema_overrides=types, infer_schema_length=None)
    return _with_frontier(made).sort("direction", "block", "fraction", "draw")


_EDGES = ("", "_low", "_high")


def _with_same_rows(cells: Mapping[str, pl.DataFrame]) -> list[list[str]]:
    """Names of cells, together where they hold the same news items: these share their resamples."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, cell in cells.items():
        groups.setdefault(tuple(cell["row_id"]), []).append(name)
    return list(groups.values())


def _summary(
    cell: pl.DataFrame,
    base: pl.DataFrame,
    spec: DoseSpec,
    limits: CoherenceSpec,
    trait: Interval,
    shift: Interval,
) -> dict[str, Any]:
    """One row of the table; `cell` and `base` hold the same news rows in the same order."""
    summary = cell.select(
        pl.col("direction", "draw", "block", "fraction", "alpha").first(),
        n=pl.len(),
        shown_rate=pl.col("shown").mean(),
        opposite_rate=pl.col("opposite_shown").mean(),
        suspect_rate=pl.col(f"{COST}suspects").mean(),
        truncated_rate=pl.col("truncated").mean(),
        changed_rate=(pl.col("text") != base.get_column("text")).mean(),
        facts_kept=pl.col("facts_kept").mean(),
        loop_rate=pl.col(f"{COST}loops").mean(),
        nll=pl.col(f"{COST}nll").mean(),
    ).row(0, named=True)
    costs = coherence(_costs(cell), _costs(base), limits)
    kl = cell["kl"].drop_nulls().to_numpy()
    summary |= _flat("trait", trait) | _flat("shift", shift)
    summary |= _flat("kl", mean_interval(kl) if kl.size else None)
    for name, cost in costs.items():
        summary |= _flat(f"{EXTRA}{name}", cost.difference)
    broken = [*beyond(costs), *_beyond_absolute(summary, spec)]
    strains = [cost.strain for cost in costs.values() if cost.strain is not None]
    return summary | {
        "strain": max(strains, default=None),
        "beyond": "; ".join(broken),
        "coherent": not broken,
    }


def _costs(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.select(pl.col(f"{COST}{name}").alias(name) for name in COSTS)


def _flat(name: str, interval: Interval | None) -> dict[str, float | None]:
    """`name`, `name_low`, `name_high`."""
    values = (None,) * 3 if interval is None else (interval.estimate, interval.low, interval.high)
    return {f"{name}{edge}": value for edge, value in zip(_EDGES, values, strict=True)}


def _beyond_absolute(summary: Mapping[str, Any], spec: DoseSpec) -> list[str]:
    """A sentence for each absolute limit that the cell breaks, as `coherence.beyond` for the relative ones."""
    broken = []
    kl, kept = summary["kl"], summary["facts_kept"]
    # Random directions show what disturbance does to the trait; their KL is not measured.
    judged_by_kl = spec.max_kl_nats is not None and summary["direction"] != "random"
    if judged_by_kl and (kl is None or kl > spec.max_kl_nats):
        broken.append(f"KL {_kl(summary)}, limit {spec.max_kl_nats:g}")
    if spec.max_suspect_rate is not None and summary["suspect_rate"] > spec.max_suspect_rate:
        broken.append(f"suspects {summary['suspect_rate']:.1%}, limit {spec.max_suspect_rate:.1%}")
    if spec.min_facts_kept is not None and kept is not None and kept < spec.min_facts_kept:
        broken.append(f"facts kept {kept:.0%}, limit {spec.min_facts_kept:.0%}")
    return broken


def _with_frontier(table: pl.DataFrame) -> pl.DataFrame:
    """Marks the persona's cells of positive dose than which no other has more for less."""
    at = pl.col("direction").eq("persona") & pl.col("fraction").gt(0) & pl.col("strain").is_not_null()
    own = table.with_row_index("place").filter(at).select("place", "shift", "strain").rows()
    first = {
        place
        for place, shift, strain in own
        if not any(
            s >= shift and t <= strain and (s > shift or t < strain) for other, s, t in own if other != place
        )
    }
    return table.with_columns(frontier=pl.Series([place in first for place in range(table.height)]))


# ------------------------------------------------------------------------------------- the recommendation


def recommend_dose(table: pl.DataFrame, persona: str, *, both_poles: bool = False) -> Recommendation:
    """The smallest coherent positive dose with at least 90% of the best coherent trait shift.

    A candidate is a coherent cell of the persona's direction with a positive fraction whose shift's interval
    lies above zero. With `both_poles` (personas of kind axis, whose vector is also used with its sign turned)
    the same block must also be coherent at the negative dose of that size or, where it was not swept, at the
    next larger one. The best candidate sets the mark; among those that reach `REACH` of it, the smallest
    fraction wins, and between blocks the larger shift. Of a sweep that was refined only the cells on all rows count.

    Args:
        table: what `sweep_table` returns.

    Returns:
        A recommendation whose block is None, and whose reason says what failed, when there is no candidate. Where the
        table has random directions, with its rank among them.
    """
    steered = _on_all_rows(table)
    positive = steered.filter(pl.col("fraction") > 0)
    coherent = positive.filter("coherent")
    moving = coherent.filter(pl.col("shift_low") > 0)
    candidates = [
        row
        for row in moving.iter_rows(named=True)
        if not both_poles or _negative_is_coherent(steered, row["block"], row["fraction"])
    ]
    if not candidates:
        none = Recommendation(persona, None, None, None, _why_none(positive, coherent, moving))
        return _beside_random(none, table, both_poles=both_poles)
    best = max(row["shift"] for row in candidates)
    chosen = min(
        (row for row in candidates if row["shift"] >= REACH * best),
        key=lambda row: (row["fraction"], -row["shift"]),
    )
    reason = (
        f"smallest coherent dose with at least {REACH:.0%} of the best coherent shift: "
        f"{chosen['shift']:+.3f} [{chosen['shift_low']:+.3f}, {chosen['shift_high']:+.3f}] of {best:+.3f}, "
        f"{_costs_in_words(chosen)}, n {chosen['n']}; {_next_dose(positive, chosen)}"
    )
    found = Recommendation(persona, int(chosen["block"]), chosen["fraction"], chosen["alpha"], reason)
    return _beside_random(found, table, both_poles=both_poles)


def _on_all_rows(table: pl.DataFrame) -> pl.DataFrame:
    """The persona's own steered cells, those that were measured on every row."""
    steered = table.filter((pl.col("direction") == "persona") & (pl.col("fraction") != 0))
    return steered.filter(pl.col("n") == pl.col("n").max())


def _negative_is_coherent(steered: pl.DataFrame, block: int, fraction: float) -> bool:
    """Coherence of the swept negative dose next in size to `fraction`; False when none is that large."""
    covering = _covering(steered, block, fraction)
    return covering is not None and bool(covering["coherent"])


def _covering(steered: pl.DataFrame, block: int, fraction: float) -> dict[str, Any] | None:
    """The cell of the negative dose of that size or, where there is none, of the next larger one."""
    cells = steered.filter((pl.col("block") == block) & (pl.col("fraction") <= -fraction + _NEAR))
    return None if cells.is_empty() else cells.sort("fraction").row(-1, named=True)


def _costs_in_words(cell: Mapping[str, Any]) -> str:
    known = [
        f"extra NLL {_signed(cell['extra_nll'])} nats a token",
        f"extra suspects {_signed(cell['extra_suspects'], 100)} points",
        f"KL {_kl(cell)}" if cell["kl"] is not None else "",
    ]
    return ", ".join(part for part in known if part)


def _next_dose(positive: pl.DataFrame, chosen: Mapping[str, Any]) -> str:
    """What keeps the recommendation from being the next larger dose at its block."""
    larger = positive.filter(
        (pl.col("block") == chosen["block"]) & (pl.col("fraction") > chosen["fraction"] + _NEAR)
    )
    if larger.is_empty():
        return "no larger dose was measured at that block"
    after = larger.sort("fraction").row(0, named=True)
    place = f"the next dose, {after['fraction']:+g}"
    if after["coherent"]:
        return f"{place}, is coherent too and shifts by {after['shift']:+.3f}"
    return f"{place}, is stopped by {after['beyond']}"


def _why_none(positive: pl.DataFrame, coherent: pl.DataFrame, moving: pl.DataFrame) -> str:
    if positive.is_empty():
        return "dose.fractions has no positive dose; add some"
    if coherent.is_empty():
        mildest = positive.sort("strain", "fraction", nulls_last=True).row(0, named=True)
        return (
            f"no positive dose is coherent: the mildest, {mildest['fraction']:+g} at block {mildest['block']}, is "
            f"stopped by {mildest['beyond']}; sweep smaller fractions, or look at the limits (`coherence`, `dose`)"
        )
    if moving.is_empty():
        best = coherent.sort("shift", descending=True).row(0, named=True)
        return (
            f"no coherent dose moves the trait: the best, {best['fraction']:+g} at block {best['block']}, "
            f"shifts it by {best['shift']:+.3f} [{best['shift_low']:+.3f}, {best['shift_high']:+.3f}] over "
            f"{best['n']} rows; sweep other blocks or larger fractions, or look at the contrast set"
        )
    return (
        f"{moving.height} positive doses are coherent and move the trait, but at none is the negative dose "
        "of that size coherent; sweep the same fractions with both signs, or smaller ones"
    )


def _kl(cell: Mapping[str, Any]) -> str:
    """With its interval over the rows that were drawn for it."""
    low, high = cell.get("kl_low"), cell.get("kl_high")
    between = "" if low is None else f" [{_shown(low)}, {_shown(high)}]"
    return f"{_shown(cell['kl'])}{between} nats a token"


def _shown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"


def _signed(value: float | None, scale: float = 1.0) -> str:
    return "unknown" if value is None else f"{scale * value:+.2f}"


# ------------------------------------------------------------------------------------- random directions


def band_place(table: pl.DataFrame, persona: str, *, both_poles: bool) -> tuple[int, float]:
    """(block, fraction) at which random directions are tried: the recommended one, else where the trait moved most."""
    found = recommend_dose(table, persona, both_poles=both_poles)
    if found.block is not None and found.fraction is not None:
        return found.block, found.fraction
    steered = _on_all_rows(table)
    positive = steered.filter(pl.col("fraction") > 0)
    most = (steered if positive.is_empty() else positive).sort("shift", descending=True).row(0, named=True)
    return int(most["block"]), float(most["fraction"])


def band_of(table: pl.DataFrame) -> pl.DataFrame:
    """The cells of random directions, all at one block and dose."""
    return table.filter(direction="random").sort("draw")


def cell_beside_band(table: pl.DataFrame, *, turned: bool = False) -> dict[str, Any] | None:
    """The persona's cell at the block and dose of the random directions; `turned`: at minus that dose.

    Returns:
        None where it was not swept, or there are no random directions.
    """
    band = band_of(table)
    if band.is_empty():
        return None
    fraction = float(band["fraction"][0]) * (-1 if turned else 1)
    cells = _on_all_rows(table).filter(
        (pl.col("block") == band["block"][0]) & ((pl.col("fraction") - fraction).abs() < _NEAR)
    )
    return None if cells.is_empty() else cells.row(0, named=True)


def _beside_random(found: Recommendation, table: pl.DataFrame, *, both_poles: bool) -> Recommendation:
    """With the shifts of the random directions and the persona's rank among them.

    p = (1 + number of random directions that shift at least as far) / (1 + number of random directions). A direction
    and its opposite are as random as each other, so the same band serves the negative dose.
    """
    band, cell = band_of(table), cell_beside_band(table)
    if cell is None:
        return found
    shifts = band["shift"].to_numpy()
    turned = cell_beside_band(table, turned=True) if both_poles else None
    return replace(
        found,
        random_n=len(shifts),
        random_mean=float(shifts.mean()),
        random_min=float(shifts.min()),
        random_max=float(shifts.max()),
        random_rank_p=place_among(cell["shift"], shifts, 1).rank_p,
        negative_rank_p=None if turned is None else place_among(turned["shift"], shifts, -1).rank_p,
    )


# ------------------------------------------------------------------------------------- from coarse to fine


def best_cells(table: pl.DataFrame, *, both_poles: bool) -> set[tuple[int, float]]:
    """(block, fraction) of what a second pass measures on all rows: at the best one or two blocks, the dose that the
    first pass would recommend by its estimates, the doses next to it, and with `both_poles` their opposites.

    Blocks count whose best coherent shift reaches `REACH` of the best one.
    """
    steered = _on_all_rows(table)
    positive = steered.filter(pl.col("fraction") > 0)
    pool = positive.filter("coherent")
    pool = positive if pool.is_empty() else pool
    if pool.is_empty():
        return set(steered.select("block", "fraction").rows())
    by_block = pool.group_by("block").agg(pl.col("shift").max()).sort("shift", descending=True).rows()
    marks = {block: shift for block, shift in by_block[:2] if shift >= REACH * by_block[0][1]}
    marks = marks or dict(by_block[:1])
    chosen: set[tuple[int, float]] = set()
    for block, mark in marks.items():
        reaching = pool.filter((pl.col("block") == block) & (pl.col("shift") >= min(REACH * mark, mark)))
        doses = positive.filter(block=block).sort("fraction")["fraction"].to_list()
        at = doses.index(reaching["fraction"].min())
        near = doses[max(at - 1, 0) : at + 2]
        opposites = [_covering(steered, block, dose) for dose in near] if both_poles else []
        chosen |= {(block, dose) for dose in near}
        chosen |= {(block, cell["fraction"]) for cell in opposites if cell is not None}
    return chosen
