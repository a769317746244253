"""Other tools' vectors and trait files, read into our types; chatspace, Janus and GGUF vectors are written too.

In: files of Janus, persona_vectors, chatspace, repeng or llama.cpp, and the shape of the model they were made
on, which most of them do not say. Out: `PersonaVector`s whose metadata name source files, hashes, norms and
flags, and `Persona` catalogue entries. A direction whose block cannot be told is refused, and missing blocks
stay missing.

Which block an index means, with b blocks counted from 0:

| format | index | block whose output it belongs to |
|---|---|---|
| Janus, torch | k <= -2 | b + k |
| Janus, torch | -1 | none: read after the final norm, added before it; refused unless the block is declared |
| Janus, torch | k >= 1 | k - 1, where it was read; Janus itself adds it one block later (flagged) |
| Janus, torch | 0 | none: the embedding; refused |
| Janus, mlx | any k < 0 | b - 1, whatever the label says (flagged) |
| Janus, mlx | k >= 0 | k |
| persona_vectors | row 0 | the embedding; left out |
| persona_vectors | row k | k - 1; the last row, read after the final norm, is left out |
| chatspace | target_layer k | k (b + k when negative) |
| GGUF of repeng | direction.k | k; the last block's was read after the final norm (flagged) |
| GGUF of llama.cpp's generator | direction.k | k - 1, where it was read; llama.cpp adds it at k (flagged) |
"""

import hashlib
import io
import json
import os
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from steer_pipeline.catalogue.specs import ImportedVector, Persona, Pole
from steer_pipeline.lab.models.identity import same_name
from steer_pipeline.lab.vectors.vector import PersonaVector, VectorError

NORM_TOLERANCE = 1e-3
GGUF_ARCHITECTURE = "controlvector"


class FormatError(VectorError):
    """A file is not what its format says. The message names file, field and cure."""


# ------------------------------------------------------------------------------------- shared


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _files(*paths: Path) -> dict[str, str]:
    return {path.name: _sha256(path) for path in paths}


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FormatError(f"{path}: no such file")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise FormatError(f"{path}: a JSON object is expected, this is a {type(data).__name__}")
    return data


def _integer(data: Mapping[str, Any], name: str, path: Path) -> int:
    value = data.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise FormatError(f"{path}: field {name} is {value!r}; an integer is needed")
    return value


def _read_pt(path: Path, key: str | None = None) -> np.ndarray:
    """The tensor of a `.pt` file, or the one under `key` of its dict, as fp32; nothing else is unpickled."""
    import torch

    if not path.is_file():
        raise FormatError(f"{path}: no such file; it holds the tensor of the JSON beside it")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise FormatError(
            f"{path}: not a file of plain tensors ({str(error).splitlines()[0]}); torch.save the tensor anew"
        ) from error
    if key is not None:
        if not isinstance(loaded, dict) or key not in loaded:
            raise FormatError(f"{path}: a dict with key {key!r} is expected")
        loaded = loaded[key]
    if not isinstance(loaded, torch.Tensor):
        raise FormatError(f"{path}: a tensor is expected, this is a {type(loaded).__name__}")
    return loaded.detach().float().numpy()


def _one_direction(values: np.ndarray, hidden_size: int, path: Path) -> np.ndarray:
    if values.ndim != 1 or len(values) != hidden_size:
        raise FormatError(f"{path}: shape {list(values.shape)}; a vector of {hidden_size} values is expected")
    return values[None]


def _norm_flags(raw: np.ndarray, blocks: Sequence[int]) -> list[str]:
    """Flags of directions that should be unit vectors and are not."""
    norms = np.linalg.norm(raw, axis=1)
    return [
        f"norm {norm:.4g} at block {block} where 1 is usual"
        for norm, block in zip(norms, blocks, strict=True)
        if abs(norm - 1) > NORM_TOLERANCE
    ]


