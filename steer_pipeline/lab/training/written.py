"""The blocks above a site as `lab/models/lean.py` spells them, forward and back, every gradient written out.

In: a pack of sequences and one vector a lane. Out: the NLL of each sequence, and its gradient by vector. Without
autograd: a pass of a few hundred positions is hundreds of small operations, and recording them takes time and keeps
the other cores' threads waiting for the interpreter. A step returns its output and the way back: a function from the
gradient of that output, which it uses up, to the gradient of its input.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from steer_pipeline.lab.models.blocks import Blocks, Call, chunks
from steer_pipeline.lab.models.lean import (
    Kinds,
    LeanBlock,
    LeanHead,
    inverse_norm,
    lean_blocks,
    lean_head,
    pairs,
    turns,
)
from steer_pipeline.lab.training.packing import Layout, Pack, seen_from

Back = Callable[[Tensor], Tensor]
Step = Callable[[Tensor], tuple[Tensor, Back]]
AttentionBack = Callable[[Tensor], Sequence[Tensor]]
Groups = Sequence[Sequence[Tensor]]  # heads of each kind [n, heads, longest, d], for each group of a layout
_NAME = "_scaled_dot_product_flash_attention_for_cpu"
_KERNEL: Any = getattr(torch.ops.aten, _NAME, None)
_KERNEL_BACK: Any = getattr(torch.ops.aten, _NAME + "_backward", None)
_LARGE_NLL = 60.0  # nats; fp32 shares go down to exp(-87)
HEAD_CELLS = 1 << 20  # logits that exist at the same time
_TABLES = 64  # lengths whose rotary tables are kept


class WrittenPass:
    """All blocks above a site and the head. Use `WrittenPass.of`."""

    def __init__(
        self, blocks: Blocks, lean: Sequence[LeanBlock], head: LeanHead, checkpointing: bool
    ) -> None:
        self._blocks, self._lean, self._head = blocks, lean, head
        self._checkpointing = checkpointing
        self._turns = lru_cache(_TABLES)(partial(_turns_of, blocks))

    @classmethod
    def of(cls, blocks: Blocks, site: int, *, checkpointing: bool = False) -> "WrittenPass | None":
        """None where a block or the head has no lean spelling that gives its numbers, or Torch no such kernel."""
        above = range(site + 1, len(blocks.layers))
        head = lean_head(blocks)
        if head is None or _KERNEL is None or _KERNEL_BACK is None:
            return None
        lean = lean_blocks(blocks, above)
        if len(lean) < len(above):
            return None
        return cls(blocks, [lean[index] for index in above], head, checkpointing)

    def cached_projection(self) -> Tensor | None:
        """Weight [width, hidden] whose product with the states at the site is worth keeping; None for none."""
        return self._lean[0].qkv if len(self._lean) > 1 else None  # of the last block, few queries are wanted

    def nll(self, vectors: Tensor, pack: Pack) -> Tensor:
        """fp32 [n]: summed over the response tokens of each sequence.

        Args:
            vectors: fp32 [lanes, hidden]
        """
        with torch.inference_mode():
            hidden = vectors
            for step in self._steps(pack):
                hidden, _ = step(hidden)
            nll, _ = response_nll(self._head, hidden, pack.targets, None)
            return self._sums(nll, pack)

    def gradient(self, vectors: Tensor, pack: Pack, weights: Tensor) -> tuple[Tensor, Tensor]:
        """As `nll`, and the gradient fp32 [lanes, hidden] of its sum weighted by `weights` [n]."""
        with torch.inference_mode():
            hidden, backs = vectors, []
            for step in self._steps(pack):
                hidden, back = _run_again(step, hidden) if self._checkpointing else step(hidden)
                backs.append(back)
            own = weights.index_select(0, pack.owners)
            nll, grad = response_nll(self._head, hidden, pack.targets, own)
            assert grad is not None
            for back in reversed(backs):
                grad = back(grad)
            return self._sums(nll, pack), grad

    def _sums(self, nll: Tensor, pack: Pack) -> Tensor:
        return torch.zeros(len(pack.rows)).index_add_(0, pack.owners, nll)

    def _steps(self, pack: Pack) -> list[Step]:
        """From vectors [lanes, hidden] to the last block's output [R, hidden] where a response token is predicted."""
        if not self._lean:
            return [partial(_added, pack), partial(_taken, pack.answers)]
        tables = {
            kind: _Turns(*(table.index_select(0, pack.positions) for table in pair))
            for kind, pair in self._turns(pack.longest).items()
        }
        *lower, last = [(lean, tables[self._blocks.layer_types[lean.index]]) for lean in self._lean]
        steps: list[Step] = []
        if lower and pack.known is not None:
            steps.append(partial(_first_block, *lower.pop(0), pack))
        else:
            steps.append(partial(_added, pack))
        steps += [partial(_block, lean, table, pack) for lean, table in lower]
        return [*steps, partial(_last_block, *last, pack)]


