"""chatspace: a folder of `steering_vector.pt` and `steering_config.json`; target_layer k is block k."""

import json
from pathlib import Path

import numpy as np

from steer_pipeline.lab.models.identity import same_name
from steer_pipeline.lab.vectors.formats.common import (
    FormatError,
    file_shas,
    imported_vector,
    integer_field,
    one_direction,
    only_block,
    pt_bytes,
    read_json,
    read_pt,
    write_whole,
)
from steer_pipeline.lab.vectors.vector import PersonaVector


def import_chatspace(folder: Path, persona: str, *, model: str, n_blocks: int) -> PersonaVector:
    """A chatspace run: `steering_vector.pt` and `steering_config.json` (model_name, target_layer,
    init_scale).

    The vector is added at the output of block target_layer with its learned length, which is kept. A norm
    equal to
    that of the random initialisation is flagged: such a vector was hardly trained.

    Args:
        folder: the directory of both files.

    Raises:
        FormatError: a file is missing (chatspace itself accepts that), damaged, or of another model.
    """
    config_path, tensor_path = folder / "steering_config.json", folder / "steering_vector.pt"
    config = read_json(config_path)
    layer = integer_field(config, "target_layer", config_path)
    values = read_pt(tensor_path, "steering_vector")
    raw = one_direction(values, values.size, tensor_path)
    if not -n_blocks <= layer < n_blocks:
        raise FormatError(f"{config_path}: target_layer {layer} is outside a model of {n_blocks} blocks")
    made_for = config.get("model_name")
    if made_for is not None and made_for != model and not same_name(str(made_for), model):
        raise FormatError(f"{config_path}: made for model {made_for!r}, not for {model!r}; import it there")
    norm, initial = float(np.linalg.norm(raw)), config.get("init_scale", 0.0) * np.sqrt(raw.shape[1])
    flags = []
    if initial and abs(norm / initial - 1) < 0.1:
        flags.append(f"norm {norm:.4g} is that of the random initialisation ({initial:.4g}): hardly trained")
    source = {
        "kind": "chatspace",
        "file": folder.name,
        "sha256": file_shas(config_path, tensor_path),
        "target_layer": layer,
    }
    return imported_vector(
        persona, raw, [layer % n_blocks], model=model, n_blocks=n_blocks, source=source, flags=flags
    )


def export_chatspace(vector: PersonaVector, folder: Path, *, block: int | None = None) -> None:
    """Writes `steering_vector.pt` and `steering_config.json` as chatspace does; natural magnitude, fp32.

    The tensor is written first, so that a torn export has no configuration and is refused everywhere.

    Args:
        block: default: the vector's only one; it becomes target_layer.

    Raises:
        VectorError: the vector lacks the block, or has several and none is named.
    """
    block = only_block(vector, block)
    config = {"model_name": vector.metadata.get("model"), "target_layer": block, "init_scale": 0.0}
    direction = vector.at(block)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "steering_config.json").unlink(missing_ok=True)
    write_whole(folder / "steering_vector.pt", pt_bytes(direction, "steering_vector"))
    write_whole(folder / "steering_config.json", (json.dumps(config, indent=2) + "\n").encode())
