"""Other tools' vectors and trait files, read into our types, and our vectors written for them; one module a format.

In: files, and the shape of the model they were made on, which most of them do not say. Out: `PersonaVector`s whose
metadata name source files, hashes, norms and flags, `Persona` catalogue entries, and files. `FORMATS` is the list; each
module's docstring says which block an index means. Blocks are counted from 0 everywhere here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from steer_pipeline.catalogue.specs import ImportedVector
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.vectors.formats.chatspace import export_chatspace, import_chatspace
from steer_pipeline.lab.vectors.formats.common import FormatError
from steer_pipeline.lab.vectors.formats.easysteer import export_easysteer, import_easysteer
from steer_pipeline.lab.vectors.formats.gguf import export_gguf, import_gguf
from steer_pipeline.lab.vectors.formats.janus import export_janus, import_janus
from steer_pipeline.lab.vectors.formats.persona_vectors import export_persona_vectors, import_persona_vectors
from steer_pipeline.lab.vectors.formats.traits import import_trait_file, persona_yaml
from steer_pipeline.lab.vectors.vector import SIDECAR, PersonaVector, VectorError
from steer_pipeline.lab.vectors.vector import load_vector as load_own

__all__ = [
    "FORMATS",
    "FormatError",
    "export_chatspace",
    "export_easysteer",
    "export_gguf",
    "export_janus",
    "export_persona_vectors",
    "export_vector",
    "import_chatspace",
    "import_declared",
    "import_easysteer",
    "import_gguf",
    "import_janus",
    "import_persona_vectors",
    "import_trait_file",
    "import_vector",
    "load_vector",
    "persona_yaml",
    "sniff_format",
]


@dataclass(frozen=True)
class Format:
    """How a format looks on disk.

    Attributes:
        one_block: it holds one direction, so that an export must say which.
        exported: we write it.
    """

    looks: str
    one_block: bool
    exported: bool = True


FORMATS = {
    "janus": Format("NAME.json (layer_idx, hidden_size) and NAME.pt beside it", True),
    "persona_vectors": Format("NAME.pt, a tensor [n_blocks + 1, hidden]", False),
    "chatspace": Format("a folder of steering_vector.pt and steering_config.json", True),
    "gguf": Format("NAME.gguf, direction.k is block k; block 0, which llama.cpp refuses, is left out", False),
    "repeng": Format("NAME.gguf, direction.k is block k", False),
    "easysteer": Format(
        "NAME.gguf with EasySteer's own field, or NAME.pt, one direction with a declared block", False
    ),
    "llama.cpp": Format(
        "NAME.gguf of llama.cpp's generator: direction.k was read at block k - 1", False, False
    ),
}
FormatName = Literal["janus", "persona_vectors", "chatspace", "gguf", "repeng", "easysteer", "llama.cpp"]


def sniff_format(path: Path) -> str:
    """The format that a file or folder looks like; a GGUF counts as repeng's unless it says otherwise.

    Raises:
        FormatError: none of them.
    """
    if path.is_dir() and (path / "steering_config.json").is_file():
        return "chatspace"
    by_suffix = {".gguf": "gguf", ".json": "janus", ".pt": "persona_vectors"}
    if path.is_file() and path.suffix in by_suffix:
        if path.suffix == ".pt" and path.with_suffix(".json").is_file():
            raise FormatError(f"{path}: a Janus vector is read by its JSON; give {path.with_suffix('.json')}")
        return by_suffix[path.suffix]
    if not path.exists():
        raise FormatError(f"{path}: no such file or folder")
    known = "; ".join(f"{name}: {one.looks}" for name, one in FORMATS.items())
    raise FormatError(f"{path}: no known format ({known})")


def import_vector(
    path: Path,
    persona: str,
    *,
    model: str,
    n_blocks: int,
    format: str = "auto",
    block: int | None = None,
    made_with: Literal["torch", "mlx"] = "torch",
) -> PersonaVector:
    """A vector of another tool, at the blocks it belongs to.

    Args:
        model, n_blocks: name and depth of the model it was made on.
        format: one of `FORMATS`, or "auto" to tell by its looks.
        block: of the formats that may not say it: Janus (see `import_janus`) and EasySteer's `.pt`.
        made_with: back end of a Janus vector.

    Raises:
        FormatError: the file is not what the format says, or its block cannot be told.
    """
    name = sniff_format(path) if format == "auto" else format
    if name not in FORMATS:
        raise FormatError(f"format {name!r}; choose from {', '.join(FORMATS)}")
    if name == "janus":
        return import_janus(path, persona, model=model, n_blocks=n_blocks, made_with=made_with, block=block)
    if name == "easysteer":
        return import_easysteer(path, persona, model=model, n_blocks=n_blocks, block=block)
    if block is not None:
        raise FormatError(f"persona {persona}: vector.block: format {name} says its blocks; remove the field")
    if name == "chatspace":
        return import_chatspace(path, persona, model=model, n_blocks=n_blocks)
    if name == "persona_vectors":
        return import_persona_vectors(path, persona, model=model, n_blocks=n_blocks)
    made_by: Literal["llama.cpp", "repeng"] = "llama.cpp" if name == "llama.cpp" else "repeng"
    return import_gguf(path, persona, model=model, n_blocks=n_blocks, made_by=made_by)


def import_declared(
    source: ImportedVector, persona: str, *, model: str, n_blocks: int, home: Path
) -> PersonaVector:
    """What a catalogue entry's `vector` names; relative paths start at `home`. Raises as `import_vector`."""
    return import_vector(
        home / source.path,
        persona,
        model=model,
        n_blocks=n_blocks,
        format=source.format,
        block=source.block,
        made_with=source.made_with,
    )


