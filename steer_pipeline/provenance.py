"""Where a result comes from: profile, model, libraries, commit, memory. In: a loaded model. Out: flat facts."""

import hashlib
import importlib.metadata
import resource
import subprocess
import sys
from contextlib import suppress
from functools import lru_cache
from typing import Any

from steer_pipeline.environment import project_home
from steer_pipeline.settings import settings

LIBRARIES = ("dagster", "torch", "transformers", "peft", "mlx", "polars", "numpy")


def provenance(*, model: Any = None) -> dict[str, str | float | int | bool]:
    """Where a result comes from: profile, model and libraries. `git_state` knows the code.

    Args:
        model: a LoadedModel (lab/models/loading.py), where one was used.
    """
    profile = settings().profile
    facts: dict[str, str | float | int | bool] = {
        "profile": profile.name,
        "profile_sha": hashlib.sha256(profile.model_dump_json().encode()).hexdigest()[:16],
        "libraries": ", ".join(f"{name} {version}" for name, version in library_versions().items()),
    }
    if model is not None:
        facts |= model_facts(model)
    return facts


def model_facts(model: Any) -> dict[str, str | float | int | bool]:
    """What a result says of the LoadedModel that made it."""
    return {
        "model": model.name,
        "model_revision": model.revision or "none",
        "model_identity": str(model.identity),
        "adapters": len(model.identity.adapters),
        "weights_sha": model.identity.base,
        "dtype": model.dtype,
        "device": model.device,
        "backend": model.backend,
    }


def git_state() -> dict[str, str | bool]:
    """Commit of the checkout, and whether tracked files differ from it; `unknown` outside a checkout."""
    try:
        commit = _git("rev-parse", "HEAD")
        return {
            "git_commit": commit,
            "git_dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        return {"git_commit": "unknown"}


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(project_home()), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()


@lru_cache(maxsize=1)
def library_versions() -> dict[str, str]:
    """Versions of the libraries that results depend on, of those that are installed."""
    versions = {"python": sys.version.split()[0]}
    for name in LIBRARIES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def peak_memory_mb() -> float:
    """Largest resident set of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes there, KiB here
