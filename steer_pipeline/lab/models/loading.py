"""Loads a language model once: weights, tokenizer, end tokens, adapters, and the identity of them all.

In: a ModelSpec of the catalogue and the project root. Out: a LoadedModel for the Torch or the MLX back end, or a
model whose new LoRA trains. One base stays in memory; models that differ in their adapters share it.
`load_tokenizer` gives the same tokenizer without importing torch, for stages that only count tokens.
"""

import json
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from steer_pipeline.catalogue.specs import ModelSpec
from steer_pipeline.lab.models.identity import (
    ModelIdentity,
    ModelLoadError,
    adapter_folders,
    folder_identity,
    local_folder,
    model_identity,
    model_source,
    name_of,
    tokenizer_identity,
)
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.prompts import pinned


@dataclass
class _Resident:
    """The base in memory and the models on it."""

    spec: ModelSpec
    home: Path
    identity: ModelIdentity
    held: Any
    config: dict[str, Any]
    dtype: str
    device: str
    backend: str
    models: dict[tuple[ModelSpec, tuple[str, ...]], LoadedModel] = field(default_factory=dict)


_PROBE_TEXT = "A storm closed 14 schools."
_TOKENIZER_CURE = "save one beside the weights (tokenizer.json and tokenizer_config.json)"

_residents: list[_Resident] = []  # at most one


def load_model(spec: ModelSpec, home: Path) -> LoadedModel:
    """Loads what `spec` names; relative directories start at `home`. The last base stays loaded.

    A base whose files have changed is loaded anew; a model with other adapters on the same base costs only these.

    Raises:
        ModelLoadError: no such directory, an incomplete one, an unknown device, an adapter that does not fit or
            changes nothing, or files that change while they are loaded.
    """
    folders = adapter_folders(spec, home)
    if folders and spec.backend == "mlx":
        raise ModelLoadError(
            f"adapter {folders[0]}: the mlx back end runs no adapters; merge it into its base (merge_and_unload of "
            "PEFT) and give the merged directory as model.path, or set model.backend: torch"
        )
    base = spec.model_copy(update={"adapter": None})
    known = model_identity(base, home)
    resident = next(
        (one for one in _residents if (one.spec, one.home, one.identity) == (base, home, known)), None
    )
    if resident is None:
        forget_models()  # before the next one comes: two may not fit
        resident = _load_base(base, home)
        _residents[:] = [resident]
    identity = folder_identity(_folder(base, home), folders)
    if identity is None or identity.on_base() != resident.identity:
        raise _changed(spec)
    key = (spec, identity.adapters)
    if key not in resident.models:
        resident.models[key] = _on_base(resident, spec, identity, folders)
    return resident.models[key]


def forget_models() -> None:
    """Frees the base that is kept, once nobody else holds a model of it."""
    _residents.clear()


def load_for_training(spec: ModelSpec, home: Path, config: Any) -> tuple[Any, ModelIdentity]:
    """A PEFT model whose fresh LoRA "default" trains, fp32, on the frozen model that `spec` names (its adapters too).

    It is a copy of its own: what `load_model` keeps is neither changed nor freed (`forget_models` frees it, where
    both do not fit). Store the result with `save_pretrained(folder, selected_adapters=["default"])`.

    Args:
        config: peft.LoraConfig, with task_type "CAUSAL_LM".

    Returns:
        The PEFT model in training mode, and the identity of the model below the new adapter.

    Raises:
        ModelLoadError: as `load_model`, or an MLX spec.
    """
    from steer_pipeline.lab.models.adapters import Adapter, add_trainable, attach

    if spec.backend == "mlx":
        raise ModelLoadError("model.backend mlx trains no adapters here; set model.backend: torch")
    folders = adapter_folders(spec, home)
    resident = _load_base(spec.model_copy(update={"adapter": None}), home, switched=False)
    identity = folder_identity(_folder(spec, home), folders)
    if identity is None or identity.on_base() != resident.identity:
        raise _changed(spec)
    module = resident.held
    for index, (folder, sha) in enumerate(zip(folders, identity.adapters, strict=True)):
        module = attach(module, Adapter(folder, sha), f"frozen_{index}")
    return add_trainable(module, config).to(resident.device).train(), identity


