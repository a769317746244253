"""Directories of sparse autoencoders: read from sae-lens and GemmaScope 2, written as sae-lens reads them.

In: a local directory. sae-lens: `cfg.json` and `sae_weights.safetensors`, of version 6 or flat as before; GemmaScope 2:
`config.json` and `params.safetensors`. Out: an `Sae`. Nothing is downloaded, and sae-lens is not needed.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.sites import Site
from steer_pipeline.lab.sae.dictionary import Activation, Sae, SaeError, checked

CONFIG, WEIGHTS, DENSITY = "cfg.json", "sae_weights.safetensors", "sparsity.safetensors"  # of sae-lens
GEMMA_CONFIG, GEMMA_WEIGHTS = "config.json", "params.safetensors"
LAYOUT = "6.0.0"  # the version of sae-lens since which configurations are as we write them
_NEVER = 1e-10  # log10 of a density of zero, as sae-lens has it
_ACTIVATIONS: dict[str, Activation] = {"standard": "relu", "jumprelu": "jumprelu", "topk": "topk"}
_SCALINGS = ("none", "constant_norm_rescale", "layer_norm")
# What a hook behind `blocks.N.` (TransformerLens) or `model.layers.N.` (transformers) reads, as our sites have it.
_HOOKS = {
    "hook_resid_post": "output",
    "hook_out": "output",
    "hook_attn_out": "attention",
    "hook_mlp_out": "mlp",
    "": "output",
    "output": "output",
    "self_attn.output": "attention",
    "mlp.output": "mlp",
    "post_feedforward_layernorm.output": "mlp",
}
_TENSORS = {"encoder": "W_enc", "decoder": "W_dec", "encoder_bias": "b_enc", "decoder_bias": "b_dec"}


def read_sae(folder: Path) -> Sae:
    """The sparse autoencoder of a local directory, fp32 on the CPU.

    Raises:
        SaeError: the directory holds none, or one that cannot be applied here; the message says what to do.
    """
    if (folder / CONFIG).is_file():
        return checked(_sae_lens(folder), str(folder))
    if (folder / GEMMA_WEIGHTS).is_file():
        return checked(_gemma_scope(folder), str(folder))
    raise SaeError(
        f"{folder}: no {CONFIG} (sae-lens) and no {GEMMA_WEIGHTS} (GemmaScope 2) there; fetch one directory of a "
        "release, with its configuration and its weights, and name it in sae.folder"
    )


def write_sae(sae: Sae, folder: Path, density: np.ndarray | None = None) -> None:
    """Writes `cfg.json` and `sae_weights.safetensors` as `SAE.load_from_disk` of sae-lens takes them.

    Args:
        density: [features], share of tokens at which each is active: `sparsity.safetensors`, its log10.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    architecture = next(name for name, one in _ACTIVATIONS.items() if one == sae.activation)
    site = (
        {}
        if sae.site is None
        else {"hook_name": _hook_name(sae.site), "hf_hook_name": _module_name(sae.site)}
    )
    config = {
        "architecture": architecture,
        "d_in": sae.hidden_size,
        "d_sae": sae.n_features,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": sae.centred,
        "normalize_activations": sae.scaling,
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": LAYOUT, **site, **sae.metadata},
    }
    if sae.activation == "topk":
        config |= {"k": sae.k, "rescale_acts_by_decoder_norm": sae.by_norm}
    (folder / CONFIG).write_text(json.dumps(config, indent=2, allow_nan=False) + "\n")
    tensors = {theirs: getattr(sae, ours) for ours, theirs in _TENSORS.items()}
    if sae.threshold is not None:
        tensors["threshold"] = sae.threshold
    save_file({name: one.detach().cpu().contiguous() for name, one in tensors.items()}, folder / WEIGHTS)
    if density is not None:
        save_file({"sparsity": torch.from_numpy(np.log10(density + _NEVER))}, folder / DENSITY)


def at_block(sae: Sae, block: int | None) -> Sae:
    """`sae`, which reads the output of `block` where it does not say itself what it reads.

    Raises:
        SaeError: neither says it, or both say different things.
    """
    if sae.site is None and block is None:
        raise SaeError(
            "the sparse autoencoder's configuration does not say which states it reads; set sae.block to the block "
            "whose output it was trained on"
        )
    if block is not None and sae.site not in (None, Site(block)):
        raise SaeError(f"sae.block {block}: its configuration says {sae.site}; drop one of the two")
    return sae if block is None else replace(sae, site=Site(block))


def require_fit(sae: Sae, model: LoadedModel) -> Site:
    """The site that `sae` reads in this model.

    Raises:
        SaeError: it has another width, or reads a block that is not there.
    """
    assert sae.site is not None  # `at_block` has seen to it
    if sae.hidden_size != model.hidden_size or not 0 <= sae.site.block < model.n_blocks:
        raise SaeError(
            f"the sparse autoencoder reads {sae.hidden_size} numbers at block {sae.site.block}; {model.name} has "
            f"{model.hidden_size} in {model.n_blocks} blocks: take the model that it was trained on"
        )
    return sae.site


