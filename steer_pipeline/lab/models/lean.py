"""Blocks of the Llama and Qwen kind, spelled for reading and training through frozen fp32 weights on a CPU.

The same arithmetic as the model's own modules with fewer and larger steps: one matrix product for queries, keys and
values and one for the MLP's two inner projections, norm gains folded into the weights, residuals added within the
products. A block is used only after it gave the numbers of its module; every other architecture, type and device runs
its own modules. Gradients through them are written out in `lab/training/written.py`.

Weights are copied when they are folded: a lean block is for one run over data, made at its start and dropped with
it, so that later changes of the model (adapters, training) are seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steer_pipeline.lab.models.blocks import Attend, Blocks, Call, causal

_TOLERANCE = 1e-4
_MOST_BYTES = 1 << 30  # of copied weights: products of wide blocks take their time however they are spelled


def inverse_norm(x: Tensor, eps: float) -> Tensor:
    """1 / rms of the last axis, which stays."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.addcmul(_scalar(eps), norm, norm, value=1 / x.shape[-1]).rsqrt_()


@lru_cache
def _scalar(value: float) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(value)


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


def turns(rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Table complex64 [..., 1, d / 2] that turns heads, from cos and sin [..., d], whose halves are equal."""
    cos, sin = (table[..., None, : table.shape[-1] // 2] for table in rotary)
    return torch.complex(cos, sin)


def pairs(x: Tensor) -> Tensor:
    """Heads [..., d] as complex64 [..., d / 2]: dimensions that turn together lie side by side."""
    return torch.view_as_complex(x.view(*x.shape[:-1], -1, 2))


def _side_by_side(rows: Tensor, width: int) -> Tensor:
    """Rows [heads * width, ...] of queries or keys in an order that brings dimension i of a head next to i + width / 2.

    Where queries and keys are both in it, their products are the same.
    """
    return rows.unflatten(0, (-1, 2, width // 2)).transpose(1, 2).flatten(0, 2)


@dataclass(frozen=True, eq=False)
class LeanHead:
    """The final norm, folded into the output embedding [vocabulary, hidden]."""

    weight: Tensor
    eps: float


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
        expected = blocks.logits(hidden)
        found = (hidden * inverse_norm(hidden, eps)) @ lean.weight.T
    allowed = _TOLERANCE * expected.abs().max().clamp(min=1.0)
    return lean if bool((found - expected).abs().max() <= allowed) else None


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
        pairs(normed).mul_(table)
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
        pairs(query).mul_(own)
        pairs(key).mul_(table)
        return self._end(some, attend(self.call(*(x.transpose(1, 2) for x in (query, key, value)))))

    def _heads(self, hidden: Tensor, kinds: Kinds) -> Tensor:
        """[..., heads of these kinds, d] before they are turned, without a gradient."""
        x = (hidden * inverse_norm(hidden, self.eps[0])) @ kinds.weight.T
        x = x.unflatten(-1, (-1, self.width))
        if kinds.gain is not None:
            part = x[..., : kinds.turned, :]
            part.mul_(inverse_norm(part, kinds.eps)).mul_(kinds.gain)
        return x

    def _end(self, hidden: Tensor, attended: Tensor) -> Tensor:
        out = torch.addmm(hidden.flatten(0, 1), attended.flatten(2).flatten(0, 1), self.output.T)
        gate, up = ((out * inverse_norm(out, self.eps[2])) @ self.inner.T).chunk(2, dim=-1)
        return out.addmm_(F.silu(gate, inplace=True).mul_(up), self.down.T).view(hidden.shape)


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
        expected = blocks.run(block.index, hidden, rotary, causal)
        found = block.run(hidden, turns(rotary[blocks.layer_types[block.index]]), causal)
    allowed = _TOLERANCE * expected.abs().max()
    return bool((found - expected).abs().max() <= allowed)  # NaN agrees with nothing