def _imported(
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


# ------------------------------------------------------------------------------------- Janus


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
    described = _read_json(path)
    layer, hidden_size = (_integer(described, name, path) for name in ("layer_idx", "hidden_size"))
    tensor_path = path.with_suffix(".pt")
    raw = _one_direction(_read_pt(tensor_path), hidden_size, tensor_path)
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
        "sha256": _files(path, tensor_path),
        "layer_idx": layer,
        "made_with": made_with,
        **{name: described[name] for name in ("model", "gamma") if name in described},
    }
    flags += _norm_flags(raw, [resolved])
    return _imported(persona, raw, [resolved], model=model, n_blocks=n_blocks, source=source, flags=flags)


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
    block = _only_block(vector, block)
    if made_for == "torch" and block == vector.n_blocks - 1:
        raise VectorError(
            f"vector {vector.persona!r}: Janus' torch back end has no index for the output of the last block "
            f"({block}); pass made_for='mlx', or export another block"
        )
    direction = vector.at(block)
    layer = block if made_for == "mlx" else block - vector.n_blocks
    described = {"layer_idx": layer, "hidden_size": len(direction), "model": vector.metadata.get("model")}
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path.with_suffix(".pt"), _pt(direction))
    _write(path, (json.dumps(described, indent=2) + "\n").encode())
    return layer


def _require_outputs(vector: PersonaVector) -> None:
    if vector.site != "output":
        raise VectorError(
            f"vector {vector.persona!r} was collected at site {vector.site!r}; the format knows block outputs alone"
        )


def _only_block(vector: PersonaVector, block: int | None) -> int:
    _require_outputs(vector)
    if block is None and len(vector.present_blocks) > 1:
        raise VectorError(
            f"vector {vector.persona!r} has {len(vector.present_blocks)} blocks and the format holds one; pass block"
        )
    return vector.present_blocks[0] if block is None else block


def _pt(value: np.ndarray, key: str | None = None) -> bytes:
    """What torch.save writes of an fp32 tensor, or of a dict with one."""
    import torch

    tensor = torch.from_numpy(np.array(value, dtype=np.float32))
    buffer = io.BytesIO()
    torch.save(tensor if key is None else {key: tensor}, buffer)
    return buffer.getvalue()


def _write(path: Path, content: bytes) -> None:
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    staged.write_bytes(content)
    os.replace(staged, path)


# ------------------------------------------------------------------------------------- persona_vectors


def import_persona_vectors(path: Path, persona: str, *, model: str, n_blocks: int) -> PersonaVector:
    """A persona_vectors `.pt`: a bare tensor [n_blocks + 1, hidden] of differences of `hidden_states`.

    Row 0 (the embedding) and the last row (read after the final norm) are not outputs of blocks; blocks 0 to
    n_blocks - 2 are present.

    Raises:
        FormatError: not such a tensor, or made on a model of another depth.
    """
    values = _read_pt(path)
    if values.ndim != 2:
        raise FormatError(f"{path}: shape {list(values.shape)}; [layers, hidden] is expected")
    if len(values) != n_blocks + 1:
        raise FormatError(
            f"{path}: {len(values)} rows are an embedding and {len(values) - 1} blocks; "
            f"model {model} has {n_blocks} blocks: import it for the model it was made on"
        )
    flags = [f"block {n_blocks - 1} is absent: its row was read after the final norm"]
    source = {"kind": "persona_vectors", "file": path.name, "sha256": _files(path)}
    return _imported(
        persona, values[1:-1], range(n_blocks - 1), model=model, n_blocks=n_blocks, source=source, flags=flags
    )


