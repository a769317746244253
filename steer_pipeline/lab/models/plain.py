"""Runs any transformers decoder through its own forward, with hooks on its blocks: the general path.

In: a loaded Torch model whose blocks cannot be proved to run rightly one by one. Out: the list of its blocks, a place
to change or read what each gives, [n, t, hidden], and whether rows may be padded. The model's own attention, masks,
cache and output head do all the work, so the numbers are those of plain transformers with hooks. It is slower than the
fast path: nothing is shared between the variants of a row.
"""

import logging
import re
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from steer_pipeline.lab.models.adapters import switches_of
from steer_pipeline.lab.models.identity import ModelLoadError
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.sites import INNER

log = logging.getLogger(__name__)

Change = Callable[[Tensor], Tensor]  # [n, t, hidden] -> the same shape

TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 8e-2}  # relative, of states and logits
_LISTS = ("layers", "h", "blocks", "block")  # what models call their list of blocks
_FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f", "final_norm")
_ATTENTION = ("self_attn", "attn", "attention", "self_attention", "linear_attn", "mixer", "mamba", "conv")
_MLP = ("mlp", "feed_forward", "block_sparse_moe", "ffn", "moe")
_ATTENTION_TYPES = {
    "full_attention",
    "sliding_attention",
    "chunked_attention",
}  # whose only memory is keys and values
_LEAST, _MOST, _BEYOND = 32, 256, 16  # tokens of a prompt to try a model on; how far beyond a window
_CHEAP, _AFFORDED = 1e10, {"cpu": 3e11, "mps": 3e12, "cuda": 1e14}  # floating-point operations of one pass
_WINDOWS = re.compile(r"(window|chunk|local_attention)(?!.*(layers|feed_forward)$)")
_SHORT, _LONG = 5, 12  # tokens of the rows that show whether padding changes anything


