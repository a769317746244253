"""`catalogue_io`: gives assets the personas and variants that they are made of, read when a step starts.

An input annotated as dict is given all sound entries of its partitions by name; a broken one is logged and left out. A
single input whose entry is broken fails its step with the catalogue's sentence.
"""

from typing import Any

import dagster as dg

from steer_pipeline.catalogue.loading import CatalogueError, load_persona
from steer_pipeline.io.versioned import wants_dict
from steer_pipeline.keys import name_of
from steer_pipeline.settings import settings


class CatalogueIO(dg.ConfigurableIOManager):
    """Reads; nothing is ever written to the catalogue."""

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        raise NotImplementedError("the catalogue is written by people")

    def load_input(self, context: dg.InputContext) -> Any:
        names, many = sorted(context.asset_partition_keys), wants_dict(context)
        if not many:
            (name,) = names
            try:
                return _entry(name_of(context.asset_key), name)
            except CatalogueError as error:
                raise dg.Failure(str(error), allow_retries=False) from error
        entries = {}
        for name in names:
            try:
                entries[name] = _entry(name_of(context.asset_key), name)
            except CatalogueError as error:
                context.log.warning(f"left out: {error}")
        return entries


def _entry(origin: str, name: str) -> Any:
    if origin != "variant_spec":
        return load_persona(name, profile=settings().profile)
    if (problem := settings().broken_variants.get(name)) is not None:
        raise problem
    return settings().variants[name]
