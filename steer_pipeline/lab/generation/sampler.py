"""Turns logits into tokens: small processors, keyed random numbers, one draw a row. Used by both back ends.

In: fp32 logits [n, vocabulary], what each row has said so far, one uniform number a row. Out: one token id
a row. Every row is treated on its own, so that a draw does not depend on its neighbours in the batch. Each
processor is a function of logits that returns new logits, forbidden tokens at -inf, tested against
transformers' processor of that name.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from steer_pipeline.catalogue.specs import SamplingSpec

_FIRST_CANDIDATES = 64  # sorted first; rows whose distribution is flatter get more
_PAD = -1

# --------------------------------------------------------------------------------- random numbers


def stream_key(seed: int, row_id: str, stream: str) -> int:
    """64-bit key of one row's random numbers in one stream."""
    text = f"{seed}\x1f{row_id}\x1f{stream}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def uniforms(keys: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """fp64 [n] in [0, 1): number `steps[i]` (uint64) of the stream `keys[i]` (uint64).

    SplitMix64 as a counter-based generator (Steele, Lea, Flood 2014; the finaliser is Stafford's variant
    13), mixed twice so that neighbouring keys and steps are unrelated.
    """
    with np.errstate(over="ignore"):
        state = keys + (steps + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        for _ in range(2):
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


# ------------------------------------------------------------------------------------- processors


def repetition_penalty(logits: Tensor, counts: Tensor, penalty: float) -> Tensor:
    """Tokens seen before (`counts` [n, vocabulary] > 0): positive logits divided, negative multiplied."""
    scaled = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(counts > 0, scaled, logits)


def frequency_penalty(logits: Tensor, counts: Tensor, penalty: float) -> Tensor:
    """Minus `penalty` for each time that the token was seen."""
    return logits - penalty * counts


def presence_penalty(logits: Tensor, counts: Tensor, penalty: float) -> Tensor:
    """Minus `penalty` for tokens that were seen at all."""
    return logits - penalty * (counts > 0)


def no_repeat_ngram(logits: Tensor, history: Tensor, n: int) -> Tensor:
    """Forbids tokens that would repeat an n-gram of `history` [rows, length] (padded with -1 on the left)."""
    length = history.shape[1]
    if length < n:
        return logits
    windows = history.unfold(1, n, 1)  # [rows, length - n + 1, n]
    suffix = history[:, length - n + 1 :]  # the n - 1 tokens that a repeat would continue
    repeats = (windows[:, :, :-1] == suffix[:, None, :]).all(-1) & (windows != _PAD).all(-1)
    if n > 1:
        repeats &= (suffix != _PAD).all(-1, keepdim=True)
    rows, at = repeats.nonzero(as_tuple=True)
    banned = logits.clone()
    banned[rows, windows[rows, at, -1]] = float("-inf")
    return banned


def temperature(logits: Tensor, value: float) -> Tensor:
    return logits / value


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keeps the k largest, and whatever ties with the k-th."""
    kth = logits.topk(min(k, logits.shape[-1]), dim=-1).values[:, -1:]
    return logits.masked_fill(logits < kth, float("-inf"))


def top_p(logits: Tensor, p: float) -> Tensor:
    """Keeps the most likely tokens up to and including the one that crosses p."""
    ordered, ids = _descending(logits)
    probabilities = ordered.double().softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    drop = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, ids, before >= p)
    return logits.masked_fill(drop, float("-inf"))


def min_p(logits: Tensor, p: float) -> Tensor:
    """Keeps tokens at least `p` times as likely as the most likely one."""
    relative = (logits - logits.amax(-1, keepdim=True)).double().exp()
    return logits.masked_fill(relative < p, float("-inf"))


def filtered(logits: Tensor, spec: SamplingSpec) -> Tensor:
    """Temperature and the three filters in transformers' order: the distribution that `pick` draws from."""
    logits = temperature(logits, spec.temperature)
    if spec.top_k:
        logits = top_k(logits, spec.top_k)
    if spec.top_p < 1:
        logits = top_p(logits, spec.top_p)
    if spec.min_p > 0:
        logits = min_p(logits, spec.min_p)
    return logits


# ---------------------------------------------------------------------------------------- history


