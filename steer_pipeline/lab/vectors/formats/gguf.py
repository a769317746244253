"""GGUF control vectors, of repeng, llama.cpp's generator, EasySteer and ours.

| writer | `direction.k` is |
|---|---|
| repeng | the output of block k; the last block's was read after the final norm (flagged) |
| EasySteer | decoder layer k: block k |
| llama.cpp's generator | read at block k - 1; llama.cpp adds it at k (flagged) |
| this package | the output of block k |
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from steer_pipeline.lab.vectors.formats.common import (
    FormatError,
    file_shas,
    imported_vector,
    require_outputs,
)
from steer_pipeline.lab.vectors.vector import PersonaVector, VectorError

GGUF_ARCHITECTURE = "controlvector"
OURS = "steer_pipeline.model"
EASYSTEER = "controlvector.easysteer"
BLOCK_OUTPUT = "hidden_states"  # EasySteer's name of a decoder layer's output


def import_gguf(
    path: Path,
    persona: str,
    *,
    model: str,
    n_blocks: int,
    made_by: Literal["repeng", "llama.cpp", "easysteer"] = "repeng",
) -> PersonaVector:
    """A GGUF control vector; what we exported comes back as it was.

    Args:
        made_by: whose labels `direction.k` are, see the module's table. What EasySteer and we wrote says so itself.

    Raises:
        FormatError: not a control vector, no directions, an index outside the model, or directions of EasySteer that
            are no block outputs.
    """
    reader = _opened(path)
    ours = _string(reader, OURS) is not None
    component = _easysteer_component(reader, path)
    if component is not None and not ours and made_by == "repeng":
        made_by = "easysteer"
    rows = _directions(reader, path, n_blocks, offset=-1 if made_by == "llama.cpp" else 0)
    flags = []
    if made_by == "llama.cpp":
        flags.append("read one block before the one where llama.cpp adds it")
    elif not ours and made_by == "repeng" and n_blocks - 1 in rows:
        flags.append(f"block {n_blocks - 1}: repeng reads the last block after the final norm")
    blocks = sorted(rows)
    source = {
        "kind": "gguf",
        "file": path.name,
        "sha256": file_shas(path),
        "made_by": "steer_pipeline" if ours else made_by,
        "model_hint": _string(reader, f"{GGUF_ARCHITECTURE}.model_hint"),
    }
    raw = np.stack([rows[block] for block in blocks])
    return imported_vector(persona, raw, blocks, model=model, n_blocks=n_blocks, source=source, flags=flags)


def _opened(path: Path) -> Any:
    """A reader of a file that says it is a control vector."""
    from gguf import GGUFReader

    if not path.is_file():
        raise FormatError(f"{path}: no such file")
    try:
        reader = GGUFReader(path)
    except (ValueError, IndexError, OSError) as error:
        raise FormatError(f"{path}: not a GGUF file ({error})") from error
    architecture = _string(reader, "general.architecture")
    if architecture != GGUF_ARCHITECTURE:
        raise FormatError(
            f"{path}: general.architecture is {architecture!r}; {GGUF_ARCHITECTURE!r} is expected"
        )
    return reader


def _directions(reader: Any, path: Path, n_blocks: int, offset: int) -> dict[int, np.ndarray]:
    """fp32 [hidden] by block; `offset` is added to the labels."""
    rows: dict[int, np.ndarray] = {}
    for tensor in reader.tensors:
        match = re.fullmatch(r"direction\.(\d+)", tensor.name)
        if match is None:
            raise FormatError(f"{path}: tensor {tensor.name!r}; names are direction.<layer>")
        if tensor.tensor_type.name not in ("F32", "F16"):
            raise FormatError(f"{path}: {tensor.name} is {tensor.tensor_type.name}; F32 or F16 is expected")
        block = int(match[1]) + offset
        if not 0 <= block < n_blocks:
            raise FormatError(f"{path}: {tensor.name} means block {block} of a model of {n_blocks} blocks")
        rows[block] = np.array(tensor.data, dtype=np.float32)
    if not rows:
        raise FormatError(f"{path}: it has no direction.<layer> tensors")
    widths = {len(row) for row in rows.values()}
    if len(widths) > 1:
        raise FormatError(f"{path}: directions of different widths {sorted(widths)}")
    return rows


def _string(reader: Any, key: str) -> str | None:
    found = reader.get_field(key)
    return None if found is None else bytes(found.parts[found.data[0]]).decode("utf-8", errors="replace")


def _easysteer_component(reader: Any, path: Path) -> str | None:
    """The part of the model that EasySteer's own metadata names; None where there are none."""
    native = _string(reader, EASYSTEER)
    if native is None:
        return None
    try:
        component = json.loads(native).get("component")
    except (json.JSONDecodeError, AttributeError) as error:
        raise FormatError(f"{path}: field {EASYSTEER} is not what EasySteer writes ({error})") from error
    if component not in (None, BLOCK_OUTPUT):
        raise FormatError(
            f"{path}: EasySteer took these directions from {component}, not from block outputs; "
            "no site of ours is the same"
        )
    return component or BLOCK_OUTPUT


def export_gguf(
    vector: PersonaVector,
    path: Path,
    *,
    model_hint: str = "",
    blocks: Sequence[int] | None = None,
    fields: Mapping[str, str] = MappingProxyType({}),
) -> list[int]:
    """Writes a control vector that repeng and llama.cpp read; natural magnitude, fp32, atomically.

    Tensor `direction.k` is the output of block k, counted from 0. repeng adds it there. llama.cpp adds it
    there too, but counts from 1 in the sense that it has no layer 0 and refuses a file with `direction.0`;
    hence block 0 is left out unless `blocks` asks for it. repeng itself starts at block 1 by default.

    Args:
        model_hint: `controlvector.model_hint`, the architecture name (config.model_type) by convention.
        blocks: default: every present block but 0.
        fields: further text fields.

    Returns:
        The blocks that were written.

    Raises:
        VectorError: the vector lacks a block that was asked for, or has none but block 0.
    """
    from gguf import GGUFWriter

    require_outputs(vector)
    chosen = (
        [block for block in vector.present_blocks if block > 0] if blocks is None else sorted(set(blocks))
    )
    if not chosen:
        raise VectorError(
            f"vector {vector.persona!r} has only block 0, which llama.cpp refuses; pass blocks=[0]"
        )
    directions = {block: np.ascontiguousarray(vector.at(block), dtype=np.float32) for block in chosen}
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    writer = GGUFWriter(staged, GGUF_ARCHITECTURE)
    writer.add_string(f"{GGUF_ARCHITECTURE}.model_hint", model_hint)
    writer.add_uint32(f"{GGUF_ARCHITECTURE}.layer_count", len(directions))
    writer.add_string("general.name", vector.persona)
    writer.add_string(OURS, str(vector.metadata.get("model")))
    writer.add_string("steer_pipeline.digest", vector.digest)
    for key, text in fields.items():
        writer.add_string(key, text)
    for block, direction in directions.items():
        writer.add_tensor(f"direction.{block}", direction)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(staged, path)
    return chosen
