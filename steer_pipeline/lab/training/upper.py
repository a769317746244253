"""The blocks above the site, for many lanes in one pass: likelihood of responses, and its gradient by vector.

In: states at the site, packed without padding, and one vector a lane, added at every position of its
sequences, prompt included, as a plan with scope "all" does. Out: the NLL of each sequence. Weights are frozen,
so the backward pass goes through activations alone; the last block and the head run only where a response
token is predicted. Blocks run as `lab/models/lean.py` spells them where it can, else as the model's own modules.
"""

import heapq
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from steer_pipeline.lab.models.blocks import Blocks, Call, Stop, causal, masked
from steer_pipeline.lab.models.cores import Cores, one_core_each
from steer_pipeline.lab.models.lean import lean_blocks, lean_head, turns
from steer_pipeline.lab.training.data import Dialogues
from steer_pipeline.lab.training.norms import lean_norms
from steer_pipeline.lab.training.states import SiteStates

_PASS_TOKENS = {"cpu": 256, "mps": 8192, "cuda": 32768}  # positions of one pass, about
ALIKE = 0.6  # sequences of one group of attention are at least this share of its longest
_HEAD_CELLS = {"cpu": 1 << 20, "mps": 1 << 24, "cuda": 1 << 26}  # logits that exist at the same time


@dataclass(frozen=True)
class _Group:
    """Sequences of similar length, of which attention sees right-padded rows [n * longest, width]."""

    members: np.ndarray  # sequences of the pass
    to_padded: (
        Tensor  # int64 [n * longest]: packed row; where padding is, one of the same sequence: lanes never mix
    )
    padding: Tensor  # bool [n * longest, 1]


