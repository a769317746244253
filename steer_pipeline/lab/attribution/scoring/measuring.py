"""How long a piece of work takes and how much memory it holds at most, by itself where the system can tell."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from steer_pipeline.lab.generation.jobs import peak_memory

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@contextmanager
def measured(device: str) -> Iterator[dict[str, float | int]]:
    """Filled at the end: `seconds`, and `peak_memory_bytes` of the GPU or of this process.

    On Linux the peak is that of the work; elsewhere that of the process so far.
    """
    numbers: dict[str, float | int] = {}
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
    else:
        with suppress(OSError):
            _CLEAR.write_text("5")  # the peak begins at what is resident now
    begun = time.monotonic()
    yield numbers
    numbers |= {"seconds": time.monotonic() - begun, "peak_memory_bytes": _peak(device)}


def _peak(device: str) -> int:
    if device != "cuda" and _STATUS.is_file():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    return peak_memory(device)
