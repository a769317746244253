"""Blocks of the Llama and Qwen kind, spelled for reading and training through frozen fp32 weights on a CPU.

The same arithmetic as the model's own modules with fewer and larger steps: one matrix product for queries, keys and
values and one for the MLP's two inner projections, norm gains folded into the weights, residuals added within the
products, backward passes written out. A block is used only after it gave the numbers of its module; every other
architecture, type and device runs its own modules.

Weights are copied when they are folded: a lean block is for one run over data, made at its start and dropped with
it, so that later changes of the model (adapters, training) are seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steer_pipeline.lab.models.blocks import Attend, Blocks, Call, causal

_TOLERANCE = 1e-4
_LARGE_NLL = 60.0  # nats; fp32 shares go down to exp(-87)
_MOST_BYTES = 1 << 30  # of copied weights: products of wide blocks take their time however they are spelled


def _inverse_norm(x: Tensor, eps: float) -> Tensor:
    """1 / rms of the last axis, which stays."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.addcmul(_scalar(eps), norm, norm, value=1 / x.shape[-1]).rsqrt_()


@lru_cache
def _scalar(value: float) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(value)


def _norm_backward(grad: Tensor, normed: Tensor, inverse: Tensor) -> Tensor:
    """Gradient of x from that of x * inverse(x); `grad` is used up."""
    along = (grad * normed).sum(-1, keepdim=True).div_(-normed.shape[-1])
    return grad.addcmul_(normed, along).mul_(inverse)


class Layout(Protocol):
    """How positions of sequences, one after the other [N, width], are laid out for attention."""

    @property
    def shapes(self) -> Sequence[tuple[int, int]]:
        """(n, longest) of each group of sequences that are padded to the same length."""

    def pad(self, rows: Tensor, *, zeros: bool = False) -> tuple[Tensor, ...]:
        """[N, width] -> [n * longest, width] of each group; padding is zero, or some position of the same sequence."""

    def unpad(self, parts: Sequence[Tensor]) -> Tensor:
        """[n * longest, width] of each group -> [N, width]."""


class _OneSequence:
    def __init__(self, length: int) -> None:
        self.shapes = ((1, length),)

    def pad(self, rows: Tensor, *, zeros: bool = False) -> tuple[Tensor, ...]:
        return (rows,)

    def unpad(self, parts: Sequence[Tensor]) -> Tensor:
        return parts[0]


