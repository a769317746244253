"""LoRA adapters on a base model that stays in memory: which are on it, switched as models are asked for.

In: a transformers model and adapter directories. Out: the model with exactly these adapters, or a sentence that says
why they do not fit. Adapters are attached by PEFT and unloaded again, so that the base without any is the model that
was loaded, module by module, and memory holds the adapters of one model at a time. Their weights stay fp32.
"""

import pickle
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steer_pipeline.lab.models.identity import ModelLoadError, adapter_identity, short_sha

_SAFE_START = (
    True,
    False,
    "gaussian",
    "orthogonal",
    "eva",
)  # ways to begin that leave the base's weights alone
_SHOWN = 3  # keys in messages
_SHOWN_CHARACTERS = 300  # of an error of PEFT
_PROBE_TOKENS = 64


class AdapterHasNoEffect(ModelLoadError):
    """An adapter changes no logit. The message names it."""


class AdaptersSwitched(RuntimeError):
    """Something that began under one set of adapters went on under another. The message says what to do."""


@dataclass(frozen=True)
class Adapter:
    """A PEFT directory and the identity of its content."""

    folder: Path
    sha: str


class Switch:
    """A model in memory, with the adapters of one LoadedModel on it at a time."""

    def __init__(self, base: Any, device: str):
        self._base, self._device = base, device
        self._model: Any = base  # the base, or PEFT's wrapper of it
        self._on: tuple[Adapter, ...] = ()
        self._shown: set[tuple[Adapter, ...]] = set()  # stacks whose every adapter was seen to change logits
        _EPOCHS[base] = [0]

    def model(self, adapters: tuple[Adapter, ...]) -> Any:
        """The model with exactly these adapters on, in this order; other adapters go.

        Raises:
            ModelLoadError: one does not fit the base, or its files have changed since its identity was taken.
        """
        if adapters != self._on:
            self._unload()
            try:
                # Whoever asks may be in inference mode; weights made there could never be differentiated through.
                with torch.inference_mode(False):
                    for one in adapters:
                        self._add(one)
            except BaseException:
                self._unload()
                raise
        return self._model

    def _add(self, adapter: Adapter) -> None:
        stack = (*self._on, adapter)
        before = None if stack in self._shown else self._logits()
        self._model = attach(self._model, adapter, f"adapter_{len(self._on)}")
        self._model.to(self._device).eval().requires_grad_(False)
        self._on = stack
        _EPOCHS[self._base][0] += 1
        if before is not None:
            if torch.equal(before, self._logits()):
                raise AdapterHasNoEffect(
                    f"adapter {adapter.folder}: changes no logit; train it, or leave it out"
                )
            self._shown.add(stack)

    def _unload(self) -> None:
        if self._model is not self._base:
            _strip(self._base)
            self._model, self._on = self._base, ()
            _EPOCHS[self._base][0] += 1

    def _logits(self) -> Tensor:
        """[t, vocabulary] of tokens from the whole vocabulary, so that each of many experts sees some."""
        vocabulary = self._base.get_input_embeddings().weight.shape[0]
        ids = torch.linspace(0, vocabulary - 1, _PROBE_TOKENS, device=self._device).long()
        with torch.inference_mode():
            return self._model(input_ids=ids[None], use_cache=False).logits[0]


_EPOCHS: "weakref.WeakKeyDictionary[Any, list[int]]" = weakref.WeakKeyDictionary()


