"""The dictionary of directions that a tuned model is held against, by block, under names that no two share.

In: persona vectors, published files, states of a model. Out: `Directions`, one row a direction, at the outputs of
blocks. A name says its kind: `persona:sailor`, `trained:sailor`, `role:sailor` and `trait:sailor` are four
directions. What is at the output of a block is what the block above it reads; `reading` and `writing` say which block
is meant.
"""

import json
import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from steer_pipeline.lab.columns import described
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.vectors.averaged import MissingVector
from steer_pipeline.lab.vectors.formats import FormatError
from steer_pipeline.lab.vectors.published import load_published
from steer_pipeline.lab.vectors.vector import PersonaVector, VectorError

SHARED = "shared"
PERSONA, TRAINED, ROLE, TRAIT, COMPONENT = KINDS = ("persona", "trained", "role", "trait", "pc")
TENSORS, TABLE, LEFT_OUT = "directions.safetensors", "directions.parquet", "left_out.json"
FOLDERS = {ROLE: "roles_240", TRAIT: "traits_240"}
DIRECTION_SCHEMA, DIRECTION_COLUMNS = described(
    name=(pl.String(), "kind:name, unique"),
    kind=(pl.String(), "persona | trained | role | trait | pc"),
    blocks=(pl.Int64(), "at how many of them it has a direction"),
    source=(pl.String(), "the version or file that it comes from"),
)


@dataclass(frozen=True, eq=False)
class Directions:
    """Named directions at the outputs of blocks.

    Attributes:
        names: `kind:name`, unique.
        raw: fp32 [n, n_blocks, hidden], natural magnitude; NaN where a direction has none at a block.
        sources: one a direction, for readers.
        left_out: what could not be read -> why.
    """

    names: tuple[str, ...]
    raw: np.ndarray
    sources: tuple[str, ...]
    left_out: Mapping[str, str]

    def __post_init__(self) -> None:
        twice = sorted({name for name in self.names if self.names.count(name) > 1})
        if twice or len(self.names) != len(self.raw):
            raise VectorError(
                f"directions: {', '.join(twice) or len(self.raw)}: each needs a name of its own; say its kind in it"
            )

    @property
    def n_blocks(self) -> int:
        return int(self.raw.shape[1])

    def writing(self, block: int) -> tuple[list[str], np.ndarray]:
        """Names and unit directions fp32 [m, hidden] at the output of `block`: what it writes."""
        own = self.raw[:, block]
        present = np.isfinite(own).all(axis=1)
        units = own[present] / np.linalg.norm(own[present], axis=1, keepdims=True)
        return [name for name, here in zip(self.names, present, strict=True) if here], units

    def reading(self, block: int) -> tuple[list[str], np.ndarray]:
        """The same at the input of `block`, which is the output of the block below; none at the embeddings."""
        if block == 0:
            return [], np.empty((0, self.raw.shape[2]), dtype=np.float32)
        return self.writing(block - 1)

    def table(self) -> pl.DataFrame:
        """`DIRECTION_SCHEMA`."""
        present = np.isfinite(self.raw).all(axis=2).sum(axis=1)
        return pl.DataFrame(
            {
                "name": self.names,
                "kind": [name.partition(":")[0] for name in self.names],
                "blocks": present,
                "source": self.sources,
            },
            schema=DIRECTION_SCHEMA,
        )


def joined(*parts: Directions) -> Directions:
    """One dictionary of several.

    Raises:
        VectorError: two directions have one name.
    """
    return Directions(
        tuple(name for part in parts for name in part.names),
        np.concatenate([part.raw for part in parts]),
        tuple(source for part in parts for source in part.sources),
        {name: why for part in parts for name, why in part.left_out.items()},
    )


def of_vectors(kind: str, vectors: Mapping[str, PersonaVector], sources: Mapping[str, str]) -> Directions:
    """Vectors collected or trained at block outputs.

    Args:
        vectors: by persona.
        sources: by persona, the version of each.

    Raises:
        VectorError: vectors of models of different shape, or collected at another site.
    """
    if not vectors:
        raise VectorError(f"no {kind} vectors; materialise some, or leave {kind} out of analysis.directions")
    shapes = {(vector.n_blocks, vector.raw.shape[1]) for vector in vectors.values()}
    inside = [name for name, vector in vectors.items() if vector.site != "output"]
    if len(shapes) > 1 or inside:
        what = f"{inside[0]} is of site {vectors[inside[0]].site}" if inside else f"shapes {sorted(shapes)}"
        raise VectorError(f"{kind} vectors: {what}; give vectors of one model, collected at block outputs")
    ((n_blocks, hidden),) = shapes
    raw = np.full((len(vectors), n_blocks, hidden), np.nan, dtype=np.float32)
    for row, vector in enumerate(vectors.values()):
        raw[row, list(vector.present_blocks)] = vector.raw
    names = tuple(f"{kind}:{name}" for name in vectors)
    return Directions(
        names, raw, tuple(f"{kind}_vector {sources.get(name, '')}".strip() for name in vectors), {}
    )


def apart(directions: Directions) -> Directions:
    """Each direction less what all of them share, and that as one more, `<kind>:shared`.

    Roles against one default have the way from the default to any role in common; without it projections of all roles
    would be one number. A single direction stays as it is.
    """
    if len(directions.names) < 2:
        return directions
    shared = directions.raw.mean(axis=0, keepdims=True)
    kind = directions.names[0].partition(":")[0]
    return Directions(
        (*directions.names, f"{kind}:{SHARED}"),
        np.concatenate([directions.raw - shared, shared]),
        (*directions.sources, f"mean of {len(directions.names)}"),
        directions.left_out,
    )