@dataclass(frozen=True, eq=False)
class Kinds:
    """Heads [N, heads, width] of one product with `weight` [heads * width, hidden]: how many there are of each kind
    (of queries, keys and values those that it makes), the first `turned` of which are normed where the model does
    (gain [turned, width]) and turned by their positions.
    """

    weight: Tensor
    sizes: tuple[int, ...]
    turned: int
    gain: Tensor | None
    eps: float
    width: int

    def turn_(self, heads: Tensor, table: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """In place. Returns what `turn_back_` wants."""
        first, normed, inverse = heads[:, : self.turned], None, None
        if self.gain is not None:
            inverse = _inverse_norm(first, self.eps)
            normed = first * inverse
            torch.mul(normed, self.gain, out=first)
        _pairs(first).mul_(table)
        return normed, inverse

    def turn_back_(self, grad: Tensor, table: Tensor, normed: Tensor | None, inverse: Tensor | None) -> None:
        """From the gradient of turned heads to that of their projection, in place."""
        first = grad[:, : self.turned]
        _pairs(first).mul_(table.conj())
        if self.gain is not None and normed is not None and inverse is not None:
            _norm_backward(first.mul_(self.gain), normed, inverse)

    def split(self, heads: Tensor, layout: Layout) -> tuple[Tensor, ...]:
        """[n, heads of a kind, longest, width], kind by kind, group by group."""
        return tuple(
            part
            for rows, shape in zip(layout.pad(heads.flatten(1)), layout.shapes, strict=True)
            for part in rows.view(*shape, -1, self.width).transpose(1, 2).split(self.sizes, dim=1)
        )

    def join(self, grads: Sequence[Tensor], layout: Layout) -> Tensor:
        """What `split` took apart, in memory of its own: [N, heads, width]."""
        rows = [
            torch.cat([part.transpose(1, 2) for part in grads[i : i + len(self.sizes)]], dim=2).flatten(0, 1)
            for i in range(0, len(grads), len(self.sizes))
        ]
        return layout.unpad([one.flatten(1) for one in rows]).unflatten(-1, (-1, self.width))


class _Heads(torch.autograd.Function):
    """Heads of norm(x) W^T for x [N, hidden], laid out for attention."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, eps: float, kinds: Kinds, table: Tensor, layout: Layout
    ) -> tuple[Tensor, ...]:
        inverse = _inverse_norm(x, eps)
        normed = x * inverse
        heads = (normed @ kinds.weight.T).unflatten(-1, (-1, kinds.width))
        ctx.kinds, ctx.layout = kinds, layout
        ctx.save_for_backward(normed, inverse, table, *kinds.turn_(heads, table))
        return kinds.split(heads, layout)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        normed, inverse, table, *turned = ctx.saved_tensors
        grad = ctx.kinds.join(grads, ctx.layout)
        ctx.kinds.turn_back_(grad, table, *turned)
        return _norm_backward(grad.flatten(1) @ ctx.kinds.weight, normed, inverse), None, None, None, None


class _HeadsAtSite(torch.autograd.Function):
    """Heads of norm(h + v) W^T where h W^T is known: h never changes, so a vector costs sums and no product over
    positions.

    Only the vectors [lanes, hidden] get a gradient; `added` is h + v and `sizes[k]` counts the rows of lane k.
    """

    @staticmethod
    def forward(
        ctx: Any,
        vectors: Tensor,
        known: Tensor,
        added: Tensor,
        sizes: list[int],
        eps: float,
        kinds: Kinds,
        table: Tensor,
        layout: Layout,
    ) -> tuple[Tensor, ...]:
        inverse = _inverse_norm(added, eps)
        shifts = vectors @ kinds.weight.T
        projected = torch.empty_like(known)
        for part, shift, to in zip(known.split(sizes), shifts, projected.split(sizes), strict=True):
            torch.add(part, shift, out=to)
        heads = projected.mul_(inverse).clone().unflatten(-1, (-1, kinds.width))
        ctx.sizes, ctx.kinds, ctx.layout = sizes, kinds, layout
        ctx.save_for_backward(projected, added, inverse, table, *kinds.turn_(heads, table))
        return kinds.split(heads, layout)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        projected, added, inverse, table, *turned = ctx.saved_tensors
        heads = ctx.kinds.join(grads, ctx.layout)
        ctx.kinds.turn_back_(heads, table, *turned)
        grad = heads.flatten(1)
        along = (grad * projected).sum(-1, keepdim=True).mul_(inverse.square()).div_(-added.shape[-1])
        parts = zip(*(x.split(ctx.sizes) for x in (grad, inverse, added, along)), strict=True)
        sums = [(i.T @ g) @ ctx.kinds.weight + a.T @ x for g, i, x, a in parts]
        return torch.cat(sums), None, None, None, None, None, None, None


class _Finish(torch.autograd.Function):
    """z + (silu(norm(z) G^T) * norm(z) U^T) D^T for z = x + y W^T, with G and U stacked, from what attention gave: y in
    parts [n, longest, heads, width] of each group.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        output: Tensor,
        inner: Tensor,
        down: Tensor,
        eps: float,
        layout: Layout,
        *parts: Tensor,
    ) -> Tensor:
        z = torch.addmm(x, layout.unpad([part.reshape(-1, output.shape[1]) for part in parts]), output.T)
        inverse = _inverse_norm(z, eps)
        normed = z * inverse
        gate, up = (normed @ inner.T).chunk(2, dim=-1)
        active = F.silu(gate)
        ctx.layout, ctx.shapes = layout, [part.shape for part in parts]
        ctx.save_for_backward(normed, inverse, gate, up, active, output, inner, down)
        return z.addmm_(active * up, down.T)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        normed, inverse, gate, up, active, output, inner, down = ctx.saved_tensors
        grad = grads[0] @ down
        both = torch.empty(len(gate), 2 * gate.shape[1])
        to_gate, to_up = both.chunk(2, dim=-1)
        torch.mul(grad, active, out=to_up)
        torch.ops.aten.silu_backward.grad_input(grad.mul_(up), gate, grad_input=to_gate)
        grad = _norm_backward(both @ inner, normed, inverse).add_(grads[0])
        parts = ctx.layout.pad(grad @ output, zeros=True)
        return (
            grad,
            None,
            None,
            None,
            None,
            None,
            *(part.view(shape) for part, shape in zip(parts, ctx.shapes, strict=True)),
        )


