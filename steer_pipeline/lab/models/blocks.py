"""Runs a transformers decoder block by block, with an attention of our own.

In: a loaded Torch model, hidden states and an `attend` function that owns keys and values. Out: the hidden
states after each block, the place where vectors are added and collected, and fp32 logits. Each block is the
model's own module (norms, projections, adapters, rotary positions); only the attention call is ours,
through the interface that transformers offers for it. It knows nothing of prompts, plans or sampling.
"""

import copy
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from steer_pipeline.lab.models.adapters import AdaptersSwitched, switches_of
from steer_pipeline.lab.models.identity import ModelLoadError
from steer_pipeline.lab.models.loaded import GENERAL, LoadedModel
from steer_pipeline.lab.models.plain import long_after
from steer_pipeline.lab.models.sites import INNER

NAME = "steer_blocks"  # our entry in the attention interface
_COMPILED = "steer_blocks_compiled"  # the same, where torch.compile ends one graph and begins the next
COMPILER = "inductor"  # of torch.compile
_CHECK_TOLERANCE = {torch.float32: 2e-3, torch.float16: 5e-2, torch.bfloat16: 3e-1}


@dataclass(frozen=True)
class Call:
    """What one block asks of attention. Shapes: query [n, heads, t, d], key and value [n, kv_heads, t, d]."""

    block: int
    query: Tensor
    key: Tensor
    value: Tensor
    scale: float
    window: int | None  # sliding window: a query sees its own position and the `window - 1` before it
    softcap: float | None


Attend = Callable[[Call], Tensor]  # -> [n, t, heads, d]
Inner = Mapping[
    str, Callable[[Tensor], Tensor]
]  # site kind -> what is made of what attention or MLP adds, [n, t, hidden]


class Stop(Exception):
    """Raised by an `attend` that has the keys and values it wants and needs no output of the block."""


def _attention(module: Any, query: Tensor, key: Tensor, value: Tensor, _mask: Any, **kwargs: Any) -> Any:
    if kwargs.get("s_aux") is not None:
        raise TypeError("its attention has sinks")
    scale = kwargs.get("scaling")
    call = Call(
        module.layer_idx,
        query,
        key,
        value,
        query.shape[-1] ** -0.5 if scale is None else scale,
        kwargs.get("sliding_window"),
        kwargs.get("softcap"),
    )
    return kwargs["attend"](call), None


ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)


