"""Reads a model on given token ids: hidden states, norms, likelihoods, divergence under steering.

In: token ids from `prompts.py` and perhaps a steering plan. Out: numpy fp32, one row a sequence in the
order given. Sequences run block by block in right-padded batches of similar length; states are read at the
output of each block, before the final norm, or at what its attention or MLP adds: where plans also add their
vectors, so that collection and injection are the same site. Under a plan with scope "generated", positions from
`start` on are steered. All back ends: a model whose blocks cannot be run one by one runs as it is, with hooks; the
blocks of an MLX model are tapped, its numbers come over as Torch tensors on the CPU.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steer_pipeline.lab.models.blocks import Attend, Blocks, Call, Inner, Stop, blocks_of, causal, masked
from steer_pipeline.lab.models.loaded import GENERAL, LoadedModel
from steer_pipeline.lab.models.operators import operated, operators_of
from steer_pipeline.lab.models.plain import Plain, plain_of
from steer_pipeline.lab.models.plans import NOT_IN_MLX, block_deltas, check_plans, inner_deltas
from steer_pipeline.lab.models.sites import INNER, SteeringPlan

_BATCH_TOKENS = {"cpu": 512, "mps": 16384, "cuda": 65536, "mlx": 4096}  # of one pass
_LOGITS = {"cpu": 1 << 26, "mps": 1 << 28, "cuda": 1 << 30}  # of one pass, where all of them exist at a time
_HEAD_ROWS = 2048  # positions whose logits exist at the same time


_Read = Callable[[int, Tensor, Tensor], None]


@dataclass(frozen=True)
class HiddenRequest:
    """Token ids and the read-out span [start, stop) in token positions."""

    ids: list[int]
    start: int
    stop: int


def collect_means(
    model: LoadedModel,
    requests: Sequence[HiddenRequest],
    plan: SteeringPlan | None = None,
    *,
    blocks: Sequence[int] | None = None,
    kind: str = "output",
) -> np.ndarray:
    """fp32 [n, blocks read, hidden]: each block's output, averaged over the request's span.

    Nothing but these averages is kept: the states of one block of one batch are all that exists at a time,
    so that peak memory does not depend on how many blocks are read but for the result itself, which lies in
    host memory. Of the last block that is read, only keys, values and the spans are computed; the blocks
    above it and the output head are not run. Equal requests are run once and give equal rows.

    Args:
        blocks: which to read, in the order of the result; default: all.
        kind: "attention" or "mlp" read what these add, after the plan's vectors there; see `Site`.

    Raises:
        ValueError: a span is empty or outside its sequence (with its index), a block is outside the model,
        or the plan or kind does not fit it.
    """
    _require_readable(model, kind)
    wanted = _wanted_blocks(model, blocks)
    for i, request in enumerate(requests):
        if not 0 <= request.start < request.stop <= len(request.ids):
            raise ValueError(
                f"request {i}: span [{request.start}, {request.stop}) of {len(request.ids)} tokens; "
                "give a non-empty span inside the sequence"
            )
    runner = _runner(model, plan)
    number: dict[tuple[tuple[int, ...], int, int], int] = {}  # of each different request
    same = [number.setdefault((runner.needed(one), one.start, one.stop), len(number)) for one in requests]
    different = [HiddenRequest(list(ids), start, stop) for ids, start, stop in number]
    out = np.zeros((len(different), len(wanted), model.hidden_size), dtype=np.float32)
    place = {block: i for i, block in enumerate(wanted)}
    spans = np.array([(request.start, request.stop) for request in different]).reshape(-1, 2)

    def work(rows: np.ndarray, ids: Tensor) -> None:
        start, stop = (torch.from_numpy(spans[rows, i]).to(ids.device)[:, None] for i in (0, 1))
        width = int((stop - start).max())
        near = start.clamp(max=ids.shape[1] - width) + torch.arange(width, device=ids.device)

        def read(block: int, hidden: Tensor, at: Tensor) -> None:
            if block in place:
                if hidden.shape[1] > width:
                    hidden, at = _positions(hidden, near), near
                weights = ((at >= start) & (at < stop)).float() / (stop - start)  # [n, t]
                mean = (weights[:, None] @ hidden.float())[:, 0]
                out[rows, place[block]] = mean.cpu().numpy()

        runner.run(ids, spans[rows, 0], read, stop_after=max(wanted), last_spans=spans[rows], kind=kind)

    for rows, ids in runner.batches([request.ids for request in different]):
        work(rows, ids)
    return out if len(different) == len(requests) else out[same]


def span_means(
    model: LoadedModel,
    sequences: Sequence[list[int]],
    spans: Sequence[tuple[int, int]],
    *,
    blocks: Sequence[int] | None = None,
) -> np.ndarray:
    """fp32 [n, spans, blocks read, hidden]: block outputs averaged over the same spans [start, stop) of each sequence.

    A span counts as far as a sequence has it; where it has nothing of it, the row is NaN. Each sequence is run once.

    Raises:
        ValueError: an empty span, or a block outside the model.
    """
    wanted = _wanted_blocks(model, blocks)
    if empty := [span for span in spans if not 0 <= span[0] < span[1]]:
        raise ValueError(f"span {empty[0]}: give start and stop of at least one position")
    place = {block: i for i, block in enumerate(wanted)}
    out = np.full((len(sequences), len(spans), len(wanted), model.hidden_size), np.nan, dtype=np.float32)
    runner = _runner(model, None)
    bounds = torch.tensor(list(spans), device=runner.device)[:, :, None]  # [spans, 2, 1]

    def work(rows: np.ndarray, ids: Tensor) -> None:
        lengths = torch.tensor([len(sequences[row]) for row in rows], device=ids.device)[:, None, None]

        def read(block: int, hidden: Tensor, at: Tensor) -> None:
            if block in place:
                own = at[:, None]  # [n or 1, 1, t]
                inside = ((own >= bounds[:, 0]) & (own < bounds[:, 1]) & (own < lengths)).float()
                mean = (inside @ hidden.float()) / inside.sum(-1, keepdim=True)
                out[rows, :, place[block]] = mean.cpu().numpy()

        runner.run(ids, np.zeros(len(rows)), read, stop_after=max(wanted))

    for rows, ids in runner.batches(sequences):
        work(rows, ids)
    return out


def _wanted_blocks(model: LoadedModel, blocks: Sequence[int] | None) -> list[int]:
    wanted = list(range(model.n_blocks)) if blocks is None else list(blocks)
    if not wanted or len(set(wanted)) != len(wanted) or not all(0 <= b < model.n_blocks for b in wanted):
        raise ValueError(f"blocks {wanted}: give different blocks from 0 to {model.n_blocks - 1}")
    return wanted


def each_states(
    model: LoadedModel, sequences: Sequence[list[int]], block: int, kind: str = "output"
) -> Iterator[tuple[int, Tensor]]:
    """(i, states [t, hidden]) of each sequence at the output of a block, or what its attention or MLP adds (`kind`, see
    `Site`), in no order.
    """
    _require_readable(model, kind)
    runner = _runner(model, None)
    seen: list[Tensor] = []

    def read(at_block: int, hidden: Tensor, _at: Tensor) -> None:
        if at_block == block:
            seen[:] = [hidden]

    for rows, ids in runner.batches(sequences):
        own = read if kind in INNER else None
        hidden = runner.run(ids, np.zeros(len(rows)), own, stop_after=block, kind=kind)
        for states, row in zip(hidden if own is None else seen[0], rows.tolist(), strict=True):
            yield row, states[: len(sequences[row])]


def _require_readable(model: LoadedModel, kind: str) -> None:
    if kind not in ("output", *INNER):
        raise ValueError(f"site kind {kind!r}; output, attention and mlp can be read")
    if kind in INNER and model.backend == "mlx":
        raise ValueError(f"site kind {kind!r}: {NOT_IN_MLX}")


def projections(
    model: LoadedModel, sequences: Sequence[list[int]], block: int, unit: np.ndarray
) -> np.ndarray:
    """fp32 [positions of all sequences but each one's first]: unsteered block outputs along a unit direction [hidden].

    What a cap can be set by: its percentiles. The first position is left out, as in `residual_norms`.
    """
    found: dict[int, np.ndarray] = {}
    for row, states in each_states(model, sequences, block):
        direction = torch.from_numpy(np.asarray(unit, dtype=np.float32)).to(states.device)
        found[row] = (states[1:].float() @ direction).cpu().numpy()
    return np.concatenate([found[row] for row in sorted(found)])


def residual_norms(model: LoadedModel, sequences: list[list[int]]) -> np.ndarray:
    """fp32 [n_blocks]: mean Euclidean norm of block outputs over all positions but each sequence's first.

    The first position is an attention sink whose norm is often a hundred times the others'.
    """
    totals = np.zeros((len(sequences), model.n_blocks))
    count = sum(len(ids) - 1 for ids in sequences)
    if count < 1 and all(sequences):
        raise ValueError("residual_norms: no sequence has two tokens; give longer ones")
    runner = _runner(model, None)

    def work(rows: np.ndarray, ids: Tensor) -> None:
        lengths = torch.tensor([len(sequences[row]) for row in rows], device=ids.device)

        def read(block: int, hidden: Tensor, at: Tensor) -> None:
            counted = (at >= 1) & (at < lengths[:, None])
            norms = hidden.float().norm(dim=-1).double().masked_fill(~counted, 0)
            totals[rows, block] = norms.sum(dim=1).cpu().numpy()

        runner.run(ids, np.zeros(len(rows)), read)

    for rows, ids in runner.batches(sequences):
        work(rows, ids)
    return (totals.sum(axis=0) / count).astype(np.float32)


def sequence_nll(
    model: LoadedModel, ids: list[list[int]], starts: list[int], plan: SteeringPlan | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Negative log-likelihood in nats, summed over tokens at positions >= start: (fp32 [n], number of
    tokens int64 [n]).

    The first token of a sequence has no prediction and is never counted.
    """
    sums = np.zeros(len(ids), dtype=np.float32)
    for row, losses in _losses(model, ids, starts, plan):
        sums[row] += float(losses.double().sum())
    counts = [max(0, len(one) - max(start, 1)) for one, start in zip(ids, starts, strict=True)]
    return sums, np.array(counts, dtype=np.int64)


def token_losses(
    model: LoadedModel, ids: list[list[int]], starts: list[int], plan: SteeringPlan | None = None
) -> list[np.ndarray]:
    """fp32 [len(ids) - start] a sequence: negative log-likelihood in nats of each token at positions >= start.

    A sequence's first token has no prediction and no entry.
    """
    found: list[list[np.ndarray]] = [[np.empty(0, dtype=np.float32)] for _ in ids]
    for row, losses in _losses(model, ids, starts, plan):
        found[row].append(losses.float().cpu().numpy())
    return [np.concatenate(parts) for parts in found]


def _losses(
    model: LoadedModel, ids: list[list[int]], starts: list[int], plan: SteeringPlan | None
) -> Iterator[tuple[int, Tensor]]:
    """(sequence, losses [m] of some of its tokens), a sequence's own in order."""
    runner = _runner(model, plan)
    for rows, batch in runner.batches(ids):
        begin = np.array([starts[row] for row in rows])
        states = runner.run(batch, begin)
        for row, at, logits in runner.predictions(states, rows, ids, begin):
            targets = torch.tensor(ids[rows[row]], device=batch.device)[at + 1]
            yield int(rows[row]), -logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]