def turns(rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Table complex64 [..., 1, d / 2] that turns heads, from cos and sin [..., d], whose halves are equal."""
    cos, sin = (table[..., None, : table.shape[-1] // 2] for table in rotary)
    return torch.complex(cos, sin)


def _pairs(x: Tensor) -> Tensor:
    """Heads [..., d] as complex64 [..., d / 2]: dimensions that turn together lie side by side."""
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


def _side_by_side(rows: Tensor, width: int) -> Tensor:
    """Rows [heads * width, ...] of queries or keys in an order that brings dimension i of a head next to i + width / 2.

    Where queries and keys are both in it, their products are the same.
    """
    return rows.unflatten(0, (-1, 2, width // 2)).transpose(1, 2).flatten(0, 2)


class HeadLoss(torch.autograd.Function):
    """NLL of targets [R] from the last block's output x [R, hidden], where logits are norm(x) W^T.

    The gradient of a row's NLL is softmax less the target: it is taken at once, and a few rows of logits exist at a
    time.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, targets: Tensor, weight: Tensor, eps: float, rows: int) -> Tensor:
        inverse = _inverse_norm(x, eps)
        normed = x * inverse
        nlls, grads = [], []
        for part, target in zip(normed.split(rows), targets.split(rows), strict=True):
            logits = part @ weight.T
            at, shares = target[:, None], logits.softmax(-1)
            nll = -shares.gather(1, at).log()
            lost = nll[:, 0] > _LARGE_NLL  # the share may have been rounded away
            if lost.any():
                nll[lost] = logits[lost].logsumexp(-1, keepdim=True) - logits[lost].gather(1, at[lost])
            nlls.append(nll[:, 0])
            if ctx.needs_input_grad[0]:
                shares.scatter_add_(1, at, torch.full_like(nll, -1))
                grads.append(shares @ weight)
        if grads:
            ctx.save_for_backward(_norm_backward(torch.cat(grads), normed, inverse))
        return torch.cat(nlls)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (saved,) = ctx.saved_tensors
        return saved * grads[0][:, None], None, None, None, None


@dataclass(frozen=True, eq=False)
class LeanHead:
    """The final norm, folded into the output embedding [vocabulary, hidden]."""

    weight: Tensor
    eps: float

    def nll(self, hidden: Tensor, targets: Tensor, rows: int) -> Tensor:
        """fp32 [R]"""
        return HeadLoss.apply(hidden, targets, self.weight, self.eps, rows)


def lean_head(blocks: Blocks) -> LeanHead | None:
    """The head in lean spelling, or None where it is of another kind, large, or gives other numbers."""
    head, norm = blocks.head, blocks.norm
    eps = getattr(norm, "variance_epsilon", None)
    if type(head) is not nn.Linear or head.bias is not None or head.weight.dtype != torch.float32:
        return None
    if blocks.device.type != "cpu" or blocks.softcap is not None or not isinstance(eps, float):
        return None
    if 4 * head.weight.numel() > _MOST_BYTES:
        return None
    with torch.no_grad():
        lean = LeanHead(head.weight * norm.weight, eps)
        hidden = torch.linspace(-1, 1, 8 * blocks.config.hidden_size).sin().view(8, -1) * 3
        targets = torch.arange(8) % blocks.config.vocab_size
        expected = F.cross_entropy(blocks.logits(hidden), targets, reduction="none")
        found = lean.nll(hidden, targets, 3)
    return lean if torch.allclose(found, expected, rtol=_TOLERANCE, atol=_TOLERANCE) else None