class Blocks:
    """The parts of a decoder, found once. Use `blocks_of(model)`."""

    def __init__(self, causal_lm: Any):
        inner = decoder_of(causal_lm)
        self.config = inner.config
        self.embed = inner.embed_tokens
        self.layers = list(inner.layers[: self.config.num_hidden_layers])
        self.norm = inner.norm
        self.head = causal_lm.get_output_embeddings()
        self.softcap = getattr(self.config, "final_logit_softcapping", None)
        self.long_after = long_after(self.config)
        self._rotary = inner.rotary_emb
        self._by_type = "layer_type" in signature(inner.rotary_emb.forward).parameters
        declared = getattr(self.config, "layer_types", None)
        self.layer_types = list(declared) if declared else ["full_attention"] * len(self.layers)
        self.device = self.embed.weight.device
        self.dtype = self.embed.weight.dtype
        self._name = NAME
        self._switches = switches_of(causal_lm)
        self._made_at = self._switches[0]

    @property
    def stale(self) -> bool:
        """Whether adapters came or went since."""
        return self._switches[0] != self._made_at

    @cached_property
    def compiled(self) -> "Blocks":
        """The same blocks through torch.compile, in graphs for what lies before and after attention that all blocks and
        batch sizes share. For many passes: the first one takes its time.
        """
        ALL_ATTENTION_FUNCTIONS.register(_COMPILED, torch.compiler.disable(_attention))
        other = copy.copy(self)
        other.layers = [torch.compile(layer, dynamic=True, backend=COMPILER) for layer in self.layers]
        other._name = _COMPILED
        return other

    @contextmanager
    def ready(self, *, grad: bool = False) -> Iterator[None]:
        """Within it, blocks use our attention. The model's own is back afterwards.

        Args:
            grad: record what a backward pass needs; without it tensors made here never enter one.

        Raises:
            AdaptersSwitched: the model that these blocks are of has other adapters on it now.
        """
        if self.stale:
            raise AdaptersSwitched(
                "another model of the same base was used meanwhile, and its adapters are on; finish with one model "
                "before you go on with the next"
            )
        before = self.config._attn_implementation
        self.config._attn_implementation = self._name
        try:
            with torch.enable_grad() if grad else torch.inference_mode():
                yield
        finally:
            self.config._attn_implementation = before

    def rotary(self, hidden: Tensor, positions: Tensor) -> dict[str, Any]:
        """Rotary embeddings for `positions` [n, t], by layer type."""
        if self._by_type:
            return {kind: self._rotary(hidden, positions, kind) for kind in set(self.layer_types)}
        return dict.fromkeys(set(self.layer_types), self._rotary(hidden, positions))

    def run(
        self,
        block: int,
        hidden: Tensor,
        rotary: dict[str, Any],
        attend: Attend,
        inner: Inner | None = None,
    ) -> Tensor:
        """The output of one block, [n, t, hidden].

        Args:
            inner: sees what attention or MLP adds to the residual stream and says what is added in its place. Not for
                compiled blocks.

        Raises:
            ModelLoadError: `inner`, and the block adds something else than its attention and its MLP.
        """
        if inner:
            with ExitStack() as hooks:
                for kind, change in inner.items():
                    module = self._inner_modules[block][kind]
                    hooks.callback(module.register_forward_hook(partial(_changed, change)).remove)
                return self.run(block, hidden, rotary, attend)
        out = self.layers[block](
            hidden, attention_mask=None, position_embeddings=rotary[self.layer_types[block]], attend=attend
        )
        return out[0] if isinstance(out, tuple) else out

    @cached_property
    def _inner_modules(self) -> list[dict[str, Any]]:
        """By block and site kind, the module whose output is added to the residual stream, as a few tokens show."""
        found = [_inner_modules(layer) for layer in self.layers]
        ids = torch.arange(1, 13, device=self.device)[None] % self.config.vocab_size
        hidden = self.embed(ids)
        rotary = self.rotary(hidden, torch.arange(12, device=self.device)[None])
        self.__dict__["_inner_modules"] = found  # `run` below asks for it
        for block in range(len(self.layers)):
            added: list[Tensor] = []
            seen = dict.fromkeys(INNER, lambda one, added=added: added.append(one) or one)
            before, hidden = hidden, self.run(block, hidden, rotary, causal, seen)
            error = (hidden - sum(added, before)).abs().max()
            if error > _CHECK_TOLERANCE[self.dtype] * hidden.abs().max().clamp(min=1.0):
                del self.__dict__["_inner_modules"]
                raise ModelLoadError(
                    f"{self.config.model_type}: block {block} adds something else than what its attention and its MLP "
                    "give; collect and steer at block outputs (site: output)"
                )
        return found

    def logits(self, hidden: Tensor, bias: Tensor | None = None) -> Tensor:
        """fp32 [n, vocabulary] from the last block's output [n, hidden]; `bias` is added before any soft-
        capping.
        """
        logits = self.head(self.norm(hidden)).float()
        if bias is not None:
            logits = logits + bias
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    def direction_logits(self, direction: Tensor) -> Tensor:
        """`E (gamma * v)`: fp32 [vocabulary], what `direction` [hidden] adds to the logits where rms(h) is 1.

        `gamma` is read off the norm itself (Gemma stores gamma - 1), E is the model's real output embedding.
        """
        ones = torch.ones_like(direction)
        scaled = self.norm(ones) * direction
        return (self.head(scaled) - self.head(torch.zeros_like(direction))).float()


def _inner_modules(layer: Any) -> dict[str, Any]:
    """The last modules of a block's attention and MLP: the parts themselves, or norms between them and the sum."""
    if hasattr(layer, "post_feedforward_layernorm"):
        return {"attention": layer.post_attention_layernorm, "mlp": layer.post_feedforward_layernorm}
    return {"attention": layer.self_attn, "mlp": layer.mlp}


def _changed(change: Callable[[Tensor], Tensor], _module: Any, _inputs: Any, output: Any) -> Any:
    """A forward hook: `change` of the output, or of the first of several."""
    return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)


