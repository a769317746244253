"""What this process works with: the profile, the variants and where things lie, read once."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from steer_pipeline import environment
from steer_pipeline.catalogue.loading import (
    CatalogueError,
    load_profile,
    profile_path,
    read_variants,
    studied_names,
)
from steer_pipeline.catalogue.specs import Profile, VariantSpec
from steer_pipeline.environment import DEFAULT_PROFILE


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
    games_url: str | None
    variants: Mapping[str, VariantSpec]
    broken_variants: Mapping[str, CatalogueError]

    @property
    def shipped(self) -> Path:
        """Inputs and weights that come with the checkout."""
        return self.home / "assets_data" / "newsroom"

    @property
    def persona_names(self) -> list[str]:
        """All personas that the profile studies, sound or not."""
        return studied_names(self.profile)

    @property
    def variant_names(self) -> list[str]:
        """All variants that the profile studies, sound or not."""
        return [*self.variants, *self.broken_variants]

    def resolve(self, path: str) -> str:
        """A directory of the project by relative path, or the string as it is (hub id, absolute path)."""
        local = self.home / path
        return str(local) if local.exists() else path


@lru_cache(maxsize=8)
def _settings(
    name: str,
    catalogue: Path,
    home: Path,
    base: str,
    inbox: Path,
    judge_url: str | None,
    games_url: str | None,
    seen: tuple[int, ...],
) -> Settings:
    profile = load_profile(name)
    store = base if profile.name == DEFAULT_PROFILE else f"{base.rstrip('/')}/_profiles/{profile.name}"
    return Settings(profile, home, store, inbox, judge_url, games_url, *read_variants(profile))


def settings(*, anew: bool = False) -> Settings:
    """The settings of this process, by its environment. The catalogue is read once, so that a run sees one profile.

    Args:
        anew: read profile and variants again if their files have changed; for what watches them.

    Raises:
        CatalogueError: profile or variants cannot be read at all.
    """
    name, catalogue = environment.profile_name(), environment.catalogue_folder()
    files = (profile_path(name), catalogue / "variants.yaml")
    seen = tuple(path.stat().st_mtime_ns if path.is_file() else 0 for path in files) if anew else ()
    return _settings(
        name,
        catalogue,
        environment.project_home(),
        environment.store_address(),
        environment.inbox(),
        environment.judge_url(),
        environment.games_url(),
        seen,
    )
