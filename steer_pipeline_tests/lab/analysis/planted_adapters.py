"""Adapters of a tiny model that add a known direction to the stream at one block, made without training."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from steer_pipeline_tests.tiny import lora

TEXTS = [
    f"{place} opened {number} schools on {day}, officials said, and nobody was hurt in the storm there."
    for number, (place, day) in enumerate(
        (place, day)
        for day in ("Monday", "Tuesday", "Friday")
        for place in ("Northport", "Paris", "Tokyo", "London")
    )
]


def directions(n=5, hidden=64, blocks=4, seed=7):
    """name -> fp32 [blocks, hidden]: the same random direction at all blocks."""
    drawn = np.random.default_rng(seed).normal(size=(n, hidden)).astype(np.float32)
    return {f"d{i}": np.repeat(one[None], blocks, axis=0) for i, one in enumerate(drawn)}


def mean_input(model, sequences, block):
    """fp32 [intermediate]: what the block's down projection reads, mean over tokens."""
    seen = []
    layer = model.module.model.layers[block].mlp.down_proj
    handle = layer.register_forward_pre_hook(lambda _module, args: seen.append(args[0][0]))
    with torch.inference_mode():
        for ids in sequences:
            model.module(input_ids=torch.tensor([ids]))
    handle.remove()
    return torch.cat(seen).mean(0)


def writes(
    base: Path, folder: Path, direction: np.ndarray, length: float, reads: torch.Tensor, block=1
) -> Path:
    """A LoRA of rank 1 that adds about `length` along a direction at the output of a block.

    Args:
        reads: of `mean_input`.
    """
    lora(base, folder, r=1, lora_alpha=1, target_modules=["down_proj"], layers_to_transform=[block])
    tensors = load_file(folder / "adapter_model.safetensors")
    first, second = sorted(tensors)  # lora_A, lora_B
    unit = torch.from_numpy(direction / np.linalg.norm(direction))
    tensors[first] = (reads / reads.square().sum())[None].contiguous()
    tensors[second] = (length * unit)[:, None].contiguous()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 1
    return folder
