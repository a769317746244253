"""`bundle_io`: directories, such as vectors, adapters and reports. An asset returns a Path, the next one is given one.

What is returned is copied and may be a temporary directory; what is given must only be read.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from steer_pipeline.io.store import Version
from steer_pipeline.io.versioned import VersionedIO


class BundleIO(VersionedIO):
    """Directories as they are."""

    def dump(self, value: Any, folder: Path) -> Mapping[str, Any]:
        if not isinstance(value, Path) or not value.is_dir():
            what = f"{value}, which is no directory" if isinstance(value, Path) else type(value).__name__
            raise TypeError(f"bundle_io stores directories: return the Path of one, not {what}")
        shutil.copytree(value, folder, dirs_exist_ok=True)
        return {"files": sum(1 for path in folder.rglob("*") if path.is_file())}

    def links(self, version: Version) -> Mapping[str, Any]:
        """Path and address of each HTML page at the bundle's top: a report is opened, not rebuilt from its parts."""
        shown: dict[str, Any] = {}
        for name in version.manifest["files"]:
            if name.endswith(".html") and "/" not in name:
                where = f"{version.url}/{name}"
                shown[name] = dg.MetadataValue.path(where)
                shown[f"open_{name}"] = dg.MetadataValue.url(
                    where if "://" in where else Path(where).absolute().as_uri()
                )
        return shown

    def load(self, version: Version) -> Path:
        return version.path
