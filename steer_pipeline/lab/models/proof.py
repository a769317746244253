"""Which path runs a model: the blocks one by one (fast), where a few tokens prove that this is the model, or its own
forward with hooks (the general path).

In: a Torch model as it was loaded. Out: why not the fast path, or nothing. The proof runs a prompt longer than every
window and chunk that the model names, where its size allows, then decodes three tokens, and compares each block's
states and the logits with the model's own forward. It asks for one attention call a block and for keys and values of
one width, which the engine stores.
"""

import logging
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from steer_pipeline.lab.models.blocks import Blocks, Call, causal, masked
from steer_pipeline.lab.models.loaded import FAST, GENERAL
from steer_pipeline.lab.models.plain import TOLERANCE, probe_ids, probe_length

log = logging.getLogger(__name__)

_DECODED = 3  # tokens after the prompt, one by one
_COMPARED = 16  # last positions of the prompt
# Whose windows transformers hands to attention itself; the tests go beyond the window of small ones.
_TRUSTED = {
    *("llama", "mistral", "mixtral", "ministral", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "phi3"),
    *("gemma", "gemma2", "gemma3", "gemma3_text", "olmo2", "olmo3", "starcoder2", "smollm3"),
}
_verdicts: dict[tuple[str, ...], str] = {}


def path_of(module: Any, name: str, known: tuple[str, ...]) -> str:
    """`FAST` or `GENERAL`; the second with one warning a process.

    Args:
        name: of the model, for the warning.
        known: what decides the verdict (identity, dtype, device); it is asked for once.
    """
    if known not in _verdicts:
        _verdicts[known] = reason = why_not_fast(module)
        if reason:
            log.warning(
                "model %s (%s): %s. It runs through its own forward with hooks (back end %s): the numbers of plain "
                "transformers, slower, for nothing is shared between the variants of a row",
                name,
                module.config.get_text_config().model_type,
                reason,
                GENERAL,
            )
    return GENERAL if _verdicts[known] else FAST


def why_not_fast(module: Any) -> str:
    """Why the model's blocks cannot be run one by one; empty where a few tokens prove that they can."""
    config = module.config.get_text_config()
    try:
        blocks = Blocks(module)
        _ = config.num_attention_heads, config.num_key_value_heads
    except (AttributeError, TypeError, KeyError) as error:
        return f"not built like Llama ({error})"
    length, beyond = probe_length(module, config)
    if not beyond:
        if config.model_type not in _TRUSTED:
            return (
                "its window is too long to be tried here, and its type is not among those known to hand it on"
            )
        log.info("%s: windows too long to be tried here; trusted by its type", config.model_type)
    try:
        return _compared(module, blocks, length)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        return f"its blocks cannot be run one by one ({type(error).__name__}: {_first_line(error)})"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:160]


def _compared(module: Any, blocks: Blocks, length: int) -> str:
    ids = probe_ids(blocks.config, length, blocks.device)
    states, logits = _of_model(module, blocks, ids)
    calls: list[Call] = []
    ours, our_logits = _of_blocks(blocks, ids, calls)
    n = len(blocks.layers)
    asked = [call.block for call in calls]
    if asked != list(range(n)) * (1 + _DECODED):
        return "its blocks do not each ask attention once"
    shapes = {(tuple(call.key.shape[1::2]), tuple(call.value.shape[1::2])) for call in calls}
    if len(shapes) > 1 or any(key != value for key, value in shapes):
        return f"keys and values have several shapes ({sorted(shapes)})"
    if not logits.isfinite().all():
        return ""  # NaN in the weights: whoever generates or reads finds it and names the row
    allowed = TOLERANCE[blocks.dtype]
    for block in range(n):
        for what, part in (("", slice(0, -_DECODED)), (", token by token,", slice(-_DECODED, None))):
            error = _error(states[block][part], ours[block][part])
            if not error <= allowed:
                return f"run one by one{what} the states after block {block} differ by {error:.2g} of their length"
    scale = logits.abs().max().clamp(min=1e-6)
    error = float((logits - our_logits).abs().amax(-1).median() / scale)
    return "" if error <= allowed else f"run block by block, its logits differ by {error:.2g} of the largest"


def _error(expected: Tensor, got: Tensor) -> float:
    """The median over positions, since a router may send a token elsewhere by rounding."""
    expected, got = expected.float(), got.float()
    return float(((expected - got).norm(dim=-1) / expected.norm(dim=-1).clamp(min=1e-9)).median())


def _of_model(module: Any, blocks: Blocks, ids: Tensor) -> tuple[list[Tensor], Tensor]:
    """By block its own states at the positions compared, [positions, hidden]; logits of the last of them."""
    states: list[Tensor] = []

    def note(_module: Any, _inputs: Any, output: Any) -> None:
        states.append((output[0] if isinstance(output, tuple) else output)[0, -_COMPARED - _DECODED :])

    with ExitStack() as stack, torch.inference_mode():
        for layer in blocks.layers:
            stack.callback(layer.register_forward_hook(note).remove)
        logits = module(input_ids=ids, use_cache=False).logits[0, -_DECODED - 1 :].float()
    return states, logits


def _of_blocks(blocks: Blocks, ids: Tensor, calls: list[Call]) -> tuple[list[Tensor], Tensor]:
    """The same, run one by one: the prompt at once, then tokens against stored keys and values."""
    at = torch.arange(ids.shape[1], device=ids.device)
    prompt = ids.shape[1] - _DECODED
    stored: dict[int, tuple[Tensor, Tensor]] = {}

    def whole(call: Call) -> Tensor:
        calls.append(call)
        stored[call.block] = call.key, call.value
        return causal(call)

    def one_more(call: Call) -> Tensor:
        calls.append(call)
        key, value = (
            torch.cat([before, new], dim=2)
            for before, new in zip(stored[call.block], (call.key, call.value), strict=True)
        )
        stored[call.block] = key, value
        distance = torch.arange(key.shape[2] - 1, -1, -1, device=key.device)
        seen = distance < (call.window or key.shape[2])
        return masked(
            Call(call.block, call.query, key, value, call.scale, call.window, call.softcap), seen[None]
        )

    states: list[list[Tensor]] = [[] for _ in blocks.layers]
    logits = []
    with blocks.ready():
        for part, attend in [(at[:prompt], whole)] + [(one[None], one_more) for one in at[prompt:]]:
            hidden = blocks.embed(ids[:, part])
            rotary = blocks.rotary(hidden, part[None])
            for block in range(len(blocks.layers)):
                hidden = blocks.run(block, hidden, rotary, attend)
                states[block].append(hidden[0, -_COMPARED:])
            logits.append(blocks.logits(hidden[:, -1])[0])
    return [torch.cat(parts) for parts in states], torch.stack(logits)
