"""Reads a model on given token ids: hidden states, norms, likelihoods, divergence under steering.

In: token ids from `prompts.py` and perhaps a steering plan. Out: numpy fp32, one row a sequence in the
order given. Sequences run block by block in right-padded batches of similar length; states are read at the
output of each block, before the final norm, where plans also add their vectors, so that collection and
injection are the same site. Under a plan with scope "generated", positions from `start` on are steered.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from steer_pipeline.lab.models.blocks import Blocks, blocks_of, causal
from steer_pipeline.lab.models.loading import LoadedModel
from steer_pipeline.lab.models.plans import block_deltas, check_plans
from steer_pipeline.lab.models.steering import SteeringPlan

_BATCH_TOKENS = {"cpu": 4096, "mps": 16384, "cuda": 65536}
_HEAD_ROWS = 2048  # positions whose logits exist at the same time


@dataclass(frozen=True)
class HiddenRequest:
    """Token ids and the read-out span [start, stop) in token positions."""

    ids: list[int]
    start: int
    stop: int


def collect_means(
    model: LoadedModel, requests: Sequence[HiddenRequest], plan: SteeringPlan | None = None
) -> np.ndarray:
    """fp32 [n, n_blocks, hidden]: each block's output, averaged over the request's span.

    Raises:
        ValueError: a span is empty or outside its sequence (with its index), or the plan does not fit the
        model.
    """
    for i, request in enumerate(requests):
        if not 0 <= request.start < request.stop <= len(request.ids):
            raise ValueError(
                f"request {i}: span [{request.start}, {request.stop}) of {len(request.ids)} tokens; "
                "give a non-empty span inside the sequence"
            )
    out = np.zeros((len(requests), model.n_blocks, model.hidden_size), dtype=np.float32)
    runner = _Runner(model, plan)
    spans = np.array([(request.start, request.stop) for request in requests]).reshape(-1, 2)
    for rows, ids in runner.batches([request.ids for request in requests]):
        start, stop = (torch.from_numpy(spans[rows, i]).to(ids.device)[:, None] for i in (0, 1))
        at = torch.arange(ids.shape[1], device=ids.device)[None]
        weights = ((at >= start) & (at < stop)).float() / (stop - start)  # [n, t]

        def read(block: int, hidden: Tensor, rows=rows, weights=weights) -> None:
            out[rows, block] = torch.einsum("nt,nth->nh", weights, hidden.float()).cpu().numpy()

        runner.run(ids, spans[rows, 0], read)
    return out


def residual_norms(model: LoadedModel, sequences: list[list[int]]) -> np.ndarray:
    """fp32 [n_blocks]: mean Euclidean norm of block outputs over all positions but each sequence's first.

    The first position is an attention sink whose norm is often a hundred times the others'.
    """
    totals, count = np.zeros(model.n_blocks), 0
    runner = _Runner(model, None)
    for rows, ids in runner.batches(sequences):
        lengths = torch.tensor([len(sequences[row]) for row in rows], device=ids.device)
        at = torch.arange(ids.shape[1], device=ids.device)[None]
        counted = (at >= 1) & (at < lengths[:, None])
        count += int(counted.sum())

        def read(block: int, hidden: Tensor, counted=counted) -> None:
            totals[block] += float(hidden.float().norm(dim=-1)[counted].double().sum())

        runner.run(ids, np.zeros(len(rows)), read)
    if not count:
        raise ValueError("residual_norms: no sequence has two tokens; give longer ones")
    return (totals / count).astype(np.float32)


def sequence_nll(
    model: LoadedModel, ids: list[list[int]], starts: list[int], plan: SteeringPlan | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Negative log-likelihood in nats, summed over tokens at positions >= start: (fp32 [n], number of
    tokens int64 [n]).

    The first token of a sequence has no prediction and is never counted.
    """
    runner = _Runner(model, plan)
    sums = np.zeros(len(ids), dtype=np.float32)
    counts = np.array(
        [len(one) - max(start, 1) for one, start in zip(ids, starts, strict=True)], dtype=np.int64
    )
    for rows, batch in runner.batches(ids):
        begin = np.array([starts[row] for row in rows])
        states = runner.run(batch, begin)
        for row, at, logits in runner.predictions(states, rows, ids, begin):
            targets = torch.tensor(ids[rows[row]], device=batch.device)[at + 1]
            losses = -logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
            sums[rows[row]] += float(losses.double().sum())
    return sums, np.maximum(counts, 0)


