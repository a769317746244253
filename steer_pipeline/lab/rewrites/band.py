"""Where a variant's shift stands among those of random directions.

In: trait scores of variants, base and random directions on the same news items, and what each variant aims at. Out: one
row a variant and aim, with a rank p-value. The floor of an effect is what any vector of that length does, not zero:
disturbance alone moves some scores.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from steer_pipeline.lab.columns import described
from steer_pipeline.lab.controls import Place, place_among
from steer_pipeline.lab.rewrites.aims import SIGNS, Aim

BAND_TABLE_SCHEMA, BAND_TABLE_COLUMNS = described(
    variant=(pl.String(), "Variant of the catalogue."),
    persona=(pl.String(), "Trait that the variant aims at."),
    wanted=(pl.String(), "`up` or `down`."),
    scale=(pl.String(), "Scale of the trait."),
    directions=(pl.Int64(), "Random directions in the band."),
    n=(pl.Int64(), "News items that they rewrote, and the variant too."),
    shift=(pl.Float64(), "The variant's paired mean difference to base on these items."),
    band_low=(pl.Float64(), "Smallest shift of a random direction."),
    band_mean=(pl.Float64(), "Mean shift of the random directions."),
    band_high=(pl.Float64(), "Largest shift of a random direction."),
    random_rank_p=(
        pl.Float64(),
        "(1 + directions that reach the variant's shift in the wanted direction) / (1 + directions).",
    ),
    band_sd=(pl.Float64(), "Standard deviation of the directions' shifts."),
    spread_p=(
        pl.Float64(),
        "One-sided p that another random direction shifts as far, from the spread of these (Student's t).",
    ),
    beyond=(pl.Boolean(), "Whether no direction reaches the shift and spread_p is below 0.05."),
)


def band_table(
    rows: pl.DataFrame, band: pl.DataFrame, base: str, aims: Mapping[str, list[Aim]]
) -> pl.DataFrame:
    """`BAND_TABLE_SCHEMA` of every aim; empty without a band.

    Args:
        rows: row_id, variant and the aims' trait columns, base among them.
        band: the same of the random directions, which may have rewritten fewer items.
    """
    found = []
    for variant, own_aims in aims.items():
        for aim in own_aims:
            own = _differences(rows.filter(pl.col("variant").is_in([variant, base])), base, aim.column)
            own = own.filter(pl.col("variant") == variant).join(
                band.select("row_id").unique(), on="row_id", how="semi"
            )
            if own.is_empty():
                continue
            directions = _shifts(rows, band.join(own.select("row_id"), on="row_id", how="semi"), base, aim)
            shift = float(own["difference"].to_numpy().mean())
            place = place_among(shift, directions, SIGNS[aim.wanted])
            found.append(
                {"variant": variant, "persona": aim.persona, "wanted": aim.wanted, "scale": aim.scale}
                | {"directions": place.directions, "n": own.height, "shift": shift}
                | {"band_low": place.low, "band_mean": place.mean, "band_high": place.high}
                | {"random_rank_p": place.rank_p, "band_sd": place.sd, "spread_p": place.spread_p}
                | {"beyond": place.beyond}
            )
    return pl.DataFrame(found, schema=BAND_TABLE_SCHEMA)


def place_of(row: Mapping[str, Any]) -> Place:
    """The place that a row of the table tells."""
    return Place(
        row["directions"],
        row["band_low"],
        row["band_mean"],
        row["band_high"],
        row["band_sd"],
        row["random_rank_p"],
        row["spread_p"],
    )


def _shifts(rows: pl.DataFrame, band: pl.DataFrame, base: str, aim: Aim) -> np.ndarray:
    """[directions] mean paired differences to base, by name of the direction."""
    columns = ("row_id", "variant", aim.column)
    both = pl.concat([rows.filter(pl.col("variant") == base).select(columns), band.select(columns)])
    means = _differences(both, base, aim.column).group_by("variant").agg(pl.col("difference").mean())
    return means.sort("variant")["difference"].to_numpy()


def _differences(rows: pl.DataFrame, base: str, column: str) -> pl.DataFrame:
    """row_id, variant, difference of every variant but base."""
    reference = rows.filter(pl.col("variant") == base).select("row_id", base=column)
    others = rows.filter(pl.col("variant") != base).select("row_id", "variant", own=column)
    return others.join(reference, on="row_id").select(
        "row_id", "variant", difference=pl.col("own") - pl.col("base")
    )
