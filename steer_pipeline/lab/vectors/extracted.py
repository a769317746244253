"""Computes persona vectors from contrast sets and measures how far they can be trusted.

In: contrast rows with token ids and a loaded model. Out: a `PersonaVector` whose metadata hold split-half
cosine, held-out AUC and its shuffled-label null for every block. One pass of the model a sequence serves all
blocks. Of the pass, one read-out a sequence and block is kept, in host memory as fp32 (256 pairs of a model
of 36 blocks, 2560 wide: 190 MB), because halves, AUC and null need the single pairs; never the states of the
tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from scipy.stats import rankdata

from steer_pipeline.catalogue.specs import VectorSpec
from steer_pipeline.lab.models.hidden import HiddenRequest, collect_means, residual_norms
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.personas.contexts import HELD_OUT, TRAIN
from steer_pipeline.lab.personas.contrast import require_matched_sides
from steer_pipeline.lab.personas.schema import SIDES
from steer_pipeline.lab.vectors.vector import (
    PersonaVector,
    VectorError,
    model_fields,
    require_same_model,
)

N_SHUFFLES = 200  # refits of the shuffled-label null
N_HALVES = 20  # random splits of the training pairs into halves
N_NORM_SEQUENCES = 64  # sequences over which mean residual norms are taken
MIN_PAIRS = 4  # fewest pairs a split: below this neither halves nor an AUC mean anything


@dataclass(frozen=True, eq=False)
class PairedStates:
    """Read-outs of matched pairs: fp32 [pairs, n_blocks, hidden] a side, and which pairs are held out."""

    positive: np.ndarray
    negative: np.ndarray
    held_out: np.ndarray  # bool [pairs]


def collect_states(
    model: LoadedModel, contrast: pl.DataFrame, readout: str, site: str = "output"
) -> PairedStates:
    """Reads every block's output for both sides of every context, one pass a sequence.

    Args:
        contrast: rows of `contrast.CONTRAST_SCHEMA`.
        readout: "response_tokens" averages over the completion (end-of-turn left out); "last_prompt_token"
            reads the last token before the answer.

    Raises:
        VectorError: fewer than `MIN_PAIRS` pairs in a split, or a completion without tokens.
        ContrastError: the sides do not match.
    """
    require_matched_sides(contrast)
    sides = {side: contrast.filter(pl.col("side") == side).sort("context_id") for side in SIDES}
    held_out = (sides["positive"].get_column("split") == HELD_OUT).to_numpy()
    for split, n in ((TRAIN, int((~held_out).sum())), (HELD_OUT, int(held_out.sum()))):
        if n < MIN_PAIRS:
            raise VectorError(
                f"{n} pairs in split {split}, at least {MIN_PAIRS} are needed; raise contrast.n_contexts"
            )
    requests = []
    for row in pl.concat(sides.values()).iter_rows(named=True):
        prompt, completion = row["prompt_ids"], row["completion_ids"]
        if readout == "last_prompt_token":
            requests.append(HiddenRequest(prompt, len(prompt) - 1, len(prompt)))
        elif completion:
            requests.append(HiddenRequest(prompt + completion, len(prompt), len(prompt) + len(completion)))
        else:
            raise VectorError(
                f"context {row['context_id']}, side {row['side']}: the completion has no tokens to read; "
                "drop the pair, as complete_contrast does"
            )
    states = collect_means(model, requests, kind=site)
    return PairedStates(states[: len(held_out)], states[len(held_out) :], held_out)


def extract_vector(
    model: LoadedModel, contrast: pl.DataFrame, persona: str, spec: VectorSpec
) -> PersonaVector:
    """A vector for every block from one pass over the contrast set, with its evidence in the metadata.

    The direction is fitted on the train pairs (`fit_directions`); `split_half_cosine` says how much it owes
    to the particular pairs, `held_out_auc` how well it tells the poles of unseen contexts apart, next to the
    same procedure under labels flipped within pairs (`separation`).

    Args:
        contrast: rows of `contrast.CONTRAST_SCHEMA`.
        persona: name in the catalogue.

    Raises:
        VectorError: a direction is not finite or zero, or there are too few pairs.
    """
    states = collect_states(model, contrast, spec.readout, spec.site)
    train = ~states.held_out
    differences = states.positive[train] - states.negative[train]  # [pairs, blocks, hidden]
    raw = fit_directions(differences, spec.method)
    metadata = {
        **model_fields(model),
        "source": {"kind": "computed"},
        "flags": [],
        "method": spec.method,
        "readout": spec.readout,
        "site": spec.site,
        "n_train": int(train.sum()),
        "n_held_out": int(states.held_out.sum()),
        "seed": spec.seed,
        "split_half_cosine": rounded(split_half_cosine(differences, spec.method, spec.seed)),
        "raw_norms": rounded(np.linalg.norm(raw, axis=1)),
        **separation(states, spec.method, spec.seed).as_metadata(),
    }
    return with_residual_norms(PersonaVector(persona, raw, metadata), model, _sequences(contrast))


def rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 6) for value in values]


def _sequences(contrast: pl.DataFrame) -> list[list[int]]:
    """Prompt and completion of up to `N_NORM_SEQUENCES` rows, both sides of the first contexts."""
    rows = contrast.head(N_NORM_SEQUENCES)
    return [
        prompt + completion for prompt, completion in rows.select("prompt_ids", "completion_ids").iter_rows()
    ]


def with_residual_norms(
    vector: PersonaVector, model: LoadedModel, sequences: list[list[int]]
) -> PersonaVector:
    """The same vector with the mean residual norm of each block of the model over `sequences` (token ids)."""
    norms = residual_norms(model, sequences)
    return replace(vector, metadata={**vector.metadata, "residual_norms": rounded(norms)})


def fit_directions(differences: np.ndarray, method: str) -> np.ndarray:
    """Directions from paired differences, positive minus negative.

    - `mean_difference`: the mean over pairs.
    - `pca`: the first principal component of the differences about the origin, as long as the mean
      difference's projection on it, which also fixes its sign. About the origin, because centring would take
      out the very shift that all pairs share.

    Args:
        differences: [pairs, blocks, hidden].

    Returns:
        fp32 [blocks, hidden].
    """
    mean = differences.mean(axis=0, dtype=np.float64)
    if method == "mean_difference":
        return mean.astype(np.float32)
    axes = _first_components(differences)
    return (axes * (axes * mean).sum(axis=1, keepdims=True)).astype(np.float32)


def _first_components(differences: np.ndarray) -> np.ndarray:
    """Unit first right singular vector a block, sign arbitrary: [blocks, hidden]."""
    axes = np.empty(differences.shape[1:])
    for block in range(len(axes)):  # one block in double precision at a time
        rows = differences[:, block].astype(np.float64)
        # Through the Gram matrix of the pairs: a few hundred pairs against thousands of dimensions.
        _, vectors = np.linalg.eigh(rows @ rows.T)
        axes[block] = vectors[:, -1] @ rows
    norms = np.linalg.norm(axes, axis=1, keepdims=True)
    return axes / np.where(norms > 0, norms, 1.0)


def split_half_cosine(
    differences: np.ndarray, method: str, seed: int, n_halves: int = N_HALVES
) -> np.ndarray:
    """Cosine between the directions of random halves of the pairs, mean over `n_halves` splits: [blocks]."""
    rng = np.random.default_rng(seed)
    n = len(differences)
    cosines = []
    for _ in range(n_halves):
        order = rng.permutation(n)
        a, b = (
            fit_directions(differences[half], method).astype(np.float64)
            for half in (order[: n // 2], order[n // 2 :])
        )
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        cosines.append((a * b).sum(axis=1) / np.where(norms > 0, norms, 1.0))
    return np.mean(cosines, axis=0)


@dataclass(frozen=True, eq=False)
class Separation:
    """Held-out AUC a block and its null; all [blocks] but the last two.

    `auc_max_null_95th` is the 95th percentile over shuffles of the best block's AUC, and `auc_max_p` the
    share of
    shuffles whose best block reaches the observed best: what a search over blocks must be held against.
    """

    auc: np.ndarray
    null_mean: np.ndarray
    null_95th: np.ndarray
    p: np.ndarray
    auc_max_null_95th: float
    auc_max_p: float

    @classmethod
    def against(cls, observed: np.ndarray, null: np.ndarray) -> "Separation":
        """From AUCs [blocks] and those of shuffles [shuffles, blocks]."""
        best = null.max(axis=1)
        return cls(
            auc=observed,
            null_mean=null.mean(axis=0),
            null_95th=np.quantile(null, 0.95, axis=0),
            p=(1 + (null >= observed).sum(axis=0)) / (1 + len(null)),
            auc_max_null_95th=float(np.quantile(best, 0.95)),
            auc_max_p=float((1 + (best >= observed.max()).sum()) / (1 + len(null))),
        )

    def as_metadata(self) -> dict[str, Any]:
        return {
            "held_out_auc": rounded(self.auc),
            "auc_null_mean": rounded(self.null_mean),
            "auc_null_95th": rounded(self.null_95th),
            "auc_p": rounded(self.p),
            "auc_max_null_95th": round(self.auc_max_null_95th, 6),
            "auc_max_p": round(self.auc_max_p, 6),
            "n_shuffles": N_SHUFFLES,
        }


def separation(
    states: PairedStates,
    method: str,
    seed: int,
    *,
    directions: np.ndarray | None = None,
    n_shuffles: int = N_SHUFFLES,
) -> Separation:
    """How well the fitted direction tells the two sides of held-out contexts apart, and how well chance does.

    The score of a state is its projection on the direction. A shuffle flips the labels within each pair, of
    train and held-out pairs alike, by a fair coin, refits the direction and scores it anew: the exact null of
    labels that mean nothing, pairing kept.

    Args:
        directions: [blocks, hidden]; given ones (an imported vector) are not refitted.
    """
    rng = np.random.default_rng(seed)
    flips = np.where(rng.random((n_shuffles + 1, len(states.held_out))) < 0.5, -1.0, 1.0)
    flips[0] = 1.0  # the observed labels
    train, test = flips[:, ~states.held_out], flips[:, states.held_out]  # [shuffles + 1, pairs]
    differences = states.positive[~states.held_out] - states.negative[~states.held_out]
    axes = _first_components(differences) if method == "pca" and directions is None else None
    n_blocks = states.positive.shape[1]
    aucs = np.empty((n_shuffles + 1, n_blocks))
    for block in range(n_blocks):
        if directions is not None:
            fitted = np.broadcast_to(directions[block].astype(np.float64), (len(flips), directions.shape[1]))
        elif axes is not None:  # flips leave the component as it is and can only turn its sign
            signs = np.sign(train @ (differences[:, block] @ axes[block]))
            fitted = signs[:, None] * axes[block]
        else:
            fitted = train @ differences[:, block] / train.shape[1]  # [shuffles + 1, hidden]
        positive = states.positive[states.held_out, block] @ fitted.T  # [pairs, shuffles + 1]
        negative = states.negative[states.held_out, block] @ fitted.T
        kept = test.T > 0
        aucs[:, block] = auc_columns(np.where(kept, positive, negative), np.where(kept, negative, positive))
    return Separation.against(aucs[0], aucs[1:])


def auc_columns(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """AUC of each column: [n, k] scores against [m, k], ties counting half; Mann-Whitney U over n m."""
    n, m = len(positive), len(negative)
    ranks = rankdata(np.concatenate([positive, negative]), axis=0)[:n].sum(axis=0)
    return (ranks - n * (n + 1) / 2) / (n * m)


def judge_imported(
    vector: PersonaVector, model: LoadedModel, contrast: pl.DataFrame, spec: VectorSpec
) -> PersonaVector:
    """An imported vector with residual norms and held-out separation measured on this model.

    The direction is not refitted, so every pair counts as held out; the null flips the labels within pairs.

    Raises:
        VectorError: its width, or what its file says of its model, is not this model's; too few pairs.
    """
    require_same_model(vector, model)
    states = collect_states(model, contrast, spec.readout, vector.site)
    blocks = list(vector.present_blocks)
    everything = PairedStates(
        states.positive[:, blocks], states.negative[:, blocks], np.ones(len(states.held_out), dtype=bool)
    )
    measured = separation(everything, spec.method, spec.seed, directions=vector.raw).as_metadata()
    spread = {
        name: _spread(values, blocks, vector.n_blocks) if isinstance(values, list) else values
        for name, values in measured.items()
    }
    metadata = {
        **vector.metadata,
        **spread,
        "weights_sha": model.weights_sha,  # from here on it belongs to this base
        "model_identity": str(model.identity),
        "readout": spec.readout,
        "n_held_out": len(states.held_out),
        "seed": spec.seed,
        "raw_norms": _spread(rounded(np.linalg.norm(vector.raw, axis=1)), blocks, vector.n_blocks),
    }
    return with_residual_norms(replace(vector, metadata=metadata), model, _sequences(contrast))


def _spread(values: Sequence[float], blocks: Sequence[int], n_blocks: int) -> list[float | None]:
    """Values of the present blocks at their places, None elsewhere."""
    placed: list[float | None] = [None] * n_blocks
    for block, value in zip(blocks, values, strict=True):
        placed[block] = value
    return placed