def of_states(states: np.ndarray, n: int) -> Directions:
    """The first principal components of states [m, n_blocks, hidden], each as long as the states' spread along it."""
    centred = states - states.mean(axis=0)
    raw = np.empty((n, states.shape[1], states.shape[2]), dtype=np.float32)
    for block in range(states.shape[1]):
        _, singular, axes = np.linalg.svd(centred[:, block], full_matrices=False)
        raw[:, block] = axes[:n] * (singular[:n, None] / np.sqrt(len(states) - 1))
    return Directions(
        tuple(f"{COMPONENT}:states:{k + 1}" for k in range(n)), raw, ("states of neutral texts",) * n, {}
    )


# ---------------------------------------------------------------------------------- published layouts


def of_published(root: Path, model: LoadedModel, *, components: int = 0) -> Directions:
    """All roles, traits and principal components below a folder of published vectors of one model.

    A name that is both role and trait is two directions. Roles stand without what they share (`apart`). What was left
    out upstream (too few samples, zeros) stands in `left_out` with the reason.

    Args:
        components: how many principal components of roles and of traits, where they lie beside them.

    Raises:
        FormatError, VectorError: a file is damaged, or of another model.
    """
    parts, left_out = [], {}
    for kind, folder in FOLDERS.items():
        vectors: dict[str, PersonaVector] = {}
        for path in sorted((root / folder / "vectors").glob("*.pt")):
            try:
                vectors[path.stem] = load_published(root, path.stem, kind, model)  # type: ignore[arg-type]
            except MissingVector as error:
                left_out[f"{kind}:{path.stem}"] = str(error)
        if vectors:
            own = of_vectors(kind, vectors, {name: f"{folder}/{name}.pt" for name in vectors})
            parts.append(apart(own) if kind == ROLE else own)
        if components and (root / folder / "pca").is_dir():
            parts.append(_published_components(root / folder / "pca", kind, model, components))
    if not parts:
        raise FormatError(
            f"{root}: no vectors under {' or '.join(FOLDERS.values())}; give the folder of one model"
        )
    whole = joined(*parts)
    return Directions(whole.names, whole.raw, whole.sources, {**whole.left_out, **left_out})


def _published_components(folder: Path, kind: str, model: LoadedModel, n: int) -> Directions:
    """The first components of every block that has a file `layer{L}_*.pt`: all files, not the first of them."""
    raw = np.full((n, model.n_blocks, model.hidden_size), np.nan, dtype=np.float32)
    seen: dict[int, Path] = {}
    for path in sorted(folder.glob("layer*_*.pt")):
        block = int(re.match(r"layer(\d+)_", path.name)[1])  # type: ignore[index]
        if block in seen or not block < model.n_blocks:
            raise FormatError(
                f"{path}: {'a second file of its block' if block in seen else 'a block that the model has not'}; keep "
                "one file a block of this model"
            )
        seen[block] = path
        found = unscaled_components(path)
        if found.shape[1] != model.hidden_size or len(found) < n:
            raise FormatError(
                f"{path}: components {list(found.shape)}; {n} of width {model.hidden_size} are needed"
            )
        raw[:, block] = found[:n]
    names = tuple(f"{COMPONENT}:{kind}:{k + 1}" for k in range(n))
    return Directions(names, raw, (f"{folder.name} of {len(seen)} blocks",) * n, {})


def unscaled_components(path: Path) -> np.ndarray:
    """fp32 [components, hidden] in the residual stream, of a file with a PCA that was fitted on scaled states.

    The components are of (state - mean) / scale: a step along one of them moves the stream by scale * component. Only
    arrays and the two classes of scikit-learn are unpickled.

    Raises:
        FormatError: no such file, or other content.
    """
    import torch
    from numpy._core import multiarray
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    numbers: list[Any] = [np.ndarray, np.dtype, multiarray._reconstruct, multiarray.scalar]
    kinds: list[Any] = [type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "b1")]
    try:
        with torch.serialization.safe_globals([PCA, StandardScaler, *numbers, *kinds]):
            held = torch.load(path, map_location="cpu", weights_only=True)
        components, scale = held["pca"].components_, held["scaler"].scale_
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, AttributeError, TypeError) as error:
        raise FormatError(
            f"{path}: no PCA with its scaler ({str(error).splitlines()[0]}); save `pca` and `scaler` of scikit-learn"
        ) from error
    return np.asarray(components * scale, dtype=np.float32)


# --------------------------------------------------------------------------------------------- files


def save_directions(directions: Directions, folder: Path) -> None:
    """Writes tensors, table, and what was left out."""
    from safetensors.numpy import save_file

    save_file({"directions": np.ascontiguousarray(directions.raw)}, folder / TENSORS)
    directions.table().write_parquet(folder / TABLE)
    (folder / LEFT_OUT).write_text(json.dumps(dict(directions.left_out), indent=1, sort_keys=True) + "\n")


def read_directions(folder: Path) -> Directions:
    """What `save_directions` wrote."""
    from safetensors.numpy import load_file

    table = pl.read_parquet(folder / TABLE)
    left_out: dict[str, Any] = json.loads((folder / LEFT_OUT).read_text())
    raw = load_file(folder / TENSORS)["directions"]
    return Directions(tuple(table["name"]), raw, tuple(table["source"]), left_out)


def chosen(directions: Directions, names: Iterable[str]) -> Directions:
    """Those of these names, in the dictionary's order."""
    wanted = set(names)
    rows = [row for row, name in enumerate(directions.names) if name in wanted]
    return Directions(
        tuple(directions.names[row] for row in rows),
        directions.raw[rows],
        tuple(directions.sources[row] for row in rows),
        directions.left_out,
    )
