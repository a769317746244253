"""A model ready to run, as a value: what it is called, how large it is, and the module itself. `loading` makes one."""

from dataclasses import dataclass, field
from typing import Any

from steer_pipeline.catalogue.specs import ModelSpec
from steer_pipeline.lab.models.identity import ModelIdentity, same_name

FAST, GENERAL = "torch", "torch-plain"  # back ends of Torch models, as records call them


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model ready to run.

    Attributes:
        name: the spec's path or hub id.
        known_as: what others call it: its hub id or its folder's name.
        backend: "torch" (blocks one by one), "torch-plain" (the model's own forward with hooks, where the load check
            could not prove the first) or "mlx".
        dtype: "float32", "bfloat16" or "float16": of weights and residual stream.
        device: "cpu", "cuda" or "mps"; "mlx" for MLX.
        eos_ids: every token id that ends a sequence.
        identity: what it is, adapters included.
        max_positions: longest sequence that the model's positions allow.
    """

    name: str
    known_as: str
    revision: str | None
    backend: str
    dtype: str
    device: str
    n_blocks: int
    hidden_size: int
    tokenizer: Any
    spec: ModelSpec
    eos_ids: frozenset[int]
    identity: ModelIdentity
    max_positions: int
    adapters: tuple[Any, ...] = field(repr=False)
    held: Any = field(repr=False)

    @property
    def module(self) -> Any:
        """The transformers model with this model's adapters on it and no others, or the mlx-lm model.

        Another model of the same base may have switched them; asking here switches back.

        Raises:
            ModelLoadError: an adapter's files have changed since.
        """
        return self.held if self.backend == "mlx" else self.held.model(self.adapters)

    @property
    def weights_sha(self) -> str:
        """sha256 of weights and configs without adapters: what a steering vector belongs to."""
        return self.identity.base

    def is_called(self, name: str) -> bool:
        """Whether a model of which only this name is known may be this one; see `same_name`."""
        return name == self.name or same_name(name, self.known_as)
