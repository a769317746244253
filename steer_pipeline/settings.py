"""Profile, paths and seeds: the only reader of environment variables.

`STEER_PROFILE` names the profile (default `newsroom`), `STEER_HOME` the project root (default: the
checkout), `STEER_STORE` the artifact store (a directory or an s3:// or gs:// URL), `STEER_NEWS_INBOX`
the directory that the news sensor watches, `STEER_JUDGE_URL` the judge's OpenAI-compatible endpoint
(none: nothing is judged). Credentials of stores and judges (`STEER_JUDGE_KEY`) are read from the
environment by their own clients and never stored.
"""

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from steer_pipeline.catalogue.loading import load_profile, load_variants
from steer_pipeline.catalogue.models import Profile, VariantSpec


@dataclass(frozen=True)
class Settings:
    """Where this process works and with which profile."""

    profile: Profile
    home: Path
    store: str
    inbox: Path
    judge_url: str | None = None

    @property
    def shipped(self) -> Path:
        """Inputs and weights that come with the checkout."""
        return self.home / "assets_data" / "newsroom"

    @property
    def variants(self) -> dict[str, VariantSpec]:
        return load_variants(self.profile)

    def resolve(self, path: str) -> str:
        """A directory of the project by relative path, or the string as it is (hub id, absolute path)."""
        local = self.home / path
        return str(local) if local.exists() else path


def project_home() -> Path:
    return Path(os.environ.get("STEER_HOME") or Path(__file__).parent.parent).resolve()


@lru_cache(maxsize=8)
def _settings(profile: str, home: Path, store: str, inbox: str, judge_url: str | None) -> Settings:
    return Settings(load_profile(profile), home, store, Path(inbox), judge_url)


def settings() -> Settings:
    """The settings of this process, read anew from the environment at each call."""
    home = project_home()
    return _settings(
        os.environ.get("STEER_PROFILE") or "newsroom",
        home,
        os.environ.get("STEER_STORE") or str(home / "assets_data" / "store"),
        os.environ.get("STEER_NEWS_INBOX") or str(home / "assets_data" / "inbox"),
        os.environ.get("STEER_JUDGE_URL") or None,
    )
