"""The band of random directions: what adding any vector of such a length does, whatever it means.

In: the settings, the news, a reader of the store and a model. Out: rewrites of the first news items under several
random directions, as rows of `BAND_SCHEMA`. One random direction says nothing about random directions. All of them
have sites and lengths of the strongest steered variant's terms: a band that is fair to that one and wider than need be
for weaker ones, so that it passes none of them too easily.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import polars as pl

from steer_pipeline.catalogue.specs import VariantSpec
from steer_pipeline.io.reader import Reader
from steer_pipeline.lab.generation.journal import Journal
from steer_pipeline.lab.generation.schema import BAND_SCHEMA
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.sites import SteeringPlan
from steer_pipeline.lab.rewrites.making import Made, Planned, Request, plan, rewrite
from steer_pipeline.lab.vectors.doses import random_like
from steer_pipeline.settings import Settings

NAME = "random_{:02d}"


def make_band(
    settings: Settings,
    news: pl.LazyFrame,
    read: Reader,
    model: LoadedModel,
    journal: Journal,
    progress: Callable[[Any], None],
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Rows of `BAND_SCHEMA`, sorted by direction and source index, and what there is to say of them.

    Raises:
        Refused: no steered variant has a vector and a dose yet.
        SteeringHasNoEffect: a direction leaves the model's logits as they are.
    """
    spec = settings.profile.rewrites
    if spec.band_directions == 0:
        return pl.DataFrame(schema=BAND_SCHEMA), {"directions": 0}
    steered = [name for name, variant in settings.variants.items() if variant.role == "steered"]
    request = Request(settings, steered, "pilot")
    planned = plan(request, read, model)
    name = strongest(planned.plans)
    band = random_plans(planned.variants[name], planned.plans[name], spec.band_directions, spec.sampling.seed)
    items = news.head(spec.band_rows).collect()
    made = rewrite(request, replace(band, personas=planned.personas), items, read, model, journal, progress)
    norms = {f"{term.name}@{term.site.block}": abs(term.alpha) for term in planned.plans[name].terms}
    facts = {
        "directions": spec.band_directions,
        "strongest": name,
        "norms": norms,
        "seed": spec.sampling.seed,
    }
    return _rows(made), facts | made.numbers


def strongest(plans: Mapping[str, SteeringPlan]) -> str:
    """The variant whose terms are longest together, in fractions of the residual norm where all doses have one."""
    known = all(term.dose_fraction is not None for plan in plans.values() for term in plan.terms)

    def length(name: str) -> float:
        terms = plans[name].terms
        return math.hypot(*(term.dose_fraction or 0.0 if known else term.alpha for term in terms))

    return max(plans, key=length)


def random_plans(variant: VariantSpec, like: SteeringPlan, directions: int, seed: int) -> Planned:
    """Variants `random_00`, `random_01`, … with the sites and lengths of a plan; no two terms share a seed.

    Args:
        seed: that of the profile's sampling, with which the variant random_direction is drawn: none of these is.
    """
    variants, plans = {}, {}
    for index in range(directions):
        name = NAME.format(index)
        seeds = range(seed + 1 + index * len(like.terms), seed + 1 + (index + 1) * len(like.terms))
        terms = tuple(random_like(term, one) for term, one in zip(like.terms, seeds, strict=True))
        variants[name] = variant.model_copy(update={"name": name, "role": "control", "targets": {}})
        plans[name] = SteeringPlan(name, terms, like.scope, name)
    return Planned(variants, plans, {}, {})


def _rows(made: Made) -> pl.DataFrame:
    ids = pl.DataFrame(
        [{"variant": row.variant, "row_id": row.row_id, "token_ids": row.token_ids} for row in made.finished],
        schema={name: BAND_SCHEMA[name] for name in ("variant", "row_id", "token_ids")},
    )
    rows = pl.concat(made.packs.values()).join(ids, on=["variant", "row_id"], how="left")
    return rows.select(list(BAND_SCHEMA)).sort("variant", "source_index")
