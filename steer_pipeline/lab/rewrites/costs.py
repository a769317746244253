"""What each variant costs against base on the same rows, and what is left when trait, facts and fluency count together.

In: rows of a comparison (`comparison.ComparisonTables.rows`), limits, and what each variant aims at. Out: one row a
variant and cost, paired with base; one row a variant with its combined score beside that of prompting for the same.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from steer_pipeline.catalogue.specs import CoherenceSpec
from steer_pipeline.lab.columns import described
from steer_pipeline.lab.evaluation.combined import combined_interval
from steer_pipeline.lab.quality import OUR_RULES
from steer_pipeline.lab.quality.coherence import coherence, text_costs
from steer_pipeline.lab.rewrites.aims import SIGNS, Aim
from steer_pipeline.lab.stats import Interval

COSTS_SCHEMA, COSTS_COLUMNS = described(
    variant=(pl.String(), "Variant of the catalogue."),
    cost=(pl.String(), "What was lost, see `lab.quality.coherence.COSTS`."),
    n=(pl.Int64(), "News items of which both texts have the cost."),
    mean=(pl.Float64(), "Mean of the variant."),
    base=(pl.Float64(), "Mean of base."),
    difference=(pl.Float64(), "Paired mean difference to base; null where it was not measured."),
    low=(pl.Float64(), "Lower end of the difference's 95% interval."),
    high=(pl.Float64(), "Upper end of it."),
    detectable=(
        pl.Float64(),
        "Smallest difference that would be found with 80% power, from the spread seen.",
    ),
    limit=(
        pl.Float64(),
        "Largest difference that the profile allows, of length and nll in either direction.",
    ),
    within=(pl.Boolean(), "Whether the difference is allowed; null where it is not judged or not measured."),
)
COMBINED_SCHEMA, COMBINED_COLUMNS = described(
    variant=(pl.String(), "Variant of the catalogue."),
    persona=(pl.String(), "Trait that counts: the first that the variant aims at."),
    wanted=(pl.String(), "`up` or `down`."),
    scale=(pl.String(), "Scale of the trait."),
    n=(pl.Int64(), "News items with a score."),
    score=(
        pl.Float64(),
        "Harmonic mean of trait, facts kept and fluency, 0 to 2; null without a likelihood.",
    ),
    low=(pl.Float64(), "Lower end of its 95% interval."),
    high=(pl.Float64(), "Upper end of it."),
    base=(pl.Float64(), "Base's own score on the same trait."),
    prompted=(pl.String(), "Variant that is prompted for the same; null where there is none."),
    prompted_score=(pl.Float64(), "Its score."),
    prompted_low=(pl.Float64(), "Lower end of its interval."),
    prompted_high=(pl.Float64(), "Upper end of it."),
)


def cost_table(rows: pl.DataFrame, base: str, spec: CoherenceSpec) -> pl.DataFrame:
    """`COSTS_SCHEMA` of every variant but `base`, in the order of the rows.

    Args:
        rows: row_id, variant, output, suspects, facts_kept, nll.
    """
    tables = rows.partition_by("variant", as_dict=True, maintain_order=True)
    reference = tables[base,]
    found = []
    for (variant,), own in tables.items():
        if variant == base:
            continue
        shared = reference.select("row_id").join(own, on="row_id", how="inner", maintain_order="left")
        same = shared.select("row_id").join(reference, on="row_id", how="inner", maintain_order="left")
        costs = coherence(_costs(shared), _costs(same), spec)
        for name, cost in costs.items():
            judged = cost.limit is not None and cost.difference is not None
            found.append(
                {"variant": variant, "cost": name, "mean": cost.mean, "base": cost.base, "limit": cost.limit}
                | {"within": cost.within if judged else None, "detectable": cost.detectable}
                | _interval(cost.difference, "difference")
            )
    return pl.DataFrame(found, schema=COSTS_SCHEMA)


def _costs(rows: pl.DataFrame) -> pl.DataFrame:
    ours = [[rule for rule in rules or () if rule in OUR_RULES] for rules in rows["suspects"].to_list()]
    return text_costs(rows["output"].to_list(), ours, rows["facts_kept"].to_list(), rows["nll"].to_list())


def combined_table(
    rows: pl.DataFrame, base: str, aims: Mapping[str, list[Aim]], prompted: Mapping[str, str]
) -> pl.DataFrame:
    """`COMBINED_SCHEMA` of every variant that aims at something.

    Args:
        rows: row_id, variant, facts_kept, nll and the aims' trait columns.
        prompted: persona -> variant that is prompted for it.
    """
    tables = rows.partition_by("variant", as_dict=True, maintain_order=True)
    nll = tables[base,].select("row_id", base_nll="nll")

    def score(variant: str, aim: Aim) -> Interval | None:
        signed = SIGNS[aim.wanted] * pl.col(aim.column)
        own = tables[variant,].join(nll, on="row_id").with_columns(trait=(1 + signed) / 2)
        return combined_interval(own)

    found = []
    for variant, own_aims in aims.items():
        if (variant,) not in tables or not own_aims:
            continue
        aim = own_aims[0]
        beside = prompted.get(aim.persona) if aim.wanted == "up" else None
        other = score(beside, aim) if beside not in (None, variant) and (beside,) in tables else None
        of_base = score(base, aim)
        found.append(
            {"variant": variant, "persona": aim.persona, "wanted": aim.wanted, "scale": aim.scale}
            | _interval(score(variant, aim), "score")
            | {"base": of_base and of_base.estimate, "prompted": beside if other else None}
            | {f"prompted_{name}": value for name, value in _interval(other, "score").items() if name != "n"}
        )
    return pl.DataFrame(found, schema=COMBINED_SCHEMA)


def _interval(interval: Interval | None, name: str) -> dict[str, Any]:
    if interval is None:
        return {"n": 0} | dict.fromkeys((name, "low", "high"))
    return {
        "n": interval.n,
        name: interval.estimate,
        "low": interval.low,
        "high": interval.high,
    }


def length_ratio(difference: float | None) -> float | None:
    """Words per word of base's text, as a geometric mean, of a difference in log words."""
    return None if difference is None else float(np.exp(difference))
