"""What stands beside a comparison's summary: costs, combined scores, the random band, and all other axes.

In: comparison tables, the variants' specs, fitted scorers, scorers of all axes, and the rows of the random band. Out:
the same tables with the last six filled.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import polars as pl

from steer_pipeline.catalogue.specs import CoherenceSpec, VariantSpec
from steer_pipeline.lab.evaluation import TraitScorer
from steer_pipeline.lab.evaluation.scorer import require_telling
from steer_pipeline.lab.rewrites.aims import aims_of, headline_scales, trait_column
from steer_pipeline.lab.rewrites.axes import Candidates, score_axes, side_effects
from steer_pipeline.lab.rewrites.band import band_table
from steer_pipeline.lab.rewrites.comparison import BASE, ComparisonTables
from steer_pipeline.lab.rewrites.costs import combined_table, cost_table
from steer_pipeline.lab.rewrites.off_target import off_target_table

Scorers = Mapping[str, Mapping[str, TraitScorer]]


@dataclass(frozen=True)
class Sources:
    """What the evidence is made of beside the tables.

    Attributes:
        scorers: persona -> scale -> scorer, of the personas that some variant aims at.
        axes: persona -> scale -> how to get its scorer, in order of preference.
        band: rows of the random directions (row_id, variant, output); None where there are none.
    """

    variants: Mapping[str, VariantSpec]
    scorers: Scorers
    axes: Mapping[str, Candidates]
    band: pl.DataFrame | None
    limits: CoherenceSpec


def with_evidence(
    tables: ComparisonTables, sources: Sources, *, seed: int
) -> tuple[ComparisonTables, dict[str, str]]:
    """The tables with the last six filled; and axis -> why nothing can be told on it.

    Raises:
        ValueError: a scorer of a persona that a variant aims at says the same of every row.
    """
    rows = tables.rows
    compared = {name: spec for name, spec in sources.variants.items() if name in tables.roles}
    aims = aims_of(compared, headline_scales(rows.columns))
    for persona in dict.fromkeys(aim.persona for own in aims.values() for aim in own):
        for scale in sources.scorers[persona]:
            require_telling(persona, scale, rows[trait_column(persona, scale)])
    prompted = {spec.prompted_by: name for name, spec in compared.items() if spec.prompted_by}
    band = pl.DataFrame(schema={"row_id": pl.String, "variant": pl.String, "output": pl.String})
    if sources.band is not None:
        band = sources.band.select(band.columns).join(
            rows.filter(pl.col("variant") == BASE).select("row_id"), on="row_id", how="semi"
        )
    texts = pl.concat([rows.select(band.columns), band])
    scored = score_axes(texts, BASE, sources.axes)
    matrix, movement = side_effects(scored, BASE, band["variant"].unique(), aims, seed=seed)
    filled = replace(
        tables,
        costs=cost_table(rows, BASE, sources.limits),
        combined=combined_table(rows, BASE, aims, prompted),
        matrix=matrix,
        aims=movement,
        band=band_table(rows, _with_traits(band, sources.scorers), BASE, aims),
        off_target=off_target_table(rows, tables.summary, aims),
    )
    return filled, scored.left_out


def _with_traits(band: pl.DataFrame, scorers: Scorers) -> pl.DataFrame:
    texts = band["output"].to_list()
    return band.with_columns(
        pl.Series(trait_column(persona, scale), scorer.score_many(texts), dtype=pl.Float64)
        for persona, scales in scorers.items()
        for scale, scorer in scales.items()
    )
