"""Computes persona vectors from contrast sets and measures how far they can be trusted.

In: contrast rows with token ids and a loaded model. Out: a `PersonaVector` whose metadata hold split-half
cosine, pairwise cosine, held-out AUC and its shuffled-label null for every block, for the source and read-out that the
evidence speaks for, and for the others. One pass of the model a sequence serves all
blocks. Of the pass, one read-out a sequence and block is kept, in host memory as fp32 (256 pairs of a model
of 36 blocks, 2560 wide: 190 MB), because halves, AUC and null need the single pairs; never the states of the
tokens.
"""

from collections.abc import Mapping, Sequence
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
from steer_pipeline.lab.personas.schema import PAIRS, PREFILL, SIDES, kept
from steer_pipeline.lab.vectors.vector import (
    AUC_TIE,
    PersonaVector,
    VectorError,
    best_block,
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

    The states of contexts with one `pair_id` (a text under several prompts, or cut at several places) are averaged, so
    that every pair counts once. Pairs come in the order of their ids.

    Args:
        contrast: rows of `contrast.CONTRAST_SCHEMA`; all of them count.
        readout: "response_tokens" averages over the completion (end-of-turn left out); "last_token" reads its last
            token, "last_prompt_token" the last token before it.

    Raises:
        VectorError: fewer than `MIN_PAIRS` pairs in a split, or a completion without tokens.
        ContrastError: the sides do not match.
    """
    require_matched_sides(contrast)
    if too_few := _too_few(contrast):
        raise VectorError(too_few)
    sides = {side: contrast.filter(pl.col("side") == side).sort("pair_id", "context_id") for side in SIDES}
    requests = [_request(row, readout) for row in pl.concat(sides.values()).iter_rows(named=True)]
    states = collect_means(model, requests, kind=site)
    one_side = sides["positive"]
    first = np.flatnonzero(one_side.get_column("pair_id").is_first_distinct().to_numpy())
    held_out = (one_side.get_column("split") == HELD_OUT).to_numpy()[first]
    if len(first) == one_side.height:
        return PairedStates(states[: one_side.height], states[one_side.height :], held_out)
    counts = np.diff(np.r_[first, one_side.height])[:, None, None]
    means = [
        (np.add.reduceat(each, first, axis=0) / counts).astype(np.float32)
        for each in (states[: one_side.height], states[one_side.height :])
    ]
    return PairedStates(means[0], means[1], held_out)


def _too_few(contrast: pl.DataFrame) -> str:
    """What is missing where a split has fewer than `MIN_PAIRS` pairs; else empty."""
    for split in (TRAIN, HELD_OUT):
        n = contrast.filter(pl.col("split") == split).get_column("pair_id").n_unique()
        if n < MIN_PAIRS:
            return (
                f"{n} pairs in split {split}, at least {MIN_PAIRS} are needed; raise contrast.n_contexts, or give more "
                "pairs of texts"
            )
    return ""


def _request(row: Mapping[str, Any], readout: str) -> HiddenRequest:
    """What is read of one side of a context."""
    prompt, completion = row["prompt_ids"], row["completion_ids"]
    if readout == "last_prompt_token":
        return HiddenRequest(prompt, len(prompt) - 1, len(prompt))
    if not completion:
        raise VectorError(
            f"context {row['context_id']}, side {row['side']}: the completion has no tokens to read; "
            "drop the pair, as complete_contrast does"
        )
    ids = prompt + completion
    return HiddenRequest(ids, len(ids) - 1 if readout == "last_token" else len(prompt), len(ids))


# ------------------------------------------------------------------------- source and read-out, by evidence


def readouts_of(source: str, wanted: Sequence[str]) -> tuple[str, ...]:
    """The read-outs of those wanted at which the two sides of a source can differ.

    Prefilled texts are read at their last token, whatever is wanted: the words themselves are the same. Sides of given
    texts answer the same prompt, so that nothing differs before the answer.
    """
    if source == PREFILL:
        return ("last_token",)
    return tuple(one for one in wanted if not (source == PAIRS and one == "last_prompt_token"))


@dataclass(frozen=True, eq=False)
class Candidate:
    """One source and read-out, measured. Lists of `facts` have a number a block."""

    source: str
    readout: str
    raw: np.ndarray  # fp32 [n_blocks, hidden]
    aucs: np.ndarray  # [1 + shuffles, n_blocks]; the first has the true labels
    facts: dict[str, Any]

    @property
    def best(self) -> int:
        block = best_block(self.facts)
        assert block is not None, "every block of a computed vector has an AUC"
        return block

    @property
    def stands(self) -> bool:
        """Its best block is above the null of all candidates and blocks together."""
        return bool(self.facts["held_out_auc"][self.best] > self.facts["auc_max_null_95th"])

    def as_row(self) -> dict[str, Any]:
        """Its evidence for the vector's metadata."""
        names = (
            "n_train", "n_held_out", "held_out_auc", "auc_null_95th", "split_half_cosine", "pairwise_cosine"
        )  # fmt: skip
        facts = {name: self.facts[name] for name in names}
        return {
            "source": self.source,
            "readout": self.readout,
            "best_block": self.best,
            "above_null": self.stands,
            **facts,
        }


def extract_vector(
    model: LoadedModel, contrast: pl.DataFrame, persona: str, spec: VectorSpec
) -> PersonaVector:
    """A vector for every block from one pass over the contrast set, with its evidence in the metadata.

    The direction is fitted on the train pairs (`fit_directions`); `split_half_cosine` says how much it owes
    to the particular pairs, `pairwise_cosine` how much the pairs agree, and `held_out_auc` how well it tells the poles
    of unseen pairs apart, next to the same procedure under labels flipped within pairs (`separation`).

    Every source of the contrast set with every read-out of `spec.readout` is a candidate (`choose`); the metadata's
    `candidates` hold the evidence of all, the chosen one first.

    Args:
        contrast: rows of `contrast.CONTRAST_SCHEMA`; those that were dropped do not count.
        persona: name in the catalogue.

    Raises:
        VectorError: a direction is not finite or zero, or there are too few pairs.
    """
    candidates, skipped = _candidates(model, kept(contrast), spec)
    ranked = choose(candidates)
    chosen = ranked[0]
    metadata = {
        **model_fields(model),
        "source": {"kind": "computed"},
        "flags": [],
        "method": spec.method,
        "contrast_source": chosen.source,
        "readout": chosen.readout,
        "site": spec.site,
        "seed": spec.seed,
        **chosen.facts,
        "candidates": [*(one.as_row() for one in ranked), *skipped],
    }
    return PersonaVector(persona, chosen.raw, metadata)


def choose(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates, best first.

    Each is judged at its best block (`best_block`).

    1. Above the null, the 95th percentile over shuffles of the best AUC among all candidates and blocks, comes before
       at its level. Of candidates at its level, the largest AUC comes first.
    2. Held-out AUC soon reaches 1 and cannot rank alone: those within `AUC_TIE` of the best AUC are a tie, and come
       before the others.
    3. Of those, means over the answer come before single tokens: differences of one token agree better and move texts
       less, so that their cosines do not compare (SmolLM2, paranoid, given texts: cosine 0.18 and 0.24, AUC 1 both;
       adding them shifted the trait of rewrites by 0.23 and 0.01).
    4. The mean pairwise cosine of the pairs' differences ranks the rest: where pairs agree on a direction, adding it
       moves the texts. Then split-half cosine, then the order in which they were asked for.
    """

    def at_best(one: Candidate, name: str) -> float:
        return float(one.facts[name][one.best])

    top = max(at_best(one, "held_out_auc") for one in candidates)

    def rank(one: Candidate) -> tuple[float, ...]:
        auc = at_best(one, "held_out_auc")
        cosines = (at_best(one, "pairwise_cosine"), at_best(one, "split_half_cosine"))
        averaged = one.readout == "response_tokens"
        return (
            (one.stands, auc >= top - AUC_TIE, averaged, *cosines) if one.stands else (False, auc, *cosines)
        )

    return sorted(candidates, key=rank, reverse=True)


def _candidates(
    model: LoadedModel, contrast: pl.DataFrame, spec: VectorSpec
) -> tuple[list[Candidate], list[dict[str, Any]]]:
    """The measured candidates, and what the metadata say of sources that have too few pairs.

    Raises:
        VectorError: all sources have too few.
    """
    usable: dict[str, pl.DataFrame] = {}
    skipped = []
    for source in contrast.get_column("source").unique(maintain_order=True):
        rows = contrast.filter(pl.col("source") == source)
        if why := _too_few(rows):
            skipped.append({"source": source, "skipped": why})
        else:
            usable[source] = rows
    if not usable:
        raise VectorError("; ".join(one["skipped"] for one in skipped) or _too_few(contrast))
    measured = []
    for source, rows in usable.items():
        norms = residual_norms(model, _sequences(rows))
        for readout in readouts_of(source, spec.readout):
            measured.append(_measured(model, rows, source, readout, norms, spec))
    if not measured:
        raise VectorError(
            f"vector.readout {', '.join(spec.readout)} reads nothing in which the sides of {', '.join(usable)} differ; "
            "add response_tokens or last_token"
        )
    # Of the shuffles of all candidates together: a search over candidates is held against it as one over blocks is.
    best = np.max([one.aucs[1:].max(axis=1) for one in measured], axis=0)
    for one in measured:
        one.facts.update(Separation.against(one.aucs[0], one.aucs[1:], best).as_metadata())
    return measured, skipped


def _measured(
    model: LoadedModel, rows: pl.DataFrame, source: str, readout: str, norms: np.ndarray, spec: VectorSpec
) -> Candidate:
    """All evidence but what takes the other candidates."""
    states = collect_states(model, rows, readout, spec.site)
    train = ~states.held_out
    differences = states.positive[train] - states.negative[train]  # [pairs, blocks, hidden]
    raw = fit_directions(differences, spec.method)
    facts = {
        "n_train": int(train.sum()),
        "n_held_out": int(states.held_out.sum()),
        "split_half_cosine": rounded(split_half_cosine(differences, spec.method, spec.seed)),
        "pairwise_cosine": rounded(pairwise_cosine(differences, _wordings(rows, train))),
        "raw_norms": rounded(np.linalg.norm(raw, axis=1)),
        "residual_norms": rounded(norms),
    }
    return Candidate(source, readout, raw, shuffled_aucs(states, spec.method, spec.seed), facts)


def _wordings(rows: pl.DataFrame, train: np.ndarray) -> np.ndarray:
    """int [train pairs], in the order of `collect_states`: pairs under the same instruction have the same number; where
    there is one instruction or none, each pair its own.
    """
    pairs = rows.unique("pair_id", keep="first").sort("pair_id").filter(pl.Series(train))
    indices = pairs.get_column("instruction_index")
    return indices.to_numpy() if indices.n_unique() > 1 else np.arange(pairs.height)


def rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 6) for value in values]


def _sequences(contrast: pl.DataFrame) -> list[list[int]]:
    """Prompt and completion of up to `N_NORM_SEQUENCES` rows, both sides of the first contexts."""
    rows = contrast.head(N_NORM_SEQUENCES)
    return [
        prompt + completion for prompt, completion in rows.select("prompt_ids", "completion_ids").iter_rows()
    ]


def pairwise_cosine(differences: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Mean cosine between the differences of two pairs, over all pairs of pairs of unlike groups: [blocks].

    Of an instruction's pairs, differences also agree in the words of the instruction, which is no trait: they are a
    group.

    Args:
        differences: [pairs, blocks, hidden].
        groups: int [pairs].
    """
    lengths = np.linalg.norm(differences, axis=2, keepdims=True)
    unit = differences / np.where(lengths > 0, lengths, 1.0)
    members = [unit[groups == group].sum(axis=0, dtype=np.float64) for group in np.unique(groups)]
    inside = sum((each**2).sum(axis=1) for each in members)  # [blocks], each pair with itself included
    together = (unit.sum(axis=0, dtype=np.float64) ** 2).sum(axis=1)
    _, sizes = np.unique(groups, return_counts=True)
    return (together - inside) / (len(groups) ** 2 - (sizes**2).sum())


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

    `auc_max_null_95th` is the 95th percentile over shuffles of the best AUC, and `auc_max_p` the share of
    shuffles whose best reaches the observed best: what a search over blocks (and candidates) must be held against.
    """

    auc: np.ndarray
    null_mean: np.ndarray
    null_95th: np.ndarray
    p: np.ndarray
    auc_max_null_95th: float
    auc_max_p: float

    @classmethod
    def against(cls, observed: np.ndarray, null: np.ndarray, best: np.ndarray | None = None) -> "Separation":
        """From AUCs [blocks], those of shuffles [shuffles, blocks], and the best of each shuffle [shuffles], where the
        search was over more than these blocks.
        """
        best = null.max(axis=1) if best is None else best
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
    """How well the fitted direction tells the two sides of held-out pairs apart, and how well chance does.

    Args: as `shuffled_aucs`.
    """
    aucs = shuffled_aucs(states, method, seed, directions=directions, n_shuffles=n_shuffles)
    return Separation.against(aucs[0], aucs[1:])


def shuffled_aucs(
    states: PairedStates,
    method: str,
    seed: int,
    *,
    directions: np.ndarray | None = None,
    n_shuffles: int = N_SHUFFLES,
) -> np.ndarray:
    """Held-out AUCs [1 + n_shuffles, blocks]: of the true labels, then of shuffled ones.

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
        as_is = test.T > 0
        aucs[:, block] = auc_columns(np.where(as_is, positive, negative), np.where(as_is, negative, positive))
    return aucs


def auc_columns(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """AUC of each column: [n, k] scores against [m, k], ties counting half; Mann-Whitney U over n m."""
    n, m = len(positive), len(negative)
    ranks = rankdata(np.concatenate([positive, negative]), axis=0)[:n].sum(axis=0)
    return (ranks - n * (n + 1) / 2) / (n * m)


def judge_imported(
    vector: PersonaVector, model: LoadedModel, contrast: pl.DataFrame, spec: VectorSpec
) -> PersonaVector:
    """An imported vector with residual norms and held-out separation measured on this model.

    The direction is not refitted, so every pair counts as held out; the null flips the labels within pairs. Of several
    sources and read-outs the first judges.

    Raises:
        VectorError: its width, or what its file says of its model, is not this model's; too few pairs.
    """
    require_same_model(vector, model)
    rows = kept(contrast)
    source = str(rows.get_column("source").first())
    rows = rows.filter(pl.col("source") == source)
    readout = readouts_of(source, spec.readout)[0]
    states = collect_states(model, rows, readout, vector.site)
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
        "contrast_source": source,
        "readout": readout,
        "n_held_out": len(states.held_out),
        "seed": spec.seed,
        "raw_norms": _spread(rounded(np.linalg.norm(vector.raw, axis=1)), blocks, vector.n_blocks),
    }
    return with_residual_norms(replace(vector, metadata=metadata), model, _sequences(rows))


def _spread(values: Sequence[float], blocks: Sequence[int], n_blocks: int) -> list[float | None]:
    """Values of the present blocks at their places, None elsewhere."""
    placed: list[float | None] = [None] * n_blocks
    for block, value in zip(blocks, values, strict=True):
        placed[block] = value
    return placed