class _Turns(NamedTuple):
    """Rotary positions as complex numbers [N, 1, d / 2], and the way back."""

    there: Tensor
    back: Tensor


def _turns_of(blocks: Blocks, length: int) -> dict[str, _Turns]:
    """Of positions 0 to length - 1, by kind of block."""
    tables = blocks.rotary(torch.zeros(1, 1, blocks.config.hidden_size), torch.arange(length)[None])
    there = {kind: turns((cos[0], sin[0])) for kind, (cos, sin) in tables.items()}
    return {kind: _Turns(table, table.conj().resolve_conj()) for kind, table in there.items()}


# ------------------------------------------------------------------------------------------- steps


def _run_again(step: Step, x: Tensor) -> tuple[Tensor, Back]:
    """Keeps nothing of the step but its input."""
    return step(x)[0], lambda grad: step(x)[1](grad)


def _added(pack: Pack, vectors: Tensor) -> tuple[Tensor, Back]:
    """States at the site with each lane's vector."""
    added = _lane_sums(pack.states, vectors, pack.sizes)
    return added, lambda grad: torch.stack([one.sum(0) for one in torch.split_with_sizes(grad, pack.sizes)])


def _lane_sums(rows: Tensor, shifts: Tensor, sizes: list[int]) -> Tensor:
    """Rows [N, width], `sizes[k]` of lane k, each plus its lane's shift [lanes, width]."""
    out = torch.empty_like(rows)
    lanes = (torch.split_with_sizes(x, sizes) for x in (rows, out))
    for part, to, shift in zip(*lanes, shifts, strict=True):
        torch.add(part, shift, out=to)
    return out


def _taken(at: Tensor, x: Tensor) -> tuple[Tensor, Back]:
    """Rows at distinct indices."""
    return x.index_select(0, at), lambda grad: torch.zeros_like(x).index_copy_(0, at, grad)


def _first_block(lean: LeanBlock, table: _Turns, pack: Pack, vectors: Tensor) -> tuple[Tensor, Back]:
    """The block above the site, where the product h W^T of its states is known: h never changes, so a vector costs
    sums and no product over positions.
    """
    assert pack.known is not None
    added, added_back = _added(pack, vectors)
    inverse = inverse_norm(added, lean.eps[0])
    projected = _lane_sums(pack.known, torch.mm(vectors, lean.qkv.T), pack.sizes).mul_(inverse)
    heads, heads_back = _heads(lean.all_kinds, projected.clone(), table, pack.layout)
    attended, attend_back = _attended([_causal(lean.call(*one)) for one in heads])
    out, out_back = _finished(lean, added, attended, pack.layout)

    def back(grad: Tensor) -> Tensor:
        grad, parts = out_back(grad)
        to_heads = heads_back(attend_back(parts))
        along = (to_heads * projected).sum(-1, keepdim=True).mul_(inverse.square()).div_(-added.shape[-1])
        lanes = (torch.split_with_sizes(x, pack.sizes) for x in (to_heads, inverse, added, along))
        through = [torch.mm(i.T, g).mm(lean.qkv).addmm_(a.T, x) for g, i, x, a in zip(*lanes, strict=True)]
        return added_back(grad).add_(torch.cat(through))

    return out, back