def position_kl(
    model: LoadedModel, ids: list[list[int]], starts: list[int], plan: SteeringPlan
) -> list[np.ndarray]:
    """fp32 [tokens at positions >= start] a sequence, nats: KL(steered || base) of the distribution, over the whole
    vocabulary, that each of these tokens was drawn from; empty for a sequence without such tokens.
    """
    out = [np.empty(0, dtype=np.float32)] * len(ids)
    for row, values in _divergences(model, ids, starts, plan):
        out[row] = np.concatenate([out[row], values.float().cpu().numpy()])
    return out


def mean_kl(model: LoadedModel, ids: list[list[int]], starts: list[int], plan: SteeringPlan) -> np.ndarray:
    """fp32 [n], nats: the mean over `position_kl`; NaN for a sequence without tokens."""
    out = np.full(len(ids), np.nan, dtype=np.float32)
    sums, counts = np.zeros(len(ids)), np.zeros(len(ids))
    for row, values in _divergences(model, ids, starts, plan):
        sums[row] += float(values.sum())
        counts[row] += len(values)
    has = counts > 0
    out[has] = sums[has] / counts[has]
    return out


def differing_tokens(
    model: LoadedModel, ids: list[list[int]], starts: list[int], plan: SteeringPlan
) -> list[list[int]]:
    """Of each sequence, positions >= start, ascending, of tokens before which the plan changes the likeliest one."""
    found: list[list[int]] = [[] for _ in ids]
    for row, at, changed, plain in _steered_and_plain(model, ids, starts, plan):
        found[row] += (at[changed.argmax(-1) != plain.argmax(-1)] + 1).tolist()
    return found


