"""An adapter folded into its base: merged in fp32, and proven to say what base and adapter said.

In: the spec of a model with adapters. Out: a model directory with its tokenizer, as transformers and mlx-lm read it.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steer_pipeline.catalogue.specs import ModelSpec
from steer_pipeline.lab.finetune.data import FinetuneError
from steer_pipeline.lab.models.loading import forget_models, load_model, load_tokenizer

TOLERANCE = 1e-3  # of the largest logit
_PROBE_TOKENS = 64


def merge_adapters(spec: ModelSpec, home: Path, folder: Path) -> float:
    """Writes the model that `spec` names, adapters folded in, fp32, into `folder`.

    Returns:
        The largest difference of a logit between base with adapters and the merged model, over the largest logit.

    Raises:
        FinetuneError: the spec has no adapter, or the merged model differs by more than `TOLERANCE`.
    """
    merged, difference = _merged(spec, home)
    if not difference <= TOLERANCE:
        raise FinetuneError(
            f"model {spec.path}: merged logits differ by {difference:.2g} of the largest, more than {TOLERANCE:g}; "
            "keep the adapter, and report this"
        )
    merged.save_pretrained(folder)
    load_tokenizer(spec, home).save_pretrained(folder)
    return difference


def merged_difference(spec: ModelSpec, home: Path) -> float:
    """As `merge_adapters`, which writes a model: the largest difference of a logit over the largest logit.

    Raises:
        FinetuneError: the spec has no adapter.
    """
    return _merged(spec, home)[1]


def _merged(spec: ModelSpec, home: Path) -> tuple[Any, float]:
    """The merged model, and how far its logits are from those of base with adapters."""
    if not spec.adapter:
        raise FinetuneError(f"model {spec.path}: has no adapter to merge")
    forget_models()  # merging changes the base in memory: it must be nobody's
    loaded = load_model(spec.model_copy(update={"dtype": "float32", "device": "cpu"}), home)
    hooked = _logits(loaded.module)
    merged = loaded.module.merge_and_unload(safe_merge=True)
    forget_models()
    return merged, float((hooked - _logits(merged)).abs().max() / hooked.abs().max().clamp(min=1e-9))


def _logits(model: Any) -> Tensor:
    """[t, vocabulary] of tokens from the whole vocabulary."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = torch.linspace(0, vocabulary - 1, _PROBE_TOKENS).long()
    with torch.inference_mode():
        return model(input_ids=ids[None], use_cache=False).logits[0].clone()
