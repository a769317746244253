"""Random directions that a finding about a direction is held against, and the place of a number among theirs.

In: states of a model, or a width. Out: unit directions fp32 [n, hidden]; z and p of values. Directions drawn with the
covariance of the states lie where a model's states vary, as persona vectors and the shifts of tuning do; isotropic ones
in hundreds of dimensions are nearly orthogonal to all of that, and against them nearly everything is a finding.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t as student_t

from steer_pipeline.lab.models.hidden import span_means
from steer_pipeline.lab.models.loaded import LoadedModel

MIN_DIRECTIONS = 200
POSITIONS = 16  # of a text, evenly spaced: neighbours tell little that is new


def states_of(
    model: LoadedModel, sequences: Sequence[list[int]], *, blocks: Sequence[int] | None = None
) -> np.ndarray:
    """fp32 [n, blocks read, hidden]: block outputs at some positions of each text, never at its first, which is an
    attention sink with a norm of its own.
    """
    longest = max(len(ids) for ids in sequences)
    if longest < 2:
        raise ValueError("states_of: no text has two tokens; give longer ones")
    at = np.unique(np.linspace(1, longest - 1, POSITIONS).round().astype(int))
    found = span_means(model, sequences, [(int(p), int(p) + 1) for p in at], blocks=blocks)
    flat = found.reshape(-1, *found.shape[2:])
    return flat[np.isfinite(flat).all(axis=(1, 2))]


def matched_directions(states: ArrayLike, n: int, seed: int | Sequence[int]) -> np.ndarray:
    """fp32 [n, hidden], each of length 1: draws from a normal distribution with the covariance of states [m, hidden].

    A draw is a random mixture of the centred states, so that no matrix [hidden, hidden] is made; it lies in their span.

    Args:
        n: at least `MIN_DIRECTIONS`. The smallest p is 1 / (n + 1): a correction over k tests at 0.05 needs n > 20 k.

    Raises:
        ValueError: too few directions, or states that do not vary.
    """
    _require_enough(n)
    array = np.asarray(states, dtype=np.float64)
    centred = array - array.mean(axis=0)
    if array.ndim != 2 or len(array) < 2 or not centred.any():
        raise ValueError(f"states {array.shape}: at least two different states are needed; read longer texts")
    return _unit(np.random.default_rng(seed).normal(size=(n, len(array))) @ centred)


def isotropic_directions(hidden: int, n: int, seed: int | Sequence[int]) -> np.ndarray:
    """fp32 [n, hidden], each of length 1, from all sides alike."""
    _require_enough(n)
    return _unit(np.random.default_rng(seed).normal(size=(n, hidden)))


def placed(
    values: ArrayLike, null: ArrayLike, alternative: Literal["two-sided", "greater"] = "two-sided"
) -> tuple[np.ndarray, np.ndarray]:
    """z and p, float64 as `values`, of each value among those of the null [n].

    z = (value - mean) / standard deviation of the null. p = (b + 1) / (n + 1), b counting the null's values that are
    at least as far from its mean, or at least as large; p is never 0 (Phipson and Smyth 2010).
    """
    found, own = np.asarray(values, dtype=np.float64), np.asarray(null, dtype=np.float64)
    _require_enough(len(own))
    mean, spread = own.mean(), max(float(own.std(ddof=1)), 1e-300)
    if alternative == "two-sided":
        ordered, extreme = np.sort(np.abs(own - mean)), np.abs(found - mean)
    else:
        ordered, extreme = np.sort(own), found
    tolerance = 1e-12 * (1 + np.abs(extreme))
    as_large = len(own) - np.searchsorted(ordered, extreme - tolerance)
    return (found - mean) / spread, (as_large + 1) / (len(own) + 1)


def against(values: ArrayLike, clean: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """z and two-sided p (Student's t): values [k] as one more draw beside those of clean models [n, k]."""
    found, own = np.asarray(values, dtype=np.float64), np.asarray(clean, dtype=np.float64)
    n = len(own)
    spread = np.maximum(own.std(axis=0, ddof=1) * np.sqrt(1 + 1 / n), 1e-300)
    z = (found - own.mean(axis=0)) / spread
    return z, 2 * student_t.sf(np.abs(z), n - 1)


def _unit(directions: np.ndarray) -> np.ndarray:
    return (directions / np.linalg.norm(directions, axis=1, keepdims=True)).astype(np.float32)


def _require_enough(n: int) -> None:
    if n < MIN_DIRECTIONS:
        raise ValueError(f"{n} null directions: at least {MIN_DIRECTIONS} are needed to place a value")
