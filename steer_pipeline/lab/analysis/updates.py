"""The weight update of a LoRA adapter, matrix by matrix, without ever making a matrix of full size.

In: a PEFT directory. Out: its norm, the share of what it writes into the residual stream that lies along directions,
and the same adapter at another norm.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from steer_pipeline.lab.finetune.combining import CONFIG, WEIGHTS, combine_adapters
from steer_pipeline.lab.finetune.data import FinetuneError

_WRITERS = (
    "o_proj",
    "down_proj",
    "out_proj",
    "c_proj",
    "fc2",
    "dense_4h_to_h",
)  # whose output joins the stream
_BLOCK = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True, eq=False)
class Update:
    """scale * b @ a is added to the weights of one matrix.

    Attributes:
        a: fp64 [rank, in]; b: fp64 [out, rank], the scaling in it.
    """

    module: str
    block: int
    a: np.ndarray
    b: np.ndarray

    @property
    def squared(self) -> float:
        """Squared Frobenius norm of the update."""
        return float(np.einsum("ij,ij->", self.b.T @ self.b, self.a @ self.a.T))

    @property
    def writes(self) -> bool:
        """Whether its output is added to the residual stream."""
        return self.module.rpartition(".")[2] in _WRITERS

    def along(self, dual: np.ndarray) -> np.ndarray:
        """float64 [k]: shares of the squared norm in the components of a least-squares decomposition.

        Args:
            dual: [k, out], the pseudo-inverse of the directions as columns.
        """
        left = dual @ self.b  # [k, rank]
        return np.einsum("ki,ij,kj->k", left, self.a @ self.a.T, left) / max(self.squared, 1e-300)


def updates_of(folder: Path) -> list[Update]:
    """Of every matrix that the adapter changes, in order of blocks.

    Raises:
        FinetuneError: it is no plain LoRA.
    """
    tensors, config = load_file(folder / WEIGHTS), json.loads((folder / CONFIG).read_text())
    if config.get("peft_type") != "LORA" or config.get("use_dora"):
        raise FinetuneError(
            f"adapter {folder}: no plain LoRA; merge it, and audit the merged checkpoint by its activations alone"
        )
    found = []
    for name in sorted(name for name in tensors if ".lora_A." in name):
        module = name.partition(".lora_A.")[0]
        a, b = (
            tensors[name.replace(".lora_A.", part)].astype(np.float64) for part in (".lora_A.", ".lora_B.")
        )
        number = _BLOCK.search(module)
        rank = config.get("rank_pattern", {}).get(module, a.shape[0])
        scale = config["lora_alpha"] / (np.sqrt(rank) if config.get("use_rslora") else rank)
        found.append(Update(module, int(number[1]) if number else -1, a, scale * b))
    return sorted(found, key=lambda one: (one.block, one.module))


def norm_of(folder: Path) -> float:
    """Frobenius norm of all updates of an adapter together."""
    return float(np.sqrt(sum(one.squared for one in updates_of(folder))))


def at_norm(adapter: Path, norm: float, folder: Path) -> float:
    """Writes the adapter scaled to a norm into `folder`; the factor.

    Raises:
        FinetuneError: the adapter changes nothing, or it is no plain LoRA.
    """
    own = norm_of(adapter)
    if not own > 0:
        raise FinetuneError(f"adapter {adapter}: changes nothing, it has no norm to scale; train it")
    combine_adapters([(adapter, norm / own)], folder)
    return norm / own
