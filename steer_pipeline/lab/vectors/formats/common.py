"""What readers and writers of other tools' files share: hashes, checked fields, tensors without code, whole files.

A direction whose block cannot be told is refused, and missing blocks stay missing.
"""

import hashlib
import io
import json
import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from steer_pipeline.lab.vectors.vector import PersonaVector, VectorError

NORM_TOLERANCE = 1e-3


class FormatError(VectorError):
    """A file is not what its format says. The message names file, field and cure."""


def file_sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def file_shas(*paths: Path) -> dict[str, str]:
    return {path.name: file_sha(path) for path in paths}


def read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FormatError(f"{path}: no such file")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise FormatError(f"{path}: a JSON object is expected, this is a {type(data).__name__}")
    return data


def integer_field(data: Mapping[str, Any], name: str, path: Path) -> int:
    value = data.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise FormatError(f"{path}: field {name} is {value!r}; an integer is needed")
    return value


def load_plain(path: Path, missing: str) -> Any:
    """What a `.pt` file of tensors holds; nothing else is unpickled.

    Args:
        missing: what the file would be, for the message where there is none.
    """
    import torch

    if not path.is_file():
        raise FormatError(f"{path}: no such file; {missing}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise FormatError(
            f"{path}: not a file of plain tensors ({str(error).splitlines()[0]}); torch.save it anew"
        ) from error


def read_pt(path: Path, key: str | None = None) -> np.ndarray:
    """The tensor of a `.pt` file, or the one under `key` of its dict, as fp32."""
    import torch

    loaded = load_plain(path, "it holds the tensor of the JSON beside it")
    if key is not None:
        if not isinstance(loaded, dict) or key not in loaded:
            raise FormatError(f"{path}: a dict with key {key!r} is expected")
        loaded = loaded[key]
    if not isinstance(loaded, torch.Tensor):
        raise FormatError(f"{path}: a tensor is expected, this is a {type(loaded).__name__}")
    return loaded.detach().float().numpy()


def one_direction(values: np.ndarray, hidden_size: int, path: Path) -> np.ndarray:
    if values.ndim != 1 or len(values) != hidden_size:
        raise FormatError(f"{path}: shape {list(values.shape)}; a vector of {hidden_size} values is expected")
    return values[None]


def norm_flags(raw: np.ndarray, blocks: Sequence[int]) -> list[str]:
    """Flags of directions that should be unit vectors and are not."""
    norms = np.linalg.norm(raw, axis=1)
    return [
        f"norm {norm:.4g} at block {block} where 1 is usual"
        for norm, block in zip(norms, blocks, strict=True)
        if abs(norm - 1) > NORM_TOLERANCE
    ]


def imported_vector(
    persona: str,
    raw: np.ndarray,
    blocks: Sequence[int],
    *,
    model: str,
    n_blocks: int,
    source: dict[str, Any],
    flags: list[str],
) -> PersonaVector:
    metadata = {
        "model": model,
        "revision": None,
        "backend": None,
        "dtype": None,
        "weights_sha": None,
        "n_blocks": n_blocks,
        "hidden_size": int(raw.shape[1]),
        "source": {
            **source,
            "original_norms": {str(b): float(np.linalg.norm(r)) for b, r in zip(blocks, raw, strict=True)},
        },
        "flags": flags,
    }
    try:
        return PersonaVector(persona, np.ascontiguousarray(raw, dtype=np.float32), metadata, tuple(blocks))
    except VectorError as error:
        raise FormatError(f"{source['file']}: {error}") from error


def require_outputs(vector: PersonaVector) -> None:
    if vector.site != "output":
        raise VectorError(
            f"vector {vector.persona!r} was collected at site {vector.site!r}; the format knows block outputs alone"
        )


def only_block(vector: PersonaVector, block: int | None) -> int:
    require_outputs(vector)
    if block is None and len(vector.present_blocks) > 1:
        raise VectorError(
            f"vector {vector.persona!r} has {len(vector.present_blocks)} blocks and the format holds one; pass block"
        )
    return vector.present_blocks[0] if block is None else block


def pt_bytes(value: np.ndarray, key: str | None = None) -> bytes:
    """What torch.save writes of an fp32 tensor, or of a dict with one."""
    import torch

    tensor = torch.from_numpy(np.array(value, dtype=np.float32))
    buffer = io.BytesIO()
    torch.save(tensor if key is None else {key: tensor}, buffer)
    return buffer.getvalue()


def write_whole(path: Path, content: bytes) -> None:
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    staged.write_bytes(content)
    os.replace(staged, path)
