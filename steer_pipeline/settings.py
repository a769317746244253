"""Profile, paths and seeds: the only reader of environment variables.

`STEER_PROFILE` names the profile (default `newsroom`), `STEER_HOME` the project root (default: the
checkout), `STEER_CATALOGUE` a catalogue of your own (default: the package's), `STEER_STORE` the artifact store (a
directory or an s3:// or gs:// URL), `STEER_NEWS_INBOX` the directory that the news sensor watches, `STEER_JUDGE_URL`
the judge's OpenAI-compatible endpoint (none: nothing is judged). Credentials of stores and judges (`STEER_JUDGE_KEY`)
are read from the environment by their own clients and never stored.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from steer_pipeline.catalogue.loading import (
    CATALOGUE,
    CatalogueError,
    load_profile,
    profile_path,
    read_variants,
)
from steer_pipeline.catalogue.models import Profile, VariantSpec

DEFAULT_PROFILE = "newsroom"


@dataclass(frozen=True)
class Settings:
    """Where this process works and with which profile.

    Attributes:
        store: of the profile: results of two profiles never share a place.
        variants: the sound ones, in file order; `broken_variants` says what is wrong with the others.
    """

    profile: Profile
    home: Path
    store: str
    inbox: Path
    judge_url: str | None
    variants: Mapping[str, VariantSpec]
    broken_variants: Mapping[str, CatalogueError]

    @property
    def shipped(self) -> Path:
        """Inputs and weights that come with the checkout."""
        return self.home / "assets_data" / "newsroom"

    @property
    def variant_names(self) -> list[str]:
        """All variants of the catalogue, sound or not."""
        return [*self.variants, *self.broken_variants]

    def resolve(self, path: str) -> str:
        """A directory of the project by relative path, or the string as it is (hub id, absolute path)."""
        local = self.home / path
        return str(local) if local.exists() else path


def project_home() -> Path:
    return Path(os.environ.get("STEER_HOME") or Path(__file__).parent.parent).resolve()


def catalogue_folder() -> Path:
    """Where personas, variants and profiles lie."""
    return Path(os.environ.get("STEER_CATALOGUE") or CATALOGUE)


@lru_cache(maxsize=8)
def _settings(
    name: str,
    catalogue: Path,
    home: Path,
    base: str,
    inbox: str,
    judge_url: str | None,
    seen: tuple[int, ...],
) -> Settings:
    profile = load_profile(name)
    store = base if profile.name == DEFAULT_PROFILE else f"{base.rstrip('/')}/_profiles/{profile.name}"
    return Settings(profile, home, store, Path(inbox), judge_url, *read_variants(profile))


def settings(*, anew: bool = False) -> Settings:
    """The settings of this process, by its environment. The catalogue is read once, so that a run sees one profile.

    Args:
        anew: read profile and variants again if their files have changed; for what watches them.

    Raises:
        CatalogueError: profile or variants cannot be read at all.
    """
    home = project_home()
    name, catalogue = os.environ.get("STEER_PROFILE") or DEFAULT_PROFILE, catalogue_folder()
    files = (profile_path(name), catalogue / "variants.yaml")
    seen = tuple(path.stat().st_mtime_ns if path.is_file() else 0 for path in files) if anew else ()
    return _settings(
        name,
        catalogue,
        home,
        os.environ.get("STEER_STORE") or str(home / "assets_data" / "store"),
        os.environ.get("STEER_NEWS_INBOX") or str(home / "assets_data" / "inbox"),
        os.environ.get("STEER_JUDGE_URL") or None,
        seen,
    )
