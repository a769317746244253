"""The blocks above the site, for many lanes in one pass: likelihood of responses, and its gradient by vector.

In: states at the site, packed without padding, what prompts share once, and one vector a lane, added at every position
of its sequences, prompt included, as a plan with scope "all" does. Out: the NLL of each sequence. Weights are frozen,
so the backward pass goes through activations alone; the last block and the head run only where a response
token is predicted. Where all blocks have a lean spelling, passes are those of `written.py`; else autograd goes back
through the model's own modules.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from steer_pipeline.lab.models.blocks import Blocks, Call, Stop, causal, masked
from steer_pipeline.lab.models.cores import Cores, one_core_each
from steer_pipeline.lab.training.data import Dialogues
from steer_pipeline.lab.training.norms import lean_norms
from steer_pipeline.lab.training.packing import Item, Layout, Pack, passes, seen_from
from steer_pipeline.lab.training.written import HEAD_CELLS, WrittenPass

_PASS_TOKENS = {"cpu": 256, "mps": 8192, "cuda": 32768}  # positions of one pass, about
_HEAD_CELLS = {"cpu": HEAD_CELLS, "mps": 1 << 24, "cuda": 1 << 26}  # logits that exist at the same time


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, packed: Tensor, layout: Layout) -> tuple[Tensor, ...]:
        ctx.layout = layout
        return tuple(layout.pad(packed))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.layout.pad_back(grads), None


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, layout: Layout, *parts: Tensor) -> Tensor:
        ctx.layout = layout
        return layout.unpad(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.layout.unpad_back(grads[0])


def _split(layout: Layout, x: Tensor) -> list[Tensor]:
    """[1, heads, N, d] -> [n, heads, longest, d] of each group."""
    heads, _, width = x.shape[1:]
    padded = _Split.apply(x[0].transpose(0, 1).reshape(-1, heads * width), layout)
    return [
        rows.view(*shape, heads, width).transpose(1, 2)
        for rows, shape in zip(padded, layout.shapes, strict=True)
    ]


def _join(layout: Layout, parts: list[Tensor]) -> Tensor:
    """[n, longest, heads, d] of each group -> [1, N, heads, d]."""
    heads, width = parts[0].shape[2:]
    return _Join.apply(layout, *(part.reshape(-1, heads * width) for part in parts)).view(1, -1, heads, width)


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


class UpperBlocks:
    """A model above one site. Its passes run inside `ready()`."""

    def __init__(self, blocks: Blocks, site: int, *, checkpointing: bool = False) -> None:
        self.blocks, self.site, self.checkpointing = blocks, site, checkpointing
        self.room = _PASS_TOKENS[blocks.device.type]
        self.written = WrittenPass.of(blocks, site, checkpointing=checkpointing)
        # products that a response token costs (last block and head) over those of any position (blocks below the last)
        block = sum(weight.numel() for weight in blocks.layers[-1].parameters())
        head = blocks.config.vocab_size * blocks.config.hidden_size
        self._response_cost = (block + head) / (max(len(blocks.layers) - site - 2, 0.2) * block)

    def cached_projection(self) -> Tensor | None:
        """Weight [width, hidden] whose product with the states at the site is worth keeping; None for none."""
        return None if self.written is None else self.written.cached_projection()

    @contextmanager
    def ready(self) -> Iterator[Cores]:
        """Within it, passes can be run, on all cores; the model is as it was afterwards."""
        own = self.written is None  # the model's own modules run
        with (
            self.blocks.ready(grad=True),
            lean_norms([*self.blocks.layers[self.site + 1 :], self.blocks.norm] if own else []),
            one_core_each(self.blocks.device, torch.get_num_threads()) as cores,
        ):
            yield cores

    def passes(self, data: Dialogues, items: Sequence[Item]) -> list[list[Item]]:
        """(lane, row) pairs in passes that cost about the same, as many as there is room for."""
        on_cpu = self.blocks.device.type == "cpu"
        return passes(data, items, self.room, self._response_cost, power_of_two=on_cpu)

    def nll(self, vectors: Tensor, pack: Pack) -> Tensor:
        """fp32 [n]: summed over the response tokens of each sequence of the pack.

        Args:
            vectors: fp32 [lanes, hidden]; the model's dtype is theirs only where they are added.
        """
        if self.written is not None:
            return self.written.nll(vectors, pack)
        with torch.no_grad():
            return self._nll(vectors, pack)

    def gradient(self, vectors: Tensor, pack: Pack, weights: Tensor) -> tuple[Tensor, Tensor]:
        """As `nll`, and the gradient fp32 [lanes, hidden] of its sum weighted by `weights` fp32 [n]."""
        if self.written is not None:
            return self.written.gradient(vectors, pack, weights)
        with torch.enable_grad():
            vectors = vectors.detach().requires_grad_()
            nll = self._nll(vectors, pack)
            (grad,) = torch.autograd.grad((nll * weights).sum(), vectors)
        return nll.detach(), grad

    def _nll(self, vectors: Tensor, pack: Pack) -> Tensor:
        hidden = _Add.apply(pack.states, vectors, pack.sizes)
        last = len(self.blocks.layers) - 1
        rotary = self.blocks.rotary(hidden[None], pack.positions[None]) if self.site < last else {}
        for block in range(self.site + 1, last):
            hidden = self._step(lambda x, block=block: self._block(block, x, rotary, pack), hidden)
        if self.site < last:
            hidden = self._step(lambda x: self._last(x, rotary, pack), hidden)
        else:
            hidden = hidden[pack.answers]
        rows = max(1, _HEAD_CELLS[hidden.device.type] // self.blocks.config.vocab_size)
        nll = _HeadLoss.apply(hidden, pack.targets, self.blocks, hidden.requires_grad, rows)
        return nll.new_zeros(len(pack.rows)).index_add(0, pack.owners, nll)

    def _step(self, run: Any, hidden: Tensor) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(run, hidden, use_reentrant=False)
        return run(hidden)

    def _block(self, block: int, hidden: Tensor, rotary: dict[str, Any], pack: Pack) -> Tensor:
        """Output of a block, [N, hidden]."""

        def attend(call: Call) -> Tensor:
            parts = (_split(pack.layout, x) for x in (call.query, call.key, call.value))
            return _join(
                pack.layout,
                [causal(replace(call, query=q, key=k, value=v)) for q, k, v in zip(*parts, strict=True)],
            )

        return self.blocks.run(block, hidden[None], rotary, attend)[0]

    def _last(self, hidden: Tensor, rotary: dict[str, Any], pack: Pack) -> Tensor:
        """Output of the last block [R, hidden] where response tokens are predicted; keys of all positions."""
        last = len(self.blocks.layers) - 1
        found: list[tuple[Tensor, Tensor]] = []
        some = {
            kind: tuple(table.expand(1, -1, -1)[:, pack.answers] for table in tables)
            for kind, tables in rotary.items()
        }

        def catch(call: Call) -> Tensor:
            found.extend(zip(_split(pack.layout, call.key), _split(pack.layout, call.value), strict=True))
            raise Stop

        def attend(call: Call) -> Tensor:
            queries = zip(_split(pack.answer_layout, call.query), found, pack.layout.groups, strict=True)
            calls = [
                (replace(call, query=query, key=key, value=value), pack.firsts[group.members])
                for query, (key, value), group in queries
            ]
            return _join(pack.answer_layout, [masked(one, seen_from(firsts, one)) for one, firsts in calls])

        with suppress(Stop):
            self.blocks.run(last, hidden[None], rotary, catch)
        return self.blocks.run(last, hidden[pack.answers][None], some, attend)[0]