def _block(lean: LeanBlock, table: _Turns, pack: Pack, x: Tensor) -> tuple[Tensor, Back]:
    normed, norm_back = _normed(x, lean.eps[0])
    kinds = lean.all_kinds
    heads, heads_back = _heads(kinds, torch.mm(normed, kinds.weight.T), table, pack.layout)
    attended, attend_back = _attended([_causal(lean.call(*one)) for one in heads])
    out, out_back = _finished(lean, x, attended, pack.layout)

    def back(grad: Tensor) -> Tensor:
        grad, parts = out_back(grad)
        return norm_back(torch.mm(heads_back(attend_back(parts)), kinds.weight)).add_(grad)

    return out, back


def _last_block(lean: LeanBlock, table: _Turns, pack: Pack, x: Tensor) -> tuple[Tensor, Back]:
    """Keys and values of all positions, queries and output of those that predict a response token."""
    at = pack.answers
    normed, norm_back = _normed(x, lean.eps[0])
    asking, knowing = lean.queries, lean.keys_and_values
    own = _Turns(*(one.index_select(0, at) for one in table))
    queries, queries_back = _heads(
        asking, torch.mm(normed.index_select(0, at), asking.weight.T), own, pack.answer_layout
    )
    known, known_back = _heads(knowing, torch.mm(normed, knowing.weight.T), table, pack.layout)
    calls = [lean.call(*query, *pair) for query, pair in zip(queries, known, strict=True)]
    masks = [
        seen_from(pack.firsts[group.members], call)
        for call, group in zip(calls, pack.layout.groups, strict=True)
    ]
    attended, attend_back = _attended([_masked(*one) for one in zip(calls, masks, strict=True)])
    out, out_back = _finished(lean, x.index_select(0, at), attended, pack.answer_layout)

    def back(grad: Tensor) -> Tensor:
        grad, parts = out_back(grad)
        grads = attend_back(parts)
        both = torch.mm(known_back([one[1:] for one in grads]), knowing.weight)
        both.index_add_(0, at, torch.mm(queries_back([one[:1] for one in grads]), asking.weight))
        return norm_back(both).index_add_(0, at, grad)

    return out, back


# ------------------------------------------------------------------------------------ parts of a block


def _normed(x: Tensor, eps: float) -> tuple[Tensor, Back]:
    """x / rms(x)"""
    inverse = inverse_norm(x, eps)
    normed = x * inverse
    return normed, lambda grad: _norm_back(grad, normed, inverse)


def _norm_back(grad: Tensor, normed: Tensor, inverse: Tensor) -> Tensor:
    along = (grad * normed).sum(-1, keepdim=True)
    return grad.addcmul_(normed, along, value=-1 / normed.shape[-1]).mul_(inverse)


def _heads(
    kinds: Kinds, projected: Tensor, table: _Turns, layout: Layout
) -> tuple[Groups, Callable[[Groups], Tensor]]:
    """Projections [N, heads * d], used up, as heads normed and turned; from their gradients to that of `projected`."""
    first = projected.view(len(projected), -1, kinds.width)[:, : kinds.turned]
    gain, normed, inverse = kinds.gain, None, None
    if gain is not None:
        inverse = inverse_norm(first, kinds.eps)
        normed = first * inverse
        torch.mul(normed, gain, out=first)
    pairs(first).mul_(table.there)
    heads = [
        torch.split_with_sizes(rows.view(*shape, -1, kinds.width).transpose(1, 2), kinds.sizes, 1)
        for rows, shape in zip(layout.pad(projected), layout.shapes, strict=True)
    ]

    def back(grads: Groups) -> Tensor:
        rows = [torch.cat([one.transpose(1, 2) for one in some], 2) for some in grads]
        grad = layout.pad_back([one.view(-1, projected.shape[1]) for one in rows])
        first = grad.view(len(grad), -1, kinds.width)[:, : kinds.turned]
        pairs(first).mul_(table.back)
        if gain is not None and normed is not None and inverse is not None:
            _norm_back(first.mul_(gain), normed, inverse)
        return grad

    return heads, back