@dataclass(frozen=True, eq=False)
class LeanBlock:
    """One block. Weights fp32: qkv [(heads + 2 kv_heads) d, hidden], output [hidden, heads d], inner [2 m, hidden],
    down [hidden, m].
    """

    index: int
    qkv: Tensor
    output: Tensor
    inner: Tensor
    down: Tensor
    gain: Tensor | None  # [heads + kv_heads, d]
    heads: int
    kv_heads: int
    width: int
    scale: float
    window: int | None
    eps: tuple[float, float, float]  # of the input, head and MLP norms

    @cached_property
    def all_kinds(self) -> Kinds:
        """Queries, keys and values."""
        sizes = (self.heads, self.kv_heads, self.kv_heads)
        return Kinds(self.qkv, sizes, self.heads + self.kv_heads, self.gain, self.eps[1], self.width)

    @cached_property
    def queries(self) -> Kinds:
        gain = None if self.gain is None else self.gain[: self.heads]
        weight = self.qkv[: self.heads * self.width]
        return Kinds(weight, (self.heads,), self.heads, gain, self.eps[1], self.width)

    @cached_property
    def keys_and_values(self) -> Kinds:
        gain = None if self.gain is None else self.gain[self.heads :]
        weight, sizes = self.qkv[self.heads * self.width :], (self.kv_heads, self.kv_heads)
        return Kinds(weight, sizes, self.kv_heads, gain, self.eps[1], self.width)

    def split(self, x: Tensor, kinds: Kinds, table: Tensor, layout: Layout) -> list[tuple[Tensor, ...]]:
        """Heads of each kind from x [N, hidden], turned: [n, heads, longest, d], for each group of the layout."""
        return _by_group(_Heads.apply(x, self.eps[0], kinds, table, layout), layout)

    def split_at_site(
        self, vectors: Tensor, known: Tensor, added: Tensor, sizes: list[int], table: Tensor, layout: Layout
    ) -> list[tuple[Tensor, ...]]:
        """As `split` of `added` = h + v for all kinds, where `known` is h W^T and `sizes` counts the rows of each
        vector; only the vectors [lanes, hidden] get a gradient.
        """
        found = _HeadsAtSite.apply(vectors, known, added, sizes, self.eps[0], self.all_kinds, table, layout)
        return _by_group(found, layout)

    def call(self, query: Tensor, key: Tensor, value: Tensor) -> Call:
        return Call(self.index, query, key, value, self.scale, self.window, None)

    def heads_of(self, hidden: Tensor) -> Tensor:
        """Queries, keys and values [..., heads + 2 kv_heads, d] before their rotary embedding, without a gradient."""
        return self._heads(hidden, self.all_kinds)

    def run(self, hidden: Tensor, table: Tensor, attend: Attend, heads: Tensor | None = None) -> Tensor:
        """The block's output [n, t, hidden], without a gradient, as `Blocks.run` gives it.

        Args:
            heads: what `heads_of(hidden)` gives, where it is known; they are used up.
        """
        heads = self.heads_of(hidden) if heads is None else heads
        normed, value = heads.split([self.heads + self.kv_heads, self.kv_heads], dim=-2)
        _pairs(normed).mul_(table)
        query, key = normed.split([self.heads, self.kv_heads], dim=-2)
        return self._end(hidden, attend(self.call(*(x.transpose(1, 2) for x in (query, key, value)))))

    def run_some(
        self,
        hidden: Tensor,
        table: Tensor,
        some: Tensor,
        own: Tensor,
        attend: Attend,
    ) -> Tensor:
        """As `run`, with queries and output of `some` [n, s, hidden] positions alone; `own` is their table."""
        key, value = self._heads(hidden, self.keys_and_values).split(self.kv_heads, dim=-2)
        query = self._heads(some, self.queries)
        _pairs(query).mul_(own)
        _pairs(key).mul_(table)
        return self._end(some, attend(self.call(*(x.transpose(1, 2) for x in (query, key, value)))))

    def _heads(self, hidden: Tensor, kinds: Kinds) -> Tensor:
        """[..., heads of these kinds, d] before they are turned, without a gradient."""
        x = (hidden * _inverse_norm(hidden, self.eps[0])) @ kinds.weight.T
        x = x.unflatten(-1, (-1, self.width))
        if kinds.gain is not None:
            part = x[..., : kinds.turned, :]
            part.mul_(_inverse_norm(part, kinds.eps)).mul_(kinds.gain)
        return x

    def _end(self, hidden: Tensor, attended: Tensor) -> Tensor:
        out = torch.addmm(hidden.flatten(0, 1), attended.flatten(2).flatten(0, 1), self.output.T)
        gate, up = ((out * _inverse_norm(out, self.eps[2])) @ self.inner.T).chunk(2, dim=-1)
        return out.addmm_(F.silu(gate, inplace=True).mul_(up), self.down.T).view(hidden.shape)

    def finish(self, x: Tensor, parts: Sequence[Tensor], layout: Layout) -> Tensor:
        """The block's output [N, hidden] from its input and what attention gave each group, [n, longest, heads, d]."""
        return _Finish.apply(x, self.output, self.inner, self.down, self.eps[2], layout, *parts)


