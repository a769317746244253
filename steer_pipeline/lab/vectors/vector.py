"""Persona vectors: what one is, how it is stored, and on which model it may be used.

In: directions with their metadata, or a saved folder. Out: `PersonaVector`, fp32 with its natural magnitude.
A direction belongs to a place in a block, where it was collected and where it is added: its output or, if the metadata
say so, what its attention or MLP adds. Computing
one is `extracted` and its neighbours, importing one `formats`, steering with one `doses` and `steered`.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from steer_pipeline.lab.models.identity import short_sha
from steer_pipeline.lab.models.loaded import LoadedModel

TENSORS, SIDECAR = "vector.safetensors", "vector.json"
AUC_TIE = 0.02  # AUCs this near each other are no reason to leave the middle of the model


class VectorError(ValueError):
    """A vector cannot be made, read or used. The message names the field or block and the cure."""


@dataclass(frozen=True, eq=False)
class PersonaVector:
    """Directions of one persona, positive pole minus negative pole, at the outputs of blocks.

    Attributes:
        persona: name in the catalogue.
        raw: fp32 [len(present_blocks), hidden], natural magnitude: for computed vectors the mean gap between
            the poles in the residual stream. A computed vector has every block, so that row k is block k; an
            imported one may lack blocks: read it through `at`.
        metadata: model, revision, backend, dtype, weights_sha (of the base; None where an imported file does
            not say), model_identity, n_blocks, hidden_size, source, flags, and,
            each a list of n_blocks numbers (None where a block is absent or a number unknown),
            residual_norms, raw_norms, split_half_cosine, held_out_auc, auc_null_mean, auc_null_95th, auc_p;
            computed vectors also have method, readout, site, n_train, n_held_out, seed.
        present_blocks: ascending block indices of the rows of `raw`.
    """

    persona: str
    raw: np.ndarray
    metadata: Mapping[str, Any]
    present_blocks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.present_blocks:
            object.__setattr__(self, "present_blocks", tuple(range(len(self.raw))))
        check_directions(self.persona, self.raw, self.present_blocks, self.metadata)

    @cached_property
    def unit(self) -> np.ndarray:
        """fp32, as `raw`, each row of Euclidean norm 1."""
        return self.raw / np.linalg.norm(self.raw, axis=1, keepdims=True)

    @property
    def site(self) -> str:
        """Kind of the sites where it was collected; see `Site`."""
        return str(self.metadata.get("site", "output"))

    @property
    def n_blocks(self) -> int:
        return int(self.metadata["n_blocks"])

    @cached_property
    def digest(self) -> str:
        """sha256 of persona, blocks and directions: the vector's version where no store gives one."""
        head = f"{self.persona}:{self.present_blocks}:{self.raw.shape}".encode()
        return hashlib.sha256(head + np.ascontiguousarray(self.raw, dtype="<f4").tobytes()).hexdigest()

    def at(self, block: int) -> np.ndarray:
        """fp32 [hidden], natural magnitude, at the output of `block`.

        Raises:
            VectorError: the vector has no direction there.
        """
        return self.raw[self._row(block)]

    def unit_at(self, block: int) -> np.ndarray:
        """fp32 [hidden] of norm 1 at the output of `block`; raises as `at` does."""
        return self.unit[self._row(block)]

    def _row(self, block: int) -> int:
        if block not in self.present_blocks:
            raise VectorError(
                f"vector {self.persona!r} has no direction at block {block}; "
                f"it has {_spans(self.present_blocks)}"
            )
        return self.present_blocks.index(block)

    @property
    def default_block(self) -> int:
        """Where to steer when nobody says: of the middle half of the model, the block with the best held-out AUC; AUCs
        within 0.02 are a tie, which split-half cosine decides, and then nearness to the middle.

        Without either number it is the present block nearest the middle. The first and the last blocks often tell the
        poles apart as well as others do, and steer badly: hence the middle half. A dose curve knows better.
        """
        middle = self.n_blocks / 2
        central = [block for block in self.present_blocks if abs(block + 0.5 - middle) <= self.n_blocks / 4]
        blocks = central or list(self.present_blocks)
        aucs = self._numbers("held_out_auc", blocks)
        cosines = self._numbers("split_half_cosine", blocks)
        tied = [block for block in blocks if aucs[block] >= max(aucs.values()) - AUC_TIE]
        return max(tied, key=lambda block: (round(cosines[block], 3), -abs(block + 0.5 - middle), -block))

    def _numbers(self, field: str, blocks: Sequence[int]) -> dict[int, float]:
        """A field of the metadata by block; 0 where it is unknown."""
        values = self.metadata.get(field) or [None] * self.n_blocks
        return {block: values[block] or 0.0 for block in blocks}

    def residual_norm(self, block: int) -> float:
        """Mean Euclidean norm of the residual stream at the output of `block`.

        Raises:
            VectorError: it was not measured; see `with_residual_norms`.
        """
        norms = self.metadata.get("residual_norms")
        if norms is None or norms[block] is None:
            raise VectorError(
                f"vector {self.persona!r}: residual norm of block {block} is unknown, so a dose as fraction "
                "has no length; measure it with with_residual_norms or give the dose as alpha"
            )
        return float(norms[block])


