"""Linear maps from the residual stream of one model to that of another, fitted on matched states.

In: states (or embeddings) of the same texts in both models, [n, source hidden] and [n, target hidden]. Out: a `Map`
that carries directions, and how well it predicts states that it was not fitted on. Four ways:

- `procrustes`: R = U V' of the SVD U S V' = X' Y of centred states (Schoenemann 1966). Where the widths differ, the
  narrower space is padded with zeros: R then keeps lengths in as many dimensions as the narrower space has, those in
  which the wider space varies most.
- `subspace`: the same between the first principal components of both, as many as `components`; what lies outside of
  them is lost.
- `embeddings`: the same as `procrustes`, but fitted on the input embeddings of the tokens that both vocabularies have.
- `ridge`: B = (X' X + l I)^-1 X' Y, with l chosen by generalised cross-validation; it may shrink and shear.

A difference of states is carried without the means: `direction @ matrix`. Knows nothing of models or texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

PROCRUSTES, SUBSPACE, EMBEDDINGS, RIDGE = WAYS = ("procrustes", "subspace", "embeddings", "ridge")
RIDGE_PENALTIES = np.logspace(-6, 1, 15)  # as shares of the mean squared singular value
RANK_FLOOR = 1e-6  # of the largest singular value


class MapError(ValueError):
    """A map cannot be fitted or used. The message names the way and the cure."""


@dataclass(frozen=True)
class Fit:
    """How well a map predicts states that it was not fitted on.

    Attributes:
        r2: share of the squared deviations from the mean of the fitted states that is predicted; below 0: worse than
            that mean.
        cosine: mean cosine of predicted and real deviations from that mean.
        n: rows that it was judged on.
    """

    r2: float
    cosine: float
    n: int


@dataclass(frozen=True, eq=False)
class Map:
    """`(state - source_mean) @ matrix * scale + target_mean` predicts the target's state.

    Attributes:
        way: one of `WAYS`, or "random".
        matrix: float64 [source hidden, target hidden].
        source_mean, target_mean: of the states that it was fitted on.
        scale: of predictions; a direction does without.
        rank: dimensions of the source that arrive.
    """

    way: str
    matrix: np.ndarray
    source_mean: np.ndarray
    target_mean: np.ndarray
    scale: float
    rank: int

    def carry(self, direction: np.ndarray) -> np.ndarray:
        """fp32 [target hidden] of norm 1: where a direction [source hidden] points in the target.

        Raises:
            MapError: another width, or nothing of it arrives.
        """
        if direction.shape != (len(self.matrix),):
            raise MapError(
                f"map {self.way}: it takes directions of width {len(self.matrix)}, not {direction.shape}"
            )
        carried = np.asarray(direction, dtype=np.float64) @ self.matrix
        length = float(np.linalg.norm(carried))
        if length < 1e-9 * max(float(np.linalg.norm(direction)), 1e-12):
            raise MapError(
                f"map {self.way}: nothing of the direction arrives; fit on more texts, or keep more components"
            )
        return (carried / length).astype(np.float32)

    def judged(self, source: np.ndarray, target: np.ndarray) -> Fit:
        """On states [n, hidden] of both models that it was not fitted on."""
        real = np.asarray(target, dtype=np.float64) - self.target_mean
        predicted = (np.asarray(source, dtype=np.float64) - self.source_mean) @ self.matrix * self.scale
        lengths = np.linalg.norm(real, axis=1) * np.linalg.norm(predicted, axis=1)
        cosines = (real * predicted).sum(axis=1) / np.maximum(lengths, 1e-12)
        unexplained = float(((real - predicted) ** 2).sum())
        return Fit(1 - unexplained / max(float((real**2).sum()), 1e-12), float(cosines.mean()), len(real))


def fit_map(
    way: str,
    source: np.ndarray,
    target: np.ndarray,
    *,
    components: int = 64,
    embeddings: tuple[np.ndarray, np.ndarray] | None = None,
) -> Map:
    """A map of one of `WAYS`.

    Args:
        source, target: states [n, hidden] of the same texts, row by row.
        components: of `subspace`; fewer where a space or the rows have fewer.
        embeddings: of `embeddings`: input embeddings [shared tokens, hidden] of both models, row by row.

    Raises:
        MapError: rows do not match, are too few or not finite, or embeddings are missing.
    """
    x, y = _checked(way, source, target)
    means = x.mean(axis=0), y.mean(axis=0)
    x, y = x - means[0], y - means[1]
    if way == PROCRUSTES:
        matrix = rotation_between(x, y)
    elif way == SUBSPACE:
        matrix = _between_components(x, y, components)
    elif way == RIDGE:
        matrix = _ridge(x, y)
    elif way == EMBEDDINGS:
        if embeddings is None:
            raise MapError(
                "map embeddings: the input embeddings of shared tokens are needed; give `embeddings`"
            )
        a, b = _checked(way, *embeddings)
        matrix = rotation_between(a - a.mean(axis=0), b - b.mean(axis=0))
    else:
        raise MapError(f"map {way!r}: there is {', '.join(WAYS)}")
    made = Map(way, matrix, *means, 1.0, _rank(matrix))
    return made if way == RIDGE else replace(made, scale=_best_scale(x @ matrix, y))


def rotation_between(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """float64 [source width, target width]: the orthogonal map nearest in squared error, of centred rows."""
    left, _, right = np.linalg.svd(source.T @ target, full_matrices=False)
    return left @ right


def random_rotation(source_width: int, target_width: int, seed: int | Sequence[int]) -> Map:
    """A map of rank min(widths), uniform over the orthogonal ones: what a map that knows nothing does."""
    wide = max(source_width, target_width)
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((wide, wide)))
    matrix = (q * np.sign(np.diag(r)))[:source_width, :target_width]  # the signs make it uniform
    return Map(
        "random", matrix, np.zeros(source_width), np.zeros(target_width), 1.0, min(source_width, target_width)
    )


def _checked(way: str, source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = (np.asarray(states, dtype=np.float64) for states in (source, target))
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise MapError(
            f"map {way}: states {x.shape} and {y.shape}; give [n, hidden] of the same n texts or tokens"
        )
    if len(x) < 3:
        raise MapError(
            f"map {way}: {len(x)} rows; at least 3 are needed, and more than the widths are better"
        )
    for name, states in (("source", x), ("target", y)):
        bad = np.flatnonzero(~np.isfinite(states).all(axis=1))
        if bad.size:
            raise MapError(f"map {way}: row {bad[0]} of the {name} is not finite; check that model's weights")
    return x, y


def _between_components(x: np.ndarray, y: np.ndarray, components: int) -> np.ndarray:
    """Procrustes between the scores of both on their first principal components."""
    axes = []
    for states in (x, y):
        _, values, directions = np.linalg.svd(states, full_matrices=False)
        axes.append(directions[: max(1, int((values > RANK_FLOOR * values[0]).sum()))])
    kept = min(components, *(len(one) for one in axes))
    a, b = (one[:kept].T for one in axes)  # [width, kept]
    return a @ rotation_between(x @ a, y @ b) @ b.T


def _ridge(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    left, values, right = np.linalg.svd(x, full_matrices=False)
    inner, squares = left.T @ y, values**2  # [k, target], [k]
    total = float((y**2).sum())
    best, chosen = np.inf, np.zeros_like(squares)
    for penalty in RIDGE_PENALTIES * squares.mean():
        shrunk = squares / (squares + penalty)
        residual = total - float(((2 * shrunk - shrunk**2) * (inner**2).sum(axis=1)).sum())
        freedom = len(x) - 1 - float(shrunk.sum())
        score = residual / freedom**2 if freedom > 0 else np.inf
        if score < best or not chosen.any():
            best, chosen = score, values / (squares + penalty)
    return right.T @ (chosen[:, None] * inner)


def _best_scale(predicted: np.ndarray, real: np.ndarray) -> float:
    return float((predicted * real).sum() / max(float((predicted**2).sum()), 1e-12))


def _rank(matrix: np.ndarray) -> int:
    values = np.linalg.svd(matrix, compute_uv=False)
    return int((values > RANK_FLOOR * max(float(values[0]), 1e-300)).sum())
