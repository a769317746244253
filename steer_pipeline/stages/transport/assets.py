"""Vectors carried to the model that the profile's `transport` names. One partition a persona."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from steer_pipeline.catalogue import Persona, load_profile
from steer_pipeline.lineage import MODEL, made_of
from steer_pipeline.partitions import CARRIED, CARRIED_PERSONAS, PERSONA
from steer_pipeline.resources import ArtifactStoreResource, LanguageModelResource
from steer_pipeline.settings import settings
from steer_pipeline.stages.kit import folder, gpu, reader, user_errors
from steer_pipeline.stages.transport import metadata

FILES: dict[str, Any] = gpu(
    "transport", partitions_def=PERSONA, io_manager_key="bundle_io", kinds={"pytorch", "parquet"}
)
HERE = (*MODEL, "model.chat_template", "transport", "rewrites", "contrast", "dose", "vector.seed")
# By which the target's own vector is made and judged: of this profile, or of the one that transport.profile names.
THERE = ("contrast", "vector", "dose", "rewrites", "scales", "coherence")


def _version() -> str:
    spec = settings().profile.transport
    if spec is None or spec.profile is None:
        return made_of("2", *HERE, *THERE)
    other = made_of("", *THERE, profile=load_profile(spec.profile)).split()
    return " ".join([made_of("2", *HERE), *(f"{spec.profile}/{section}" for section in other)])


@dg.asset(
    deps=[
        "model_weights",
        "tokenizer",
        "chat_template",
        "news_facts",
        "transport_target",
        dg.AssetDep("contrast_set", partition_mapping=CARRIED_PERSONAS),
    ],
    code_version=_version(),
    **FILES,
)
def vector_transport(
    context: dg.AssetExecutionContext,
    persona_scale: Persona,
    persona_vector: Path,
    truncated_news: pl.LazyFrame,
    store: ArtifactStoreResource,
    language_model: LanguageModelResource,
) -> Iterator[dg.Output[Path]]:
    """What a vector does in another model when linear maps carry it there, beside that model's own vector.

    `shares.parquet`: one row an arm: the shift of the trait on the target's scale, and its share of what the target's
    own vector does, with intervals over news; random rotations are the floor. `maps.parquet`: one row a map: how well
    it predicts states of texts it was not fitted on, its rank. `rows.parquet`: every text. `native/`: the target's own
    vector and dose curve. `summary.json`: the numbers. Maps are fitted on texts disjoint from the trait, and once more
    with its own (`own`), which shows what those lack.
    """
    from steer_pipeline.lab.models.loading import load_model
    from steer_pipeline.lab.transport.measuring import Cargo, make_transport, other_profile, spec_of
    from steer_pipeline.lab.vectors.vector import load_vector

    profile, home, read = settings().profile, settings().home, reader(context, store)
    with user_errors(who=persona_scale.name), folder("vector_transport") as made:
        names = {persona_scale.name, *spec_of(profile).personas}
        contrast = {name: read.made_rows("contrast_set", name) for name in sorted(names)}
        there = other_profile(profile)
        summary = make_transport(
            language_model.load(),
            load_model(spec_of(profile).model, home),
            Cargo(persona_scale, load_vector(persona_vector), contrast),
            profile,
            there,
            truncated_news.collect(),
            home,
            made,
            settings().shipped / "facts.parquet",
        )
        yield dg.Output(made, metadata=metadata.of_transport(summary, made))


ASSETS = [vector_transport] if CARRIED else []
