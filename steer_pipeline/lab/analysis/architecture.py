"""One description of Llama-, Qwen- and Gemma-like blocks: what attention and gated MLP make of a state, from weights.

In: a model's configuration and the tensors of one block. Out: functions of states [n, hidden] in fp32: normed inputs,
queries and keys with norms and rotary positions, affinities with scaling and soft cap, what each head writes, what the
MLP adds. Rules are read off the model's own modules, built without weights; `check_block` runs such a module on the
block's weights and compares, so that an architecture that is built otherwise is refused, not described wrongly.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from steer_pipeline.lab.models.blocks import cap, decoder_of
from steer_pipeline.lab.models.errors import ModelLoadError

LINEAR = {  # module -> its place in a block
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
READS_AT = {"q": "attention", "k": "attention", "v": "attention", "gate": "mlp", "up": "mlp"}
WRITES_AT = {"o": "attention", "down": "mlp"}
TOLERANCE = 1e-4  # of the largest number of the module's own output
_PROBED = 6  # positions of the check


class NotDescribed(ModelLoadError):
    """A model is built otherwise than described here. The message names block and part."""


@dataclass(frozen=True, eq=False)
class Architecture:
    """What all blocks of a model share.

    Attributes:
        layers: the model's own blocks without weights; rules of single blocks (scaling, window) are read off them.
        rotary: its rotary embedding.
        plus_one: what is added to a norm's weight; Gemma stores gamma - 1.
    """

    config: Any
    layers: tuple[Any, ...]
    rotary: Any
    layer_types: tuple[str, ...]
    plus_one: float

    @property
    def n_blocks(self) -> int:
        return len(self.layers)

    @property
    def hidden_size(self) -> int:
        return int(self.config.hidden_size)

    def angles(self, positions: Tensor, block: int) -> tuple[Tensor, Tensor]:
        """cos and sin [t, head_dim] of positions [t] in a block."""
        by_type = "layer_type" in signature(self.rotary.forward).parameters
        kind = (self.layer_types[block],) if by_type else ()
        cos, sin = self.rotary(torch.zeros(1, len(positions), 1), positions[None], *kind)
        return cos[0], sin[0]


def describe(config: Any) -> Architecture:
    """The architecture that a transformers configuration names. Nothing is loaded.

    Raises:
        NotDescribed: transformers cannot build it, or not of such blocks.
    """
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            inner = decoder_of(AutoModelForCausalLM.from_config(config, attn_implementation="eager"))
        rotary = type(inner.rotary_emb)(config=inner.config)
        norm = inner.layers[0].input_layernorm
        probe = type(norm)(4, eps=1e-6)
    except (AttributeError, TypeError, ValueError, KeyError) as error:
        raise NotDescribed(
            f"{type(config).__name__}: not built of blocks with norms, attention and a gated MLP ({error}); the "
            "analysis of weights knows Llama, Qwen and Gemma and what is built like them"
        ) from error
    torch.nn.init.zeros_(probe.weight)
    n_blocks = inner.config.num_hidden_layers
    types = getattr(inner.config, "layer_types", None) or ["full_attention"] * n_blocks
    plus_one = float(probe(torch.ones(4)).detach().round().mean())
    return Architecture(inner.config, tuple(inner.layers[:n_blocks]), rotary, tuple(types), plus_one)


class Block:
    """One block: its weights in fp32 and what they make of states."""

    def __init__(self, architecture: Architecture, index: int, tensors: Mapping[str, Tensor]):
        """Args: tensors by their place in the block, as `self_attn.q_proj.weight`.

        Raises:
            NotDescribed: a tensor is missing, or one of another kind of block is there.
        """
        self.architecture, self.index = architecture, index
        self.tensors = {name: tensor.float() for name, tensor in tensors.items()}
        wanted = set(architecture.layers[index].state_dict())
        missing = [name for name in LINEAR.values() if f"{name}.weight" not in wanted]
        if missing or wanted != set(tensors):
            strange = missing or sorted(wanted ^ set(tensors))
            raise NotDescribed(
                f"block {index}: {', '.join(strange[:3])} is missing or of another kind of block than one with "
                "attention and one gated MLP; the analysis of weights does not know it"
            )
        own = architecture.layers[index]
        self._attention, self._activation = own.self_attn, own.mlp.act_fn
        self.head_dim = int(self._attention.head_dim)
        self.n_heads = self.weight("q").shape[0] // self.head_dim
        self.n_kv_heads = self.weight("k").shape[0] // self.head_dim
        self.scaling = float(self._attention.scaling)
        self.softcap = getattr(self._attention, "attn_logit_softcapping", None)
        self.window = getattr(self._attention, "sliding_window", None)
        self._sandwich = "pre_feedforward_layernorm.weight" in self.tensors
        eps = getattr(own.input_layernorm, "variance_epsilon", None)
        self._eps = float(own.input_layernorm.eps if eps is None else eps)

    # ------------------------------------------------------------------------------------- weights

    def weight(self, module: str) -> Tensor:
        """[out, in] of one of `LINEAR`."""
        return self.tensors[f"{LINEAR[module]}.weight"]

    def linear(self, module: str, states: Tensor) -> Tensor:
        """What a linear module makes of states, its bias included."""
        return torch.nn.functional.linear(
            states, self.weight(module), self.tensors.get(f"{LINEAR[module]}.bias")
        )

    @property
    def biased(self) -> bool:
        """Whether queries, keys or values have biases: without, a state and its opposite read alike."""
        return any(f"{LINEAR[module]}.bias" in self.tensors for module in ("q", "k", "v"))

    # --------------------------------------------------------------------------------------- norms

    def _norm(self, states: Tensor, name: str) -> Tensor:
        scaled = states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + self._eps)
        return scaled * (self.tensors[f"{name}.weight"] + self.architecture.plus_one)

    def normed(self, states: Tensor, part: str) -> Tensor:
        """States as "attention" or "mlp" gets them."""
        if part == "attention":
            return self._norm(states, "input_layernorm")
        return self._norm(
            states, "pre_feedforward_layernorm" if self._sandwich else "post_attention_layernorm"
        )

    def added(self, out: Tensor, part: str) -> Tensor:
        """What is added to the stream of what a part gives: itself, or normed once more (Gemma 2 and 3)."""
        if not self._sandwich:
            return out
        return self._norm(out, f"post_{'attention' if part == 'attention' else 'feedforward'}_layernorm")

    def gain(self, part: str) -> Tensor:
        """[hidden]: by what each coordinate of a part's output is scaled before it is added; ones without a norm."""
        if not self._sandwich:
            return torch.ones(self.architecture.hidden_size, device=self.weight("q").device)
        name = f"post_{'attention' if part == 'attention' else 'feedforward'}_layernorm.weight"
        return self.tensors[name] + self.architecture.plus_one

    # ----------------------------------------------------------------------------------------- mlp

    def mlp(self, states: Tensor) -> Tensor:
        """[n, hidden]: what the MLP adds to the stream where the stream is `states` [n, hidden]."""
        normed = self.normed(states, "mlp")
        gated = self._activation(self.linear("gate", normed)) * self.linear("up", normed)
        return self.added(self.linear("down", gated), "mlp")

    # ----------------------------------------------------------------------------------- attention

    def queries(self, states: Tensor, positions: Tensor) -> Tensor:
        """[n, heads, head_dim] of states [n, hidden] at positions [n]: normed where the model does, and turned."""
        return self._turned(self._heads("q", states), positions)

    def keys(self, states: Tensor, positions: Tensor) -> Tensor:
        """[n, heads, head_dim], shared heads repeated."""
        return self._repeated(self._turned(self._heads("k", states), positions))

    def values(self, states: Tensor) -> Tensor:
        """[n, heads, head_dim], shared heads repeated."""
        return self._repeated(self._heads("v", states))

    def affinities(self, queries: Tensor, keys: Tensor, distance: int) -> Tensor:
        """[heads, n, m]: logit of attention of each of states `queries` [n, hidden] to each of `keys` [m, hidden],
        which stand `distance` positions before.
        """
        return self._logits("nhd,mhd->hnm", queries, keys, distance)

    def affinity(self, queries: Tensor, keys: Tensor, distance: int) -> Tensor:
        """[heads, n]: the same of each of n queries to its own key alone."""
        return self._logits("nhd,nhd->hn", queries, keys, distance)

    def _logits(self, how: str, queries: Tensor, keys: Tensor, distance: int) -> Tensor:
        at_query = torch.full((len(queries),), distance, device=queries.device)
        at_key = torch.zeros(len(keys), dtype=torch.long, device=keys.device)
        asked, offered = self.queries(queries, at_query), self.keys(keys, at_key)
        return cap(torch.einsum(how, asked, offered) * self.scaling, self.softcap)

    def head_writes(self, states: Tensor) -> Tensor:
        """[n, heads, hidden]: what each head adds to the stream where all attention lies on one of `states`.

        Heads add up to `written`: where the sum is normed, each is scaled as the sum is; an output bias is nobody's.
        """
        values = self.values(states)
        weight = self.weight("o").unflatten(1, (self.n_heads, self.head_dim))  # [hidden, heads, d]
        parts = torch.einsum("nhd,ohd->nho", values, weight)
        if not self._sandwich:
            return parts
        whole = self.linear("o", values.flatten(1))
        scale = torch.rsqrt(whole.pow(2).mean(-1, keepdim=True) + self._eps)[:, None]
        return parts * scale * self.gain("attention")

    def written(self, states: Tensor) -> Tensor:
        """[n, hidden]: what attention adds where all of it lies on one of `states`."""
        return self.added(self.linear("o", self.values(states).flatten(1)), "attention")

    def attention(self, states: Tensor) -> Tensor:
        """[t, hidden]: what attention adds at each position of one sequence of states [t, hidden]."""
        at = torch.arange(len(states), device=states.device)
        scores = torch.einsum("qhd,khd->hqk", self.queries(states, at), self.keys(states, at)) * self.scaling
        distance = at[:, None] - at[None]
        seen = (distance >= 0) & (distance < (self.window or len(states)))
        weights = cap(scores, self.softcap).masked_fill(~seen, float("-inf")).softmax(-1)
        mixed = torch.einsum("hqk,khd->qhd", weights, self.values(states)).flatten(1)
        return self.added(self.linear("o", mixed), "attention")

    def output(self, states: Tensor) -> Tensor:
        """[t, hidden]: the stream after the block."""
        middle = states + self.attention(states)
        return middle + self.mlp(middle)

    def _heads(self, module: str, states: Tensor) -> Tensor:
        """[n, own heads, head_dim]."""
        heads = self.linear(module, self.normed(states, "attention")).unflatten(-1, (-1, self.head_dim))
        name = f"self_attn.{module}_norm"
        return self._norm(heads, name) if f"{name}.weight" in self.tensors else heads

    def _repeated(self, heads: Tensor) -> Tensor:
        return heads.repeat_interleave(self.n_heads // self.n_kv_heads, dim=1)

    def _turned(self, heads: Tensor, positions: Tensor) -> Tensor:
        cos, sin = (x.to(heads.device)[:, None] for x in self.architecture.angles(positions, self.index))
        first, second = heads.chunk(2, dim=-1)
        return heads * cos + torch.cat((-second, first), dim=-1) * sin


def check_block(block: Block) -> None:
    """The model's own module, with this block's weights, gives what `block` gives: whole, its attention, its MLP.

    Raises:
        NotDescribed: it does not; the message names the block and the part.
    """
    architecture, device = block.architecture, block.weight("q").device
    own = copy.deepcopy(architecture.layers[block.index])
    own.load_state_dict(block.tensors, assign=True, strict=True)
    draws = torch.Generator().manual_seed(block.index)
    states = torch.randn(_PROBED, architecture.hidden_size, generator=draws).to(device)
    at = torch.arange(_PROBED, device=device)
    distance = at[:, None] - at[None]
    unseen = (distance < 0) | (distance >= (block.window or _PROBED))
    mask = torch.zeros(_PROBED, _PROBED, device=device).masked_fill(unseen, torch.finfo(torch.float32).min)
    angles = tuple(x.to(device)[None] for x in architecture.angles(at, block.index))
    seen: dict[str, Tensor] = {}

    def note(name: str, _module: Any, _inputs: Any, out: Any) -> None:
        seen[name] = out[0] if isinstance(out, tuple) else out

    for name in ("self_attn", "mlp"):
        getattr(own, name).register_forward_hook(partial(note, name))
    with torch.inference_mode():
        whole = own(states[None], position_embeddings=angles, attention_mask=mask[None, None])
        whole = (whole[0] if isinstance(whole, tuple) else whole).reshape(states.shape)
        attended = block.attention(states)
        pairs = {
            "attention": (block.added(seen["self_attn"].reshape(states.shape), "attention"), attended),
            "mlp": (
                block.added(seen["mlp"].reshape(states.shape), "mlp"),
                block.mlp(states + attended),
            ),
            "the whole block": (whole, block.output(states)),
        }
    for part, (theirs, ours) in pairs.items():
        error = float((theirs - ours).abs().max() / theirs.abs().max().clamp(min=1e-9))
        if not error <= TOLERANCE:
            raise NotDescribed(
                f"{architecture.config.model_type}: {part} of block {block.index} differs from the model's own module "
                f"by {error:.2g} of its largest number; the analysis of weights does not know how it is built"
            )
