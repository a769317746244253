"""The numbers of a pilot in one object, and what in them must not be so.

In: the summary table of a comparison (`lab.rewrites.comparison`). Out: the object that `make pilot` prints, and
sentences about controls that move.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from steer_pipeline.lab.rewrites.aims import TRAIT, headline_scales
from steer_pipeline.lab.rewrites.costs import length_ratio

# Cost of `lab.quality.coherence` -> what it is called there.
COHERENCE = {
    "suspects": "extra_suspects",
    "facts_lost": "lost_facts",
    "loops": "extra_loops",
    "length": "length_ratio",
    "nll": "extra_nll",
}


def pilot_numbers(
    summary: pl.DataFrame,
    *,
    costs: pl.DataFrame | None = None,
    combined: pl.DataFrame | None = None,
    band: pl.DataFrame | None = None,
) -> dict[str, dict[str, Any]]:
    """variant -> rows, suspect_rate, facts_kept and, for each trait, the shift to base with its interval.

    Shifts are paired differences of the signed trait score, on the persona's headline scale (`aims.headline_scales`);
    base's own are zero. facts_kept is None where the news has no facts.

    Args:
        costs: `costs.COSTS_SCHEMA`; every variant but base has `coherence` then: each cost with its interval, and
            `within`: whether the profile's limit is kept, None where it is not judged.
        combined: `costs.COMBINED_SCHEMA`; variants with an aim have `combined` then.
        band: `band.BAND_TABLE_SCHEMA`; traits that a variant aims at have `random_rank_p` then.
    """
    result = _of_summary(summary)
    for row in _rows(costs):
        if row["variant"] in result:
            result[row["variant"]].setdefault("coherence", {})[COHERENCE[row["cost"]]] = _cost(row)
    for row in _rows(combined):
        if row["variant"] in result:
            result[row["variant"]]["combined"] = {name: row[name] for name in ("score", "low", "high")}
    for row in _rows(band):
        trait = result.get(row["variant"], {}).get("trait", {}).get(row["persona"])
        if trait is not None:
            trait["random_rank_p"] = row["random_rank_p"]
    return result


def _rows(table: pl.DataFrame | None) -> Iterator[dict[str, Any]]:
    return iter(()) if table is None else table.iter_rows(named=True)


def _cost(row: Mapping[str, Any]) -> dict[str, Any]:
    """Of length the ratio, which is 1 where nothing changes; of all else the difference."""
    ratio = row["cost"] == "length"
    name = "ratio" if ratio else "difference"
    values = {name: row["difference"], "low": row["low"], "high": row["high"]}
    return {key: length_ratio(value) if ratio else value for key, value in values.items()} | {
        "within": row["within"]
    }


def _of_summary(summary: pl.DataFrame) -> dict[str, dict[str, Any]]:
    scales = headline_scales(summary["metric"].unique(maintain_order=True))
    result: dict[str, dict[str, Any]] = {}
    for row in summary.iter_rows(named=True):
        blank: dict[str, Any] = {"rows": 0, "suspect_rate": None, "facts_kept": None, "trait": {}}
        entry = result.setdefault(row["variant"], blank)
        if row["metric"] == "suspect":
            entry |= {"rows": row["n"], "suspect_rate": row["mean"]}
        elif row["metric"] == "facts_kept":
            entry["facts_kept"] = row["mean"]
        elif (persona := _persona(row["metric"], scales)) is not None:
            shift = {"shift": row["difference"], "low": row["low"], "high": row["high"]}
            is_base = row["reference"] is None
            entry["trait"][persona] = dict.fromkeys(shift, 0.0) if is_base else shift
    return result


def moved_controls(summary: pl.DataFrame) -> list[str]:
    """A sentence for each control and trait whose interval leaves zero out: such a pilot proves nothing."""
    scales = headline_scales(summary["metric"].unique(maintain_order=True))
    rows = summary.filter((pl.col("role") == "control") & ((pl.col("low") > 0) | (pl.col("high") < 0)))
    return [
        f"control {row['variant']} moves {persona} by {row['difference']:+.3f} "
        f"[{row['low']:+.3f}, {row['high']:+.3f}]; a control's interval must include zero: look at its rows in "
        f"rewrite_comparison, and at the scale ({scales[persona]})"
        for row in rows.iter_rows(named=True)
        if (persona := _persona(row["metric"], scales)) is not None
    ]


def missed_targets(
    summary: pl.DataFrame, targets: Mapping[str, Mapping[str, str]], band: pl.DataFrame | None = None
) -> list[str]:
    """A sentence for each variant that does not move a trait as it should: beyond zero and the band, with its sign.

    Args:
        targets: variant -> persona -> `up` or `down`.
        band: `band.BAND_TABLE_SCHEMA`: what random directions do; without it zero alone is the floor.
    """
    scales = headline_scales(summary["metric"].unique(maintain_order=True))
    edges = band_edges(band)
    sentences = []
    for row in summary.iter_rows(named=True):
        persona = _persona(row["metric"], scales) or ""
        wanted = targets.get(row["variant"], {}).get(persona)
        if wanted is None or row["low"] is None:
            continue
        edge = edges.get((row["variant"], persona))
        if not is_met(row, wanted, edge):
            sentences.append(
                f"{row['variant']} should move {persona} {wanted}, its shift is "
                f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]; the interval must lie "
                f"{'above' if wanted == 'up' else 'below'} {'zero' if edge is None else _edge(edge, wanted)}"
            )
    return sentences


def band_edges(band: pl.DataFrame | None) -> dict[tuple[str, str], float]:
    """(variant, persona) -> the furthest that a random direction went in the wanted direction."""
    return {
        (row["variant"], row["persona"]): row["band_high"] if row["wanted"] == "up" else row["band_low"]
        for row in _rows(band)
    }


def is_met(row: Mapping[str, Any], wanted: str, edge: float | None) -> bool:
    """Whether a shift's interval lies beyond zero in the wanted direction, and beyond all random directions.

    Args:
        row: with `low` and `high`.
        edge: of `band_edges`; None where there is no band.
    """
    if wanted == "up":
        return row["low"] > max(0.0, edge or 0.0)
    return row["high"] < min(0.0, edge or 0.0)


def _edge(edge: float, wanted: str) -> str:
    beyond = edge > 0 if wanted == "up" else edge < 0
    return f"{edge:+.3f}, which a random direction reaches" if beyond else "zero"


def _persona(metric: str, scales: Mapping[str, str]) -> str | None:
    """`paranoid` of `trait_paranoid_lexicon`, where that is the persona's headline scale."""
    persona, _, scale = metric.removeprefix(TRAIT).rpartition("_")
    return persona if metric.startswith(TRAIT) and scales.get(persona) == scale else None
