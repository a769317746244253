"""Small personas, contrast rows and vectors for the tests of this folder."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from steer_pipeline.catalogue.specs import Persona
from steer_pipeline.lab.models.identity import same_name
from steer_pipeline.lab.vectors.vector import PersonaVector


def persona(name: str = "paranoid", kind: str = "axis", n_instructions: int = 3) -> Persona:
    return Persona.model_validate(
        {
            "name": name,
            "kind": kind,
            "summary": "For tests.",
            "positive": {
                "name": name,
                "instructions": [f"You are suspicious, way {i}." for i in range(n_instructions)],
                "lexicon": ["hidden", "plot"],
            },
            "negative": {
                "name": "trusting",
                "instructions": [f"You are trusting, way {i}." for i in range(n_instructions)],
                "lexicon": ["sincere"],
            },
        }
    )


def vector(
    n_blocks: int = 4,
    hidden: int = 8,
    *,
    blocks: tuple[int, ...] = (),
    seed: int = 0,
    **metadata: Any,
) -> PersonaVector:
    """A random vector whose block k has residual norm 10 (k + 1)."""
    raw = np.random.default_rng(seed).standard_normal((len(blocks) or n_blocks, hidden)).astype(np.float32)
    fields: Mapping[str, Any] = {
        "model": "tiny",
        "revision": None,
        "weights_sha": "w1",
        "n_blocks": n_blocks,
        "hidden_size": hidden,
        "residual_norms": [10.0 * (k + 1) for k in range(n_blocks)],
    }
    return PersonaVector("paranoid", raw, {**fields, **metadata}, blocks)


def model_like(**changes: Any) -> SimpleNamespace:
    """What a LoadedModel says about itself, for the vector of `vector()`."""
    name = changes.get("name", "tiny")
    fields = {
        "name": name,
        "known_as": name,
        "is_called": lambda other: other == name or same_name(other, name),
        "revision": None,
        "backend": "torch",
        "dtype": "float32",
        "weights_sha": "w1",
        "n_blocks": 4,
        "hidden_size": 8,
    }
    return SimpleNamespace(**{**fields, **changes})
