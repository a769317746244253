"""EasySteer (steering in vLLM): its GGUF files, and bare direction tensors.

Its engine reads GGUF control vectors whose `direction.k` is the output of decoder layer k, as repeng labels them, with
an own field that says from which part of the model they were taken. A `.pt` direction is one vector without a layer;
EasySteer asks for the layer when it is loaded, and so do we.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from steer_pipeline.lab.vectors.formats.common import (
    FormatError,
    file_shas,
    imported_vector,
    one_direction,
    read_pt,
)
from steer_pipeline.lab.vectors.formats.gguf import BLOCK_OUTPUT, EASYSTEER, export_gguf, import_gguf
from steer_pipeline.lab.vectors.vector import PersonaVector


def import_easysteer(
    path: Path, persona: str, *, model: str, n_blocks: int, block: int | None = None
) -> PersonaVector:
    """An EasySteer GGUF, or a `.pt` direction with its `block`.

    Raises:
        FormatError: neither, a `.pt` without `block`, a GGUF with one, or directions that are no block outputs.
    """
    if path.suffix != ".pt":
        if block is not None:
            raise FormatError(f"{path}: a GGUF says its blocks; remove the declared block {block}")
        return import_gguf(path, persona, model=model, n_blocks=n_blocks, made_by="easysteer")
    if block is None or not 0 <= block < n_blocks:
        raise FormatError(
            f"{path}: a .pt direction of EasySteer has no layer; declare its block, 0 to {n_blocks - 1}"
        )
    values = read_pt(path)
    source = {"kind": "easysteer", "file": path.name, "sha256": file_shas(path)}
    raw = one_direction(values, values.size, path)
    return imported_vector(persona, raw, [block], model=model, n_blocks=n_blocks, source=source, flags=[])


def export_easysteer(
    vector: PersonaVector, path: Path, *, model_hint: str = "", blocks: Sequence[int] | None = None
) -> list[int]:
    """Writes a GGUF for `VectorSpec(source=…, algorithm="direct")`, with EasySteer's own field; natural magnitude.

    Args:
        blocks: default: every present block, 0 too. EasySteer steers all of a file's layers unless `layers` narrows
            them, so name one for the usual steering at one block.

    Returns:
        The blocks that were written.

    Raises:
        VectorError: as `export_gguf`.
    """
    native = {"version": 1, "component": BLOCK_OUTPUT, "metadata": None}
    fields = {
        "controlvector.method": str(vector.metadata.get("method", "unknown")),
        EASYSTEER: json.dumps(native),
    }
    chosen = vector.present_blocks if blocks is None else blocks
    return export_gguf(vector, path, model_hint=model_hint, blocks=chosen, fields=fields)