def causal(call: Call) -> Tensor:
    """Attention of whole right-padded sequences to themselves: padding lies in every real token's future."""
    t, windowed = call.query.shape[2], call.window is not None and call.query.shape[2] > call.window
    if call.softcap is None and not windowed:
        return masked(call, None)
    return masked(call, _window_mask(t, call.window, call.query.device))


def masked(call: Call, mask: Tensor | None) -> Tensor:
    """[n, t, heads, d]: attention where `mask` (bool) is True; causal where there is none."""
    if call.softcap is None:
        return F.scaled_dot_product_attention(
            call.query,
            call.key,
            call.value,
            attn_mask=mask,
            is_causal=mask is None,
            scale=call.scale,
            enable_gqa=call.query.shape[1] != call.key.shape[1],
        ).transpose(1, 2)
    assert mask is not None
    groups = call.query.shape[1] // call.key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (call.key, call.value))
    scores = cap(call.query @ key.transpose(2, 3) * call.scale, call.softcap)
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1, dtype=torch.float32).to(value.dtype)
    return (weights @ value).transpose(1, 2)


def cap(scores: Tensor, softcap: float | None) -> Tensor:
    return scores if softcap is None else torch.tanh(scores / softcap) * softcap


def _window_mask(t: int, window: int | None, device: torch.device) -> Tensor:
    """bool [t, t]: True where a query may look."""
    at = torch.arange(t, device=device)
    distance = at[:, None] - at[None, :]
    return (distance >= 0) & (distance < (window or t))


_KNOWN: "weakref.WeakKeyDictionary[Any, Blocks]" = weakref.WeakKeyDictionary()


def blocks_of(model: LoadedModel) -> Blocks:
    """The model's blocks, after one check that running them here gives the model's own logits.

    Raises:
        ModelLoadError: the architecture is built in another way than the Llama family.
    """
    if model.backend == GENERAL:
        raise ModelLoadError(
            f"model {model.name}: its blocks cannot be run one by one (see the warning when it was loaded), which "
            "this step needs; take a model of the Llama family (Llama, Qwen 2 and 3, Mistral, Gemma 2 and 3)"
        )
    module = model.module
    if module not in _KNOWN or _KNOWN[module].stale:
        _KNOWN[module] = _checked(model)
    return _KNOWN[module]


def _checked(model: LoadedModel) -> Blocks:
    try:
        blocks = Blocks(model.module)
        ids = torch.arange(1, 13, device=blocks.device)[None] % blocks.config.vocab_size
        with torch.inference_mode():
            expected = model.module(input_ids=ids, use_cache=False).logits[0, -1].float()
        with blocks.ready():
            hidden = blocks.embed(ids)
            rotary = blocks.rotary(hidden, torch.arange(12, device=blocks.device)[None])
            for block in range(len(blocks.layers)):
                hidden = blocks.run(block, hidden, rotary, causal)
            got = blocks.logits(hidden[:, -1])[0]
    except (AttributeError, TypeError, KeyError) as error:
        raise ModelLoadError(
            f"model {model.name}: its blocks cannot be run one by one ({error}); supported "
            "are decoders built like "
            "Llama in transformers (Llama, Qwen 2 and 3, Mistral, Gemma 2 and 3)"
        ) from error
    if not expected.isfinite().all():
        return blocks  # NaN in the weights: whoever generates or reads finds it and names the row
    allowed = _CHECK_TOLERANCE[blocks.dtype] * expected.abs().max().clamp(min=1.0)
    if (got - expected).abs().max() > allowed:
        raise ModelLoadError(
            f"model {model.name}: run block by block, its logits differ by "
            f"{(got - expected).abs().max():.3g}; "
            "this architecture does something between blocks that the engine does not know"
        )
    return blocks


def decoder_of(causal_lm: Any) -> Any:
    """The module that owns embed_tokens and layers, under PEFT wrappers and multimodal shells."""
    base = causal_lm.get_base_model() if hasattr(causal_lm, "get_base_model") else causal_lm
    inner = base.get_decoder() if hasattr(base, "get_decoder") else base.model
    for name in ("embed_tokens", "layers", "norm", "rotary_emb"):
        if not hasattr(inner, name):
            raise AttributeError(f"{type(inner).__name__} has no {name}")
    return inner
