"""Texts of one model that null runs draw from: base's rewrites under many sampling seeds, and steered ones.

In: a store in which `make pilot` has run. Out: `Texts`, generated once into a journal beside the store and scored once
by the comparison's scales. Runs only draw among them.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
import polars as pl

from steer_pipeline.catalogue.specs import Profile
from steer_pipeline.io.journals import open_journal
from steer_pipeline.io.reader import Reader
from steer_pipeline.io.store import ArtifactStore
from steer_pipeline.lab.generation.engine import generate
from steer_pipeline.lab.generation.jobs import PromptRow
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.sites import SteeringPlan
from steer_pipeline.lab.rewrites import Refused
from steer_pipeline.lab.rewrites.aims import TRAIT
from steer_pipeline.lab.rewrites.comparison import BASE
from steer_pipeline.lab.rewrites.making import Request, plan
from steer_pipeline.lab.rewrites.work import user_turn
from steer_pipeline.lab.students.comparison import teachers
from steer_pipeline.lab.students.data import held_out_news, prompt_ids
from steer_pipeline.lab.students.scoring import student_scorers
from steer_pipeline.lab.students.transfer import with_traits
from steer_pipeline.partitions import TARGETED
from steer_pipeline.resources import LanguageModelResource, open_store
from steer_pipeline.settings import Settings, settings

SPARE = 8  # samplings beyond those that one run needs, so that runs differ
STEERED = 6  # samplings of the planted variant
LEAST_SEEDS = 3


@dataclass(frozen=True, eq=False)
class Texts:
    """What was written and scored once.

    Attributes:
        rows: variant (a sampling), row_id, prompt, output, truncated, trait_<persona>_<scale>.
        base, steered: names of samplings of base and of the planted variant.
        planted: the steered variant; `persona` its target.
    """

    catalogue: Settings
    read: Reader
    model: LoadedModel
    rows: pl.DataFrame
    base: Sequence[str]
    steered: Sequence[str]
    planted: str
    persona: str

    @property
    def profile(self) -> Profile:
        return self.catalogue.profile

    @property
    def roles(self) -> dict[str, str]:
        """variant -> role, base first."""
        known = self.catalogue.variants.items()
        return {BASE: "base"} | {name: one.role for name, one in known if name != BASE}

    @property
    def news(self) -> list[str]:
        return self.rows["row_id"].unique(maintain_order=True).to_list()

    @cached_property
    def by_sampling(self) -> Mapping[str, pl.DataFrame]:
        """sampling -> its rows, in the order of `news`."""
        return {str(name): own for (name,), own in self.rows.group_by("variant", maintain_order=True)}

    @property
    def traits(self) -> list[str]:
        return [name for name in self.rows.columns if name.startswith(TRAIT)]


def texts_of(options: argparse.Namespace) -> Texts:
    """Generates what is not in the journal yet, and scores it.

    Raises:
        Refused: there are no packs or too few news, or no variant is steered towards one trait.
    """
    return _texts(options.news)


@lru_cache(maxsize=1)
def _texts(n_news: int) -> Texts:
    catalogue, read = settings(), Reader(open_store())
    profile = catalogue.profile
    pairs = teachers(catalogue.variants)
    if not pairs:
        raise Refused("no steered variant of this profile has one target, so there is nothing to plant")
    persona, (planted, _) = next(iter(pairs.items()))
    model = LanguageModelResource().load()
    more = profile.students.model_copy(update={"held_out_rows": n_news})
    news = held_out_news(read.made_rows("truncated_news"), profile.model_copy(update={"students": more}))
    n_seeds = max(LEAST_SEEDS, len(profile.students.seeds))
    names = [f"null-{number}" for number in range(len(catalogue.variants) * n_seeds + SPARE)]
    theirs = [f"{planted}-{number}" for number in range(max(STEERED, n_seeds))]
    steering = plan(Request(catalogue, [planted], "pilot"), read, model).plans[planted]
    plans = [SteeringPlan(name, stream=name) for name in names]
    plans += [replace(steering, variant=name, stream=name) for name in theirs]
    rows = with_traits(
        written(news, profile, model, plans, read.store), student_scorers(read, TARGETED, profile)
    )
    return Texts(catalogue, read, model, rows, names, theirs, planted, persona)


def written(
    news: pl.DataFrame,
    profile: Profile,
    model: LoadedModel,
    plans: Sequence[SteeringPlan],
    store: ArtifactStore,
) -> pl.DataFrame:
    """One row a plan and news item, in that order, with the user turn."""
    prompts = [
        PromptRow(row_id, {"*": ids}) for row_id, ids in prompt_ids(model.tokenizer, news, profile).items()
    ]
    finished = generate(
        model,
        prompts,
        plans,
        profile.rewrites.sampling,
        journal=open_journal(store, "null", "students"),
        progress=lambda progress: tell(str(progress)),
    )
    by_place = {(row.variant, row.row_id): row for row in finished}
    turns = {row_id: user_turn(profile, text) for row_id, text in news.select("row_id", "text").iter_rows()}
    made = [
        {"variant": one.variant, "row_id": row_id, "prompt": turn}
        | {"output": by_place[one.variant, row_id].text, "truncated": by_place[one.variant, row_id].truncated}
        for one in plans
        for row_id, turn in turns.items()
    ]
    return pl.DataFrame(made)


@dataclass(frozen=True)
class Known:
    """A scorer that looks up what was scored before."""

    scores: Mapping[str, float]

    def score_many(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([self.scores[text] for text in texts], dtype=np.float64)


def known_scorers(texts: Texts) -> dict[str, dict[str, Known]]:
    """persona -> scale -> scorer of the texts, in the scorers' order."""
    found: dict[str, dict[str, Known]] = {}
    for column in texts.traits:
        persona, _, scale = column.removeprefix(TRAIT).rpartition("_")
        found.setdefault(persona, {})[scale] = Known(dict(texts.rows.select("output", column).iter_rows()))
    return found


def tell(line: str) -> None:
    print(f"\r{line:<100}", end="", file=sys.stderr, flush=True)