@dataclass
class History:
    """What the penalties may see of each row: generated tokens, after the prompt's if the spec says so.

    `tokens` int64 [n, length], prompts padded with -1 on the left so that all rows end together; `counts`
    fp32 [n, vocabulary] where a penalty needs them.
    """

    spec: SamplingSpec
    tokens: Tensor
    counts: Tensor | None

    @classmethod
    def start(
        cls, spec: SamplingSpec, prompts: list[list[int]], vocabulary: int, device: str
    ) -> "History | None":
        """A history for these rows, or None where the spec has no penalty."""
        penalties = spec.repetition_penalty != 1 or spec.frequency_penalty or spec.presence_penalty
        if not penalties and not spec.no_repeat_ngram:
            return None
        seen = prompts if spec.penalty_scope == "prompt_and_generated" else [[] for _ in prompts]
        width = max(map(len, seen), default=0)
        padded = [[_PAD] * (width - len(ids)) + ids for ids in seen]
        tokens = torch.tensor(padded, dtype=torch.int64, device=device).reshape(len(seen), width)
        counts = None
        if penalties:
            counts = torch.zeros(
                len(seen), vocabulary + 1, device=device
            )  # one more column takes the padding
            ones = torch.ones_like(tokens, dtype=torch.float32)
            counts.scatter_add_(1, torch.where(tokens == _PAD, vocabulary, tokens), ones)
            counts = counts[:, :vocabulary]
        return cls(spec, tokens, counts)

    def add(self, token_ids: Tensor) -> None:
        """One more token, int64 [n], for each row."""
        self.tokens = torch.cat([self.tokens, token_ids[:, None]], dim=1)
        if self.counts is not None:
            self.counts[torch.arange(len(token_ids), device=token_ids.device), token_ids] += 1

    def keep(self, rows: Tensor) -> None:
        self.tokens = self.tokens[rows]
        self.counts = None if self.counts is None else self.counts[rows]

    def apply(self, logits: Tensor) -> Tensor:
        """Logits [n, vocabulary] after every penalty of the spec."""
        spec = self.spec
        if self.counts is not None:
            if spec.repetition_penalty != 1:
                logits = repetition_penalty(logits, self.counts, spec.repetition_penalty)
            if spec.frequency_penalty:
                logits = frequency_penalty(logits, self.counts, spec.frequency_penalty)
            if spec.presence_penalty:
                logits = presence_penalty(logits, self.counts, spec.presence_penalty)
        if spec.no_repeat_ngram:
            logits = no_repeat_ngram(logits, self.tokens, spec.no_repeat_ngram)
        return logits


# ------------------------------------------------------------------------------------------- draw


def pick(logits: Tensor, draws: Tensor, spec: SamplingSpec) -> Tensor:
    """One token id a row, int64 [n]: greedy at temperature 0, else the inverse CDF at `draws` (fp64 [n]).

    The CDF runs over `filtered(logits, spec)` from the most likely token down, ties by id, in fp64. Only as
    many tokens are sorted as the draw needs, which gives the same token as sorting them all.
    """
    if spec.temperature == 0:
        return logits.argmax(-1)
    scaled = temperature(logits, spec.temperature)
    top = scaled.amax(-1, keepdim=True)
    needs_total = not spec.top_k
    total = (scaled - top).exp().sum(-1, dtype=torch.float64) if needs_total else None
    return _pick_among(scaled, top, total, draws, spec, max(_FIRST_CANDIDATES, 2 * spec.top_k))


def _pick_among(
    scaled: Tensor, top: Tensor, total: Tensor | None, draws: Tensor, spec: SamplingSpec, candidates: int
) -> Tensor:
    vocabulary = scaled.shape[1]
    count = min(candidates, vocabulary)
    values, ids = _descending(scaled, count)
    weights = (values - top).double().exp()
    kept = torch.ones_like(weights, dtype=torch.bool)
    if spec.top_k:
        kept = values >= values[:, min(spec.top_k, count) - 1, None]
        total = (weights * kept).sum(-1)
    assert total is not None  # for the type checker: without top-k, pick has summed over the vocabulary
    if spec.top_p < 1:
        before = (weights * kept).cumsum(-1) - weights
        kept = kept & (before < spec.top_p * total[:, None])
    if spec.min_p > 0:
        kept = kept & (weights >= spec.min_p)
    mass = (weights * kept).cumsum(-1)
    filtering = bool(spec.top_k) or spec.top_p < 1 or spec.min_p > 0
    target = draws * (mass[:, -1] if filtering else total)
    chosen = (mass <= target[:, None]).sum(-1)
    chosen = torch.minimum(chosen, kept.sum(-1) - 1)
    picked = ids.gather(1, chosen[:, None])[:, 0]
    if count == vocabulary:
        return picked
    # Exact only where the kept set, or without filters the draw, ends above the last candidate's value.
    last = (kept.sum(-1) - 1) if filtering else chosen
    unsure = values.gather(1, last[:, None])[:, 0] <= values[:, -1]
    if not filtering:
        unsure |= mass[:, -1] <= target
    if unsure.any():
        again = unsure.nonzero()[:, 0]
        picked[again] = _pick_among(
            scaled[again], top[again], None if total is None else total[again], draws[again], spec, 16 * count
        )
    return picked


def _descending(logits: Tensor, count: int | None = None) -> tuple[Tensor, Tensor]:
    """Values and ids of the `count` largest logits (default: all), from the largest, ties by id."""
    if count is None or count == logits.shape[1]:
        return torch.sort(logits, dim=-1, descending=True, stable=True)
    values, ids = logits.topk(count, dim=-1)
    ids, order = ids.sort(dim=-1)
    values, order = values.gather(1, order).sort(dim=-1, descending=True, stable=True)
    return values, ids.gather(1, order)