def switches_of(model: Any) -> list[int]:
    """One number, shared and changed by the model's switch: how often adapters came or went."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return _EPOCHS.setdefault(base, [0])


def attach(model: Any, adapter: Adapter, name: str) -> Any:
    """PEFT's wrapper of `model` with one more adapter, active beside those that are on it already.

    Raises:
        ModelLoadError: it is no LoRA, its keys or shapes are not those of the model, it changes weights of the base
            itself, its lora_B are zero, or its files have changed since its identity was taken.
    """
    from peft import PeftModel, set_peft_model_state_dict

    where = f"adapter {adapter.folder}"
    config, tensors = adapter_config(adapter.folder), adapter_tensors(adapter.folder)
    if adapter_identity(adapter.folder) != adapter.sha:
        raise ModelLoadError(
            f"{where}: its files have changed since {short_sha(adapter.sha)}; load the model again"
        )
    second = [tensor for key, tensor in tensors.items() if ".lora_B." in key or ".lora_embedding_B" in key]
    if second and not any(tensor.any() for tensor in second):
        raise AdapterHasNoEffect(
            f"{where}: its lora_B are all zero, it was never trained; train it, or leave it out"
        )
    try:
        with torch.random.fork_rng(devices=[]):  # PEFT draws a start that is overwritten
            if isinstance(model, PeftModel):
                model.add_adapter(name, config)
            else:
                model = PeftModel(model, config, name)
        model.base_model._cast_adapter_dtype(adapter_name=name, autocast_adapter_dtype=True)  # fp32
        _require_no_base_weights(model, name, tensors, where)
        loaded = set_peft_model_state_dict(model, tensors, adapter_name=name)
        missing = [key.replace(f".{name}", "") for key in loaded.missing_keys if f".{name}" in key]
        _require_all_keys(missing, list(loaded.unexpected_keys), model, where)
        model.base_model.set_adapter([*model.base_model.active_adapters[: len(model.peft_config) - 1], name])
    except BaseException as error:
        _strip(_base(model))
        if isinstance(error, ModelLoadError) or not isinstance(error, RuntimeError | ValueError | KeyError):
            raise
        message = " ".join(str(error).split())[:_SHOWN_CHARACTERS]
        raise ModelLoadError(f"{where} does not fit {type(_base(model)).__name__}: {message}") from error
    return model


def add_trainable(model: Any, config: Any) -> Any:
    """PEFT's wrapper of `model` with a fresh adapter "default" of fp32 parameters, the only ones that train.

    Adapters that are on it stay active and frozen.

    Args:
        config: a LoraConfig.
    """
    from peft import PeftModel, get_peft_model

    if not isinstance(model, PeftModel):
        return get_peft_model(model, config)
    before = list(model.base_model.active_adapters)
    model.add_adapter("default", config)
    model.base_model._cast_adapter_dtype(adapter_name="default", autocast_adapter_dtype=True)
    model.base_model.set_adapter([*before, "default"])
    model.set_requires_grad(before, requires_grad=False)
    model.active_adapter = "default"
    return model


def _strip(base: Any) -> None:
    """Puts the base's own modules back, wherever PEFT stopped. Its `unload` would leave trained copies there."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for parent in list(base.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, AuxiliaryTrainingWrapper):
                setattr(parent, name, child.original_module)
            elif isinstance(child, BaseTunerLayer):
                setattr(parent, name, child.get_base_layer())
    base.__dict__.pop("peft_config", None)


def _base(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def adapter_config(folder: Path) -> Any:
    from peft import PeftConfig

    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (ValueError, KeyError, TypeError) as error:
        raise ModelLoadError(f"adapter {folder}: adapter_config.json cannot be read: {error}") from error
    for wrong, what in (
        (
            config.peft_type != "LORA",
            f"a {getattr(config.peft_type, 'value', config.peft_type)} adapter, not LoRA",
        ),
        (getattr(config, "bias", "none") != "none", "it trains biases of the base itself"),
        (
            getattr(config, "init_lora_weights", True) not in _SAFE_START,
            f"it changes the base's weights where it begins ({getattr(config, 'init_lora_weights', None)})",
        ),
    ):
        if wrong:
            raise ModelLoadError(
                f"adapter {folder}: {what}, so it cannot be switched on and off; merge it into its base "
                "(merge_and_unload of PEFT) and give the merged directory as model.path"
            )
    config.inference_mode = True
    return config


def adapter_tensors(folder: Path) -> dict[str, Tensor]:
    """The adapter's weights on the CPU, halves as fp32. Pickles are read as plain tensors only."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if (folder / "adapter_model.safetensors").is_file():
            tensors = load_file(folder / "adapter_model.safetensors")
        else:
            tensors = torch.load(folder / "adapter_model.bin", map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ModelLoadError(
            f"adapter {folder}: its weights cannot be read as plain tensors "
            f"({str(error).splitlines()[0]}); save it again with save_pretrained"
        ) from error
    half = (torch.float16, torch.bfloat16)
    return {key: tensor.float() if tensor.dtype in half else tensor for key, tensor in tensors.items()}


def _require_no_base_weights(model: Any, name: str, tensors: dict[str, Tensor], where: str) -> None:
    """What would be loaded into the base and stay there, such as resized embeddings."""
    from peft import get_peft_model_state_dict

    own = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    strange = [key for key in tensors if key not in own and "lora_" not in key]
    if strange:
        raise ModelLoadError(
            f"{where}: holds weights of the base itself ({_some(strange)}); merge it into its base and give the "
            "merged directory as model.path"
        )


def _require_all_keys(missing: Sequence[str], unexpected: Sequence[str], model: Any, where: str) -> None:
    message = [
        f"{len(keys)} {what} ({_some(keys)})"
        for what, keys in (("missing", missing), ("unexpected", unexpected))
        if keys
    ]
    if message:
        raise ModelLoadError(
            f"{where}: its keys are not those of {type(_base(model)).__name__}: {' and '.join(message)}; it belongs to "
            "another model or class, or was saved in part: rename its keys or save it from this class"
        )


def _some(keys: Sequence[str]) -> str:
    return ", ".join(sorted(keys)[:_SHOWN]) + (", …" if len(keys) > _SHOWN else "")
