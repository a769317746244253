"""What the rewrite assets do with the store: gather vectors and doses, generate, read packs and their source.

In: the store, the profile and a model. Out: frames and lab values. No Dagster here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from steer_pipeline.catalogue.loading import read_personas
from steer_pipeline.catalogue.specs import VariantSpec
from steer_pipeline.io.reader import Reader
from steer_pipeline.io.store import ArtifactStore
from steer_pipeline.lab.generation.journal import Journal
from steer_pipeline.settings import Settings

PROBED_ROWS = 2


@dataclass
class Made:
    """Raw packs and what is worth telling about the run that made them.

    Attributes:
        made_on: of each variant's vectors, the identity of the model that they were made on.
        refused: variant -> why it could not be made; its pack is empty.
    """

    packs: dict[str, pl.DataFrame]
    recipes: dict[str, str]
    probes: dict[str, dict[str, float]]
    made_on: dict[str, dict[str, str]]
    numbers: dict[str, float | int] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def told_of(self, variant: str) -> dict[str, Any]:
        """Metadata of one variant."""
        if variant in self.refused:
            return {"refused": self.refused[variant]}
        made_on = self.made_on[variant]
        told = {"recipe": self.recipes[variant], **self.numbers, **self.probes.get(variant, {})}
        return told | ({"vectors_made_on": made_on} if made_on else {})


class Refused(ValueError):
    """What was asked may not be done yet; the message lists why and what to do."""


def plan_variants(
    variants: Mapping[str, VariantSpec], read: Reader, model: Any, seed: int
) -> tuple[dict[str, Any], dict[str, str]]:
    """The steering plan of each variant, from the stored vectors and recommended doses, and why others have none."""
    from steer_pipeline.lab.vectors.doses import load_recommendation, terms_for
    from steer_pipeline.lab.vectors.vector import VectorError, load_vector

    vectors, doses, versions = {}, {}, {}
    for persona in {term.persona for spec in variants.values() for term in spec.terms}:
        if (vector := read.current("persona_vector", persona)) is not None:
            vectors[persona], versions[persona] = load_vector(vector.path), vector.sha
        if (dose := read.current("dose_curve", persona)) is not None:
            doses[persona] = load_recommendation(dose.path)
    plans: dict[str, Any] = {}
    refused: dict[str, str] = {}
    for name, spec in variants.items():
        try:
            plans[name] = terms_for(
                spec, vectors, doses, model.n_blocks, model=model, versions=versions, seed=seed
            )
        except VectorError as error:
            refused[name] = str(error)
    return plans, refused


def make_raw(
    news: pl.LazyFrame,
    variants: Mapping[str, VariantSpec],
    size: str,
    read: Reader,
    model: Any,
    now: Settings,
    journal: Journal,
    allowed: Callable[[Mapping[str, str]], list[str]],
    tell: Callable[[Any], None],
    workers: int = 1,
    broken: Mapping[str, str] | None = None,
) -> Made:
    """Rewrites the first rows of `news` in all of `variants` in one call of the engine.

    A variant without a vector, a dose or an instruction is refused by name, with an empty pack; the others are made.

    Args:
        allowed: recipes of a full run -> what stands in its way.
        tell: is given the engine's progress.
        workers: replicas of the model; more than one run on Ray.
        broken: variants whose entry in the catalogue cannot be read, and why; they are refused.

    Raises:
        Refused: no variant can be made; or the full size, and `allowed` objects.
        SteeringHasNoEffect: a plan leaves the model's logits as they are.
        FanoutError: more than one worker, and Ray or the GPUs for them are missing.
    """
    from steer_pipeline.lab.generation.engine import generate
    from steer_pipeline.lab.generation.fanout import Fanout
    from steer_pipeline.lab.generation.jobs import decoding_hash
    from steer_pipeline.lab.generation.probe import probe_steering
    from steer_pipeline.lab.generation.schema import REWRITE_SCHEMA
    from steer_pipeline.lab.rewrites import work

    profile, (personas, unread) = now.profile, read_personas()
    sampling = profile.rewrites.sampling
    refused = dict(broken or {}) | {
        name: str(unread[spec.prompted_by]) for name, spec in variants.items() if spec.prompted_by in unread
    }
    plans, unplanned = plan_variants(
        {name: spec for name, spec in variants.items() if name not in refused}, read, model, sampling.seed
    )
    refused |= unplanned
    variants = {name: spec for name, spec in variants.items() if name in plans}
    if not variants:
        raise Refused("; ".join(refused.values()))
    engine = decoding_hash(sampling, model)
    identities = {
        name: work.identity(
            profile,
            work.settings_hash(engine, profile, work.system_turn(spec, profile, personas)),
            plans[name],
        )
        for name, spec in variants.items()
    }
    recipes = {name: made.recipe for name, made in identities.items()}
    if size == "full" and (problems := allowed(recipes)):
        raise Refused(
            "a full pack needs passed pilot gates of the same profile, decoding and vectors: "
            + "; ".join(problems)
            + ". Run `make pilot`, mend what fails, then ask again"
        )
    items = news.head(work.rows_wanted(profile, size)).collect()
    rows = work.prompts(items, variants, profile, personas, model)
    probes = probe_steering(model, rows[:PROBED_ROWS], [plan for plan in plans.values() if plan.terms])
    last: list[Any] = []

    def report(progress: Any) -> None:
        last[:] = [progress]
        tell(progress)

    fanout = Fanout(workers, now.home) if workers > 1 else None
    finished = generate(
        model, rows, list(plans.values()), sampling, journal=journal, progress=report, fanout=fanout
    )
    corpus = read.store.current("truncated_news", None)
    shared = work.made_with(profile, model, corpus.sha if corpus else None)
    packs = work.pack_rows(finished, items, identities, model.name, profile, size, shared)
    packs |= {name: pl.DataFrame(schema=REWRITE_SCHEMA) for name in refused}
    numbers = _run_numbers(last) | {"workers": workers}
    made_on = {
        name: {term.name: term.made_on for term in plan.terms if term.made_on} for name, plan in plans.items()
    }
    return Made(packs, recipes, _probe_numbers(probes), made_on, numbers, refused)


def read_news_source(read: Reader, rows: pl.DataFrame, now: Settings) -> Any:
    """Texts and facts of the news that `rows` (with row_id) were made from."""
    from steer_pipeline.lab.rewrites.source import read_source

    news = read.current("truncated_news", None)
    if news is None:
        raise Refused("truncated_news has not been made: materialise it first")
    texts = pl.scan_parquet(news.path / "data.parquet").select("row_id", "text")
    wanted = rows.lazy().select("row_id").unique()
    return read_source(texts.join(wanted, on="row_id", how="semi").collect(), now.shipped / "facts.parquet")


def news_count(store: ArtifactStore) -> int:
    """News items that can be rewritten."""
    news = store.current("truncated_news", None)
    return (
        0 if news is None else pl.scan_parquet(news.path / "data.parquet").select(pl.len()).collect().item()
    )


def made_with(pack: pl.DataFrame, size: str) -> dict[str, str]:
    """Size, profile and recipe of a pack for its verdicts; a pack too broken to tell has no recipe."""
    from steer_pipeline.lab.rewrites.work import identity_of

    try:
        made = identity_of(pack)
    except (ValueError, KeyError, TypeError):
        return {"size": size, "profile": "", "recipe": ""}
    return {"size": size, "profile": made.profile, "recipe": made.recipe}


def _probe_numbers(probes: Any) -> dict[str, dict[str, float]]:
    """The weakest term of each variant: what a reader wants to know is far from the floor."""
    numbers: dict[str, dict[str, float]] = {}
    for probe in sorted(probes, key=lambda probe: -probe.max_abs_logit_delta):
        numbers[probe.variant] = {
            "probe_max_logit_delta": float(probe.max_abs_logit_delta),
            "probe_greedy_changed_rate": probe.greedy_tokens_changed / max(probe.positions, 1),
        }
    return numbers


def _run_numbers(last: list[Any]) -> dict[str, float | int]:
    if not last:
        return {}
    progress = last[0]
    return {
        "resumed_rows": int(progress.sequences_resumed),
        "generated_tokens": int(progress.tokens),
        "tokens_per_second": float(progress.tokens_per_second),
        "generation_seconds": float(progress.seconds),
        "peak_memory_mb": progress.memory_bytes / 2**20,
    }
