"""Hidden states at the site, run once for a data set and read in every epoch and by every lane.

In: encoded dialogues. Out: their states at the output of a block, packed one sequence after the other, in
memory or, beyond a budget, in a temporary file that is mapped and goes away with the object.
"""

import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from steer_pipeline.lab.models.blocks import blocks_of
from steer_pipeline.lab.models.hidden import each_states
from steer_pipeline.lab.models.loading import LoadedModel


class SiteStates:
    """`rows(i)` is [t_i, hidden], the model's dtype: sequence i at the output of block `site`.

    Also measures `mean_norm`, the mean Euclidean norm over all positions but each sequence's first (as
    `hidden.residual_norms` does).
    """

    def __init__(self, model: LoadedModel, site: int, ids: Sequence[list[int]], *, cache_gb: float) -> None:
        self.lengths = [len(one) for one in ids]
        self.offsets = [0]
        for length in self.lengths:
            self.offsets.append(self.offsets[-1] + length)
        self._blocks = blocks = blocks_of(model)
        shape = (self.offsets[-1], blocks.config.hidden_size)
        size = shape[0] * shape[1] * blocks.dtype.itemsize
        self._budget = cache_gb * 1e9 - size
        self.projected: Tensor | None = None
        self.mapped = self._budget < 0
        self._packed = self._file(shape, size) if self.mapped else torch.empty(shape, dtype=blocks.dtype)
        if not self.mapped:
            self._packed = self._packed.to(blocks.device)
        self.mean_norm = self._fill(model, site, ids)

    def _file(self, shape: tuple[int, int], size: int) -> Tensor:
        with tempfile.NamedTemporaryFile(prefix="site_states-", delete=False) as file:
            file.truncate(size)
        try:
            flat = torch.from_file(file.name, shared=True, size=shape[0] * shape[1], dtype=self._blocks.dtype)
        finally:
            with suppress(OSError):  # where a mapped file cannot be removed, it is left to the system
                Path(file.name).unlink()
        return flat.view(shape)

    def _fill(self, model: LoadedModel, site: int, ids: Sequence[list[int]]) -> float:
        norms = np.zeros(len(ids))

        def take(row: int, states: Tensor) -> None:
            self._packed[self.offsets[row] : self.offsets[row + 1]] = states
            norms[row] = float(states[1:].float().norm(dim=-1).double().sum())

        each_states(model, ids, site, take)
        return float(norms.sum()) / max(sum(self.lengths) - len(ids), 1)

    def take(self, at: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """States [N, hidden] at int64 [N] positions of all sequences, one after the other, and their projection."""
        where = torch.from_numpy(at).to(self._packed.device)
        states = self._packed.index_select(0, where).to(self._blocks.device)
        return states, None if self.projected is None else self.projected.index_select(0, where)

    def project(self, weight: Tensor) -> None:
        """Keeps the states' product with `weight` [width, hidden] as `projected`, if the budget allows it."""
        if len(self._packed) * weight.shape[0] * weight.dtype.itemsize <= self._budget:
            with torch.no_grad():
                self.projected = self._packed @ weight.T