def _divergences(
    model: LoadedModel, ids: list[list[int]], starts: list[int], plan: SteeringPlan
) -> Iterator[tuple[int, Tensor]]:
    """(sequence, fp64 [m] nats) of some of its positions at a time, in order."""
    for row, _, changed, plain in _steered_and_plain(model, ids, starts, plan):
        p, q = changed.double().log_softmax(-1), plain.double().log_softmax(-1)
        yield row, (p.exp() * (p - q)).sum(-1)


def _steered_and_plain(
    model: LoadedModel, ids: list[list[int]], starts: list[int], plan: SteeringPlan
) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """(row, positions [m], steered logits, unsteered ones [m, vocabulary]) that predict the tokens from start on."""
    steered, base = _runner(model, plan), _runner(model, None)
    for rows, batch in steered.batches(ids):
        begin = np.array([starts[row] for row in rows])
        pairs = zip(
            steered.predictions(steered.run(batch, begin), rows, ids, begin),
            base.predictions(base.run(batch, begin), rows, ids, begin),
            strict=True,
        )
        for (row, at, changed), (_, _, plain) in pairs:
            yield int(rows[row]), at, changed, plain


def answer_logits(
    model: LoadedModel, ids: list[list[int]], starts: list[int], plan: SteeringPlan | None
) -> list[np.ndarray]:
    """fp32 [len(ids) - start, vocabulary] a sequence: logits at positions `start` and later (they predict
    what follows).
    """
    runner = _runner(model, plan)
    out: list[np.ndarray] = [np.empty(0)] * len(ids)

    for rows, batch in runner.batches(ids):
        begin = np.array([starts[row] for row in rows])
        states = runner.run(batch, begin)
        for i, row in enumerate(rows):
            at = torch.arange(starts[row], len(ids[row]), device=batch.device)
            out[row] = runner.logits_at(states[i, at], at, starts[row]).cpu().numpy()
    return out


