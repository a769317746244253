"""The profile's language model as a Dagster resource: loaded at first use, once a process."""

from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from steer_pipeline.catalogue.models import ModelSpec
from steer_pipeline.settings import settings

if TYPE_CHECKING:
    from steer_pipeline.lab.models.loading import LoadedModel


_loaded: list[Any] = []  # at most one: what was last loaded in this process


def last_loaded() -> "LoadedModel | None":
    """The model that this process loaded last; for provenance, which must not load one."""
    return _loaded[0] if _loaded else None


class LanguageModelResource(dg.ConfigurableResource):
    """Gives the model of the profile, with single fields replaced where they are set here."""

    overrides: dict[str, Any] = Field(
        default_factory=dict,
        description="Fields of the profile's `model` to replace on this machine, e.g. {device: cuda}.",
    )

    def spec(self) -> ModelSpec:
        """Which model this resource loads.

        Raises:
            pydantic.ValidationError: an override is not a field of ModelSpec, or has a wrong value.
        """
        return ModelSpec.model_validate({**settings().profile.model.model_dump(), **self.overrides})

    def load(self) -> "LoadedModel":
        """The model; a second call with the same spec costs nothing."""
        from steer_pipeline.lab.models.loading import load_model

        _loaded[:] = [load_model(self.spec(), settings().home)]
        return _loaded[0]
