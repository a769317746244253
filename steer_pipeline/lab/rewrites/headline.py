"""The numbers of a pilot in one object, and what in them must not be so.

In: the summary table of a comparison (`lab.rewrites.comparison`). Out: the object that `make pilot` prints, and
sentences about controls that move.
"""

from collections.abc import Mapping
from typing import Any

import polars as pl

SCALE = "lexicon"


def pilot_numbers(summary: pl.DataFrame) -> dict[str, dict[str, Any]]:
    """variant -> rows, suspect_rate, facts_kept and, for each trait, the shift to base with its interval.

    Shifts are paired differences of the signed lexicon score; base's own are zero. facts_kept is None where
    the news has no facts.
    """
    result: dict[str, dict[str, Any]] = {}
    for row in summary.iter_rows(named=True):
        blank: dict[str, Any] = {"rows": 0, "suspect_rate": None, "facts_kept": None, "trait": {}}
        entry = result.setdefault(row["variant"], blank)
        if row["metric"] == "suspect":
            entry |= {"rows": row["n"], "suspect_rate": row["mean"]}
        elif row["metric"] == "facts_kept":
            entry["facts_kept"] = row["mean"]
        elif (persona := _persona(row["metric"])) is not None:
            shift = {"shift": row["difference"], "low": row["low"], "high": row["high"]}
            is_base = row["reference"] is None
            entry["trait"][persona] = dict.fromkeys(shift, 0.0) if is_base else shift
    return result


def moved_controls(summary: pl.DataFrame) -> list[str]:
    """A sentence for each control and trait whose interval leaves zero out: such a pilot proves nothing."""
    rows = summary.filter((pl.col("role") == "control") & ((pl.col("low") > 0) | (pl.col("high") < 0)))
    return [
        f"control {row['variant']} moves {persona} by {row['difference']:+.3f} "
        f"[{row['low']:+.3f}, {row['high']:+.3f}]; a control's interval must include zero: look at its rows in "
        "rewrite_comparison, and at the lexicon"
        for row in rows.iter_rows(named=True)
        if (persona := _persona(row["metric"])) is not None
    ]


def missed_targets(summary: pl.DataFrame, targets: Mapping[str, Mapping[str, str]]) -> list[str]:
    """A sentence for each variant that does not move a trait as it should: interval beyond zero, right sign.

    Args:
        targets: variant -> persona -> `up` or `down`.
    """
    sentences = []
    for row in summary.iter_rows(named=True):
        wanted = targets.get(row["variant"], {}).get(_persona(row["metric"]) or "")
        if wanted is None or row["low"] is None:
            continue
        if not (row["low"] > 0 if wanted == "up" else row["high"] < 0):
            sentences.append(
                f"{row['variant']} should move {_persona(row['metric'])} {wanted}, its shift is "
                f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]; the interval must lie "
                f"{'above' if wanted == 'up' else 'below'} zero"
            )
    return sentences


def _persona(metric: str) -> str | None:
    """`paranoid` of `trait_paranoid_lexicon`."""
    if metric.startswith("trait_") and metric.endswith(f"_{SCALE}"):
        return metric.removeprefix("trait_").removesuffix(f"_{SCALE}")
    return None
