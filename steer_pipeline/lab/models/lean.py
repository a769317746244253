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
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steer_pipeline.lab.models.blocks import Attend, Blocks, Call, causal

_TOLERANCE = 1e-4
_LARGE_NLL = 60.0  # nats; fp32 shares go down to exp(-87)
_MOST_BYTES = 1 << 30  # of copied weights: products of wide blocks take their time however they are spelled


Turns = tuple[Tensor, Tensor, Tensor, Tensor]


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


class _Project(torch.autograd.Function):
    """norm(x) W^T for x [N, hidden]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        inverse = _inverse_norm(x, eps)
        normed = x * inverse
        ctx.save_for_backward(normed, inverse, weight)
        return normed @ weight.T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        normed, inverse, weight = ctx.saved_tensors
        return _norm_backward(grads[0] @ weight, normed, inverse), None, None


class ProjectAtSite(torch.autograd.Function):
    """norm(h + v) W^T where h W^T is known: h never changes, so a vector costs sums and no product over positions.

    Only the vectors [lanes, hidden] get a gradient; `added` is h + v and `sizes[k]` counts the rows of lane k.
    """

    @staticmethod
    def forward(
        ctx: Any, vectors: Tensor, known: Tensor, added: Tensor, weight: Tensor, eps: float, sizes: list[int]
    ) -> Tensor:
        inverse = _inverse_norm(added, eps)
        shifts = vectors @ weight.T
        out = torch.empty_like(known)
        for part, shift, to in zip(known.split(sizes), shifts, out.split(sizes), strict=True):
            torch.add(part, shift, out=to)
        out.mul_(inverse)
        ctx.sizes = sizes
        ctx.save_for_backward(out, added, inverse, weight)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        out, added, inverse, weight = ctx.saved_tensors
        along = (grads[0] * out).sum(-1, keepdim=True).mul_(inverse.square()).div_(-added.shape[-1])
        parts = zip(*(x.split(ctx.sizes) for x in (grads[0], inverse, added, along)), strict=True)
        sums = [(i.T @ g) @ weight + a.T @ x for g, i, x, a in parts]
        return torch.cat(sums), None, None, None, None, None


class _Finish(torch.autograd.Function):
    """z + (silu(norm(z) G^T) * norm(z) U^T) D^T for z = x + y W^T, with G and U stacked."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, output: Tensor, inner: Tensor, down: Tensor, eps: float
    ) -> Tensor:
        z = torch.addmm(x, y, output.T)
        inverse = _inverse_norm(z, eps)
        normed = z * inverse
        gate, up = (normed @ inner.T).chunk(2, dim=-1)
        active = F.silu(gate)
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
        return grad, grad @ output, None, None, None, None