@dataclass(frozen=True)
class _Live:
    """In place of a switch, for a model whose adapters nobody else switches."""

    module: Any

    def model(self, _adapters: tuple[Any, ...]) -> Any:
        return self.module


def as_loaded(model: Any, spec: ModelSpec, home: Path, identity: ModelIdentity) -> LoadedModel:
    """A model of `load_for_training` as engine and hooks take it: it says what its weights are at the time.

    Args:
        identity: of the model below the new adapter, as `load_for_training` gives it.
    """
    from steer_pipeline.lab.models.proof import path_of

    weight = model.get_input_embeddings().weight
    text = model.config.get_text_config()
    dtype, device = str(weight.dtype).removeprefix("torch."), weight.device.type
    backend = path_of(model, spec.path, (identity.base, dtype, device))
    resident = _Resident(spec, home, identity, _Live(model), _settings(text), dtype, device, backend)
    return _on_base(resident, spec, identity, [])


def _load_base(spec: ModelSpec, home: Path, switched: bool = True) -> _Resident:
    source = model_source(spec, home)
    held: Any
    before = model_identity(spec, home) if Path(source).is_dir() else None
    if spec.backend == "mlx":
        from steer_pipeline.lab.models.mlx import load_mlx

        held, config, dtype = load_mlx(source, spec)
        device = "mlx"
    else:
        held, config, dtype, device = _load_torch(source, spec)
        if switched:
            from steer_pipeline.lab.models.adapters import Switch

            held = Switch(held, device)
    load_tokenizer(spec, home)  # where it is downloaded, before the files are hashed
    identity = folder_identity(_folder(spec, home))
    if identity is None:
        raise ModelLoadError(
            f"model {source}: no weights (model.safetensors, pytorch_model.bin) where it was loaded"
        )
    if before not in (None, identity):
        raise _changed(spec)
    backend: str = spec.backend
    if backend == "torch" and switched:
        from steer_pipeline.lab.models.proof import path_of

        backend = path_of(held.model(()), spec.path, (identity.base, dtype, device))
    return _Resident(spec, home, identity, held, config, dtype, device, backend)


def _on_base(
    resident: _Resident, spec: ModelSpec, identity: ModelIdentity, folders: list[Path]
) -> LoadedModel:
    adapters: tuple[Any, ...] = ()
    if folders:
        from steer_pipeline.lab.models.adapters import Adapter

        adapters = tuple(Adapter(*one) for one in zip(folders, identity.adapters, strict=True))
    config, tokenizer = resident.config, load_tokenizer(spec, resident.home)
    model = LoadedModel(
        name=spec.path,
        known_as=name_of(spec, resident.home),
        revision=spec.revision,
        backend=resident.backend,
        dtype=resident.dtype,
        device=resident.device,
        n_blocks=config["num_hidden_layers"],
        hidden_size=config["hidden_size"],
        tokenizer=tokenizer,
        spec=spec,
        eos_ids=_eos_ids(_folder(spec, resident.home), config, tokenizer, spec.chat_template),
        identity=identity,
        max_positions=int(config.get("max_position_embeddings") or 1 << 30),
        adapters=adapters,
        held=resident.held,
    )
    _ = model.module  # an adapter that does not fit is told now
    return model


def _changed(spec: ModelSpec) -> ModelLoadError:
    return ModelLoadError(f"model {spec.path}: its files changed while it was loaded; load it again")


def _folder(spec: ModelSpec, home: Path) -> Path:
    """Where the files of a model that has been loaded lie."""
    source = model_source(spec, home)
    folder = local_folder(source, spec.revision)
    if folder is None:
        raise ModelLoadError(
            f"model {source}: loaded, but not in the hub cache (HF_HUB_CACHE); give a directory"
        )
    return folder


