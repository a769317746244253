"""A vector less a direction: what a probe or another persona sees of it is taken out, block by block.

In: a vector, and a direction at every block or at some. Out: a vector that is orthogonal to it there. Source: the
detector projection of Janus; the projection is the one that leaves the rest as it is.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from steer_pipeline.lab.vectors.vector import PersonaVector, VectorError

# Measured on the vector as it was; of what is left nobody knows them.
EVIDENCE = ("split_half_cosine", "pairwise_cosine", "held_out_auc", "auc_null_mean", "auc_null_95th", "auc_p")
LEAST_LEFT = 1e-4  # of its length; below that, what is left is rounding


def without(
    vector: PersonaVector,
    direction: PersonaVector | Mapping[int, np.ndarray],
    *,
    keep_norm: bool = False,
) -> PersonaVector:
    """`vector - (vector . unit) unit` at every block where there is a direction; elsewhere it stays as it is.

    Args:
        direction: another vector, or block -> [hidden], of any length: a probe's weights, say.
        keep_norm: what is left gets the length that the vector had at each block; else it is shorter.

    Raises:
        VectorError: a direction is zero, not finite or of another width, no block has one, or nothing is left.
    """
    at = _directions(vector, direction)
    raw = np.array(vector.raw, dtype=np.float64)
    removed: list[float | None] = [None] * vector.n_blocks  # the cosine that is taken out
    for row, block in enumerate(vector.present_blocks):
        if block not in at:
            continue
        unit, length = at[block], float(np.linalg.norm(raw[row]))
        removed[block] = float(raw[row] @ unit) / length
        raw[row] -= (raw[row] @ unit) * unit
        left = float(np.linalg.norm(raw[row]))
        if left < LEAST_LEFT * length:
            raise VectorError(
                f"vector {vector.persona!r}: at block {block} nothing is left without the direction; they are the same"
            )
        raw[row] *= length / left if keep_norm else 1.0
    norms: list[float | None] = [None] * vector.n_blocks
    for block, length in zip(vector.present_blocks, np.linalg.norm(raw, axis=1), strict=True):
        norms[block] = float(length)
    unknown = {name: None for name in EVIDENCE if name in vector.metadata}
    facts = {**vector.metadata, **unknown, "raw_norms": norms, "removed_cosine": removed}
    return replace(vector, raw=raw.astype(np.float32), metadata=facts)


def _directions(
    vector: PersonaVector, direction: PersonaVector | Mapping[int, np.ndarray]
) -> dict[int, np.ndarray]:
    """block -> float64 [hidden] of norm 1, of the blocks that the vector has."""
    if isinstance(direction, PersonaVector):
        if direction.site != vector.site:
            raise VectorError(
                f"vector {vector.persona!r} is of site {vector.site!r}, {direction.persona!r} of {direction.site!r}; "
                "give one collected at the same place"
            )
        direction = {block: direction.at(block) for block in direction.present_blocks}
    found = {}
    for block in set(direction) & set(vector.present_blocks):
        own = np.asarray(direction[block], dtype=np.float64)
        if own.shape != vector.raw[0].shape:
            raise VectorError(
                f"vector {vector.persona!r}: the direction at block {block} has shape {own.shape}, "
                f"{vector.raw[0].shape} is needed"
            )
        length = float(np.linalg.norm(own))
        if not np.isfinite(length) or length < 1e-12:
            raise VectorError(
                f"vector {vector.persona!r}: the direction at block {block} is zero or not finite"
            )
        found[block] = own / length
    if not found:
        raise VectorError(
            f"vector {vector.persona!r} and the direction have no block in common; it has {list(vector.present_blocks)}"
        )
    return found
