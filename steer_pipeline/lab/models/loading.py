"""Loads a language model once: weights, tokenizer, end tokens, and a cheap identity of the weights.

In: a ModelSpec of the catalogue and the project root. Out: a LoadedModel for the Torch or the MLX back end.
`load_tokenizer` gives the same tokenizer without importing torch, for stages that only count tokens.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from steer_pipeline.catalogue.models import ModelSpec

_EDGE_BYTES = 4096  # read at both ends of each weight file for its identity


class ModelLoadError(ValueError):
    """A model cannot be loaded. The message names the path or id, what is wrong and the cure."""


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model ready to run.

    Attributes:
        name: the spec's path or hub id.
        backend: "torch" or "mlx".
        dtype: "float32", "bfloat16" or "float16": of weights and residual stream.
        device: "cpu", "cuda" or "mps"; "mlx" for MLX.
        module: the transformers model (with its PEFT adapter, if any) or the mlx-lm model.
        eos_ids: every token id that ends a sequence.
        weights_sha: hex identity of config and weights (names, sizes, first and last bytes; adapter too).
        max_positions: longest sequence that the model's positions allow.
    """

    name: str
    revision: str | None
    backend: str
    dtype: str
    device: str
    n_blocks: int
    hidden_size: int
    tokenizer: Any
    module: Any
    spec: ModelSpec
    eos_ids: frozenset[int]
    weights_sha: str
    max_positions: int


@lru_cache(maxsize=1)
def load_model(spec: ModelSpec, home: Path) -> LoadedModel:
    """Loads what `spec` names; relative directories start at `home`. The last model stays loaded.

    Raises:
        ModelLoadError: no such directory, an incomplete one, an unknown device, or an adapter that does not
        fit.
    """
    source = model_source(spec, home)
    adapter = _adapter_dir(spec, home)
    tokenizer = load_tokenizer(spec, home)
    if spec.backend == "mlx":
        from steer_pipeline.lab.models.mlx import load_mlx

        module, config, dtype = load_mlx(source, spec, adapter)
        device = "mlx"
    else:
        module, config, dtype, device = _load_torch(source, spec, adapter)
    folder = _local_folder(source, spec.revision)
    return LoadedModel(
        name=spec.path,
        revision=spec.revision,
        backend=spec.backend,
        dtype=dtype,
        device=device,
        n_blocks=config["num_hidden_layers"],
        hidden_size=config["hidden_size"],
        tokenizer=tokenizer,
        module=module,
        spec=spec,
        eos_ids=_eos_ids(folder, config, tokenizer),
        weights_sha=weights_identity([folder, *([adapter] if adapter else [])]),
        max_positions=int(config.get("max_position_embeddings") or 1 << 30),
    )


def load_tokenizer(spec: ModelSpec, home: Path) -> Any:
    """The model's fast tokenizer. Does not import torch where the model ships a tokenizer.json.

    Raises:
        ModelLoadError: the directory or id has no tokenizer.
    """
    return _tokenizer(model_source(spec, home), spec.revision)


@lru_cache(maxsize=4)
def _tokenizer(source: str, revision: str | None) -> Any:
    from transformers import PreTrainedTokenizerFast

    try:
        return PreTrainedTokenizerFast.from_pretrained(source, revision=revision)
    except (OSError, ValueError):
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(source, revision=revision)
        except (OSError, ValueError, KeyError) as error:
            raise ModelLoadError(
                f"model {source}: no tokenizer ({error}); save one beside the weights "
                "(tokenizer.json and tokenizer_config.json)"
            ) from error


def model_source(spec: ModelSpec, home: Path) -> str:
    """An existing directory as absolute path, or the hub id.

    Raises:
        ModelLoadError: the path is neither, or its directory has no config.json.
    """
    local = home / spec.path
    if local.is_dir():
        if not (local / "config.json").is_file():
            raise ModelLoadError(
                f"model {local}: no config.json; give the directory that save_pretrained wrote"
            )
        return str(local.resolve())
    looks_like_hub_id = spec.path.count("/") <= 1 and not spec.path.startswith((".", "/", "~"))
    if not looks_like_hub_id:
        raise ModelLoadError(
            f"model {spec.path}: no such directory under {home}; correct model.path in the profile"
        )
    return spec.path


_CONFIGS = {"config.json", "generation_config.json", "adapter_config.json"}


def weights_identity(folders: list[Path]) -> str:
    """sha256 over the names, sizes and edges of configs and weight files; reads a few kB however large they
    are.
    """
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.iterdir()):
            described = path.name in _CONFIGS or path.name.endswith(".index.json")
            if not described and path.suffix not in {".safetensors", ".bin"}:
                continue
            size = path.stat().st_size
            with path.open("rb") as file:
                head = file.read(_EDGE_BYTES)
                file.seek(max(0, size - _EDGE_BYTES))
                tail = file.read()
            digest.update(f"{path.name}:{size}:".encode() + head + tail)
    return digest.hexdigest()


def _adapter_dir(spec: ModelSpec, home: Path) -> Path | None:
    if spec.adapter is None:
        return None
    folder = (home / spec.adapter).resolve()
    if not (folder / "adapter_config.json").is_file():
        raise ModelLoadError(f"adapter {folder}: no adapter_config.json; give a PEFT adapter directory")
    return folder


def _local_folder(source: str, revision: str | None) -> Path:
    """Where the files of a model lie: the directory itself or the hub cache's snapshot."""
    if Path(source).is_dir():
        return Path(source)
    from transformers.utils import cached_file

    return Path(cached_file(source, "config.json", revision=revision)).parent


def _eos_ids(folder: Path, config: dict[str, Any], tokenizer: Any) -> frozenset[int]:
    generation = folder / "generation_config.json"
    declared = json.loads(generation.read_text()).get("eos_token_id") if generation.is_file() else None
    if declared is None:
        declared = config.get("eos_token_id")
    ids = set(declared if isinstance(declared, list) else [] if declared is None else [declared])
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    if not ids:
        raise ModelLoadError(
            f"model {folder}: no eos_token_id in generation_config, config or tokenizer; add one"
        )
    return frozenset(ids)


def _pick_device(wanted: str) -> str:
    import torch

    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wanted == "auto":
        return "cuda" if present["cuda"] else "mps" if present["mps"] else "cpu"
    if not present[wanted]:
        raise ModelLoadError(
            f"model.device is {wanted}, which this machine does not have; set it to auto or cpu"
        )
    return wanted


def _load_torch(source: str, spec: ModelSpec, adapter: Path | None) -> tuple[Any, dict[str, Any], str, str]:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    device = _pick_device(spec.device)
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
        module = AutoModelForCausalLM.from_pretrained(
            source,
            revision=spec.revision,
            dtype=dtype,
            attn_implementation="eager" if softcap is not None else "sdpa",
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ModelLoadError(
            f"model {source}: cannot be loaded as a causal language model: {error}"
        ) from error
    finally:
        logging.enable_progress_bar()
    if adapter is not None:
        from peft import PeftModel

        try:
            module = PeftModel.from_pretrained(module, str(adapter))
        except (RuntimeError, ValueError) as error:
            raise ModelLoadError(f"adapter {adapter} does not fit {source}: {error}") from error
    module = module.to(device).eval().requires_grad_(False)
    name = str(next(module.parameters()).dtype).removeprefix("torch.")
    return module, text.to_dict(), name, device