def _spans(blocks: Sequence[int]) -> str:
    """`blocks 1-5, 7`: ascending indices, runs shortened."""
    runs: list[list[int]] = []
    for block in blocks:
        if runs and block == runs[-1][1] + 1:
            runs[-1][1] = block
        else:
            runs.append([block, block])
    spelled = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    return f"block{'s' if len(blocks) > 1 else ''} {spelled}"


def check_directions(
    persona: str, raw: np.ndarray, present_blocks: Sequence[int], metadata: Mapping[str, Any]
) -> None:
    """Directions are fp32, finite, non-zero and of the width and depth that the metadata names.

    Raises:
        VectorError: names the block and what is wrong with it.
    """
    what = f"vector {persona!r}"
    if raw.ndim != 2 or raw.dtype != np.float32 or not raw.size:
        raise VectorError(
            f"{what}: directions are {raw.dtype} {list(raw.shape)}; float32 [blocks, hidden] is needed"
        )
    if len(present_blocks) != len(raw) or list(present_blocks) != sorted(set(present_blocks)):
        raise VectorError(
            f"{what}: {len(raw)} directions for blocks {list(present_blocks)}; one each, ascending"
        )
    for name in ("n_blocks", "hidden_size"):
        if not isinstance(metadata.get(name), int):
            raise VectorError(
                f"{what}: metadata field {name} is {metadata.get(name)!r}; an integer is needed"
            )
    if raw.shape[1] != metadata["hidden_size"]:
        raise VectorError(
            f"{what}: directions are {raw.shape[1]} wide, the model is {metadata['hidden_size']}"
        )
    if present_blocks[0] < 0 or present_blocks[-1] >= metadata["n_blocks"]:
        raise VectorError(f"{what}: {_spans(present_blocks)} in a model of {metadata['n_blocks']} blocks")
    for block, direction in zip(present_blocks, raw, strict=True):
        if not np.isfinite(direction).all():
            raise VectorError(
                f"{what}: the direction of block {block} has {int((~np.isfinite(direction)).sum())} values "
                "that are not finite; check the model's weights for NaN, or collect in float32"
            )
        if np.linalg.norm(direction) < 1e-12:
            raise VectorError(
                f"{what}: the direction of block {block} is zero; the two sides do not differ there"
            )


def save_vector(vector: PersonaVector, folder: Path) -> None:
    """Writes `vector.safetensors` (key `directions`) and `vector.json`, each whole or not at all."""
    from safetensors.numpy import save

    folder.mkdir(parents=True, exist_ok=True)
    sidecar = {
        "persona": vector.persona,
        "present_blocks": list(vector.present_blocks),
        "digest": vector.digest,
        **vector.metadata,
    }
    _replace(folder / TENSORS, save({"directions": np.ascontiguousarray(vector.raw)}))
    _replace(folder / SIDECAR, (json.dumps(sidecar, indent=2, allow_nan=False) + "\n").encode())