class Plain:
    """The parts of a decoder that hooks need, found once. Use `plain_of(model)`."""

    def __init__(self, causal_lm: Any):
        self.module = _unwrapped(causal_lm)
        self.config = self.module.config.get_text_config()
        self.layers, self._owner = find_blocks(self.module)
        self.head = self.module.get_output_embeddings()
        weight = self.module.get_input_embeddings().weight
        self.device, self.dtype = weight.device, weight.dtype
        self.long_after = long_after(self.config)
        self._only_last = "logits_to_keep" in signature(self.module.forward).parameters
        self._switches = switches_of(causal_lm)
        self._made_at = self._switches[0]
        self._require_one_call()

    @property
    def stale(self) -> bool:
        """Whether adapters came or went since."""
        return self._switches[0] != self._made_at

    @contextmanager
    def hooked(
        self,
        outputs: Mapping[int, Change],
        inner: Mapping[int, Mapping[str, Change]] | None = None,
        head: Change | None = None,
    ) -> Iterator[None]:
        """Within it, these functions see what blocks, their attention or MLP, and the output head give, and say what
        goes on in its place.

        Raises:
            ModelLoadError: `inner`, and a block adds something else than its attention and its MLP.
        """
        with ExitStack() as stack:
            for block, kinds in (inner or {}).items():
                for kind, change in kinds.items():
                    module = self.inner_modules[block][kind]
                    stack.callback(module.register_forward_hook(partial(self._hook, change)).remove)
            for block, change in outputs.items():
                stack.callback(self.layers[block].register_forward_hook(partial(self._hook, change)).remove)
            if head is not None:
                stack.callback(self.head.register_forward_hook(partial(self._hook, head)).remove)
            yield

    def logits(self, ids: Tensor, *, last: bool = False) -> Tensor:
        """[n, t, vocabulary] of right-padded ids [n, t] in the model's dtype; of the last position alone if `last` and
        the model knows how.
        """
        more = {"logits_to_keep": 1} if last and self._only_last else {}
        with torch.inference_mode():
            return self.module(
                input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **more
            ).logits

    def _hook(self, change: Change, _module: Any, _inputs: Any, output: Any) -> Any:
        if not isinstance(output, tuple | list):
            return self._replaced(output, change)
        return type(output)((self._replaced(output[0], change), *output[1:]))

    def _replaced(self, output: Tensor, change: Change) -> Tensor:
        """Gemma 3n carries several predictions of the residual stream, [k, n, t, hidden]; the active one counts."""
        if output.ndim < 4:
            return change(output)
        active = getattr(self.config, "altup_active_idx", 0)
        output = output.clone()
        output[active] = change(output[active])
        return output

    # ------------------------------------------------------------------------------- what was found

    def _require_one_call(self) -> None:
        """Every block is called once, in order, and gives one residual stream; a few tokens show it."""
        called: list[int] = []
        shapes = set()

        def note(block: int, hidden: Tensor) -> Tensor:
            called.append(block)
            shapes.add(tuple(hidden.shape))
            return hidden

        with self.hooked({block: partial(note, block) for block in range(len(self.layers))}):
            self.logits(probe_ids(self.config, _SHORT, self.device), last=True)
        expected = {(1, _SHORT, self.config.hidden_size)}
        if called != list(range(len(self.layers))) or shapes != expected:
            raise ModelLoadError(
                f"{self.config.model_type}: its blocks are not called once each with one residual stream of width "
                f"{self.config.hidden_size} (calls {called}, shapes {sorted(shapes)}); it cannot be steered here"
            )

    @cached_property
    def inner_modules(self) -> list[dict[str, Any]]:
        """By block and site kind, the module whose output is added to the residual stream, as a few tokens show.

        Raises:
            ModelLoadError: a block adds something else.
        """
        found = [_inner_modules(layer) for layer in self.layers]
        sums: list[dict[str, Tensor]] = [{} for _ in self.layers]

        def enter(block: int, _module: Any, args: Any, kwargs: Any) -> None:
            sums[block]["input"] = args[0] if args else kwargs["hidden_states"]

        def note(block: int, kind: str, value: Tensor) -> Tensor:
            sums[block][kind] = value
            return value

        with ExitStack() as stack:
            for block, (layer, parts) in enumerate(zip(self.layers, found, strict=True)):
                stack.callback(
                    layer.register_forward_pre_hook(partial(enter, block), with_kwargs=True).remove
                )
                for kind, module in {**parts, "output": layer}.items():
                    hook = partial(self._hook, partial(note, block, kind))
                    stack.callback(module.register_forward_hook(hook).remove)
            self.logits(probe_ids(self.config, _LONG, self.device), last=True)
        for block, seen in enumerate(sums):
            shapes = {value.shape for value in seen.values()}
            if set(seen) != {"input", "output", *INNER} or len(shapes) > 1 or not _adds_up(seen):
                raise ModelLoadError(
                    f"{self.config.model_type}: block {block} adds something else than what its attention and its MLP "
                    "give; collect and steer at block outputs (site: output)"
                )
        return found

    def direction_logits(self, direction: Tensor) -> Tensor:
        """fp32 [vocabulary]: what `direction` [hidden] adds to the head's output where rms(h) is 1; as `Blocks`' own.

        Raises:
            ValueError: there is no RMS norm between the last block and the head.
        """
        norm = self._final_norm
        scaled = norm(torch.ones_like(direction)) * direction
        return (self.head(scaled) - self.head(torch.zeros_like(direction))).float()

    @cached_property
    def _final_norm(self) -> Any:
        norm = next((getattr(self._owner, name) for name in _FINAL_NORMS if hasattr(self._owner, name)), None)
        seen: dict[str, Tensor] = {}

        def note(name: str, value: Tensor) -> Tensor:
            seen[name] = value
            return value

        def enter(_module: Any, args: Any) -> None:
            seen["head"] = args[0]

        if norm is not None and self.head is not None:
            handle = self.head.register_forward_pre_hook(enter)
            with self.hooked({len(self.layers) - 1: partial(note, "last")}):
                self.logits(probe_ids(self.config, _SHORT, self.device))
            handle.remove()
            with torch.inference_mode():
                one = torch.ones(self.config.hidden_size, device=self.device, dtype=self.dtype)
                is_rms = torch.allclose(norm(-one), -norm(one)) and bool(norm(one).any())
                if is_rms and torch.equal(norm(seen["last"]), seen["head"]):
                    return norm
        raise ValueError(
            f"site logits: {self.config.model_type} has no RMS norm between its last block and its output embedding; "
            "steer at block outputs (site: output)"
        )

    # ------------------------------------------------------------------------------------ padding

    @cached_property
    def right_padding(self) -> bool:
        """Whether rows that are padded on the right read as they do alone."""
        if self.long_after is not None or self.recurrent:
            return False
        row = probe_ids(self.config, _SHORT, self.device)
        long = probe_ids(self.config, _LONG, self.device).flip(1)
        pair = torch.zeros(2, _LONG, dtype=torch.int64, device=self.device)
        pair[0, :_SHORT], pair[1] = row[0], long[0]
        alone, together = self.logits(row)[0], self.logits(pair)
        return self._same(alone, together[0, :_SHORT]) and self._same(self.logits(long)[0], together[1])

    @cached_property
    def cached(self) -> bool:
        """Whether tokens against the model's own cache get the logits of whole passes, beyond its windows too."""
        row = probe_ids(self.config, probe_length(self.module, self.config)[0], self.device)
        try:
            got = self._said([row[0].tolist()], cached=True)[0]
        except (
            AttributeError,
            TypeError,
            ValueError,
            RuntimeError,
            IndexError,
            NotImplementedError,
        ) as error:
            log.warning("%s: decodes without a cache, slowly; with it %s", self.config.model_type, error)
            return False
        more = torch.tensor([[1, 2]], device=self.device)
        same = self._same(self.logits(torch.cat([row, more], dim=1))[0, -3:], got)
        if not same:
            log.warning(
                "%s: decodes without its cache, slowly; with it, it says other things", self.config.model_type
            )
        return same

    @cached_property
    def left_padding(self) -> bool:
        """Whether rows that are padded on the left, under an attention mask, say what they say alone."""
        if self.long_after is not None or self.recurrent:
            return False
        rows = [probe_ids(self.config, n, self.device)[0].tolist() for n in (_SHORT, _LONG)]
        try:
            together = self._said(rows, cached=self.cached)
        except (TypeError, ValueError, RuntimeError, IndexError, NotImplementedError):
            return False
        alone = [self._said([row], cached=self.cached)[0] for row in rows]
        return all(self._same(one, other) for one, other in zip(alone, together, strict=True))

    @cached_property
    def recurrent(self) -> bool:
        """Whether a block carries a state that padding would enter: convolutions, state spaces, linear attention."""
        kinds = set(getattr(self.config, "layer_types", None) or ())
        return bool(getattr(self.module, "_is_stateful", False)) or not kinds <= _ATTENTION_TYPES

    def _said(self, rows: list[list[int]], *, cached: bool) -> Tensor:
        """fp32 [n, 3, vocabulary]: logits after each row and after two fixed tokens more, 1 and 2."""
        logits: list[Tensor] = []

        def fixed(_ids: Tensor, scores: Tensor) -> Tensor:
            logits.append(scores.float())
            return torch.zeros_like(scores).index_fill_(
                1, torch.tensor([len(logits)], device=scores.device), 1.0
            )

        self.generate(rows, 3, fixed, [], cached=cached)
        return torch.stack(logits, dim=1)

    def _same(self, one: Tensor, other: Tensor) -> bool:
        one, other = one.float(), other.float()
        if not one.isfinite().all():
            return True  # NaN in the weights: whoever generates or reads finds it and names the row
        scale = one.abs().max().clamp(min=1e-6)
        return bool((one - other).abs().max() <= TOLERANCE[self.dtype] * scale)

    # ----------------------------------------------------------------------------------- generating

    def generate(
        self,
        prompts: list[list[int]],
        max_new: int,
        choose: Callable[[Tensor, Tensor], Tensor],
        end: list[int],
        *,
        cached: bool,
    ) -> None:
        """transformers' own loop over left-padded prompts, with the model's own cache.

        Args:
            choose: gets ids [n, t] so far and fp32 logits [n, vocabulary]; the largest of what it returns goes in next.
                It may be called once more than needed.
            end: token ids; the loop stops once every row has said one.
            cached: with the model's own cache, else by whole passes.
        """
        from transformers import GenerationConfig, LogitsProcessorList

        width = max(map(len, prompts))
        ids = torch.zeros(len(prompts), width, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for i, prompt in enumerate(prompts):
            ids[i, width - len(prompt) :] = torch.tensor(prompt)
            mask[i, width - len(prompt) :] = 1
        settings = GenerationConfig(
            max_new_tokens=max_new,
            do_sample=False,
            use_cache=cached,
            eos_token_id=end or None,
            pad_token_id=end[0] if end else 0,
        )
        # what the model's own settings leave open would come from them: penalties, forced tokens
        before, self.module.generation_config = self.module.generation_config, GenerationConfig()
        try:
            with torch.inference_mode():
                self.module.generate(
                    ids.to(self.device),
                    attention_mask=mask.to(self.device),
                    generation_config=settings,
                    logits_processor=LogitsProcessorList([choose]),
                )
        finally:
            self.module.generation_config = before


def find_blocks(module: Any) -> tuple[list[Any], Any]:
    """A model's decoder blocks in order, and the module that has them.

    Looks under the model's text decoder for a list as long as `num_hidden_layers`: `layers`, `h`, `blocks`, ... first,
    the outermost first.

    Raises:
        ModelLoadError: there is none.
    """
    module = _unwrapped(module)
    config = module.config.get_text_config()
    count = config.num_hidden_layers
    decoder = module.get_decoder() if hasattr(module, "get_decoder") else None
    for root in (decoder, module):
        if root is None:
            continue
        lists = [
            (name.rpartition(".")[2] not in _LISTS, name.count("."), name, found)
            for name, found in root.named_modules()
            if isinstance(found, nn.ModuleList) and len(found) >= count
        ]
        if lists:
            _, _, name, found = min(lists, key=lambda one: one[:2])
            return list(found[:count]), root.get_submodule(name.rpartition(".")[0])
    raise ModelLoadError(
        f"{config.model_type} ({type(module).__name__}): no list of {count} decoder blocks in it; it cannot be "
        "steered here"
    )


def long_after(config: Any) -> int | None:
    """The length in tokens beyond which all positions of a sequence are turned by other frequencies (long-rope, dynamic
    scaling); None where a position's rotation does not depend on the sequence's length.
    """
    declared = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = [one for one in (declared, *declared.values()) if isinstance(one, dict)]
    for one in kinds:
        if one.get("rope_type", one.get("type")) in ("longrope", "su", "dynamic"):
            limit = one.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", None
            )
            return int(limit or config.max_position_embeddings)
    return None


