"""A tiny model of each architecture, as transformers runs it and as blocks described here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from steer_pipeline.lab.analysis.architecture import Block
from steer_pipeline.lab.analysis.directions import Directions
from steer_pipeline.lab.analysis.neutral import Neutral
from steer_pipeline.lab.analysis.pairs import Checkpoint, ModelPair, PairBlock, Side
from steer_pipeline_tests.tiny import lora, tiny_model_dir

ARCHITECTURES = ("llama", "qwen3", "gemma", "gemma2")
HIDDEN, N_BLOCKS = 64, 4


@dataclass(frozen=True)
class Tiny:
    """One architecture: its directory, a LoRA on it, and the module with the LoRA merged by PEFT."""

    arch: str
    folder: Path
    adapter: Path
    module: Any
    merged: Any

    @property
    def pair(self) -> ModelPair:
        return ModelPair(Side(self.folder), Side(self.folder, (self.adapter,)))

    def block(self, index: int = 2) -> PairBlock:
        base, tuned = Checkpoint(self.pair.base), Checkpoint(self.pair.tuned)
        return PairBlock(index, base.block(index), tuned.block(index))

    def base_block(self, index: int = 2) -> Block:
        return Checkpoint(self.pair.base).block(index)


@pytest.fixture(scope="session", params=ARCHITECTURES)
def tiny(request, tmp_path_factory) -> Tiny:
    return made(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def qwen(tmp_path_factory) -> Tiny:
    return made("qwen3", tmp_path_factory.mktemp("qwen"))


def made(arch: str, home: Path) -> Tiny:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = tiny_model_dir(home, arch)

    def module() -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()

    every = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    patterns = {"rank_pattern": {"down_proj": 3}, "alpha_pattern": {"q_proj": 5}, "lora_alpha": 4}
    adapter = lora(folder, home / "adapter", model=module(), target_modules=every, **patterns)
    merged = PeftModel.from_pretrained(module(), adapter).merge_and_unload()
    return Tiny(arch, folder, adapter, module(), merged)


def neutral(seed: int = 0, n_null: int = 200) -> Neutral:
    """States that vary more along some axes than along others, on a mean of their own."""
    draws = np.random.default_rng(seed)
    spread = np.geomspace(3.0, 0.03, HIDDEN)
    states = draws.normal(size=(150, N_BLOCKS, HIDDEN)) * spread + draws.normal(size=HIDDEN)
    states = states.astype(np.float32)
    attended = draws.normal(size=(N_BLOCKS, HIDDEN)).astype(np.float32)
    norms = np.linalg.norm(states, axis=2).mean(axis=0)
    return Neutral(states, states.mean(axis=0), attended, norms.astype(np.float32), n_null, seed)


def directions(n: int = 3, seed: int = 5) -> Directions:
    raw = np.random.default_rng(seed).normal(size=(n, N_BLOCKS, HIDDEN)).astype(np.float32)
    return Directions(tuple(f"persona:p{k}" for k in range(n)), raw, ("",) * n, {})


def units(n: int, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=(n, HIDDEN))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def states(n: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, HIDDEN)).astype(np.float32))
