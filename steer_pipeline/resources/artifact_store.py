"""The artifact store as a Dagster resource; where it lies is read from the settings when it is used."""

from typing import Any

import dagster as dg
from pydantic import Field

from steer_pipeline.io.store import ArtifactStore
from steer_pipeline.settings import Settings, settings


def open_store(chosen: Settings | None = None) -> ArtifactStore:
    """The store that the settings name (default: those of this process)."""
    return ArtifactStore((chosen or settings()).store)


class ArtifactStoreResource(dg.ConfigurableResource):
    """Gives the artifact store: `store.store()` in an asset."""

    base: str | None = Field(
        default=None,
        description="Directory or URL (s3://bucket/prefix, gs://…); default: STEER_STORE, else "
        "assets_data/store. Credentials come from the environment.",
    )
    storage_options: dict[str, Any] = Field(
        default_factory=dict, description="Options of the URL's fsspec file system, e.g. endpoint_url."
    )

    def store(self) -> ArtifactStore:
        return ArtifactStore(self.base or settings().store, self.storage_options)