def probe_length(module: Any, config: Any) -> tuple[int, bool]:
    """Tokens of a prompt to try a model on, and whether they go well beyond every window and chunk that it names.

    They do where that is cheap; the original positions of a long-rope model are not left.
    """
    cost = 4.0 * sum(one.numel() for one in module.parameters())  # of a token, both ways
    device = next(module.parameters()).device.type
    length = int(min(_MOST, max(_LEAST, _CHEAP / cost)))
    windows = _windows(config.to_dict()) | {
        value
        for part in module.modules()
        if not isinstance(part, torch.nn.ModuleList)
        for value in _windows(vars(part))
    }
    wanted = max([length, *(window + _BEYOND for window in windows)])
    limit = long_after(config)
    if limit is not None:
        wanted = min(wanted, max(limit - _BEYOND, _SHORT))
    if wanted * cost > _AFFORDED.get(device, 3e11):
        wanted = length
    return wanted, all(window < wanted - _BEYOND // 2 for window in windows)


def _windows(values: dict[str, Any]) -> set[int]:
    """Numbers of tokens under names such as sliding_window, attention_chunk_size, at any depth."""
    found: set[int] = set()
    for name, value in values.items():
        if isinstance(value, dict):
            found |= _windows(value)
        elif (
            _WINDOWS.search(str(name))
            and isinstance(value, int)
            and not isinstance(value, bool)
            and value > 0
        ):
            found.add(value)
    return found


def probe_ids(config: Any, length: int, device: Any) -> Tensor:
    """int64 [1, length]: ids away from the ends of the vocabulary, where special tokens are."""
    vocabulary = config.vocab_size
    first, span = (100, 1000) if vocabulary > 1200 else (1, vocabulary - 1)
    return (first + (torch.arange(length, device=device) * 389 + 7) % span)[None]


def _unwrapped(causal_lm: Any) -> Any:
    return causal_lm.get_base_model() if hasattr(causal_lm, "get_base_model") else causal_lm


def _inner_modules(layer: Any) -> dict[str, Any]:
    """What may be a block's attention and MLP as they are added: the parts themselves, or norms behind them."""
    if hasattr(layer, "post_feedforward_layernorm"):
        return {"attention": layer.post_attention_layernorm, "mlp": layer.post_feedforward_layernorm}
    names = {"attention": _ATTENTION, "mlp": _MLP}
    found = {
        kind: next((part for name in of if isinstance(part := getattr(layer, name, None), nn.Module)), None)
        for kind, of in names.items()
    }
    return {kind: part for kind, part in found.items() if part is not None}


def _adds_up(seen: dict[str, Tensor]) -> bool:
    output = seen["output"].float()
    error = (output - sum(seen[kind].float() for kind in INNER) - seen["input"].float()).abs().max()
    return bool(error <= TOLERANCE[seen["output"].dtype] * output.abs().max().clamp(min=1e-6))


_KNOWN: "weakref.WeakKeyDictionary[Any, Plain]" = weakref.WeakKeyDictionary()


def plain_of(model: LoadedModel) -> Plain:
    """The model's general path, found once for the adapters that are on it.

    Raises:
        ModelLoadError: it has no list of blocks, or they are not run once each.
    """
    module = model.module
    if module not in _KNOWN or _KNOWN[module].stale:
        _KNOWN[module] = Plain(module)
    return _KNOWN[module]
