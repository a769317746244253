"""Janus: a tiny JSON (layer_idx, hidden_size) and a bare tensor beside it; which block an index means.

| back end | index, of b blocks | block whose output it belongs to |
|---|---|---|
| torch | k <= -2 | b + k |
| torch | -1 | none: read after the final norm, added before it; refused unless the block is declared |
| torch | k >= 1 | k - 1, where it was read; Janus itself adds it one block later (flagged) |
| torch | 0 | none: the embedding; refused |
| mlx | any k < 0 | b - 1, whatever the label says (flagged) |
| mlx | k >= 0 | k |
"""

import json
import re
from pathlib import Path
from typing import Any, Literal

from steer_pipeline.lab.vectors.formats.common import (
    FormatError,
    file_shas,
    imported_vector,
    integer_field,
    norm_flags,
    one_direction,
    only_block,
    pt_bytes,
    read_json,
    read_pt,
    write_whole,
)
from steer_pipeline.lab.vectors.vector import PersonaVector, VectorError


def import_janus(
    path: Path,
    persona: str,
    *,
    model: str,
    n_blocks: int,
    made_with: Literal["torch", "mlx"] = "torch",
    block: int | None = None,
) -> PersonaVector:
    """A Janus persona file: `NAME.json` (layer_idx, hidden_size) and the bare tensor `NAME.pt` beside it.

    The module's table says which block a layer_idx means. Trait and layer in the file name are hints; the
    JSON wins, and a name that says otherwise is flagged.

    Args:
        path: the JSON file.
        model: name of the model it was made on. Only converted files say so; one that says another is
            refused.
        n_blocks: depth of that model.
        made_with: back end that built it; Janus does not record it.
        block: declares the block of a torch file with layer_idx -1, whose direction was read after the final
            norm and is only an approximation anywhere before it. Refused for every other index.

    Raises:
        FormatError: a file is missing or damaged, the index means no block, or shapes and norms make no
            sense.
    """
    described = read_json(path)
    layer, hidden_size = (integer_field(described, name, path) for name in ("layer_idx", "hidden_size"))
    tensor_path = path.with_suffix(".pt")
    raw = one_direction(read_pt(tensor_path), hidden_size, tensor_path)
    if described.get("model") not in (None, model):
        raise FormatError(
            f"{path}: made for model {described['model']!r}, not for {model!r}; import it there"
        )
    if not -n_blocks <= layer < n_blocks:
        raise FormatError(f"{path}: layer_idx {layer} is outside a model of {n_blocks} blocks")
    resolved, flags = _janus_block(layer, n_blocks, made_with, block, path)
    hinted = re.search(r"_L(-?\d+)", path.stem)
    if hinted and int(hinted[1]) != layer:
        flags.append(f"file name says L{hinted[1]}, layer_idx is {layer}")
    source: dict[str, Any] = {
        "kind": "janus",
        "file": path.name,
        "sha256": file_shas(path, tensor_path),
        "layer_idx": layer,
        "made_with": made_with,
        **{name: described[name] for name in ("model", "gamma") if name in described},
    }
    flags += norm_flags(raw, [resolved])
    return imported_vector(
        persona, raw, [resolved], model=model, n_blocks=n_blocks, source=source, flags=flags
    )


def _janus_block(
    layer: int, n_blocks: int, made_with: str, declared: int | None, path: Path
) -> tuple[int, list[str]]:
    post_norm = made_with == "torch" and layer == -1
    if declared is not None and not post_norm:
        raise FormatError(
            f"{path}: layer_idx {layer} says which block it belongs to; remove the declared block {declared}"
        )
    if made_with == "mlx":
        if layer >= 0:
            return layer, []
        flag = f"MLX reads every negative layer at the last block: label {layer} is unreliable"
        return n_blocks - 1, [flag] if layer != -1 else []
    if post_norm:
        if declared is None:
            raise FormatError(
                f"{path}: layer_idx -1 was read after the final norm and belongs to no block's output; "
                "build the vector anew at a block, or declare the block to approximate it at"
            )
        if not 0 <= declared < n_blocks:
            raise FormatError(f"{path}: declared block {declared} is outside a model of {n_blocks} blocks")
        return declared, ["read after the final norm: an approximation before it"]
    if layer == 0:
        raise FormatError(f"{path}: layer_idx 0 of a torch file is the embedding, not a block's output")
    if layer > 0:
        return layer - 1, [f"read at block {layer - 1}; Janus adds it at block {layer}"]
    return n_blocks + layer, []


def export_janus(
    vector: PersonaVector,
    path: Path,
    *,
    block: int | None = None,
    made_for: Literal["torch", "mlx"] = "torch",
) -> int:
    """Writes `NAME.json` and the bare tensor `NAME.pt`; natural magnitude (Janus' alpha 1), fp32, atomically.

    The index is one that Janus adds at this very block. Its torch back end gets a negative one, since it adds
    positive ones a block later than it read them; MLX gets one from 0, since it takes every negative one for
    the last block.

    Args:
        path: the JSON file.
        block: default: the vector's only one.

    Returns:
        The layer_idx that was written.

    Raises:
        VectorError: the vector lacks the block or has several, or the block is the last one and made for torch.
    """
    block = only_block(vector, block)
    if made_for == "torch" and block == vector.n_blocks - 1:
        raise VectorError(
            f"vector {vector.persona!r}: Janus' torch back end has no index for the output of the last block "
            f"({block}); pass made_for='mlx', or export another block"
        )
    direction = vector.at(block)
    layer = block if made_for == "mlx" else block - vector.n_blocks
    described = {"layer_idx": layer, "hidden_size": len(direction), "model": vector.metadata.get("model")}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path.with_suffix(".pt"), pt_bytes(direction))
    write_whole(path, (json.dumps(described, indent=2) + "\n").encode())
    return layer
