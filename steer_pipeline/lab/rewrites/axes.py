"""Every variant on every axis of the catalogue: what it moved beside what it was meant to.

In: texts of the variants and of the random directions, scorers of each axis in order of preference, what each variant
aims at. Out: the matrix of variants by axes and the table of aim and side effects (`steerability`). An axis is measured
in standard deviations of base, so a scale on which nearly all of base's texts are alike gives way to the next.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from steer_pipeline.lab.evaluation import ExamplesError, TraitScorer
from steer_pipeline.lab.rewrites.aims import SIGNS, Aim
from steer_pipeline.lab.rewrites.steerability import AIM_SCHEMA, MATRIX_SCHEMA, steerability

MOST_ALIKE = (
    0.9  # of base's texts with one and the same score; a deviation that hangs on fewer texts is no measure
)
# Scale -> the scorer, which is made when it is needed: fitting one takes seconds.
Candidates = Mapping[str, Callable[[], TraitScorer]]
MATRIX_COLUMNS = {
    "variant": "Variant of the catalogue.",
    "axis": "Persona whose trait is scored.",
    "scale": "Scale of the axis: the first on which base's texts differ.",
    "aimed": "1 where the variant is meant to raise the trait, -1 to lower it, else 0.",
    "moved": "Paired mean difference to base, in standard deviations of base.",
    "low": "Lower end of its 95% interval.",
    "high": "Upper end of it.",
    "detectable": "Smallest movement that would be found with 80% power, from the spread seen.",
    "band_low": "Smallest movement of a random direction.",
    "band_high": "Largest movement of a random direction.",
    "beyond_band": "Whether the movement lies outside the band, on the news items that the band has.",
}
STORED_MATRIX = pl.Schema({name: MATRIX_SCHEMA.get(name, pl.String()) for name in MATRIX_COLUMNS})


@dataclass(frozen=True)
class Scored:
    """Texts on all axes.

    Attributes:
        scores: row_id, variant, axis, score.
        scales: axis -> scale.
        left_out: axis -> why nothing can be told on it.
    """

    scores: pl.DataFrame
    scales: dict[str, str]
    left_out: dict[str, str] = field(default_factory=dict)


def score_axes(texts: pl.DataFrame, base: str, axes: Mapping[str, Candidates]) -> Scored:
    """Scores of all texts on each axis, by the first scale on which base varies (`MOST_ALIKE`).

    Args:
        texts: row_id, variant, output.
    """
    outputs, of_base = texts["output"].to_list(), (texts["variant"] == base).to_numpy()
    tables, scales, left_out = [], {}, {}
    for axis, candidates in axes.items():
        found, why = _first_that_varies(outputs, of_base, candidates)
        if found is None:
            left_out[axis] = why
            continue
        scales[axis], values = found
        tables.append(
            texts.select("row_id", "variant", axis=pl.lit(axis)).with_columns(score=pl.Series(values))
        )
    schema = {"row_id": pl.String, "variant": pl.String, "axis": pl.String, "score": pl.Float64}
    return Scored(pl.concat(tables) if tables else pl.DataFrame(schema=schema), scales, left_out)


def _first_that_varies(
    outputs: Sequence[str], of_base: np.ndarray, candidates: Candidates
) -> tuple[tuple[str, np.ndarray] | None, str]:
    """(scale, scores), or None and why."""
    reasons = []
    for scale, make in candidates.items():
        try:
            values = np.asarray(make().score_many(outputs), dtype=np.float64)
        except ExamplesError as error:
            reasons.append(str(error))
            continue
        alike = np.unique(values[of_base], return_counts=True)[1].max() / of_base.sum()
        if alike < MOST_ALIKE:
            return (scale, values), ""
        reasons.append(f"base scores the same on {alike:.0%} of the rows by its {scale} scale")
    return None, "; ".join(reasons) or "it has neither a lexicon nor examples"


def side_effects(
    scored: Scored, base: str, band: Iterable[str], aims: Mapping[str, list[Aim]], *, seed: int
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """`STORED_MATRIX` and `AIM_SCHEMA` of every variant; the random directions of the band are in no row.

    Both are empty where no axis can be scored.
    """
    if not scored.scales:
        return pl.DataFrame(schema=STORED_MATRIX), pl.DataFrame(schema=AIM_SCHEMA)
    targets = {
        variant: {aim.persona: SIGNS[aim.wanted] for aim in own if aim.persona in scored.scales}
        for variant, own in aims.items()
    }
    directions = sorted(band)
    matrix, aim = steerability(scored.scores, targets, base=base, band=directions, seed=seed)
    told = ~pl.col("variant").is_in(directions)
    if not directions:
        matrix = matrix.with_columns(
            pl.lit(None).alias(name) for name in ("band_low", "band_high", "beyond_band")
        )
        aim = aim.with_columns(random_side=None)
    matrix = matrix.with_columns(scale=pl.col("axis").replace_strict(scored.scales, return_dtype=pl.String))
    order = scored.scores["variant"].unique(maintain_order=True).to_list()
    place = pl.col("variant").replace_strict({name: i for i, name in enumerate(order)})
    return (
        matrix.filter(told).sort(place, "axis").select(list(MATRIX_COLUMNS)).cast(STORED_MATRIX),
        aim.filter(told).sort(place).cast(AIM_SCHEMA),
    )
