"""Independent pieces of work on the cores of a CPU, one core each: an operation on a small batch is too short to be
shared among cores. Knows nothing of models.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Cores:
    """`map(work, items)`: results in order of the items. Grad mode is a thread's own: `work` sets it."""

    def __init__(self, pool: ThreadPoolExecutor | None = None) -> None:
        self._pool = pool

    def map(self, work: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
        some: Any = map(work, items) if self._pool is None else self._pool.map(work, items)
        return list(some)


@contextmanager
def one_core_each(device: torch.device, pieces: int) -> Iterator[Cores]:
    """Spreads work over as many cores as Torch has threads, if there are that many pieces; elsewhere one piece
    comes after the other, with all cores (or the accelerator) for each.
    """
    cores = torch.get_num_threads() if device.type == "cpu" else 1
    if not 1 < cores <= pieces:
        yield Cores()
        return
    with torch_threads(1), ThreadPoolExecutor(cores) as pool:  # new threads take the number over
        yield Cores(pool)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Torch has this many threads within it, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
