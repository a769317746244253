"""Two models of one architecture, base and tuned, block by block: what tuning made of the weights.

In: for each side a model directory and LoRA adapters on top, merged here as PEFT merges them. Out: `PairBlock`s, one
at a time: tensors are read from safetensors when their block's turn comes and freed after it, so that memory does not
grow with the number of blocks. It knows nothing of directions.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl
from torch import Tensor

from steer_pipeline.lab.analysis.architecture import LINEAR, Architecture, Block, check_block, describe
from steer_pipeline.lab.columns import described
from steer_pipeline.lab.models.adapters import adapter_config, adapter_tensors
from steer_pipeline.lab.models.identity import ModelIdentity, folder_identity

_IN_BLOCK = re.compile(r"^(?P<before>.*\blayers)\.(?P<block>\d+)\.(?P<place>.+)$")
_OLD_BUFFERS = ("rotary_emb.inv_freq",)  # in checkpoints of old versions, computed today
WEIGHT_SCHEMA, WEIGHT_COLUMNS = described(
    block=(pl.Int64(), "counted from 0"),
    module=(pl.String(), "q, k, v, o, gate, up or down"),
    base_norm=(pl.Float64(), "Frobenius norm of base's weight"),
    tuned_norm=(pl.Float64(), "of the tuned weight"),
    difference=(pl.Float64(), "of their difference"),
    relative=(pl.Float64(), "the same over base's norm"),
    cosine=(pl.Float64(), "between both weights as long vectors"),
    rank=(pl.Float64(), "of the difference, as (sum of s^2)^2 / sum of s^4 of its singular values s"),
)


class PairError(ValueError):
    """Two models cannot be compared. The message says what differs, or which file is wrong."""


@dataclass(frozen=True)
class Side:
    """A model as files: a directory as `save_pretrained` writes it, and LoRA directories on top, in order."""

    folder: Path
    adapters: tuple[Path, ...] = ()

    def identity(self) -> ModelIdentity:
        """Of all bytes.

        Raises:
            PairError: weights are missing.
        """
        found = folder_identity(self.folder, self.adapters)
        if found is None:
            raise PairError(f"{self.folder}: no weights; give the directory that save_pretrained wrote")
        return found


@dataclass(frozen=True, eq=False)
class PairBlock:
    """One block of both models."""

    index: int
    base: Block
    tuned: Block


class Checkpoint:
    """The blocks of a model's files. Nothing is read before it is asked for."""

    def __init__(self, side: Side):
        """Raises:
        PairError: no safetensors, or an adapter that cannot be merged block by block.
        ModelLoadError: an adapter is damaged, or no LoRA.
        """
        from transformers import AutoConfig

        self.side = side
        self.config = AutoConfig.from_pretrained(side.folder)
        self._file_of = _files(side.folder)
        self._adapters = [_Lora(folder) for folder in side.adapters]

    @cached_property
    def architecture(self) -> Architecture:
        """Raises NotDescribed."""
        return describe(self.config)

    def block(self, index: int, device: str = "cpu") -> Block:
        """One block, adapters merged, fp32.

        Raises:
            NotDescribed: its tensors are not those of a block that is known.
            PairError: an adapter does not fit.
        """
        from safetensors import safe_open

        tensors: dict[str, Tensor] = {}
        for key, file in self._file_of.items():
            match = _IN_BLOCK.match(key)
            if match and int(match["block"]) == index and not match["place"].endswith(_OLD_BUFFERS):
                with safe_open(file, framework="pt", device=device) as opened:
                    tensors[match["place"]] = opened.get_tensor(key).float()
        for adapter in self._adapters:
            adapter.merge(tensors, index)
        return Block(self.architecture, index, tensors)


def _files(folder: Path) -> dict[str, Path]:
    """Name of each tensor of the decoder -> its file."""
    from safetensors import safe_open

    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = {key: folder / file for key, file in json.loads(index.read_text())["weight_map"].items()}
    elif (folder / "model.safetensors").is_file():
        with safe_open(folder / "model.safetensors", framework="pt") as opened:
            named = dict.fromkeys(opened.keys(), folder / "model.safetensors")
    else:
        raise PairError(
            f"{folder}: no model.safetensors, which is read block by block; save the model with save_pretrained"
        )
    return {key: file for key, file in named.items() if "vision" not in key and "visual" not in key}


