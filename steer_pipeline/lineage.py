"""Of which sections of the profile an asset is made, as part of its code version.

`made_of("2", "corpus.max_tokens")` gives `2 corpus.max_tokens=1c9d0b52`: the number of the code, and a hash of what
each declared section says. Dagster compares code versions, so an edit of a declared section makes the asset stale in
the UI, for automation and for the command alike; an edit of another section, or a new one, does not. The declaration
stands beside the asset and is the only one: whatever the asset or its blocking checks read of the profile is in it.
"""

import hashlib
import json
from functools import reduce
from typing import Any

from pydantic import BaseModel

from steer_pipeline.catalogue.specs import Profile
from steer_pipeline.settings import settings

# What the numbers of a model depend on beside its files, which are inputs of their own.
MODEL = ("model.backend", "model.dtype", "model.compile")


def made_of(code: str, *sections: str, profile: Profile | None = None) -> str:
    """The code version of an asset whose body or checks read these sections (dotted paths) of the profile.

    Raises:
        AttributeError: the profile has no such section.
    """
    profile = profile or settings().profile
    return " ".join([code, *(f"{section}={_digest(profile, section)}" for section in sorted(set(sections)))])


def sections_of(code_version: str) -> dict[str, str]:
    """section -> hash, of what `made_of` gave."""
    return dict(part.split("=", 1) for part in code_version.split(" ")[1:] if "=" in part)


def changes(before: str, now: str) -> list[str]:
    """What differs between two code versions of an asset, in words."""
    old, new = sections_of(before), sections_of(now)
    message = [
        f"profile section {name} has changed" for name in new if name in old and old[name] != new[name]
    ]
    message += [f"is now made of profile section {name}" for name in new if name not in old]
    message += [f"is no longer made of profile section {name}" for name in old if name not in new]
    if before.split(" ")[0] != now.split(" ")[0]:
        message.append(f"its code has changed ({before.split(' ')[0]} to {now.split(' ')[0]})")
    return message


def _digest(profile: Profile, section: str) -> str:
    value: Any = reduce(getattr, section.split("."), profile)
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=_plain).encode()).hexdigest()[:8]


def _plain(part: BaseModel) -> Any:
    return part.model_dump(mode="json")
