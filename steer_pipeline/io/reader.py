"""Reading the store from inside a step: current versions, each noted as an input of what the step makes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from steer_pipeline.io.store import ArtifactStore, StoreError, Version, label

ROWS = "data.parquet"


def read_rows(folder: Path) -> pl.DataFrame:
    """The rows of a version that `ParquetIO` wrote."""
    return pl.read_parquet(folder / ROWS)


@dataclass(frozen=True)
class Reader:
    """Current versions; `note` is called with each, so that the manifest names what was read.

    Attributes:
        seen: asset[partition] -> version of all that was read.
    """

    store: ArtifactStore
    note: Callable[[Version], Any] = lambda version: None
    seen: dict[str, str] = field(default_factory=dict)

    def current(self, asset: str, partition: str | None = None) -> Version | None:
        """The current version, or None where nothing was made."""
        version = self.store.current(asset, partition)
        if version is not None:
            self._noted(asset, partition, version)
        return version

    def version(self, asset: str, partition: str | None, sha: str) -> Version:
        """The version with this hash."""
        return self._noted(asset, partition, self.store.version(asset, partition, sha))

    def _noted(self, asset: str, partition: str | None, version: Version) -> Version:
        self.note(version)
        self.seen[label(asset, partition)] = version.sha
        return version

    def rows(self, asset: str, partition: str | None = None) -> pl.DataFrame | None:
        """The current rows, or None where there are none."""
        version = self.current(asset, partition)
        return None if version is None else read_rows(version.path)

    def folder(self, asset: str, partition: str | None = None) -> Path:
        """Where the current version lies.

        Raises:
            StoreError: it has not been made.
        """
        version = self.current(asset, partition)
        if version is None:
            raise StoreError(f"{label(asset, partition)} is not in the store: materialise it first")
        return version.path

    def made_rows(self, asset: str, partition: str | None = None) -> pl.DataFrame:
        """The current rows.

        Raises:
            StoreError: they have not been made.
        """
        return read_rows(self.folder(asset, partition))
