"""The numbers of a pilot in one object, and what in them must not be so.

In: tables of a comparison (`lab.rewrites.comparison`). Out: the object that `make pilot` prints, and sentences about
targets that are missed. Of controls `lab.controls` speaks.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from steer_pipeline.lab.rewrites.aims import TRAIT, headline_scales
from steer_pipeline.lab.rewrites.band import place_of
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
    off_target: pl.DataFrame | None = None,
    control_shifts: pl.DataFrame | None = None,
) -> dict[str, dict[str, Any]]:
    """variant -> rows, suspect_rate, facts_kept and, for each trait, the shift to base with its interval.

    Shifts are paired differences of the signed trait score, on the persona's headline scale (`aims.headline_scales`);
    base's own are zero. facts_kept is None where the news has no facts.

    Args:
        costs: `costs.COSTS_SCHEMA`; every variant but base has `coherence` then: each cost with its interval, and
            `within`: whether the profile's limit is kept, None where it is not judged.
        combined: `costs.COMBINED_SCHEMA`; variants with an aim have `combined` then.
        band: `band.BAND_TABLE_SCHEMA`; traits that a variant aims at have `random_rank_p` and `random_spread_p` then.
        off_target: `off_target.OFF_TARGET_SCHEMA`; variants with an aim have `off_target` then.
        control_shifts: `controls.CONTROL_SCHEMA`; controls have `control` then: trait and scale -> state.
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
            trait |= {"random_rank_p": row["random_rank_p"], "random_spread_p": row["spread_p"]}
    for row in _rows(off_target):
        if row["variant"] in result:
            keys = ("persona", "scale", "shift", "low", "high", "all_shown", "n_rows")
            result[row["variant"]]["off_target"] = {key: row[key] for key in keys}
    for row in _rows(control_shifts):
        if row["control"] in result:
            told = result[row["control"]].setdefault("control", {})
            told[row["metric"].removeprefix(TRAIT)] = row["state"]
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


def missed_targets(
    summary: pl.DataFrame, targets: Mapping[str, Mapping[str, str]], band: pl.DataFrame | None = None
) -> list[str]:
    """A sentence for each variant that does not move a trait as it should: beyond zero and the band, with its sign.

    Args:
        targets: variant -> persona -> `up` or `down`.
        band: `band.BAND_TABLE_SCHEMA`: what random directions do; without it zero alone is the floor.
    """
    scales = headline_scales(summary["metric"].unique(maintain_order=True))
    places = band_places(band)
    sentences = []
    for row in summary.iter_rows(named=True):
        persona = _persona(row["metric"], scales) or ""
        wanted = targets.get(row["variant"], {}).get(persona)
        if wanted is None or row["low"] is None:
            continue
        place = places.get((row["variant"], persona))
        if not is_met(row, wanted, place):
            sentences.append(
                f"{row['variant']} should move {persona} {wanted}, its shift is "
                f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]; the interval must lie "
                f"{'above' if wanted == 'up' else 'below'} zero{_beyond(place)}"
            )
    return sentences


def band_places(band: pl.DataFrame | None) -> dict[tuple[str, str], dict[str, Any]]:
    """(variant, persona) -> its row of `band.BAND_TABLE_SCHEMA`."""
    return {(row["variant"], row["persona"]): row for row in _rows(band)}


def is_met(row: Mapping[str, Any], wanted: str, place: Mapping[str, Any] | None) -> bool:
    """Whether a shift's interval lies beyond zero in the wanted direction, and the shift beyond random directions.

    Args:
        row: with `low` and `high`.
        place: of `band_places`; None where there is no band.
    """
    told = row["low"] > 0 if wanted == "up" else row["high"] < 0
    return told and (place is None or place["beyond"])


def _beyond(place: Mapping[str, Any] | None) -> str:
    if place is None:
        return ""
    return (
        f", and its shift on {place['n']} items, {place['shift']:+.3f}, beyond all random directions and their spread: "
        f"{place_of(place)}"
    )


def _persona(metric: str, scales: Mapping[str, str]) -> str | None:
    """`paranoid` of `trait_paranoid_lexicon`, where that is the persona's headline scale."""
    persona, _, scale = metric.removeprefix(TRAIT).rpartition("_")
    return persona if metric.startswith(TRAIT) and scales.get(persona) == scale else None
