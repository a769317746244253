"""Raw packs: gathers vectors and doses from the store, plans every variant, generates all of them in one call.

In: what is asked, the news, a reader of the store and a model. Out: `Made`: one frame a variant. A variant without
a vector, a dose or an instruction is refused by name, with an empty pack; the others are made.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import polars as pl

from steer_pipeline.catalogue.loading import read_personas
from steer_pipeline.catalogue.specs import Persona, Profile, VariantSpec
from steer_pipeline.io.reader import Reader
from steer_pipeline.lab.generation.engine import generate
from steer_pipeline.lab.generation.fanout import Fanout
from steer_pipeline.lab.generation.jobs import FinishedRow, decoding_hash
from steer_pipeline.lab.generation.journal import Journal
from steer_pipeline.lab.generation.probe import ProbeResult, probe_steering
from steer_pipeline.lab.generation.schema import REWRITE_SCHEMA
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.sites import SteeringPlan
from steer_pipeline.lab.rewrites import Refused, verdicts, work
from steer_pipeline.lab.vectors.doses import directions_in, draw_of, load_recommendation, terms_for
from steer_pipeline.lab.vectors.vector import VectorError, load_vector
from steer_pipeline.settings import Settings

PROBED_ROWS = 2
DRAW = "~"  # between a variant and the number of one of its random directions, in the engine's names


@dataclass(frozen=True)
class Request:
    """What is to be made.

    Attributes:
        variants: names, as the catalogue has them; an entry that cannot be read is refused.
        size: `pilot` or `full`.
        workers: replicas of the model; more than one run on Ray.
    """

    settings: Settings
    variants: Sequence[str]
    size: str
    workers: int = 1

    @property
    def profile(self) -> Profile:
        return self.settings.profile


@dataclass
class Made:
    """Raw packs and what is worth telling about the run that made them.

    Attributes:
        made_on: of each variant's vectors, the identity of the model that they were made on.
        numbers: of the run as a whole.
        refused: variant -> why it could not be made; its pack is empty.
        finished: the rows as the engine gave them, in the order in which they finished.
    """

    packs: dict[str, pl.DataFrame]
    recipes: dict[str, str]
    probes: dict[str, dict[str, float]]
    made_on: dict[str, dict[str, str]]
    numbers: dict[str, float | int] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    finished: list[FinishedRow] = field(default_factory=list)

    def facts(self, variant: str) -> dict[str, Any]:
        """What there is to say of one variant: its recipe, what the probe saw, the cost; or why it was refused."""
        if variant in self.refused:
            return {"refused": self.refused[variant]}
        made_on = self.made_on[variant]
        facts = {"recipe": self.recipes[variant], **self.numbers, **self.probes.get(variant, {})}
        return facts | ({"vectors_made_on": made_on} if made_on else {})


@dataclass(frozen=True)
class Planned:
    """What will be generated, by variant, and why other variants will not.

    Attributes:
        plans: variant -> its plan; of a variant with several random directions that of the first.
        draws: variant -> the plans of all its random directions, where it has several; each row takes one of them.
    """

    variants: dict[str, VariantSpec]
    plans: dict[str, SteeringPlan]
    personas: Mapping[str, Persona]
    refused: dict[str, str]
    draws: dict[str, list[SteeringPlan]] = field(default_factory=dict)

    def generated(self) -> dict[str, tuple[str, SteeringPlan]]:
        """Name that the engine knows -> variant and plan; every direction is one of its own there."""
        found = {name: (name, plan) for name, plan in self.plans.items() if name not in self.draws}
        for name, draws in self.draws.items():
            found |= {plan.variant: (name, plan) for plan in draws}
        return found

    def wanted_by(self, source_index: int, seed: int) -> frozenset[str]:
        """Names that a row is rewritten under: all variants, and of random directions its own."""
        plain = [name for name in self.plans if name not in self.draws]
        drawn = [plans[draw_of(source_index, len(plans), seed)].variant for plans in self.draws.values()]
        return frozenset([*plain, *drawn])


def make_raw(
    request: Request,
    news: pl.LazyFrame,
    read: Reader,
    model: LoadedModel,
    journal: Journal,
    progress: Callable[[Any], None],
) -> Made:
    """Rewrites the first rows of `news` in all variants of the request in one call of the engine.

    Args:
        progress: is given the engine's progress.

    Raises:
        Refused: no variant can be made; or the full size, and a variant's recipe has passed no pilot.
        SteeringHasNoEffect: a plan leaves the model's logits as they are.
        FanoutError: more than one worker, and Ray or the GPUs for them are missing.
    """
    planned = plan(request, read, model)
    if request.size == "full":
        _require_pilots(read, _recipes(_identities(request.profile, planned, model)))
    items = news.head(work.rows_wanted(request.profile, request.size)).collect()
    return rewrite(request, planned, items, read, model, journal, progress)


def rewrite(
    request: Request,
    planned: Planned,
    items: pl.DataFrame,
    read: Reader,
    model: LoadedModel,
    journal: Journal,
    progress: Callable[[Any], None],
) -> Made:
    """`items` in all planned variants, probed first, with their likelihood under the unsteered model."""
    identities = _identities(request.profile, planned, model)
    seed = request.profile.rewrites.sampling.seed
    rows = work.prompts(items, planned.variants, request.profile, planned.personas, model)
    wanted = [planned.wanted_by(place, seed) for place in items["source_index"]]
    asked = [replace(row, only=names) for row, names in zip(rows, wanted, strict=True)]
    generated = planned.generated()
    plans = [plan for _, plan in generated.values()]
    probes = probe_steering(model, rows[:PROBED_ROWS], [plan for plan in plans if plan.terms])
    seen = _Latest(progress)
    fanout = Fanout(request.workers, request.settings.home) if request.workers > 1 else None
    sampling = request.profile.rewrites.sampling
    finished = list(generate(model, asked, plans, sampling, journal=journal, progress=seen, fanout=fanout))
    nll = work.unsteered_nll(model, rows, finished)
    corpus = read.store.current("truncated_news", None)
    shared = work.made_with(request.profile, model, corpus.sha if corpus else None)
    packs = work.pack_rows(
        finished, items, identities, generated, model.name, request.profile, request.size, shared, nll
    ) | {name: pl.DataFrame(schema=REWRITE_SCHEMA) for name in planned.refused}
    made_on = {
        name: {term.name: term.made_on for term in plan.terms if term.made_on}
        for name, plan in planned.plans.items()
    }
    numbers = seen.numbers() | {"workers": request.workers}
    recipes = _recipes(identities)
    return Made(packs, recipes, _weakest(probes, generated), made_on, numbers, planned.refused, finished)


def plan(request: Request, read: Reader, model: LoadedModel) -> Planned:
    """The steering plan of each variant, from the stored vectors and recommended doses.

    Raises:
        Refused: no variant has one.
    """
    personas, unread = read_personas(profile=request.profile)
    known = request.settings.variants
    variants = {name: spec for name, spec in known.items() if name in request.variants}
    refused = {
        name: str(request.settings.broken_variants[name]) for name in request.variants if name not in variants
    }
    refused |= {
        name: str(unread[spec.prompted_by]) for name, spec in variants.items() if spec.prompted_by in unread
    }
    able = {name: spec for name, spec in variants.items() if name not in refused}
    draws, without_plan = _steering(able, read, model, request.profile.rewrites.sampling.seed)
    refused |= without_plan
    if not draws:
        raise Refused("; ".join(refused.values()))
    return Planned(
        {name: variants[name] for name in draws},
        {name: replace(plans[0], variant=name) for name, plans in draws.items()},
        personas,
        refused,
        {name: plans for name, plans in draws.items() if len(plans) > 1},
    )


def _steering(
    variants: Mapping[str, VariantSpec], read: Reader, model: LoadedModel, seed: int
) -> tuple[dict[str, list[SteeringPlan]], dict[str, str]]:
    """Plans by variant, one a random direction where it has some, and why others have none."""
    vectors, doses, versions = {}, {}, {}
    for persona in {term.persona for spec in variants.values() for term in spec.terms}:
        if (vector := read.current("persona_vector", persona)) is not None:
            vectors[persona], versions[persona] = load_vector(vector.path), vector.sha
        if (dose := read.current("dose_curve", persona)) is not None:
            doses[persona] = load_recommendation(dose.path)
    plans: dict[str, list[SteeringPlan]] = {}
    refused: dict[str, str] = {}
    for name, spec in variants.items():
        own = partial(terms_for, spec, vectors, doses, model.n_blocks, model=model, versions=versions)
        try:
            plans[name] = [own(seed=seed, draw=draw) for draw in range(directions_in(spec))]
            if len(plans[name]) > 1:  # the same random numbers as before there were several
                plans[name] = [
                    replace(plan, variant=f"{name}{DRAW}{draw:02d}", stream=plan.stream or name)
                    for draw, plan in enumerate(plans[name])
                ]
        except VectorError as error:
            refused[name] = str(error)
    return plans, refused


def _identities(profile: Profile, planned: Planned, model: LoadedModel) -> dict[str, work.Identity]:
    engine = decoding_hash(profile.rewrites.sampling, model)
    return {
        name: work.identity(
            profile,
            work.settings_hash(engine, profile, work.system_turn(spec, profile, planned.personas)),
            planned.plans[name],
        )
        for name, spec in planned.variants.items()
    }


def _recipes(identities: Mapping[str, work.Identity]) -> dict[str, str]:
    return {name: made.recipe for name, made in identities.items()}


def _require_pilots(read: Reader, recipes: Mapping[str, str]) -> None:
    if problems := verdicts.pilot_problems(read.store, recipes):
        raise Refused(
            "a full pack needs passed pilot gates of the same profile, decoding and vectors: "
            + "; ".join(problems)
            + ". Run `make pilot`, mend what fails, then ask again"
        )


def _weakest(
    probes: Sequence[ProbeResult], generated: Mapping[str, tuple[str, SteeringPlan]]
) -> dict[str, dict[str, float]]:
    """The weakest term of each variant: what a reader wants to know is far from the floor."""
    numbers: dict[str, dict[str, float]] = {}
    for probe in sorted(probes, key=lambda probe: -probe.max_abs_logit_delta):
        numbers[generated[probe.variant][0]] = {
            "probe_max_logit_delta": float(probe.max_abs_logit_delta),
            "probe_greedy_changed_rate": probe.greedy_tokens_changed / max(probe.positions, 1),
        }
    return numbers


class _Latest:
    """Hands on the engine's progress and keeps the last of it."""

    def __init__(self, hand_on: Callable[[Any], None]) -> None:
        self._hand_on, self._last = hand_on, None

    def __call__(self, progress: Any) -> None:
        self._last = progress
        self._hand_on(progress)

    def numbers(self) -> dict[str, float | int]:
        """Cost of the run; nothing where the engine had nothing to do."""
        progress: Any = self._last
        if progress is None:
            return {}
        return {
            "resumed_rows": int(progress.sequences_resumed),
            "generated_tokens": int(progress.tokens),
            "tokens_per_second": float(progress.tokens_per_second),
            "generation_seconds": float(progress.seconds),
            "peak_memory_mb": progress.memory_bytes / 2**20,
        }
