"""Random signs that depend on a name, a row and a column alone: the same on every machine, and those of Bergson.

In: a name and a shape. Out: a matrix whose products keep lengths on average (Johnson and Lindenstrauss). The signs are
the bits of Philox4x32-10 (Salmon et al. 2011), a counter-based generator, whose key is the MD5 of the name.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_BITS = 128  # of one output


def signs(name: str, rows: int, columns: int) -> np.ndarray:
    """fp32 [rows, columns] of -1 and 1: column c is bit c % 128 of the output for counter (c // 128, row, 0, 0)."""
    digest = hashlib.md5(name.encode(), usedforsecurity=False).digest()
    key = [int.from_bytes(digest[at : at + 4], "little") for at in (0, 4)]
    counter = np.arange(-(-columns // _BITS), dtype=np.uint64)
    words = [
        np.broadcast_to(counter, (rows, len(counter))),
        np.broadcast_to(np.arange(rows, dtype=np.uint64)[:, None], (rows, len(counter))),
    ]
    words += [np.zeros((rows, len(counter)), np.uint64)] * 2
    for _ in range(_ROUNDS):
        first, second = _MULTIPLIERS[0] * words[0], _MULTIPLIERS[1] * words[2]
        words = [
            (second >> _HALF) ^ words[1] ^ np.uint64(key[0]),
            second & _LOW,
            (first >> _HALF) ^ words[3] ^ np.uint64(key[1]),
            first & _LOW,
        ]
        key = [(one + step) & 0xFFFFFFFF for one, step in zip(key, _WEYL, strict=True)]
    outputs = np.stack([word.astype("<u4") for word in words], axis=-1)
    bits = np.unpackbits(outputs.view(np.uint8), axis=-1, bitorder="little").reshape(rows, -1)
    return np.where(bits[:, :columns] > 0, np.float32(1), np.float32(-1))


def projection(module: str, side: str, seed: int, to: int, size: int) -> Tensor:
    """fp32 [to, size] with entries of variance 1 / to.

    Args:
        side: "left" of a gradient [out, in] or "right" of it.
    """
    return torch.from_numpy(signs(f"{module}/{side}/seed{seed}", to, size)) / to**0.5