def load_vector(
    path: str | Path,
    model: LoadedModel | None = None,
    *,
    name: str | None = None,
    format: str = "auto",
    block: int | None = None,
    made_with: Literal["torch", "mlx"] = "torch",
) -> PersonaVector:
    """A vector from disk: the folder that `save_vector` or a run wrote, or a file of another tool (`FORMATS`).

    Args:
        path: the folder or file.
        model: the model that a file of another tool was made on, which tells its depth. Not needed for our own.
        name: what the vector is called; default: the file's stem. Our own know their name.
        format, block, made_with: as `import_vector` takes them.

    Raises:
        VectorError: damaged, of another model, or a file of another tool without `model`.
    """
    path = Path(path)
    if path.is_dir() and ((path / SIDECAR).is_file() or not (path / "steering_config.json").is_file()):
        return load_own(path)
    if model is None:
        sniff_format(path)  # a missing file is the better message
        raise VectorError(
            f"{path}: a file of another tool does not say its model; pass the loaded one: model=…"
        )
    return import_vector(
        path,
        name or path.stem,
        model=model.known_as,
        n_blocks=model.n_blocks,
        format=format,
        block=block,
        made_with=made_with,
    )


def export_vector(
    vector: PersonaVector, path: Path, format: str, *, block: int | None = None, model_hint: str = ""
) -> Sequence[int]:
    """Writes the vector as another tool reads it; natural magnitude, so that the tool's scale 1 is the vector itself.

    Args:
        path: the file (for chatspace the folder).
        format: one of `FORMATS` that are exported.
        block: the one block to write; needed by formats that hold one, unless the vector has no other.
        model_hint: GGUF's name of the architecture (config.model_type).

    Returns:
        The blocks that were written.

    Raises:
        VectorError: an unknown format, a block that the vector lacks or the format cannot name.
    """
    if format not in FORMATS or not FORMATS[format].exported:
        known = ", ".join(name for name, one in FORMATS.items() if one.exported)
        raise FormatError(f"format {format!r} is not written; choose from {known}")
    if FORMATS[format].one_block:
        export = export_janus if format == "janus" else export_chatspace
        export(vector, path, block=block)
        return [vector.present_blocks[0] if block is None else block]
    if format == "persona_vectors":
        if block is not None:
            raise FormatError("a persona_vectors file holds every block; leave block out")
        export_persona_vectors(vector, path)
        return vector.present_blocks
    blocks = None if block is None else [block]
    if format == "easysteer":
        return export_easysteer(vector, path, model_hint=model_hint, blocks=blocks)
    every = vector.present_blocks if format == "repeng" else None
    return export_gguf(vector, path, model_hint=model_hint, blocks=blocks or every)