def mean_kl(model: LoadedModel, ids: list[list[int]], starts: list[int], plan: SteeringPlan) -> np.ndarray:
    """fp32 [n], nats: KL(steered || base) of the next-token distribution, mean over predictions of tokens
    >= start.

    NaN for a sequence without such tokens.
    """
    steered, base = _Runner(model, plan), _Runner(model, None)
    out = np.full(len(ids), np.nan, dtype=np.float32)
    sums, counts = np.zeros(len(ids)), np.zeros(len(ids))
    for rows, batch in steered.batches(ids):
        begin = np.array([starts[row] for row in rows])
        pairs = zip(
            steered.predictions(steered.run(batch, begin), rows, ids, begin),
            base.predictions(base.run(batch, begin), rows, ids, begin),
            strict=True,
        )
        for (row, _, changed), (_, _, plain) in pairs:
            p, q = changed.double().log_softmax(-1), plain.double().log_softmax(-1)
            sums[rows[row]] += float((p.exp() * (p - q)).sum())
            counts[rows[row]] += len(p)
    has = counts > 0
    out[has] = sums[has] / counts[has]
    return out


def answer_logits(
    model: LoadedModel, ids: list[list[int]], starts: list[int], plan: SteeringPlan | None
) -> list[np.ndarray]:
    """fp32 [len(ids) - start, vocabulary] a sequence: logits at positions `start` and later (they predict
    what follows).
    """
    runner = _Runner(model, plan)
    out: list[np.ndarray] = [np.empty(0)] * len(ids)
    for rows, batch in runner.batches(ids):
        begin = np.array([starts[row] for row in rows])
        states = runner.run(batch, begin)
        for i, row in enumerate(rows):
            at = torch.arange(starts[row], len(ids[row]), device=batch.device)
            out[row] = runner.logits_at(states[i, at], at, starts[row]).cpu().numpy()
    return out


class _Runner:
    """A model under at most one plan."""

    def __init__(self, model: LoadedModel, plan: SteeringPlan | None):
        if model.backend != "torch":
            raise ValueError(
                f"model {model.name}: hidden states are read with the torch back end; set model.backend"
            )
        plans = [] if plan is None else [plan]
        check_plans(model, plans)
        self.blocks: Blocks = blocks_of(model)
        self.everywhere = plan is None or plan.scope == "all"
        self.deltas = {block: self._tensor(table[0]) for block, table in block_deltas(plans).items()}
        bias = [table[0] for table in block_deltas(plans, "logits").values()]
        with torch.inference_mode():
            self.bias = self.blocks.direction_logits(self._tensor(np.sum(bias, axis=0))) if bias else None

    def _tensor(self, vector: np.ndarray) -> Tensor:
        return torch.from_numpy(vector).to(self.blocks.device).to(self.blocks.dtype)

    def batches(self, sequences: Sequence[list[int]]) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Indices and right-padded ids [n, t] of sequences of similar length, within the token budget."""
        for i, ids in enumerate(sequences):
            if not ids:
                raise ValueError(f"sequence {i} has no tokens; drop it")
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        room = _BATCH_TOKENS[self.blocks.device.type]
        while order:
            longest = len(sequences[order[-1]])
            rows = order[-max(1, room // longest) :]
            del order[-len(rows) :]
            padded = torch.zeros(len(rows), longest, dtype=torch.int64)
            for i, row in enumerate(rows):
                padded[i, : len(sequences[row])] = torch.tensor(sequences[row])
            yield np.array(rows), padded.to(self.blocks.device)

    def run(
        self, ids: Tensor, starts: np.ndarray, read: Callable[[int, Tensor], None] | None = None
    ) -> Tensor:
        """The last block's output [n, t, hidden]; `read` sees every block's, after the plan's vector is
        added.
        """
        blocks = self.blocks
        at = torch.arange(ids.shape[1], device=ids.device)[None]
        begin = torch.from_numpy(np.asarray(starts, dtype=np.int64)).to(ids.device)
        with blocks.ready():
            hidden = blocks.embed(ids)
            rotary = blocks.rotary(hidden, at)
            for block in range(len(blocks.layers)):
                hidden = blocks.run(block, hidden, rotary, causal)
                if block in self.deltas:
                    delta = self.deltas[block]
                    hidden = hidden + (
                        delta if self.everywhere else delta * (at >= begin[:, None])[..., None]
                    )
                if read is not None:
                    read(block, hidden)
        return hidden

    def predictions(
        self, states: Tensor, rows: np.ndarray, ids: list[list[int]], starts: np.ndarray
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """(row of the batch, positions [m], fp32 logits [m, vocabulary]) that predict the tokens from
        `start` on.
        """
        for i, row in enumerate(rows):
            positions = torch.arange(max(int(starts[i]), 1) - 1, len(ids[row]) - 1, device=states.device)
            for at in positions.split(_HEAD_ROWS):
                yield i, at, self.logits_at(states[i, at], at, int(starts[i]))

    def logits_at(self, hidden: Tensor, at: Tensor, start: int) -> Tensor:
        """fp32 [m, vocabulary] from one sequence's last block output [m, hidden] at positions `at`."""
        with torch.inference_mode():
            bias = None
            if self.bias is not None:
                bias = self.bias[None] / hidden.float().pow(2).mean(-1, keepdim=True).sqrt()
                bias = bias if self.everywhere else bias * (at >= start)[:, None]
            return self.blocks.logits(hidden, bias)
