"""Published averaged vectors of roles and traits, read into a `PersonaVector` of contrasts.

In: the files of one model, `<model>/roles_240/...` and `<model>/traits_240/...`. Out: the contrast at every block.

| file | keys, each [n_blocks, hidden], row k at the output of block k |
|---|---|
| roles_240/vectors/{role}.pt | pos_0, pos_1, pos_2, pos_3 (mean response states by score), pos_all |
| roles_240/default_vectors.pt | {"activations": {pos_1, default_1, all_1}, "metadata": {...}} |
| traits_240/vectors/{trait}.pt | pos_neg, pos_neg_50, pos_default, pos_default_50, pos_70, pos_40_70 |

A role is `pos_3 - default_1`, a trait `pos_neg_50`: matched pairs whose scores differ by more than 50. Those
keys are required; another key is another quantity and never takes their place. A tensor of zeros is how an empty
set was written, so it is missing.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from steer_pipeline.lab.models.identity import same_name
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.vectors.averaged import MissingVector
from steer_pipeline.lab.vectors.formats import FormatError
from steer_pipeline.lab.vectors.formats.common import load_plain
from steer_pipeline.lab.vectors.vector import PersonaVector, VectorError

ROLE_KEY, DEFAULT_KEY, TRAIT_KEY = "pos_3", "default_1", "pos_neg_50"
DEFAULTS = "default_vectors.pt"
_NAMES_OF_MODEL = ("model", "model_name")


def load_published(
    root: Path,
    name: str,
    kind: Literal["role", "trait"],
    model: LoadedModel,
    *,
    defaults: Path | None = None,
    allow_other_model: bool = False,
) -> PersonaVector:
    """The published contrast of one persona.

    Args:
        root: folder of one model (`.../qwen-3-32b`) that holds `roles_240` and `traits_240`; its name says
            which model the files were collected on.
        defaults: another place of the role defaults; they must be of the same model as the role.
        allow_other_model: accept files of a model with another name; width and depth must agree all the same.

    Raises:
        MissingVector: a key is absent (upstream leaves out labels of few samples) or its tensor is all zeros.
        FormatError: no such file, foreign content, a wrong depth or width, or a tensor that is not finite.
        VectorError: the files, or the role's defaults, are of another model.
    """
    _require_model(root.name, model, root, allow_other_model)
    if kind == "trait":
        path = root / "traits_240" / "vectors" / f"{name}.pt"
        raw, files, keys = _tensor(_load(path), TRAIT_KEY, path, model), [path], [TRAIT_KEY]
    else:
        path = root / "roles_240" / "vectors" / f"{name}.pt"
        base = root / "roles_240" / DEFAULTS if defaults is None else defaults
        raw = _tensor(_load(path), ROLE_KEY, path, model) - _default(base, root, model)
        files, keys = [path, base], [ROLE_KEY, DEFAULT_KEY]
    try:
        return PersonaVector(name, raw.astype(np.float32), _metadata(raw, root.name, model, files, keys))
    except VectorError as error:
        raise FormatError(f"{path}: {error}") from error


def _metadata(
    raw: np.ndarray, slug: str, model: LoadedModel, files: Sequence[Path], keys: Sequence[str]
) -> dict[str, Any]:
    """Where the contrast comes from; `slug` is how its files call their model."""
    return {
        "model": model.name if model.is_called(slug) else slug,
        "revision": None,
        "backend": None,
        "dtype": None,
        "weights_sha": None,
        "n_blocks": model.n_blocks,
        "hidden_size": model.hidden_size,
        "method": "averaged",
        "source": {
            "kind": "published",
            "model": slug,
            "keys": list(keys),
            "files": {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files},
        },
        "flags": [],
        "raw_norms": [round(float(norm), 6) for norm in np.linalg.norm(raw, axis=1)],
    }


def _default(path: Path, root: Path, model: LoadedModel) -> np.ndarray:
    """fp32 [n_blocks, hidden]: the mean response state without a role."""
    held = _load(path)
    if not isinstance(held.get("activations"), Mapping):
        raise FormatError(f"{path}: no dict under key 'activations'; these are not role defaults")
    _require_same_defaults(path, held.get("metadata"), root)
    return _tensor(held["activations"], DEFAULT_KEY, path, model)


def _load(path: Path) -> dict[str, Any]:
    loaded = load_plain(path, f"the published layout is described in {__name__}")
    if not isinstance(loaded, dict):
        raise FormatError(f"{path}: a dict of tensors is expected, this is a {type(loaded).__name__}")
    return loaded


def _tensor(held: Mapping[str, Any], key: str, path: Path, model: LoadedModel) -> np.ndarray:
    """fp32 [n_blocks, hidden] under `key`."""
    import torch

    if key not in held:
        raise MissingVector(
            f"{path}: no key {key!r} (it has {sorted(held)}); too few samples had this label when it was made"
        )
    value = held[key]
    if not isinstance(value, torch.Tensor):
        raise FormatError(f"{path}: key {key!r} is a {type(value).__name__}; a tensor is expected")
    if tuple(value.shape) != (model.n_blocks, model.hidden_size):
        raise FormatError(
            f"{path}: key {key!r} has shape {list(value.shape)}; {model.name} has {model.n_blocks} blocks of "
            f"width {model.hidden_size}"
        )
    states = value.detach().float().numpy()
    if not np.isfinite(states).all():
        raise FormatError(f"{path}: key {key!r} has values that are not finite; collect it in float32")
    if not states.any():
        raise MissingVector(f"{path}: key {key!r} is all zeros, which is how an empty set was written")
    return states


# ---------------------------------------------------------------------------------------- models


def _require_model(slug: str, model: LoadedModel, root: Path, allowed: bool) -> None:
    if not allowed and not model.is_called(slug):
        raise VectorError(
            f"{root}: vectors of {slug!r}, the model is {model.name!r}; give the folder of this model, or set "
            "behaviour.allow_other_model where that is meant"
        )


def _require_same_defaults(path: Path, metadata: Any, root: Path) -> None:
    """Defaults lie in a folder of the role's model, and name no other one in their metadata."""
    folder = path.parent.name
    owner = path.parent.parent.name if re.fullmatch(r"roles(_\d+)?", folder) else folder
    named = [metadata[key] for key in _NAMES_OF_MODEL if isinstance(metadata, Mapping) and metadata.get(key)]
    for other in [owner, *map(str, named)]:
        if not same_name(root.name, other):
            raise VectorError(
                f"{path}: role defaults of {other!r} for a role of {root.name!r}; a contrast between two models "
                "means nothing, so give the defaults of the same model"
            )
