"""The blocks above the site, for many lanes in one pass: likelihood of responses, and its gradient by vector.

In: states at the site, packed without padding, what prompts share once, and one vector a lane, added at every position
of its sequences, prompt included, as a plan with scope "all" does. Out: the NLL of each sequence. Blocks are the
model's own modules. Weights are frozen, so the backward pass goes through activations alone; the last block and the
head run only where a response token is predicted.
"""

from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from steer_pipeline.lab.models.blocks import Blocks, Call, Stop, causal, masked
from steer_pipeline.lab.vectors.learned.packing import Layout, Pack, seen_from

_PASS_TOKENS = {"cpu": 1024, "mps": 8192, "cuda": 32768}  # positions of one pass, about
_HEAD_CELLS = {"cpu": 1 << 24, "mps": 1 << 24, "cuda": 1 << 26}  # logits that exist at the same time


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
                    torch.autograd.backward(nll.sum(), inputs=part)
                    grads.append(part.grad)
            nlls.append(nll.detach())
        ctx.save_for_backward(*([torch.cat(grads)] if wanted else []))
        return torch.cat(nlls)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (saved,) = ctx.saved_tensors
        return saved * grads[0][:, None].to(saved.dtype), None, None, None, None


class UpperBlocks:
    """A model above one site.

    Attributes:
        room: positions of one pass, about.
    """

    def __init__(self, blocks: Blocks, site: int, *, checkpointing: bool = False) -> None:
        self.blocks, self.site, self.checkpointing = blocks, site, checkpointing
        self.room = _PASS_TOKENS[blocks.device.type]

    def nll(self, vectors: Tensor, pack: Pack) -> Tensor:
        """fp32 [n]: summed over the response tokens of each sequence of the pack.

        Args:
            vectors: fp32 [lanes, hidden]; the model's dtype is theirs only where they are added.
        """
        with self.blocks.ready():
            return self._nll(vectors, pack)

    def gradient(self, vectors: Tensor, pack: Pack, weights: Tensor) -> tuple[Tensor, Tensor]:
        """As `nll`, and the gradient fp32 [lanes, hidden] of its sum weighted by `weights` fp32 [n]."""
        with self.blocks.ready(grad=True):
            vectors = vectors.detach().requires_grad_()
            nll = self._nll(vectors, pack)
            (grad,) = torch.autograd.grad((nll * weights).sum(), vectors)
        return nll.detach(), grad

    def _nll(self, vectors: Tensor, pack: Pack) -> Tensor:
        hidden = _added(pack, vectors)
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
            parts = zip(*(_padded(pack.layout, x) for x in (call.query, call.key, call.value)), strict=True)
            calls = [replace(call, query=query, key=key, value=value) for query, key, value in parts]
            return pack.layout.unpad([causal(one) for one in calls])[None]

        return self.blocks.run(block, hidden[None], rotary, attend)[0]

    def _last(self, hidden: Tensor, rotary: dict[str, Any], pack: Pack) -> Tensor:
        """Output of the last block [R, hidden] where response tokens are predicted; keys of all positions."""
        last = len(self.blocks.layers) - 1
        known: list[tuple[Tensor, Tensor]] = []
        some = {
            kind: tuple(table.expand(1, -1, -1)[:, pack.answers] for table in tables)
            for kind, tables in rotary.items()
        }

        def catch(call: Call) -> Tensor:
            known.extend(zip(_padded(pack.layout, call.key), _padded(pack.layout, call.value), strict=True))
            raise Stop

        def attend(call: Call) -> Tensor:
            parts = []
            queries = zip(_padded(pack.answer_layout, call.query), known, pack.layout.groups, strict=True)
            for query, (key, value), group in queries:
                one = replace(call, query=query, key=key, value=value)
                parts.append(masked(one, seen_from(pack.firsts[group.members], one)))
            return pack.answer_layout.unpad(parts)[None]

        with suppress(Stop):
            self.blocks.run(last, hidden[None], rotary, catch)
        return self.blocks.run(last, hidden[pack.answers][None], some, attend)[0]


def _added(pack: Pack, vectors: Tensor) -> Tensor:
    """States [N, hidden], each with its lane's vector; gradients are summed in fp32."""
    lanes = zip(pack.states.split(pack.sizes), vectors, strict=True)
    return torch.cat([states + vector.expand_as(states).to(states.dtype) for states, vector in lanes])


def _padded(layout: Layout, heads: Tensor) -> list[Tensor]:
    """[1, heads, N, d] -> [n, heads, longest, d] of each group."""
    return [part.transpose(1, 2) for part in layout.pad(heads[0].transpose(0, 1))]
