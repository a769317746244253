"""Adapters on one base added up with weights, exactly: their ranks add up, too. Positive minus negative is one case.

In: PEFT directories with a weight each. Out: one PEFT directory whose update of every weight matrix is the weighted sum
of theirs, fp32.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from steer_pipeline.lab.finetune.data import FinetuneError

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_FIRST, _SECOND = ".lora_A.", ".lora_B."
_PER_MODULE = ("rank_pattern", "alpha_pattern", "modules_to_save", "use_dora", "use_rslora", "lora_bias")


def combine_adapters(terms: Sequence[tuple[Path, float]], folder: Path) -> None:
    """Writes the sum of weight * adapter into `folder`; its scaling is 1.

    With A_i, B_i and the scaling s_i of each adapter, A = [A_1; A_2; ...] and B = [w_1 s_1 B_1, w_2 s_2 B_2, ...].

    Args:
        terms: adapter folders and weights, at least one.

    Raises:
        FinetuneError: an adapter that is not plain LoRA, or adapters of other modules or sizes; by folder.
    """
    configs = [_config(one) for one, _ in terms]
    weights = [load_file(one / WEIGHTS) for one, _ in terms]
    first = terms[0][0]
    for (other, _), tensors in zip(terms, weights, strict=True):
        if odd := sorted(set(tensors) ^ set(weights[0])):
            raise FinetuneError(
                f"adapters {first} and {other}: only one has {odd[0]}; train both on the same modules"
            )
    scales = [
        weight * config["lora_alpha"] / config["r"]
        for (_, weight), config in zip(terms, configs, strict=True)
    ]
    combined = {
        name: _joined(name, [one[name] for one in weights], scales, first) for name in sorted(weights[0])
    }
    rank = sum(config["r"] for config in configs)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(combined, folder / WEIGHTS, metadata={"format": "pt"})
    config = configs[0] | {"r": rank, "lora_alpha": rank}
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _joined(name: str, tensors: Sequence[Tensor], scales: Sequence[float], first: Path) -> Tensor:
    """A [rank, in] below each other, or B [out, rank], scaled, beside each other."""
    if _FIRST not in name and _SECOND not in name:
        raise FinetuneError(
            f"adapter {first}: {name} is not of a plain LoRA; merge the adapter into its base instead"
        )
    along = 0 if _FIRST in name else 1
    if len({tensor.shape[1 - along] for tensor in tensors}) > 1:
        raise FinetuneError(
            f"adapter {first}: {name} has another width in another adapter; they are of two models"
        )
    if _FIRST in name:
        return torch.cat([tensor.float() for tensor in tensors], dim=0).contiguous()
    scaled = [tensor.float() * scale for tensor, scale in zip(tensors, scales, strict=True)]
    return torch.cat(scaled, dim=1).contiguous()


def _config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / CONFIG).read_text())
    special = [name for name in _PER_MODULE if config.get(name)]
    if config.get("peft_type") != "LORA" or special:
        what = ", ".join(special) or str(config.get("peft_type"))
        raise FinetuneError(
            f"adapter {folder}: {what}; only LoRA of one rank and scaling for all modules adds up here"
        )
    return config