def load_tokenizer(spec: ModelSpec, home: Path) -> Any:
    """The model's fast tokenizer. Does not import torch where the model ships a tokenizer.json.

    Raises:
        ModelLoadError: the directory or id has no tokenizer, or one that makes no tokens of a plain sentence.
    """
    source = model_source(spec, home)
    folder = local_folder(source, spec.revision)
    tokenizer = _tokenizer(source, spec.revision, tokenizer_identity(folder) if folder else "")
    return pinned(tokenizer, spec.date)


@lru_cache(maxsize=4)
def _tokenizer(source: str, revision: str | None, sha: str) -> Any:
    """`sha` is that of the files, so that changed ones are read again."""
    from transformers import PreTrainedTokenizerFast

    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(source, revision=revision)
    except (OSError, ValueError):
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
        except (OSError, ValueError, KeyError) as error:
            raise ModelLoadError(f"model {source}: no tokenizer ({error}); {_TOKENIZER_CURE}") from error
    # a directory without one gives an empty tokenizer of the config's type, without a word
    if not tokenizer.encode(_PROBE_TEXT, add_special_tokens=False):
        raise ModelLoadError(
            f"model {source}: its tokenizer makes no tokens of {_PROBE_TEXT!r} (vocabulary of {len(tokenizer)}), as "
            f"where there is no tokenizer or one without a vocabulary; {_TOKENIZER_CURE}"
        )
    return tokenizer


def _eos_ids(folder: Path, config: dict[str, Any], tokenizer: Any, chat: bool) -> frozenset[int]:
    """What configs and tokenizer declare, and with a chat template what ends a turn in it, whatever they say."""
    from steer_pipeline.lab.models.prompts import template_end

    generation = folder / "generation_config.json"
    declared = json.loads(generation.read_text()).get("eos_token_id") if generation.is_file() else None
    if declared is None:
        declared = config.get("eos_token_id")
    ids = set(declared if isinstance(declared, list) else [] if declared is None else [declared])
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    if chat and (end := template_end(tokenizer)) is not None:
        ids.add(end)
    if not ids:
        raise ModelLoadError(
            f"model {folder}: no eos_token_id in generation_config, config or tokenizer; add one"
        )
    return frozenset(ids)


def pick_device(wanted: str) -> str:
    import torch

    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wanted == "auto":
        return "cuda" if present["cuda"] else "mps" if present["mps"] else "cpu"
    if not present[wanted]:
        raise ModelLoadError(
            f"model.device is {wanted}, which this machine does not have; set it to auto or cpu"
        )
    return wanted


def _load_torch(source: str, spec: ModelSpec) -> tuple[Any, dict[str, Any], str, str]:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    device = pick_device(spec.device)
    # "auto" is the checkpoint's own type on accelerators; on CPUs bf16 is slower than fp32 and fp16 is not
    # exact
    dtype: Any = "auto" if spec.dtype == "auto" else getattr(torch, spec.dtype)
    if spec.dtype == "auto" and device == "cpu":
        dtype = torch.float32
    logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(source, revision=spec.revision)
        text = config.get_text_config()
        softcap = getattr(text, "attn_logit_softcapping", None)
        load = partial(AutoModelForCausalLM.from_pretrained, source, revision=spec.revision, dtype=dtype)
        try:
            module = load(attn_implementation="eager" if softcap is not None else "sdpa")
        except ValueError as error:
            if "attn_implementation" not in str(error):
                raise
            module = load(attn_implementation="eager")  # this architecture has no other
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ModelLoadError(
            f"model {source}: cannot be loaded as a causal language model: {error}"
        ) from error
    finally:
        logging.enable_progress_bar()
    module = module.to(device).eval().requires_grad_(False)
    name = str(next(module.parameters()).dtype).removeprefix("torch.")
    return module, _settings(text), name, device


def _settings(text: Any) -> dict[str, Any]:
    """Of a transformers configuration."""
    # some call them otherwise (GPT-2's n_layer), and answer to these names all the same
    names = ("num_hidden_layers", "hidden_size", "max_position_embeddings")
    shape = {key: value for key in names if (value := getattr(text, key, None)) is not None}
    settings: dict[str, Any] = text.to_dict()
    return settings | shape
