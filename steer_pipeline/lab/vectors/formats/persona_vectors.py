"""persona_vectors: a bare tensor [n_blocks + 1, hidden] of differences of `hidden_states`.

Row 0 is the embedding, row k the output of block k - 1; the last row was read after the final norm.
"""

from pathlib import Path

import numpy as np

from steer_pipeline.lab.vectors.formats.common import (
    FormatError,
    file_shas,
    imported_vector,
    pt_bytes,
    read_pt,
    require_outputs,
    write_whole,
)
from steer_pipeline.lab.vectors.vector import PersonaVector, VectorError


def import_persona_vectors(path: Path, persona: str, *, model: str, n_blocks: int) -> PersonaVector:
    """A persona_vectors `.pt`: a bare tensor [n_blocks + 1, hidden] of differences of `hidden_states`.

    Row 0 (the embedding) and the last row (read after the final norm) are not outputs of blocks; blocks 0 to
    n_blocks - 2 are present.

    Raises:
        FormatError: not such a tensor, or made on a model of another depth.
    """
    values = read_pt(path)
    if values.ndim != 2:
        raise FormatError(f"{path}: shape {list(values.shape)}; [layers, hidden] is expected")
    if len(values) != n_blocks + 1:
        raise FormatError(
            f"{path}: {len(values)} rows are an embedding and {len(values) - 1} blocks; "
            f"model {model} has {n_blocks} blocks: import it for the model it was made on"
        )
    flags = [f"block {n_blocks - 1} is absent: its row was read after the final norm"]
    source = {"kind": "persona_vectors", "file": path.name, "sha256": file_shas(path)}
    return imported_vector(
        persona, values[1:-1], range(n_blocks - 1), model=model, n_blocks=n_blocks, source=source, flags=flags
    )


def export_persona_vectors(vector: PersonaVector, path: Path) -> None:
    """Writes the bare tensor [n_blocks + 1, hidden] of persona_vectors; natural magnitude, fp32, atomically.

    Its row k is added at the output of block k - 1, and that is where ours were read, the last one too. Row 0, the
    embedding's, is zero: nobody has read it.

    Raises:
        VectorError: a block but the last one is absent; a row of zeros would steer nothing without a word.
    """
    require_outputs(vector)
    absent = sorted(set(range(vector.n_blocks - 1)) - set(vector.present_blocks))
    if absent:
        raise VectorError(
            f"vector {vector.persona!r} has no direction at {len(absent)} of the blocks that a persona_vectors file "
            f"holds (block {absent[0]} is the first); export gguf or janus"
        )
    rows = np.zeros((vector.n_blocks + 1, vector.raw.shape[1]), dtype=np.float32)
    for block in vector.present_blocks:
        rows[block + 1] = vector.at(block)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, pt_bytes(rows))