def _attention_at(call: Call, at: Tensor) -> Tensor:
    """Attention of queries at positions `at` [n, s] over right-padded keys and values [n, kv_heads, t, d]."""
    distance = at[..., None] - torch.arange(call.key.shape[2], device=at.device)  # [n, s, t]
    seen = ((distance >= 0) & (distance < (call.window or call.key.shape[2])))[:, None]
    return masked(call, seen)


def _positions(hidden: Tensor, at: Tensor) -> Tensor:
    """[n, s, hidden]: states [n, t, hidden] at positions `at` [n, s]."""
    return hidden.gather(1, at[..., None].expand(-1, -1, hidden.shape[-1]))


def _runner(model: LoadedModel, plan: SteeringPlan | None) -> "_Runner":
    plans = [] if plan is None else [plan]
    check_plans(model, plans)
    if model.backend == "mlx":
        return _MlxRunner(model, plans)
    return (_PlainRunner if model.backend == GENERAL else _Runner)(model, plans)


class _Runner:
    """A model under at most one plan."""

    long_after: int | None = None  # of a model whose longer sequences turn all their positions otherwise

    def __init__(self, model: LoadedModel, plans: list[SteeringPlan]):
        self.everywhere = all(plan.scope == "all" for plan in plans)
        self.room = _BATCH_TOKENS[model.device.partition(":")[0]]
        self._load(model, plans)

    def _load(self, model: LoadedModel, plans: list[SteeringPlan]) -> None:
        self.blocks: Blocks | Plain = blocks_of(model)
        self._tables(plans)

    def _tables(self, plans: list[SteeringPlan]) -> None:
        self.device = self.blocks.device
        self.long_after = self.blocks.long_after
        self.deltas = {block: self._tensor(table[0]) for block, table in block_deltas(plans).items()}
        self.operators = operators_of(plans, self.device)
        self.inner = {
            block: {kind: self._tensor(table[0]) for kind, table in tables.items()}
            for block, tables in inner_deltas(plans).items()
        }
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
        while order:
            longest = len(sequences[order[-1]])
            rows = order[-max(1, self.room // longest) :]
            rows = [row for row in rows if self._together(len(sequences[row]), longest)]
            del order[-len(rows) :]
            padded = np.zeros((len(rows), longest), dtype=np.int64)
            for i, row in enumerate(rows):
                padded[i, : len(sequences[row])] = sequences[row]
            yield np.array(rows), torch.from_numpy(padded).to(self.device)

    def needed(self, request: HiddenRequest) -> tuple[int, ...]:
        """The tokens that decide the states of a span: what follows it does not, but for a sequence's length."""
        stop, limit = request.stop, self.long_after
        if limit is not None and len(request.ids) > limit:
            stop = max(stop, limit + 1)
        return tuple(request.ids[:stop])

    def _together(self, length: int, longest: int) -> bool:
        """Whether a row of `length` tokens may be padded to `longest`: not where that turns its positions otherwise."""
        limit = self.long_after
        return limit is None or (length > limit) == (longest > limit)

    def run(
        self,
        ids: Tensor,
        starts: np.ndarray,
        read: _Read | None = None,
        *,
        stop_after: int | None = None,
        last_spans: np.ndarray | None = None,
        kind: str = "output",
    ) -> Tensor:
        """The output [n, t, hidden] of the last block, or of `stop_after`.

        Args:
            read: sees each block's number, its output after the plan's vector is added, and the positions
                [n or 1, t] of that output.
            kind: of the site that is read in place of the output; "attention" or "mlp".
            last_spans: int [n, 2]; of the last block that runs only these positions are computed, with
                others where a span is shorter than the longest.
        """
        if self.long_after is not None and ids.shape[1] > self.long_after:
            last_spans = None  # a span alone would be turned as short sequences are
        at = torch.arange(ids.shape[1], device=ids.device)[None]
        begin = torch.from_numpy(np.asarray(starts, dtype=np.int64)).to(ids.device)[:, None]
        last = self.blocks.config.num_hidden_layers - 1 if stop_after is None else stop_after
        return self._through(ids, at, begin, causal, last, read, last_spans, kind)

    def tree(self, ids: Tensor, at: Tensor, begin: Tensor, attend: Attend) -> Tensor:
        """The last block's output [1, t, hidden] of branches that share what stands before them.

        Args:
            ids: [1, t].
            at: [1, t], each token's position on its own branch.
            begin: [1, t], where each token's branch begins to be steered under a plan with scope "generated".
            attend: lets a token see its own branch and what all share.
        """
        return self._through(ids, at, begin, attend, self.blocks.config.num_hidden_layers - 1)

    def _through(
        self,
        ids: Tensor,
        at: Tensor,
        begin: Tensor,
        attend: Attend,
        last: int,
        read: _Read | None = None,
        last_spans: np.ndarray | None = None,
        kind: str = "output",
    ) -> Tensor:
        """Block by block up to `last`; see `run` and `tree`."""
        blocks = self.blocks
        assert isinstance(blocks, Blocks)
        with blocks.ready():
            hidden = blocks.embed(ids)
            rotary = blocks.rotary(hidden, at)
            for block in range(last + 1):
                inner = partial(self._inner, block, begin, None if kind == "output" else read, kind)
                if block == last and last_spans is not None:
                    hidden, at = self._only_spans(block, hidden, rotary, last_spans, inner)
                else:
                    hidden = blocks.run(block, hidden, rotary, attend, inner(at))
                hidden = self._output(block, hidden, at, begin)
                if read is not None and kind == "output":
                    read(block, hidden, at)
        return hidden

    def _output(self, block: int, hidden: Tensor, at: Tensor, begin: Tensor) -> Tensor:
        """What the plan makes of a block's output [n, t, hidden] at positions `at`."""
        if block in self.deltas:
            hidden = self._steered(hidden, self.deltas[block], at, begin)
        if block in self.operators:
            hidden = operated(self.operators[block], hidden, where=None if self.everywhere else at >= begin)
        return hidden

    def _steered(self, hidden: Tensor, delta: Tensor, at: Tensor, begin: Tensor) -> Tensor:
        return hidden + (delta if self.everywhere else delta * (at >= begin)[..., None])

    def _inner(self, block: int, begin: Tensor, read: _Read | None, kind: str, at: Tensor) -> Inner:
        """Adds the plan's vectors to what the block's attention and MLP add at positions `at`; `read` sees `kind`."""
        deltas = self.inner.get(block, {})

        def change(own: str, added: Tensor) -> Tensor:
            if own in deltas:
                added = self._steered(added, deltas[own], at, begin)
            if read is not None and own == kind:
                read(block, added, at)
            return added

        return {own: partial(change, own) for own in {*deltas, *([kind] if read is not None else [])}}

    def _only_spans(
        self,
        block: int,
        hidden: Tensor,
        rotary: dict[str, Any],
        spans: np.ndarray,
        inner: Callable[[Tensor], Inner],
    ) -> tuple[Tensor, Tensor]:
        """One block's output at the spans' positions, [n, widest span, hidden], and these positions."""
        assert isinstance(self.blocks, Blocks)
        bounds = torch.from_numpy(spans).to(hidden.device)
        width = int((spans[:, 1] - spans[:, 0]).max())
        first = bounds[:, :1].clamp(max=hidden.shape[1] - width)
        at = first + torch.arange(width, device=hidden.device)
        inputs = _positions(hidden, at)
        own = self.blocks.rotary(inputs, at)
        taken: list[Call] = []

        def take_only(call: Call) -> Tensor:
            taken.append(call)
            raise Stop

        def attend(call: Call) -> Tensor:
            return _attention_at(replace(call, key=taken[0].key, value=taken[0].value), at)

        with suppress(Stop):
            self.blocks.run(block, hidden, rotary, take_only)
        return self.blocks.run(block, inputs, own, attend, inner(at)), at

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
            assert isinstance(self.blocks, Blocks)
            return self.blocks.logits(hidden, bias)


class _Enough(Exception):
    """Raised inside a forward pass once the last block that is wanted has been seen."""


class _PlainRunner(_Runner):
    """The same through the model's own forward, with hooks.

    Where states stand for what `predictions` reads, they are the model's own logits: what lies between its last block
    and its logits is its own business.
    """

    def _load(self, model: LoadedModel, plans: list[SteeringPlan]) -> None:
        self.blocks: Plain = plain_of(model)
        self._tables(plans)
        self.room = min(self.room, max(1, _LOGITS[self.device.type] // self.blocks.config.vocab_size))

    def _together(self, length: int, longest: int) -> bool:
        return length == longest or self.blocks.right_padding

    def run(
        self,
        ids: Tensor,
        starts: np.ndarray,
        read: _Read | None = None,
        *,
        stop_after: int | None = None,
        last_spans: np.ndarray | None = None,
        kind: str = "output",
    ) -> Tensor:
        plain, at = self.blocks, torch.arange(ids.shape[1], device=ids.device)[None]
        begin = torch.from_numpy(np.asarray(starts, dtype=np.int64)).to(ids.device)[:, None]
        states_only = read is not None or stop_after is not None
        last = len(plain.layers) - 1 if stop_after is None else stop_after
        final: list[Tensor] = []

        def output(block: int, hidden: Tensor) -> Tensor:
            hidden = self._output(block, hidden, at, begin)
            if read is not None and kind == "output":
                read(block, hidden, at)
            if block == last:
                final[:] = [hidden]
                if states_only:
                    raise _Enough
            return hidden

        def biased(logits: Tensor) -> Tensor:
            assert self.bias is not None
            rms = final[0].float().pow(2).mean(-1, keepdim=True).sqrt()[:, -logits.shape[1] :]
            bias = self.bias / rms
            seen = at[:, -logits.shape[1] :]
            return logits + (bias if self.everywhere else bias * (seen >= begin)[..., None]).to(logits.dtype)

        blocks = range(last + 1)
        outputs = {block: partial(output, block) for block in blocks}
        inner = {
            block: self._inner(block, begin, None if kind == "output" else read, kind, at) for block in blocks
        }
        inner = {block: changes for block, changes in inner.items() if changes}
        with plain.hooked(outputs, inner, None if self.bias is None or states_only else biased):
            if states_only:
                with suppress(_Enough):
                    plain.logits(ids, last=True)
                return final[0]
            return plain.logits(ids)

    def logits_at(self, hidden: Tensor, at: Tensor, start: int) -> Tensor:
        return hidden.float()


class _MlxRunner(_Runner):
    """The same for an MLX model. MLX is lazy: of a pass, only the blocks that are asked for are computed."""

    def _load(self, model: LoadedModel, plans: list[SteeringPlan]) -> None:
        import mlx.core as mx

        from steer_pipeline.lab.models.mlx import MlxModel, logit_bias

        self.mx = mx
        self.device = torch.device("cpu")
        self.wrapped: MlxModel = model.module
        self.tables = {block: table[0] for block, table in block_deltas(plans).items()}
        self.logit_bias = logit_bias(self.wrapped, plans)

    def run(
        self,
        ids: Tensor,
        starts: np.ndarray,
        read: _Read | None = None,
        *,
        stop_after: int | None = None,
        last_spans: np.ndarray | None = None,
        kind: str = "output",
    ) -> Tensor:
        taps = self.wrapped.taps
        last = len(taps) - 1 if stop_after is None else stop_after
        at = torch.arange(ids.shape[1])[None]
        begin = torch.from_numpy(np.asarray(starts, dtype=np.int64))[:, None]
        steered = torch.ones_like(ids) if self.everywhere else at >= begin
        mask = steered.float()[..., None].numpy()  # [n, t, 1]
        try:
            self.wrapped.steer(
                {block: self.wrapped.array(mask * table) for block, table in self.tables.items()}
            )
            self.wrapped.states(self.mx.array(ids.numpy()))
        finally:
            self.wrapped.steer({})
        hidden = torch.empty(0)
        for block, tap in enumerate(taps):
            output, tap.output = tap.output, None  # so that a block's states go when the next are there
            assert output is not None  # the pass above went through every block
            if block == last or (block < last and read is not None):
                hidden = torch.from_numpy(np.array(output.astype(self.mx.float32)))
                if read is not None:
                    read(block, hidden, at)
        return hidden

    def logits_at(self, hidden: Tensor, at: Tensor, start: int) -> Tensor:
        states = self.wrapped.array(hidden.numpy())
        shift = None
        if self.logit_bias is not None:
            shift = self.logit_bias[0] / self.mx.array(hidden.pow(2).mean(-1, keepdim=True).sqrt().numpy())
            if not self.everywhere:
                shift = shift * self.mx.array((at >= start).float()[:, None].numpy())
        return torch.from_numpy(np.array(self.wrapped.logits(self.wrapped.inner.norm(states), shift)))