def site_of(hook: str) -> Site:
    """The site of a hook's name in TransformerLens or transformers.

    Raises:
        SaeError: it is a place that is not read here.
    """
    found = re.fullmatch(r"(?:.*\.)?(?:blocks|layers|h)\.(\d+)\.?(.*)", hook)
    block, part = (int(found[1]), found[2]) if found else (-1, hook)
    if found and part == "hook_resid_pre" and block > 0:
        return Site(block - 1)  # what goes into a block is what comes out of the one before
    if not found or part not in _HOOKS:
        raise SaeError(
            f"hook {hook!r}: sparse autoencoders of block outputs, and of what attention or MLP adds, are read here; "
            "take one of the residual stream (hook_resid_post)"
        )
    return Site(block, _HOOKS[part])


def _sae_lens(folder: Path) -> Sae:
    config = _current(_json(folder / CONFIG))
    architecture, scaling = (
        config.get("architecture", "standard"),
        config.get("normalize_activations", "none"),
    )
    if architecture not in _ACTIVATIONS:
        raise SaeError(
            f"{folder / CONFIG}: architecture {architecture!r}; {', '.join(_ACTIVATIONS)} are known: take one of them"
        )
    if scaling not in _SCALINGS:
        raise SaeError(
            f"{folder / CONFIG}: normalize_activations {scaling!r} needs a number that is not in the directory; fold "
            "it into the weights with sae-lens (fold_activation_norm_scaling_factor) and save them again"
        )
    if config.get("reshape_activations", "none") != "none":
        raise SaeError(f"{folder / CONFIG}: it reads attention heads; take one of the residual stream")
    metadata = config.get("metadata") or {}
    hook = metadata.get("hook_name") or metadata.get("hf_hook_name")
    tensors = _tensors(folder / WEIGHTS)
    return Sae(
        **{ours: _named(tensors, theirs, folder / WEIGHTS) for ours, theirs in _TENSORS.items()},
        activation=_ACTIVATIONS[architecture],
        threshold=tensors.get("threshold"),
        k=config.get("k"),
        by_norm=bool(config.get("rescale_acts_by_decoder_norm", False)),
        centred=bool(config.get("apply_b_dec_to_input", True)),
        scaling=scaling,
        site=site_of(hook) if hook else None,
        metadata=metadata,
    )


def _current(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration of before version 6, which is flat, as later ones are."""
    if "metadata" in config:
        return config
    scaling = config.get("normalize_activations") or "none"
    metadata = {name: value for name, value in config.items() if not isinstance(value, dict)}
    metadata.setdefault("hook_name", config.get("hook_point"))
    more: dict[str, Any] = {
        "normalize_activations": "expected_average_only_in" if scaling is True else scaling,
        "metadata": metadata,
    }
    if config.get("activation_fn_str", config.get("activation_fn")) == "topk":
        more |= {"architecture": "topk", "k": (config.get("activation_fn_kwargs") or {}).get("k")}
    return {**config, **more}


def _gemma_scope(folder: Path) -> Sae:
    config = _json(folder / GEMMA_CONFIG) if (folder / GEMMA_CONFIG).is_file() else {}
    if config.get("architecture", "jump_relu") != "jump_relu" or "hf_hook_point_out" in config:
        raise SaeError(
            f"{folder / GEMMA_CONFIG}: architecture {config.get('architecture')!r}; sparse autoencoders (jump_relu, "
            "one place) are read, not transcoders or crosscoders: take one of resid_post"
        )
    tensors = _tensors(folder / GEMMA_WEIGHTS)
    hook = config.get("hf_hook_point_in")
    own: dict[str, Any] = {
        ours: _named(tensors, theirs.lower(), folder / GEMMA_WEIGHTS) for ours, theirs in _TENSORS.items()
    }
    return Sae(
        **own,
        activation="jumprelu",
        threshold=_named(tensors, "threshold", folder / GEMMA_WEIGHTS),
        centred=False,
        site=site_of(hook) if hook else None,
        metadata=config,
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SaeError(f"{path}: damaged ({error}); fetch it again") from error


def _tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return {name: one.float() for name, one in load_file(path).items()}
    except (SafetensorError, OSError) as error:
        raise SaeError(f"{path}: cannot be read ({error}); fetch it again") from error


def _named(tensors: Mapping[str, Tensor], name: str, path: Path) -> Tensor:
    if name not in tensors:
        raise SaeError(f"{path}: no tensor {name} (there: {', '.join(sorted(tensors))}); fetch it again")
    return tensors[name]


def _hook_name(site: Site) -> str:
    kinds = {"output": "hook_resid_post", "attention": "hook_attn_out", "mlp": "hook_mlp_out"}
    return f"blocks.{site.block}.{kinds[site.kind]}"


def _module_name(site: Site) -> str:
    kinds = {"output": "", "attention": ".self_attn", "mlp": ".mlp"}
    return f"model.layers.{site.block}{kinds[site.kind]}"
