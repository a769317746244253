"""What a variant moves beside its aim, so that it can stand beside the headline.

In: the rows and the summary of a comparison, and what each variant aims at. Out: one row a variant with an aim. A scale
that is blind to everything but what was planted shows no movement beside the aim; so all scales are looked at.
"""

from collections.abc import Mapping
from typing import Any

import polars as pl

from steer_pipeline.lab.columns import described
from steer_pipeline.lab.rewrites.aims import TRAIT, Aim

OFF_TARGET_SCHEMA, OFF_TARGET_COLUMNS = described(
    variant=(pl.String(), "Variant of the catalogue."),
    persona=(pl.String(), "Trait beside its aims that moved most, on any scale; null where all are aims."),
    scale=(pl.String(), "Scale on which it did."),
    shift=(pl.Float64(), "Paired mean difference to base."),
    low=(pl.Float64(), "Lower end of its 95% interval."),
    high=(pl.Float64(), "Upper end of it."),
    detectable=(pl.Float64(), "Smallest shift that would be found with 80% power, from the spread seen."),
    n=(pl.Int64(), "News items that it stands on."),
    traits=(pl.Int64(), "Traits and scales beside the aims, of which this is the largest movement."),
    aims=(pl.Int64(), "Traits that it aims at."),
    n_rows=(pl.Int64(), "News items of the variant."),
    all_shown=(
        pl.Int64(),
        "Of them, rewrites with a marker of every pole aimed at; null where a persona has no lexicon.",
    ),
)


def off_target_table(
    rows: pl.DataFrame, summary: pl.DataFrame, aims: Mapping[str, list[Aim]]
) -> pl.DataFrame:
    """`OFF_TARGET_SCHEMA` of every variant that aims at something, in the order of `aims`."""
    found = []
    for variant, own in aims.items():
        wanted = {aim.persona for aim in own}
        beside = [
            row
            for row in summary.filter(variant=variant).iter_rows(named=True)
            if row["metric"].startswith(TRAIT)
            and row["difference"] is not None
            and _parts(row["metric"])[0] not in wanted
        ]
        entry: dict[str, Any] = {"variant": variant, "traits": len(beside), "aims": len(own)}
        if beside:
            most = max(beside, key=lambda row: abs(row["difference"]))
            persona, scale = _parts(most["metric"])
            entry |= {"persona": persona, "scale": scale, "shift": most["difference"]}
            entry |= {name: most[name] for name in ("low", "high", "detectable", "n")}
        found.append(entry | _shown(rows.filter(variant=variant), own))
    return pl.DataFrame(found, schema=OFF_TARGET_SCHEMA)


def told_off_target(row: Mapping[str, Any]) -> str:
    """`beside its aim most: rule_defiant (minilm) +0.240 [+0.200, +0.290]`; empty where nothing else was scored."""
    parts = []
    if row["persona"] is not None:
        parts.append(
            f"beside its aim most: {row['persona']} ({row['scale']}) {row['shift']:+.3f} [{row['low']:+.3f}, "
            f"{row['high']:+.3f}]"
        )
    if row["all_shown"] is not None and row["aims"] > 1:
        parts.append(f"markers of every aim stand in {row['all_shown']} of {row['n_rows']} rewrites")
    return "; ".join(parts)


def _parts(metric: str) -> tuple[str, str]:
    """Persona and scale of `trait_<persona>_<scale>`."""
    persona, _, scale = metric.removeprefix(TRAIT).rpartition("_")
    return persona, scale


def _shown(own: pl.DataFrame, aims: list[Aim]) -> dict[str, int | None]:
    """Rewrites that show every aim by its markers."""
    columns = [f"hits_{aim.persona}_{'positive' if aim.wanted == 'up' else 'negative'}" for aim in aims]
    if not set(columns) <= set(own.columns):
        return {"n_rows": own.height, "all_shown": None}
    every = pl.all_horizontal(pl.col(name) > 0 for name in columns)
    return {"n_rows": own.height, "all_shown": own.filter(every).height}
