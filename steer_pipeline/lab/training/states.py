"""Hidden states at the site, run once for a data set and read in every epoch and by every lane.

In: encoded dialogues. Out: their states at the output of a block, packed one sequence after the other, in
memory or, beyond a budget, in a temporary file that is mapped and goes away with the object.
"""

import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from steer_pipeline.lab.models.blocks import Blocks, causal
from steer_pipeline.lab.models.cores import one_core_each
from steer_pipeline.lab.models.lean import lean_blocks, turns

_BATCH_TOKENS = {"cpu": 1024, "mps": 16384, "cuda": 65536}


class SiteStates:
    """`rows(i)` is [t_i, hidden], the model's dtype: sequence i at the output of block `site`.

    Also measures `mean_norm`, the mean Euclidean norm over all positions but each sequence's first (as
    `hidden.residual_norms` does).
    """

    def __init__(self, blocks: Blocks, site: int, ids: Sequence[list[int]], *, cache_gb: float) -> None:
        self.lengths = [len(one) for one in ids]
        self.offsets = [0]
        for length in self.lengths:
            self.offsets.append(self.offsets[-1] + length)
        self._blocks = blocks
        shape = (self.offsets[-1], blocks.config.hidden_size)
        size = shape[0] * shape[1] * blocks.dtype.itemsize
        self._budget = cache_gb * 1e9 - size
        self.projected: Tensor | None = None
        self.mapped = self._budget < 0
        self._packed = self._file(shape, size) if self.mapped else torch.empty(shape, dtype=blocks.dtype)
        if not self.mapped:
            self._packed = self._packed.to(blocks.device)
        self.mean_norm = self._fill(site, ids)

    def _file(self, shape: tuple[int, int], size: int) -> Tensor:
        with tempfile.NamedTemporaryFile(prefix="site_states-", delete=False) as file:
            file.truncate(size)
        try:
            flat = torch.from_file(file.name, shared=True, size=shape[0] * shape[1], dtype=self._blocks.dtype)
        finally:
            with suppress(OSError):  # where a mapped file cannot be removed, it is left to the system
                Path(file.name).unlink()
        return flat.view(shape)

    def _fill(self, site: int, ids: Sequence[list[int]]) -> float:
        blocks = self._blocks
        order = sorted(range(len(ids)), key=lambda i: (len(ids[i]), i))
        room = _BATCH_TOKENS[blocks.device.type]
        batches = []
        while order:
            rows = order[-max(1, room // len(ids[order[-1]])) :]
            del order[-len(rows) :]
            batches.append(rows)
        lean = lean_blocks(blocks, range(site + 1))

        def run(rows: list[int]) -> float:
            padded = torch.zeros(len(rows), len(ids[rows[-1]]), dtype=torch.int64)
            for i, row in enumerate(rows):
                padded[i, : len(ids[row])] = torch.tensor(ids[row])
            padded, total = padded.to(blocks.device), 0.0
            with blocks.ready():
                hidden = blocks.embed(padded)
                rotary = blocks.rotary(hidden, torch.arange(padded.shape[1], device=blocks.device)[None])
                for block in range(site + 1):
                    if block in lean:
                        hidden = lean[block].run(hidden, turns(rotary[blocks.layer_types[block]]), causal)
                    else:
                        hidden = blocks.run(block, hidden, rotary, causal)
                for i, row in enumerate(rows):
                    states = hidden[i, : len(ids[row])]
                    self._packed[self.offsets[row] : self.offsets[row + 1]] = states
                    total += float(states[1:].float().norm(dim=-1).double().sum())
            return total

        with blocks.ready(), one_core_each(blocks.device, len(batches)) as cores:
            total = sum(cores.map(run, batches))
        return total / max(sum(self.lengths) - len(ids), 1)

    def rows(self, row: int) -> Tensor:
        states = self._packed[self.offsets[row] : self.offsets[row + 1]]
        return states.to(self._blocks.device) if self.mapped else states

    def project(self, weight: Tensor) -> None:
        """Keeps the states' product with `weight` [width, hidden] as `projected`, if the budget allows it."""
        if len(self._packed) * weight.shape[0] * weight.dtype.itemsize <= self._budget:
            with torch.no_grad():
                self.projected = self._packed @ weight.T

    def projection(self, row: int) -> Tensor:
        """[t, width] of one sequence."""
        assert self.projected is not None
        return self.projected[self.offsets[row] : self.offsets[row + 1]]
