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
from steer_pipeline.lab.models.loaded import LoadedModel


class SiteStates:
    """Sequences `ids` at the output of block `site`, in the model's dtype.

    Attributes:
        mean_norm: mean Euclidean norm over all positions but each sequence's first (as `hidden.residual_norms`
            measures it).
        mapped: whether they lie in a file.
    """

    def __init__(self, model: LoadedModel, site: int, ids: Sequence[list[int]], *, cache_gb: float) -> None:
        self._blocks = blocks = blocks_of(model)
        shape = (sum(map(len, ids)), blocks.config.hidden_size)
        size = shape[0] * shape[1] * blocks.dtype.itemsize
        self.mapped = size > cache_gb * 1e9
        if self.mapped:
            self._packed = self._file(shape, size)
        else:
            self._packed = torch.empty(shape, dtype=blocks.dtype, device=blocks.device)
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
        ends = np.cumsum([len(one) for one in ids])
        total = 0.0
        for row, states in each_states(model, ids, site):
            self._packed[ends[row] - len(states) : ends[row]] = states
            total += float(states[1:].float().norm(dim=-1).double().sum())
        return total / max(int(ends[-1]) - len(ids), 1)

    def take(self, at: np.ndarray) -> Tensor:
        """States [N, hidden] at int64 [N] positions of all sequences, one after the other."""
        where = torch.from_numpy(at).to(self._packed.device)
        return self._packed.index_select(0, where).to(self._blocks.device)