def _by_group(heads: tuple[Tensor, ...], layout: Layout) -> list[tuple[Tensor, ...]]:
    step = len(heads) // len(layout.shapes)
    return [heads[i : i + step] for i in range(0, len(heads), step)]


def lean_blocks(blocks: Blocks, which: Sequence[int]) -> dict[int, LeanBlock]:
    """Those of the blocks that have a lean spelling which gives their module's numbers."""
    found: dict[int, LeanBlock] = {}
    size = 0
    for index in which:
        try:
            block = _built(blocks, index)
            if block is None:
                continue
            size += 4 * (block.qkv.numel() + block.inner.numel())
            if size > _MOST_BYTES:
                return {}
            if _agrees(blocks, block):
                found[index] = block
        except (
            AttributeError,
            RuntimeError,
        ):  # other parts, or other shapes (rotary positions of half a head)
            continue
    return found


def _built(blocks: Blocks, index: int) -> LeanBlock | None:
    layer = blocks.layers[index]
    attention, mlp = layer.self_attn, layer.mlp
    projections = [attention.q_proj, attention.k_proj, attention.v_proj]
    linears = [*projections, attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    if blocks.device.type != "cpu" or any(
        type(one) is not nn.Linear or one.bias is not None or one.weight.dtype != torch.float32
        for one in linears
    ):
        return None
    before, after = layer.input_layernorm, layer.post_attention_layernorm
    q_norm, k_norm = (getattr(attention, name, None) for name in ("q_norm", "k_norm"))
    width = attention.head_dim
    heads, kv_heads = (one.out_features // width for one in projections[:2])
    with torch.no_grad():
        gain, inner_eps = None, 0.0
        if q_norm is not None and k_norm is not None:
            gains = torch.cat([q_norm.weight.expand(heads, -1), k_norm.weight.expand(kv_heads, -1)])
            gain = _side_by_side(gains.flatten(), width).view(-1, width)
            inner_eps = q_norm.variance_epsilon
        return LeanBlock(
            index,
            torch.cat([*(_side_by_side(one.weight, width) for one in projections[:2]), projections[2].weight])
            * before.weight,
            attention.o_proj.weight,
            torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]) * after.weight,
            mlp.down_proj.weight,
            gain,
            heads,
            kv_heads,
            width,
            attention.scaling,
            getattr(attention, "sliding_window", None),
            (
                before.variance_epsilon,
                inner_eps,
                after.variance_epsilon,
            ),
        )


def _agrees(blocks: Blocks, block: LeanBlock) -> bool:
    hidden = torch.linspace(-1, 1, 24 * blocks.config.hidden_size).sin().view(1, 24, -1) * 3
    with blocks.ready():
        rotary = blocks.rotary(hidden, torch.arange(24)[None])
        expected = blocks.run(block.index, hidden, rotary, causal)[0]
        table, whole = turns(rotary[blocks.layer_types[block.index]]), _OneSequence(24)
        parts = block.split(hidden[0], block.all_kinds, table[0], whole)
        ways = (
            block.finish(hidden[0], [causal(block.call(*one)) for one in parts], whole),
            block.run(hidden, table, causal)[0],
        )
    allowed = _TOLERANCE * expected.abs().max()
    return all(bool((found - expected).abs().max() <= allowed) for found in ways)  # NaN agrees with nothing
