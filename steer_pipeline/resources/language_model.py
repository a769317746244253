"""The profile's language model as a Dagster resource: loaded at first use, once a process, with adapters on request."""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from steer_pipeline import provenance
from steer_pipeline.catalogue.specs import ModelSpec
from steer_pipeline.settings import settings

if TYPE_CHECKING:
    from steer_pipeline.io.store import Version
    from steer_pipeline.lab.models.loaded import LoadedModel

    Place = str | Path | Version

_REMEMBERED_STEPS = 256
_models_of_step: OrderedDict[tuple[str, str], list[dict[str, Any]]] = OrderedDict()


def models_of_step(run_id: str, step_key: str) -> list[dict[str, Any]]:
    """`model_facts` of each model that a step of this process loaded, the one it asked for last at the end."""
    return _models_of_step.get((run_id, step_key), [])


class LanguageModelResource(dg.ConfigurableResource):
    """Gives the model of the profile, with single fields replaced where they are set here."""

    overrides: dict[str, Any] = Field(
        default_factory=dict,
        description="Fields of the profile's `model` to replace on this machine, e.g. {device: cuda}.",
    )

    def spec(self, adapter: "Place | Sequence[Place] | None" = None) -> ModelSpec:
        """Which model this resource loads; see `load`.

        Raises:
            pydantic.ValidationError: an override is not a field of ModelSpec, or has a wrong value.
        """
        spec = ModelSpec.model_validate({**settings().profile.model.model_dump(), **self.overrides})
        if adapter is None:
            return spec
        more = adapter if isinstance(adapter, list | tuple) else [adapter]
        folders = [str(getattr(one, "path", one)) for one in more]
        return spec.model_copy(update={"adapter": (*spec.adapters, *folders)})

    def load(self, adapter: "Place | Sequence[Place] | None" = None) -> "LoadedModel":
        """The model; a second call with the same adapters costs nothing, one with others only these.

        Args:
            adapter: a LoRA's directory or its version in the store, or several, on top of the profile's model; None:
                the profile's model as it is. Relative paths start at the project root.

        Raises:
            ModelLoadError: the model cannot be loaded, or an adapter does not fit it or changes nothing.
        """
        from steer_pipeline.lab.models.loading import load_model

        model = load_model(self.spec(adapter), settings().home)
        _note(model)
        return model


def _note(model: "LoadedModel") -> None:
    """Records that the running step uses `model`; nothing outside of a step."""
    try:
        step = dg.OpExecutionContext.get().get_step_execution_context()
    except dg.DagsterInvariantViolationError:
        return
    facts, key = provenance.model_facts(model), (step.run_id, step.step.key)
    noted = _models_of_step.setdefault(key, [])
    noted[:] = [*(one for one in noted if one != facts), facts]
    _models_of_step.move_to_end(key)
    while len(_models_of_step) > _REMEMBERED_STEPS:
        _models_of_step.popitem(last=False)