class _NormAndTurn(torch.autograd.Function):
    """Heads [N, heads, d], of which the first `turned` are normed where the model does (gain [turned, d]) and turned
    by their positions.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, turned: int, gain: Tensor | None, eps: float, tables: Turns) -> Tensor:
        inverse = normed = None
        first = x[:, :turned]
        if gain is not None:
            inverse = _inverse_norm(first, eps)
            normed = first * inverse
            first = normed * gain
        ctx.tables, ctx.turned = tables, turned
        ctx.save_for_backward(normed, inverse, gain)
        return _with_first(x, turned, first, tables, back=False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        normed, inverse, gain = ctx.saved_tensors
        out = _with_first(grads[0], ctx.turned, grads[0][:, : ctx.turned], ctx.tables, back=True)
        if gain is not None:
            _norm_backward(out[:, : ctx.turned].mul_(gain), normed, inverse)
        return out, None, None, None, None


def _with_first(x: Tensor, count: int, first: Tensor, tables: Turns, *, back: bool) -> Tensor:
    """Heads [N, heads, d]: `first` turned, then those of `x` from `count` on."""
    out = torch.empty(x.shape)
    _turned(first, tables, back=back, out=out[:, :count])
    if count < x.shape[1]:
        out[:, count:] = x[:, count:]
    return out


def turns(rotary: tuple[Tensor, Tensor]) -> Turns:
    """Tables [..., 1, d or d / 2] for heads, from cos and sin [..., d], whose halves are equal: cos, the halves' sin in
    the turn, and in the turn back.
    """
    cos, sin = rotary[0][..., None, :], rotary[1][..., None, : rotary[1].shape[-1] // 2]
    return cos, -sin, sin, -sin


def _turned(x: Tensor, tables: Turns, *, back: bool = False, out: Tensor | None = None) -> Tensor:
    """Rotary embedding of heads [..., heads, d], or its inverse."""
    out = torch.mul(x, tables[0], out=out)
    (first, second), (to_first, to_second) = x.chunk(2, dim=-1), out.chunk(2, dim=-1)
    to_first.addcmul_(second, tables[2 if back else 1])
    to_second.addcmul_(first, tables[3 if back else 2])
    return out


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

    def project(self, x: Tensor, rows: slice = slice(None)) -> Tensor:
        """[N, hidden] -> queries, keys and values [N, (heads + 2 kv_heads) d], or some `rows` of the weight."""
        return _Project.apply(x, self.qkv[rows], self.eps[0])

    @property
    def query_rows(self) -> slice:
        return slice(0, self.heads * self.width)

    @property
    def other_rows(self) -> slice:
        return slice(self.heads * self.width, None)

    @property
    def sizes(self) -> list[int]:
        """Heads of queries, keys and values."""
        return [self.heads, self.kv_heads, self.kv_heads]

    def heads_from(self, projected: Tensor, tables: Turns, first: int, last: int) -> Tensor:
        """Heads [N, heads of these kinds, d] from kind `first` to kind `last` (queries, keys, values: 0, 1, 2), from
        their rows of the projection.
        """
        begin, end = sum(self.sizes[:first]), sum(self.sizes[: min(last, 1) + 1])
        gain = None if self.gain is None else self.gain[begin:end]
        return _NormAndTurn.apply(
            projected.unflatten(-1, (-1, self.width)), end - begin, gain, self.eps[1], tables
        )

    def call(self, query: Tensor, key: Tensor, value: Tensor) -> Call:
        return Call(self.index, query, key, value, self.scale, self.window, None)

    def heads_of(self, hidden: Tensor) -> Tensor:
        """Queries, keys and values [..., heads + 2 kv_heads, d] before their rotary embedding, without a gradient."""
        return self._heads(hidden, slice(None), slice(0, self.heads + self.kv_heads))

    def run(self, hidden: Tensor, tables: Turns, attend: Attend, heads: Tensor | None = None) -> Tensor:
        """The block's output [n, t, hidden], without a gradient, as `Blocks.run` gives it.

        Args:
            heads: what `heads_of(hidden)` gives, where it is known.
        """
        heads = self.heads_of(hidden) if heads is None else heads
        normed, value = heads.split([self.heads + self.kv_heads, self.kv_heads], dim=-2)
        query, key = _turned(normed, tables).split([self.heads, self.kv_heads], dim=-2)
        return self._end(hidden, attend(self.call(*(x.transpose(1, 2) for x in (query, key, value)))))

    def run_some(
        self,
        hidden: Tensor,
        tables: Turns,
        some: Tensor,
        own: Turns,
        attend: Attend,
    ) -> Tensor:
        """As `run`, with queries and output of `some` [n, s, hidden] positions alone; `own` are their tables."""
        others = self._heads(hidden, self.other_rows, slice(self.heads, self.heads + self.kv_heads))
        key, value = others.split(self.kv_heads, dim=-2)
        query = _turned(self._heads(some, self.query_rows, slice(0, self.heads)), own)
        key = _turned(key, tables)
        return self._end(some, attend(self.call(*(x.transpose(1, 2) for x in (query, key, value)))))

    def _heads(self, hidden: Tensor, rows: slice, normed: slice) -> Tensor:
        """[..., heads of these rows of the weight, d], the first of which are normed as heads `normed` are."""
        x = (hidden * _inverse_norm(hidden, self.eps[0])) @ self.qkv[rows].T
        x = x.unflatten(-1, (-1, self.width))
        if self.gain is not None:
            part = x[..., : normed.stop - normed.start, :]
            part.mul_(_inverse_norm(part, self.eps[1])).mul_(self.gain[normed])
        return x

    def _end(self, hidden: Tensor, attended: Tensor) -> Tensor:
        out = torch.addmm(hidden.flatten(0, 1), attended.flatten(2).flatten(0, 1), self.output.T)
        gate, up = ((out * _inverse_norm(out, self.eps[2])) @ self.inner.T).chunk(2, dim=-1)
        return out.addmm_(F.silu(gate, inplace=True).mul_(up), self.down.T).view(hidden.shape)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """The block's output [N, hidden] from its input and what attention gave, [1, N, heads, d]."""
        return _Finish.apply(x, attended[0].flatten(1), self.output, self.inner, self.down, self.eps[2])


def lean_blocks(blocks: Blocks, which: Sequence[int]) -> dict[int, LeanBlock]:
    """Those of the blocks that have a lean spelling which gives their module's numbers."""
    found: dict[int, LeanBlock] = {}
    size = 0
    for index in which:
        try:
            block = _built(blocks, index)
        except (AttributeError, RuntimeError):
            continue
        if block is None:
            continue
        size += 4 * (block.qkv.numel() + block.inner.numel())
        if size > _MOST_BYTES:
            return {}
        if _agrees(blocks, block):
            found[index] = block
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
            gain = torch.cat([q_norm.weight.expand(heads, -1), k_norm.weight.expand(kv_heads, -1)])
            inner_eps = q_norm.variance_epsilon
        return LeanBlock(
            index,
            torch.cat([one.weight for one in projections]) * before.weight,
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
        cos, sin = rotary[blocks.layer_types[block.index]]
        heads = block.heads_from(block.project(hidden[0]), turns((cos[0], sin[0])), 0, 2)
        parts = heads.transpose(0, 1)[None].split(block.sizes, dim=1)
        ways = (
            block.finish(hidden[0], causal(block.call(*parts))),
            block.run(hidden, turns((cos, sin)), causal)[0],
        )
    allowed = _TOLERANCE * expected.abs().max()
    return all(bool((found - expected).abs().max() <= allowed) for found in ways)  # NaN agrees with nothing