def _replace(path: Path, content: bytes) -> None:
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    staged.write_bytes(content)
    os.replace(staged, path)


def load_vector(folder: Path) -> PersonaVector:
    """What `save_vector` wrote.

    Raises:
        VectorError: a file is missing or damaged, or tensors and sidecar are not of one vector.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    for name in (TENSORS, SIDECAR):
        if not (folder / name).is_file():
            raise VectorError(
                f"{folder / name}: no such file; materialise persona_vector or save_vector there"
            )
    try:
        sidecar = json.loads((folder / SIDECAR).read_text())
        raw = load((folder / TENSORS).read_bytes())["directions"]
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise VectorError(f"{folder}: damaged vector ({error}); materialise persona_vector again") from error
    persona, blocks, digest = (sidecar.pop(name) for name in ("persona", "present_blocks", "digest"))
    vector = PersonaVector(persona, raw, sidecar, tuple(blocks))
    if vector.digest != digest:
        raise VectorError(f"{folder}: {TENSORS} and {SIDECAR} are not of one vector; materialise it again")
    return vector


def load_seeds(folder: Path) -> dict[int, PersonaVector]:
    """The vectors of a trained_vector's folder by training seed, the best of each.

    Raises:
        VectorError: as `load_vector`.
    """
    return {int(one.name): load_vector(one) for one in sorted((folder / "seeds").iterdir())}


def best_block(metadata: Mapping[str, Any]) -> int | None:
    """The block at which the poles of unseen contexts are told apart best: what every table calls the best block.

    The largest held-out AUC wins. Short contexts are often told apart perfectly at many blocks, so ties go to the
    block whose direction owes least to single pairs (split-half cosine), then to the longest direction relative to
    the residual stream, then to the lowest block. None where no AUC was measured.
    """
    aucs = metadata.get("held_out_auc") or []

    def at(name: str, block: int) -> float:
        values = metadata.get(name) or []
        return values[block] if block < len(values) and values[block] is not None else 0.0

    def rank(block: int) -> tuple[float, ...]:
        norm = at("residual_norms", block)
        length = at("raw_norms", block) / norm if norm else 0.0
        return aucs[block], at("split_half_cosine", block), length, -block

    return max((block for block, auc in enumerate(aucs) if auc is not None), key=rank, default=None)


def model_fields(model: LoadedModel) -> dict[str, Any]:
    """What identifies a LoadedModel in a vector's metadata."""
    return {
        "model": model.name,
        "revision": model.revision,
        "backend": model.backend,
        "dtype": model.dtype,
        "weights_sha": model.weights_sha,
        "model_identity": str(model.identity),
        "n_blocks": model.n_blocks,
        "hidden_size": model.hidden_size,
    }


def require_same_model(vector: PersonaVector, model: LoadedModel, *, allow_other_model: bool = False) -> None:
    """The vector was made on this model's base, whatever adapters were or are on it.

    Where the vector knows its base's weights, they decide; an imported one knows a name at most, which
    `identity.same_name` compares. Another width is never allowed.

    Raises:
        VectorError: names both models and what differs.
    """
    made_on = vector.metadata
    sha, name = made_on.get("weights_sha"), made_on.get("model")
    differing = [
        f"{what} {made_on[what]} against {here}"
        for what, here in (("hidden_size", model.hidden_size), ("n_blocks", model.n_blocks))
        if made_on[what] != here
    ]
    if sha is not None and sha != model.weights_sha:
        differing.append(f"weights differ: {short_sha(sha)} against {short_sha(model.weights_sha)}")
    elif sha is None and name is not None and not model.is_called(name):
        differing.append("names of different models")
    if differing and (not allow_other_model or made_on["hidden_size"] != model.hidden_size):
        raise VectorError(
            f"vector {vector.persona!r} was made on another model: on {name!r}, this is {model.name!r}; "
            f"{'; '.join(differing)}; materialise persona_vector for this model, or pass allow_other_model=True where "
            "the width agrees"
        )