def import_trait_file(
    path: Path, *, name: str | None = None, opposite: str = "helpful", summary: str | None = None
) -> Persona:
    """A persona_vectors trait file, or a persona-subspace role file, as a catalogue entry.

    An instruction becomes a system turn as those tools build it, "You are a(n) NAME assistant." before it.
    Without `neg` instructions the entry is a role, and its negative pole is the plain assistant.

    Args:
        path: JSON with `instruction` [{pos, neg?}], `questions` [str] and `eval_prompt`.
        name: default: the file's stem.
        opposite: adjective of the negative pole; the tools use an antonym or "helpful".

    Raises:
        FormatError: a field is missing or of another type.
    """
    data = _read_json(path)
    pairs = data.get("instruction")
    if not isinstance(pairs, list) or not pairs:
        raise FormatError(
            f"{path}: field instruction is missing or empty; a list of {{pos, neg}} is expected"
        )
    for number, pair in enumerate(pairs):
        if not isinstance(pair, dict) or not isinstance(pair.get("pos"), str):
            raise FormatError(f"{path}: instruction[{number}].pos is missing; a sentence is expected")
        if ("neg" in pair) != ("neg" in pairs[0]):
            raise FormatError(f"{path}: instruction[{number}]: either all instructions have neg or none")
    adjective = name or path.stem
    is_role = "neg" not in pairs[0]
    negative = (
        Pole(name="assistant", instructions=["You are a helpful assistant.", "Answer as yourself, plainly."])
        if is_role
        else Pole(name=_slug(opposite), instructions=[_system_turn(opposite, pair["neg"]) for pair in pairs])
    )
    try:
        return Persona(
            name=_slug(adjective),
            kind="role" if is_role else "trait",
            summary=summary or f"Imported from {path.name}.",
            positive=Pole(
                name=_slug(adjective),
                instructions=[
                    pair["pos"] if is_role else _system_turn(adjective, pair["pos"]) for pair in pairs
                ],
            ),
            negative=negative,
            questions=data.get("questions", []),
            judge_rubric=data.get("eval_prompt", ""),
        )
    except ValueError as error:
        raise FormatError(f"{path}: {error}") from error


def _system_turn(adjective: str, instruction: str) -> str:
    article = "an" if adjective[:1].lower() in "aeiou" else "a"
    return f"You are {article} {adjective.replace('_', ' ')} assistant. {instruction.strip()}"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def persona_yaml(persona: Persona) -> str:
    """A catalogue file's text: `personas/<name>.yaml`. Fields that hold their default are left out."""
    return yaml.safe_dump(
        persona.model_dump(mode="json", exclude_defaults=True), sort_keys=False, allow_unicode=True, width=100
    )


# ------------------------------------------------------------------------------------- chatspace


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
    config = _read_json(config_path)
    layer = _integer(config, "target_layer", config_path)
    values = _read_pt(tensor_path, "steering_vector")
    raw = _one_direction(values, values.size, tensor_path)
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
        "sha256": _files(config_path, tensor_path),
        "target_layer": layer,
    }
    return _imported(
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
    block = _only_block(vector, block)
    config = {"model_name": vector.metadata.get("model"), "target_layer": block, "init_scale": 0.0}
    direction = vector.at(block)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "steering_config.json").unlink(missing_ok=True)
    _write(folder / "steering_vector.pt", _pt(direction, "steering_vector"))
    _write(folder / "steering_config.json", (json.dumps(config, indent=2) + "\n").encode())


# ------------------------------------------------------------------------------------- GGUF