@dataclass(frozen=True)
class _Groups:
    """How the sequences of a pass, packed [N, width], are padded for attention alone: the less those of a group differ,
    the less is wasted. A `Layout` of lean blocks.
    """

    groups: tuple[_Group, ...]
    shapes: tuple[tuple[int, int], ...]
    to_packed: (
        Tensor  # int64 [N]: where a packed row lies in the padded rows of all groups, one after the other
    )

    @classmethod
    def of(cls, lengths: np.ndarray, device: torch.device) -> "_Groups":
        """Groups of sequences of these lengths."""
        order = np.argsort(-lengths, kind="stable")
        members, begin = [], 0
        for i in range(1, len(order) + 1):
            if i == len(order) or lengths[order[i]] < ALIKE * lengths[order[begin]]:
                members.append(order[begin:i])
                begin = i
        return cls._of(members, lengths, device)

    @classmethod
    def _of(cls, members: list[np.ndarray], lengths: np.ndarray, device: torch.device) -> "_Groups":
        begins, to_packed = np.cumsum(lengths) - lengths, np.empty(lengths.sum(), dtype=np.int64)
        groups, shapes, before = [], [], 0
        for some in members:
            at = np.arange(int(lengths[some].max()))[None]
            real = at < lengths[some][:, None]
            packed = np.where(real, begins[some][:, None] + at, begins[some][:, None])
            to_packed[packed[real]] = before + np.flatnonzero(real.ravel())
            before += real.size
            shapes.append(real.shape)
            groups.append(
                _Group(
                    some, *(torch.from_numpy(a).to(device) for a in (packed.ravel(), ~real.reshape(-1, 1)))
                )
            )
        return cls(tuple(groups), tuple(shapes), torch.from_numpy(to_packed).to(device))

    def answers(self, counts: np.ndarray, device: torch.device) -> "_Groups":
        """The same sequences in the same groups, of each its last `counts` positions alone."""
        return self._of([group.members for group in self.groups], counts, device)

    def pad(self, rows: Tensor, *, zeros: bool = False) -> tuple[Tensor, ...]:
        padded = (rows.index_select(0, group.to_padded) for group in self.groups)
        if zeros:
            padded = (
                one.masked_fill_(group.padding, 0) for one, group in zip(padded, self.groups, strict=True)
            )
        return tuple(padded)

    def unpad(self, parts: Sequence[Tensor]) -> Tensor:
        whole = parts[0] if len(parts) == 1 else torch.cat(list(parts))
        return whole.index_select(0, self.to_packed)

    def split(self, x: Tensor) -> list[Tensor]:
        """[1, heads, N, d] -> [n, heads, longest, d] of each group."""
        heads, _, width = x.shape[1:]
        padded = _Split.apply(x[0].transpose(0, 1).reshape(-1, heads * width), self)
        return [
            rows.view(*shape, heads, width).transpose(1, 2)
            for rows, shape in zip(padded, self.shapes, strict=True)
        ]

    def join(self, parts: list[Tensor]) -> Tensor:
        """[n, longest, heads, d] of each group -> [1, N, heads, d]."""
        heads, width = parts[0].shape[2:]
        return _Join.apply(self, *(part.reshape(-1, heads * width) for part in parts)).view(
            1, -1, heads, width
        )


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, packed: Tensor, groups: _Groups) -> tuple[Tensor, ...]:
        ctx.groups = groups
        return groups.pad(packed)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.groups.unpad(grads), None  # padding feeds no real position


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, groups: _Groups, *parts: Tensor) -> Tensor:
        ctx.groups = groups
        return groups.unpad(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.groups.pad(grads[0], zeros=True)


class _Take(torch.autograd.Function):
    """Rows of [N, hidden] at distinct indices."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, at: Tensor) -> Tensor:
        ctx.n, ctx.at = len(x), at
        return x.index_select(0, at)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad = grads[0]
        return grad.new_zeros(ctx.n, grad.shape[1]).index_copy_(0, ctx.at, grad), None


class _Add(torch.autograd.Function):
    """states [N, hidden] + vectors [lanes, hidden], `sizes[k]` rows of lane k; gradients are summed in fp32."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, vectors: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        parts = zip(states.split(sizes), vectors.to(states.dtype), strict=True)
        return torch.cat([part + vector for part, vector in parts])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        sums = [part.sum(0, dtype=torch.float32) for part in grads[0].split(ctx.sizes)]
        return None, torch.stack(sums), None


class _HeadLoss(torch.autograd.Function):
    """NLL of targets [R] from the last block's output [R, hidden], a few rows of logits at a time.

    The gradient of a row's NLL depends on that row alone, so it is taken at once and the logits are gone.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, blocks: Blocks, wanted: bool, rows: int) -> Tensor:
        nlls, grads = [], []
        for part, target in zip(hidden.split(rows), targets.split(rows), strict=True):
            with torch.set_grad_enabled(wanted):
                part = part.detach().requires_grad_(wanted)
                nll = F.cross_entropy(blocks.logits(part), target, reduction="none")
                if wanted:
                    grads += torch.autograd.grad(nll.sum(), part)
            nlls.append(nll.detach())
        ctx.save_for_backward(*([torch.cat(grads)] if wanted else []))
        return torch.cat(nlls)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (saved,) = ctx.saved_tensors
        return saved * grads[0][:, None].to(saved.dtype), None, None, None, None


@dataclass(frozen=True)
class Pack:
    """Sequences of one pass, side by side; `rows` and `lanes` name them, in order of lane."""

    rows: np.ndarray  # int64 [n]
    lanes: np.ndarray  # int64 [n]
    states: Tensor  # [N, hidden]
    known: Tensor | None  # [N, width]: their projection in the block above the site, where it is cached
    sizes: list[int]  # positions of each lane
    positions: Tensor  # int64 [1, N]
    groups: _Groups
    answers: Tensor  # int64 [R]: packed positions that predict a response token
    targets: Tensor  # int64 [R]
    owners: Tensor  # int64 [R]: sequence of each
    answer_groups: _Groups
    firsts: Tensor  # int64 [n]: position that predicts a sequence's first response token


class UpperBlocks:
    """A model above one site. Its passes run inside `ready()`."""

    def __init__(self, blocks: Blocks, site: int, *, checkpointing: bool = False) -> None:
        self.blocks, self.site, self.checkpointing = blocks, site, checkpointing
        self.room = _PASS_TOKENS[blocks.device.type]
        self.lean = lean_blocks(blocks, range(site + 1, len(blocks.layers)))
        self.head = lean_head(blocks)
        # products that a response token costs (last block and head) over those of any position (blocks below the last)
        block = sum(weight.numel() for weight in blocks.layers[-1].parameters())
        head = blocks.config.vocab_size * blocks.config.hidden_size
        self._response_cost = (block + head) / (max(len(blocks.layers) - site - 2, 0.2) * block)

    def cached_projection(self) -> Tensor | None:
        """Weight [width, hidden] whose product with the states at the site is worth keeping; None for none."""
        lean = self.lean.get(self.site + 1)
        last = self.site + 2 == len(self.blocks.layers)  # of which few queries are wanted
        return None if lean is None or last else lean.qkv

    @contextmanager
    def ready(self) -> Iterator[Cores]:
        """Within it, passes can be run, on all cores, and gradients taken; the model is as it was afterwards."""
        above = [*self.blocks.layers[self.site + 1 :], self.blocks.norm]
        with (
            self.blocks.ready(grad=True),
            lean_norms(above),
            one_core_each(self.blocks.device, torch.get_num_threads()) as cores,
        ):
            yield cores

    def passes(self, data: Dialogues, items: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
        """(lane, row) pairs in passes that cost about the same, as many as there is room for.

        On a CPU their number is a power of two, for cores that take one each. It does not depend on how many cores
        there are, so that they all learn the same vector.
        """
        lengths = [len(data.ids[row]) for _, row in items]
        costs = [
            length + self._response_cost * (length - data.starts[row])
            for length, (_, row) in zip(lengths, items, strict=True)
        ]
        share = sum(lengths) / self.room
        cpu = self.blocks.device.type == "cpu"
        count = 2 ** max(0, round(math.log2(share))) if cpu else math.ceil(share)
        passes: list[list[tuple[int, int]]] = [[] for _ in range(count)]
        loads = [(0.0, i) for i in range(count)]
        for cost, item in sorted(zip(costs, items, strict=True), reverse=True):  # dearest first
            load, i = heapq.heappop(loads)
            passes[i].append(item)
            heapq.heappush(loads, (load + cost, i))
        return filter(None, passes)

    def pack(self, data: Dialogues, states: SiteStates, items: list[tuple[int, int]], n_lanes: int) -> Pack:
        """One pass: a copy of the states of its sequences."""
        items = sorted(items)
        lanes, rows = (np.array(column) for column in zip(*items, strict=True))
        lengths = np.array([states.lengths[row] - 1 for row in rows])  # the last token predicts nothing
        firsts = np.array([max(data.starts[row], 1) - 1 for row in rows])
        counts = lengths - firsts
        begins = np.cumsum(lengths) - lengths
        answers = np.concatenate(
            [np.arange(b + f, b + n) for b, f, n in zip(begins, firsts, lengths, strict=True)]
        )
        targets = np.concatenate([data.ids[row][f + 1 :] for row, f in zip(rows, firsts, strict=True)])
        sizes = np.bincount(lanes, weights=lengths, minlength=n_lanes).astype(int).tolist()
        device = self.blocks.device
        groups = _Groups.of(lengths, device)
        move = lambda array: torch.from_numpy(np.ascontiguousarray(array)).to(device)  # noqa: E731
        return Pack(
            rows,
            lanes,
            torch.cat([states.rows(row)[:-1] for row in rows]),
            None if states.projected is None else torch.cat([states.projection(row)[:-1] for row in rows]),
            sizes,
            move(np.concatenate([np.arange(n) for n in lengths]))[None],
            groups,
            move(answers),
            move(targets),
            move(np.repeat(np.arange(len(rows)), counts)),
            groups.answers(counts, device),
            move(firsts),
        )

    def nll(self, vectors: Tensor, pack: Pack) -> Tensor:
        """fp32 [n]: summed over the response tokens of each sequence of the pack.

        Args:
            vectors: fp32 [lanes, hidden]; the model's dtype is theirs only where they are added.
        """
        hidden = _Add.apply(pack.states, vectors, pack.sizes)
        last = len(self.blocks.layers) - 1
        rotary = self.blocks.rotary(hidden[None], pack.positions) if self.site < last else {}
        for block in range(self.site + 1, last):
            hidden = self._step(lambda x, block=block: self._block(block, x, rotary, vectors, pack), hidden)
        if self.site < last:
            hidden = self._step(lambda x: self._last(x, rotary, vectors, pack), hidden)
        else:
            hidden = _Take.apply(hidden, pack.answers)
        rows = max(1, _HEAD_CELLS[hidden.device.type] // self.blocks.config.vocab_size)
        if self.head is None:
            nll = _HeadLoss.apply(hidden, pack.targets, self.blocks, hidden.requires_grad, rows)
        else:
            nll = self.head.nll(hidden, pack.targets, rows)
        return nll.new_zeros(len(pack.rows)).index_add(0, pack.owners, nll)

    def _step(self, run: Any, hidden: Tensor) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(run, hidden, use_reentrant=False)
        return run(hidden)

    def _block(
        self, block: int, hidden: Tensor, rotary: dict[str, Any], vectors: Tensor, pack: Pack
    ) -> Tensor:
        """Output of a block, [N, hidden]."""

        def attend(call: Call) -> Tensor:
            parts = (pack.groups.split(x) for x in (call.query, call.key, call.value))
            return pack.groups.join(
                [causal(replace(call, query=q, key=k, value=v)) for q, k, v in zip(*parts, strict=True)]
            )

        lean = self.lean.get(block)
        if lean is None:
            return self.blocks.run(block, hidden[None], rotary, attend)[0]
        table = self._table(rotary, block)
        if pack.known is not None and block == self.site + 1:
            added = hidden.detach()
            groups = lean.split_at_site(vectors, pack.known, added, pack.sizes, table, pack.groups)
        else:
            groups = lean.split(hidden, lean.all_kinds, table, pack.groups)
        return lean.finish(hidden, [causal(lean.call(*heads)) for heads in groups], pack.groups)

    def _table(self, rotary: dict[str, Any], block: int) -> Tensor:
        cos, sin = rotary[self.blocks.layer_types[block]]
        return turns((cos[0], sin[0]))

    def _last(self, hidden: Tensor, rotary: dict[str, Any], vectors: Tensor, pack: Pack) -> Tensor:
        """Output of the last block [R, hidden] where response tokens are predicted; keys of all positions."""
        last = len(self.blocks.layers) - 1
        lean = self.lean.get(last)
        found: list[tuple[Tensor, Tensor]] = []
        some = {
            kind: tuple(table.expand(1, -1, -1)[:, pack.answers] for table in tables)
            for kind, tables in rotary.items()
        }

        def catch(call: Call) -> Tensor:
            found.extend(zip(pack.groups.split(call.key), pack.groups.split(call.value), strict=True))
            raise Stop

        def attend(call: Call) -> Tensor:
            groups = zip(pack.answer_groups.split(call.query), found, pack.answer_groups.groups, strict=True)
            return pack.answer_groups.join(
                [
                    _from_firsts(replace(call, query=query, key=key, value=value), pack.firsts[group.members])
                    for query, (key, value), group in groups
                ]
            )

        answers = _Take.apply(hidden, pack.answers)
        if lean is None:
            with suppress(Stop):
                self.blocks.run(last, hidden[None], rotary, catch)
            return self.blocks.run(last, answers[None], some, attend)[0]
        queries = lean.split(answers, lean.queries, self._table(some, last), pack.answer_groups)
        pairs = lean.split(hidden, lean.keys_and_values, self._table(rotary, last), pack.groups)
        parts = [
            _from_firsts(lean.call(*query, *pair), pack.firsts[group.members])
            for query, pair, group in zip(queries, pairs, pack.groups.groups, strict=True)
        ]
        return lean.finish(answers, parts, pack.answer_groups)


def _from_firsts(call: Call, firsts: Tensor) -> Tensor:
    """Attention of queries at positions firsts[i], firsts[i] + 1, ... to the keys of whole sequences."""
    queries = firsts[:, None] + torch.arange(call.query.shape[2], device=firsts.device)
    keys = torch.arange(call.key.shape[2], device=firsts.device)
    distance = queries[:, None, :, None] - keys
    mask = (distance >= 0) & (distance < (call.window or call.key.shape[2] + call.query.shape[2]))
    return masked(call, mask)