class _Lora:
    """The updates of a LoRA directory by block and module."""

    def __init__(self, folder: Path):
        self._folder, config = folder, adapter_config(folder)
        if getattr(config, "use_dora", False) or config.fan_in_fan_out:
            raise PairError(
                f"adapter {folder}: DoRA and transposed weights are not merged block by block; merge it with PEFT "
                "(merge_and_unload) and give the merged directory"
            )
        self._config = config
        self._pairs: dict[int, dict[str, dict[str, Tensor]]] = {}
        for key, tensor in adapter_tensors(folder).items():
            match = re.search(
                r"\blayers\.(?P<block>\d+)\.(?P<place>.+)\.(?P<half>lora_[AB])\.(?:\w+\.)?weight$", key
            )
            if match is None:
                raise PairError(
                    f"adapter {folder}: {key} changes something else than a linear module of a block; merge it into "
                    "its base and give the merged directory"
                )
            place = self._pairs.setdefault(int(match["block"]), {}).setdefault(match["place"], {})
            place[match["half"]] = tensor

    def merge(self, tensors: dict[str, Tensor], block: int) -> None:
        """Adds the updates of a block to its tensors: weight + scale * (B A)."""
        for place, halves in self._pairs.get(block, {}).items():
            name = f"{place}.weight"
            down, up = halves.get("lora_A"), halves.get("lora_B")
            weight = tensors.get(name)
            if down is None or up is None or weight is None or weight.shape != (len(up), down.shape[1]):
                raise PairError(
                    f"adapter {self._folder}: its update of {name} in block {block} does not fit the model below it; "
                    "give the base that it was trained on"
                )
            update = up.to(weight.device) @ down.to(weight.device)
            tensors[name] = weight + self._scale(f"layers.{block}.{place}") * update

    def _scale(self, module: str) -> float:
        from peft.utils.other import get_pattern_key

        config = self._config
        rank, alpha = config.r, config.lora_alpha
        for pattern, attribute in ((config.rank_pattern, "rank"), (config.alpha_pattern, "alpha")):
            if pattern:
                key = get_pattern_key(pattern.keys(), module)
                rank = pattern.get(key, rank) if attribute == "rank" else rank
                alpha = pattern.get(key, alpha) if attribute == "alpha" else alpha
        return float(alpha / (rank**0.5 if config.use_rslora else rank))


@dataclass(frozen=True)
class ModelPair:
    """Base and tuned, and the device that their blocks are computed on."""

    base: Side
    tuned: Side
    device: str = "cpu"

    def blocks(self, *, check: bool = True) -> Iterator[PairBlock]:
        """Both models' blocks, upwards; hold none of them when you ask for the next.

        Args:
            check: run the model's own modules on each block and compare.

        Raises:
            PairError: the two are not of one architecture.
            NotDescribed: see `check_block`.
        """
        base, tuned = Checkpoint(self.base), Checkpoint(self.tuned)
        _require_alike(base, tuned)
        for index in range(base.architecture.n_blocks):
            pair = PairBlock(index, base.block(index, self.device), tuned.block(index, self.device))
            if check:
                check_block(pair.base)
                check_block(pair.tuned)
            yield pair
            del pair


def _require_alike(base: Checkpoint, tuned: Checkpoint) -> None:
    for name in (
        "model_type",
        "num_hidden_layers",
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
    ):
        one, other = (getattr(side.config.get_text_config(), name, None) for side in (base, tuned))
        if one != other:
            raise PairError(
                f"{base.side.folder} and {tuned.side.folder}: {name} is {one} and {other}; a pair is a model and what "
                "was tuned from it"
            )


def weight_rows(pair: PairBlock) -> list[dict[str, Any]]:
    """`WEIGHT_SCHEMA` of one block: how far its linear weights moved."""
    rows = []
    for module in LINEAR:
        before, after = pair.base.weight(module).double(), pair.tuned.weight(module).double()
        difference = after - before
        length, base_norm, tuned_norm = (float(x.norm()) for x in (difference, before, after))
        rows.append(
            {
                "block": pair.index,
                "module": module,
                "base_norm": base_norm,
                "tuned_norm": tuned_norm,
                "difference": length,
                "relative": length / base_norm,
                "cosine": float((before * after).sum()) / (base_norm * tuned_norm),
                "rank": _effective_rank(difference) if length else 0.0,
            }
        )
    return rows


def _effective_rank(matrix: Tensor) -> float:
    """(sum of s^2)^2 / sum of s^4 of the singular values s: 1 for one direction, r for r equal ones."""
    small = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    return float(small.diagonal().sum() ** 2 / small.pow(2).sum())