def import_gguf(
    path: Path,
    persona: str,
    *,
    model: str,
    n_blocks: int,
    made_by: Literal["repeng", "llama.cpp"] = "repeng",
) -> PersonaVector:
    """A GGUF control vector; what we exported comes back as it was.

    Args:
        made_by: "repeng" (also EasySteer and our own export): `direction.k` is block k. "llama.cpp": its
            generator names block k's direction `direction.<k + 1>`.

    Raises:
        FormatError: not a control vector, no directions, or an index outside the model.
    """
    from gguf import GGUFReader

    if not path.is_file():
        raise FormatError(f"{path}: no such file")
    try:
        reader = GGUFReader(path)
    except (ValueError, IndexError, OSError) as error:
        raise FormatError(f"{path}: not a GGUF file ({error})") from error
    architecture = _gguf_string(reader, "general.architecture")
    if architecture != GGUF_ARCHITECTURE:
        raise FormatError(
            f"{path}: general.architecture is {architecture!r}; {GGUF_ARCHITECTURE!r} is expected"
        )
    rows: dict[int, np.ndarray] = {}
    for tensor in reader.tensors:
        match = re.fullmatch(r"direction\.(\d+)", tensor.name)
        if match is None:
            raise FormatError(f"{path}: tensor {tensor.name!r}; names are direction.<layer>")
        if tensor.tensor_type.name not in ("F32", "F16"):
            raise FormatError(f"{path}: {tensor.name} is {tensor.tensor_type.name}; F32 or F16 is expected")
        block = int(match[1]) - (made_by == "llama.cpp")
        if not 0 <= block < n_blocks:
            raise FormatError(f"{path}: {tensor.name} means block {block} of a model of {n_blocks} blocks")
        rows[block] = np.array(tensor.data, dtype=np.float32)
    if not rows:
        raise FormatError(f"{path}: it has no direction.<layer> tensors")
    widths = {len(row) for row in rows.values()}
    if len(widths) > 1:
        raise FormatError(f"{path}: directions of different widths {sorted(widths)}")
    ours = _gguf_string(reader, "steer_pipeline.model") is not None
    flags = []
    if made_by == "llama.cpp":
        flags.append("read one block before the one where llama.cpp adds it")
    elif not ours and n_blocks - 1 in rows:
        flags.append(f"block {n_blocks - 1}: repeng reads the last block after the final norm")
    blocks = sorted(rows)
    source = {
        "kind": "gguf",
        "file": path.name,
        "sha256": _files(path),
        "made_by": "steer_pipeline" if ours else made_by,
        "model_hint": _gguf_string(reader, "controlvector.model_hint"),
    }
    raw = np.stack([rows[block] for block in blocks])
    return _imported(persona, raw, blocks, model=model, n_blocks=n_blocks, source=source, flags=flags)


def _gguf_string(reader: Any, key: str) -> str | None:
    found = reader.get_field(key)
    return None if found is None else bytes(found.parts[found.data[0]]).decode("utf-8", errors="replace")


def export_gguf(
    vector: PersonaVector, path: Path, *, model_hint: str = "", blocks: Sequence[int] | None = None
) -> list[int]:
    """Writes a control vector that repeng and llama.cpp read; natural magnitude, fp32, atomically.

    Tensor `direction.k` is the output of block k, counted from 0. repeng adds it there. llama.cpp adds it
    there too, but counts from 1 in the sense that it has no layer 0 and refuses a file with `direction.0`;
    hence block 0 is left out unless `blocks` asks for it. repeng itself starts at block 1 by default.

    Args:
        model_hint: `controlvector.model_hint`, the architecture name (config.model_type) by convention.
        blocks: default: every present block but 0.

    Returns:
        The blocks that were written.

    Raises:
        VectorError: the vector lacks a block that was asked for, or has none but block 0.
    """
    from gguf import GGUFWriter

    _require_outputs(vector)
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
    writer.add_string("steer_pipeline.model", str(vector.metadata.get("model")))
    writer.add_string("steer_pipeline.digest", vector.digest)
    for block, direction in directions.items():
        writer.add_tensor(f"direction.{block}", direction)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(staged, path)
    return chosen


# ------------------------------------------------------------------------------------- by catalogue


def import_vector(
    source: ImportedVector, persona: str, *, model: str, n_blocks: int, home: Path
) -> PersonaVector:
    """What a catalogue entry's `vector` names; relative paths start at `home`.

    `block` is used by Janus files alone (see `import_janus`), since the other formats say where they belong.
    """
    path = home / source.path
    if source.block is not None and source.format != "janus":
        raise FormatError(
            f"persona {persona}: vector.block: format {source.format} says its blocks; remove the field"
        )
    if source.format == "janus":
        return import_janus(
            path, persona, model=model, n_blocks=n_blocks, made_with=source.made_with, block=source.block
        )
    readers = {
        "gguf": import_gguf,
        "persona_vectors": import_persona_vectors,
        "chatspace": import_chatspace,
    }
    return readers[source.format](path, persona, model=model, n_blocks=n_blocks)
