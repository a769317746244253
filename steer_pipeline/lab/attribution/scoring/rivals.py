"""Rankings that cost little, which a gradient method must beat: representations, words, loss, length, chance.

In: examples, and a model where one is read. Out: a score a row, the higher the earlier a row would be chosen.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from steer_pipeline.catalogue.attribution_scoring import Bm25Method, RdsMethod
from steer_pipeline.lab.attribution.scoring.gradients import row_nll
from steer_pipeline.lab.attribution.scoring.passes import Progress, batches_of, scored
from steer_pipeline.lab.finetune.data import Example, batch_inputs, collate
from steer_pipeline.lab.models.loaded import LoadedModel


def representation_scores(
    model: LoadedModel,
    pool: Sequence[Example],
    queries: Sequence[Example],
    method: RdsMethod,
    batch_tokens: int,
    record: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, float]:
    """RDS+ (Ivison et al. 2025): cosine with the queries of the last hidden states' mean, position i weighing i.

    The states are those after the final norm, as the paper has them; prompt and completion both count.
    """
    found = torch.cat([_pooled(model, batch) for batch in batches_of(queries, batch_tokens)])  # [q, hidden]
    aims = found.mean(0, keepdim=True) if method.query == "mean" else found

    def score(batch: list[Example]) -> list[float]:
        return (_pooled(model, batch) @ aims.T).amax(1).tolist()

    return scored(pool, batch_tokens, score, record, progress)


def _pooled(model: LoadedModel, examples: Sequence[Example]) -> Tensor:
    """fp32 [n, hidden] of length one."""
    batch = {name: one.to(model.device) for name, one in collate(examples, 0).items()}
    with torch.inference_mode():
        out = model.module(
            **batch_inputs(batch), output_hidden_states=True, logits_to_keep=1, use_cache=False
        )
        weights = (batch["position_ids"] + 1.0) * batch["attention_mask"]  # [n, t]
        states = (out.hidden_states[-1].float() * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)
    return torch.nn.functional.normalize(states, dim=1).cpu()


def loss_scores(
    model: LoadedModel,
    pool: Sequence[Example],
    batch_tokens: int,
    record: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, float]:
    """A row's NLL a supervised token, in nats."""

    def score(batch: list[Example]) -> list[float]:
        inputs = {name: one.to(model.device) for name, one in collate(batch, 0).items()}
        with torch.inference_mode():
            nll, counts = row_nll(model.module, inputs)
        return (nll / counts).tolist()

    return scored(pool, batch_tokens, score, record, progress)


def bm25_scores(pool: Sequence[Example], queries: Sequence[Example], method: Bm25Method) -> dict[str, float]:
    """Okapi BM25 (Robertson and Zaragoza 2009) of each row's ids for those of a query, mean over queries.

    A query's token counts once; the weight of a token is ln(1 + (n - df + 0.5) / (df + 0.5)).
    """
    counts = {one.row_id: Counter(one.ids) for one in pool}
    holders = Counter(token for found in counts.values() for token in found)
    asked = Counter(token for query in queries for token in set(query.ids))
    weight = {
        token: times / len(queries) * math.log1p((len(pool) - holders[token] + 0.5) / (holders[token] + 0.5))
        for token, times in asked.items()
    }
    mean_length = sum(len(one.ids) for one in pool) / len(pool)

    def score(example: Example) -> float:
        held = counts[example.row_id]
        norm = method.k1 * (1 - method.b + method.b * len(example.ids) / mean_length)
        return sum(
            weight[token] * held[token] * (method.k1 + 1) / (held[token] + norm)
            for token in held
            if token in weight
        )

    return {one.row_id: score(one) for one in pool}


def length_scores(pool: Sequence[Example]) -> dict[str, float]:
    """Tokens of a row, prompt and completion."""
    return {one.row_id: float(len(one.ids)) for one in pool}


def random_scores(pool: Sequence[Example], seed: int) -> dict[str, float]:
    """From 0 to 1 by a hash of seed and row id: the order of the pool does not matter."""
    return {
        one.row_id: int.from_bytes(
            hashlib.blake2b(f"{seed}\x1f{one.row_id}".encode(), digest_size=7).digest()
        )
        / 2**56
        for one in pool
    }
