"""What all steps of the heal loop stand on: persona, teacher, prompts and scales, as a profile asks for them.

In: a reader of the store and the profile. Out: a `Task`. Runs no model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import polars as pl

from steer_pipeline.catalogue.healing import HealSpec
from steer_pipeline.catalogue.loading import load_persona, studied_names
from steer_pipeline.catalogue.specs import Persona, Profile
from steer_pipeline.io.reader import Reader
from steer_pipeline.lab.evaluation import TraitScorer, needs_contrast, trait_scales
from steer_pipeline.lab.heal.pool import pool_of
from steer_pipeline.lab.heal.teacher import HealError, Teacher, make_teacher
from steer_pipeline.lab.quality.leaks import Told
from steer_pipeline.lab.rewrites.source import KNOWN_FACTS
from steer_pipeline.lab.rewrites.stored import axis_scorers
from steer_pipeline.lab.vectors.vector import PersonaVector, load_vector


@dataclass(frozen=True, eq=False)
class Task:
    """Persona, teacher, prompts and scales.

    Attributes:
        vector: of the persona, on the model without students; `version` is its content hash in the store.
        prompts: `prompts.PROMPT_SCHEMA`, held-out ones among them.
        contrast: the persona's contrast set: rounds take the vector from it anew, and a scale may be fitted on it.
    """

    profile: Profile
    persona: Persona
    vector: PersonaVector
    version: str | None
    prompts: pl.DataFrame
    contrast: pl.DataFrame

    @property
    def heal(self) -> HealSpec:
        return self.profile.heal

    @property
    def pool(self) -> pl.DataFrame:
        """Prompts that are sampled and learned from."""
        return self.prompts.filter(~pl.col("held_out"))

    @property
    def held_out(self) -> pl.DataFrame:
        """Prompts that arms are judged on."""
        return self.prompts.filter("held_out")

    @property
    def teacher(self) -> Teacher:
        return self.teacher_of(self.vector, self.version)

    def teacher_of(self, vector: PersonaVector, version: str | None) -> Teacher:
        """The same as the profile's teacher, with another vector."""
        spec = self.heal
        return make_teacher(
            vector, spec.blocks, operator=spec.operator, scope=self.profile.rewrites.scope, version=version
        )

    @property
    def told(self) -> tuple[Told, Told]:
        """What the positive and the negative pole are called and asked for: no text may speak of it."""
        positive, negative = (
            Told((pole.name,), tuple(pole.instructions))
            for pole in (self.persona.positive, self.persona.negative)
        )
        return positive, negative

    @cached_property
    def scorer(self) -> TraitScorer:
        """The persona's headline scale.

        Raises:
            ScaleError: it has none.
        """
        rows = self.contrast if needs_contrast(self.persona, self.profile.scales) else None
        return trait_scales(
            self.persona, self.profile.scales, rows, seed=self.profile.vector.seed, headline_only=True
        ).scorer

    @cached_property
    def off_target(self) -> Mapping[str, TraitScorer]:
        """persona -> headline scale, of those whose traits should stay where they are.

        Raises:
            HealError: `heal.evaluation.off_target` names one that cannot be scored.
        """
        wanted = self.heal.evaluation.off_target
        names = [name for name in studied_names(self.profile) if name != self.persona.name]
        if unknown := sorted(set(wanted or ()) - set(names)):
            raise HealError(
                f"heal.evaluation.off_target: {unknown[0]} is none of {', '.join(names)}; name others"
            )
        scales = axis_scorers(self.profile, names if wanted is None else wanted, {})
        if lacking := [name for name in wanted or () if not scales.get(name)]:
            raise HealError(f"heal.evaluation.off_target: {lacking[0]} has no scale here; leave it out")
        return {name: next(iter(found.values()))() for name, found in scales.items() if found}


def read_task(read: Reader, profile: Profile, home: Path, shipped: Path) -> Task:
    """The task of a profile, from what the store has.

    Args:
        shipped: the folder that holds the facts of the shipped sample.

    Raises:
        StoreError: vector, contrast set or news have not been made.
        HealError: there are too few prompts.
    """
    name = profile.heal.persona
    stored = read.folder("persona_vector", name)
    news = read.made_rows("truncated_news") if profile.heal.pool.kind == "news" else pl.DataFrame()
    return Task(
        profile,
        load_persona(name, profile=profile),
        load_vector(stored),
        read.seen[f"persona_vector[{name}]"],
        pool_of(profile, news, shipped / KNOWN_FACTS, home),
        read.made_rows("contrast_set", name),
    )