def _masked(call: Call, mask: Tensor | None) -> tuple[Tensor, AttentionBack]:
    """`blocks.masked` by the kernel that it uses on CPUs, which is called by its name for its way back."""
    groups = call.query.shape[1] // call.key.shape[1]
    key, value = (x if groups == 1 else x.repeat_interleave(groups, 1) for x in (call.key, call.value))
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape).masked_fill_(~mask, float("-inf"))
    how = {"attn_mask": mask, "scale": call.scale}
    out, log_sums = _KERNEL(call.query, key, value, 0.0, mask is None, **how)

    def back(grad: Tensor) -> Sequence[Tensor]:
        given = grad.transpose(1, 2), call.query, key, value, out, log_sums
        to_query, *others = _KERNEL_BACK(*given, 0.0, mask is None, **how)
        return to_query, *(x if groups == 1 else x.unflatten(1, (-1, groups)).sum(2) for x in others)

    return out.transpose(1, 2), back


def _causal(call: Call) -> tuple[Tensor, AttentionBack]:
    parts = [(*_masked(part, mask), keys) for part, mask, keys in chunks(call)]
    if len(parts) == 1:
        return parts[0][:2]

    def back(grad: Tensor) -> Sequence[Tensor]:
        queries, (key, value) = [], (torch.zeros_like(x) for x in (call.key, call.value))
        for (_, one_back, keys), some in zip(parts, grad.split(parts[0][0].shape[1], 1), strict=True):
            to_query, to_key, to_value = one_back(some)
            queries.append(to_query)
            key[:, :, keys] += to_key
            value[:, :, keys] += to_value
        return torch.cat(queries, 2), key, value

    return torch.cat([out for out, *_ in parts], 1), back


def _attended(
    found: Sequence[tuple[Tensor, AttentionBack]],
) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Groups]]:
    """[n, longest, heads, d] of each group; from gradients in rows to those of the heads."""
    return [out for out, _ in found], lambda grads: [
        back(grad.view(out.shape)) for (out, back), grad in zip(found, grads, strict=True)
    ]


def _finished(
    lean: LeanBlock, x: Tensor, attended: list[Tensor], layout: Layout
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, list[Tensor]]]]:
    """z + (silu(norm(z) G^T) * norm(z) U^T) D^T for z = x + y W^T, with G and U stacked; from its gradient to those of
    x and of what attention gave, y.
    """
    rows = [one.reshape(-1, lean.output.shape[1]) for one in attended]
    z = torch.addmm(x, layout.unpad(rows), lean.output.T)
    inverse = inverse_norm(z, lean.eps[2])
    normed = z * inverse
    gate, up = torch.mm(normed, lean.inner.T).chunk(2, 1)
    active = F.silu(gate)

    def back(grad: Tensor) -> tuple[Tensor, list[Tensor]]:
        inner = torch.mm(grad, lean.down)
        both = torch.empty(len(gate), 2 * gate.shape[1])
        to_gate, to_up = both.chunk(2, 1)
        torch.mul(inner, active, out=to_up)
        torch.ops.aten.silu_backward.grad_input(inner.mul_(up), gate, grad_input=to_gate)
        to_z = _norm_back(torch.mm(both, lean.inner), normed, inverse).add_(grad)
        return to_z, layout.unpad_back(torch.mm(to_z, lean.output))

    return z.addmm_(active * up, lean.down.T), back


def response_nll(
    head: LeanHead, hidden: Tensor, targets: Tensor, weights: Tensor | None, *, cells: int = HEAD_CELLS
) -> tuple[Tensor, Tensor | None]:
    """NLL [R] of targets [R] from the last block's output [R, hidden], and the gradient [R, hidden] of its sum weighted
    by `weights` [R], where they are given: softmax less the target, taken at once, so that no more than `cells`
    logits exist at a time.
    """
    normed, back = _normed(hidden, head.eps)
    rows = max(1, cells // len(head.weight))
    nlls, grads = [], []
    for part, target in zip(normed.split(rows), targets[:, None].split(rows), strict=True):
        logits = torch.mm(part, head.weight.T)
        shares = torch.softmax(logits, -1)
        share = shares.gather(1, target)
        nll = share.log().neg_()
        lost = nll > _LARGE_NLL  # the share may have been rounded away
        if lost.any():
            nll = torch.where(lost, logits.logsumexp(-1, keepdim=True) - logits.gather(1, target), nll)
        nlls.append(nll)
        if weights is not None:
            grads.append(torch.mm(shares.scatter_(1, target, share.sub_(1)), head.weight))
    nll = torch.cat(nlls).squeeze(1)
    return nll, None if weights is None else back(torch.cat(grads).mul_(weights[:, None]))
