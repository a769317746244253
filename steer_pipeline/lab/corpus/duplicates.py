"""Marks repeated articles; the first occurrence is the original, nothing is dropped here.

In: batches of rows in source order. Out: the rows with `duplicate_of` (row id of an earlier row with the
same normal form of the text) and, once the stream has ended, `near_duplicate_of` (row id of an earlier
original whose estimated Jaccard similarity of word 3-shingles reaches the threshold).

Memory per million rows: about 130 MB for exact duplicates, 530 MB for near ones (MinHash signatures of
512 bytes; the band index is built in arrays, one band at a time, since an LSH of Python dictionaries takes
several GB).
"""

import zlib

import numpy as np
import polars as pl
from datasketch import MinHash

from steer_pipeline.lab.corpus.identity import digest64, normal_form, shingles

PERMUTATIONS = 128
SEED = 20
COMPARED_PER_BAND = 64


class DuplicateFinder:
    """Takes rows batch by batch; deterministic for a given order of rows.

    Similarity is estimated from 128 MinHash permutations (Broder 1997): standard error at most 0.045.
    Pairs are looked up by bands (Leskovec et al., Mining of Massive Datasets, 3.4) that find a pair at
    the threshold with probability 0.9 or more, one above it with more.
    """

    def __init__(self, threshold: float) -> None:
        """`threshold` is the Jaccard similarity in (0, 1] from which two texts count as near duplicates."""
        self.threshold = threshold
        self._first: dict[int, int] = {}  # digest of the normal form -> row id of its first row
        self._ids: list[np.ndarray] = []
        self._indices: list[np.ndarray] = []
        self._signatures: list[np.ndarray] = []

    def add(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The rows with the column `duplicate_of`: null for the first occurrence of a text."""
        duplicate_of: list[str | None] = []
        texts: list[list[bytes]] = []
        original: list[bool] = []
        for row_id, text in rows.select("row_id", "text").iter_rows():
            normal = normal_form(text)
            digest = digest64(normal)
            first = self._first.get(digest)
            duplicate_of.append(None if first is None else f"{first:016x}")
            original.append(first is None)
            if first is None:
                self._first[digest] = int(row_id, 16)
                texts.append(shingles(normal))
        if texts:
            kept = rows.filter(pl.Series(original))
            self._ids.append(kept["row_id"].str.to_integer(base=16, dtype=pl.UInt64).to_numpy())
            self._indices.append(kept["source_index"].to_numpy())
            self._signatures.append(_signatures(texts))
        return rows.with_columns(pl.Series("duplicate_of", duplicate_of, dtype=pl.String))

    def near_duplicates(self) -> pl.DataFrame:
        """One row for each near duplicate so far: `source_index`, `near_duplicate_of`.

        Rows are taken in order and compared with the originals before them, so that what a near
        duplicate points to is never itself a near duplicate.
        """
        schema = {"source_index": pl.Int64, "near_duplicate_of": pl.String}
        if not self._ids:
            return pl.DataFrame(schema=schema)
        ids, indices = np.concatenate(self._ids), np.concatenate(self._indices)
        found = _first_similar(self._signatures, self.threshold)
        return pl.DataFrame(
            {
                "source_index": [int(indices[row]) for row in found],
                "near_duplicate_of": [f"{ids[first]:016x}" for first in found.values()],
            },
            schema=schema,
        )


def mark_duplicates(rows: pl.DataFrame, threshold: float = 0.8) -> pl.DataFrame:
    """A whole table with `duplicate_of` and `near_duplicate_of`, in the order of its rows.

    Args:
        rows: at least `row_id`, `source_index` (unique) and `text`.
        threshold: Jaccard similarity of word 3-shingles, in (0, 1].
    """
    finder = DuplicateFinder(threshold)
    marked = finder.add(rows)
    return marked.join(finder.near_duplicates(), on="source_index", how="left", maintain_order="left")


def _signatures(texts: list[list[bytes]]) -> np.ndarray:
    """uint32 [len(texts), PERMUTATIONS]."""
    hashes = MinHash.bulk(texts, num_perm=PERMUTATIONS, seed=SEED, hashfunc=zlib.crc32)
    return np.stack([each.hashvalues for each in hashes]).astype(np.uint32)


def band_rows(threshold: float) -> int:
    """Signature rows per band: the most selective that finds a pair at `threshold` with p >= 0.9."""
    for rows in (32, 16, 8, 4, 2):
        if 1 - (1 - threshold**rows) ** (PERMUTATIONS // rows) >= 0.9:
            return rows
    return 1


def _first_similar(batches: list[np.ndarray], threshold: float) -> dict[int, int]:
    """Row -> the earlier original that it resembles most, for rows that have one; rows in order.

    `batches` are signatures, uint32 [rows of the batch, PERMUTATIONS].
    """
    shared = _shared_bands(batches, band_rows(threshold))
    rows = np.array(sorted(shared), dtype=np.int64)
    starts = np.cumsum([0] + [len(batch) for batch in batches])
    cuts = np.searchsorted(rows, starts)
    signatures = np.concatenate(  # of the rows that share a band with another; few in most corpora
        [batch[rows[cuts[i] : cuts[i + 1]] - starts[i]] for i, batch in enumerate(batches)]
    )
    originals: dict[int, list[int]] = {}  # bucket -> positions in `rows` of its originals, in order
    found: dict[int, int] = {}
    for position, row in enumerate(rows.tolist()):
        candidates = sorted({other for bucket in shared[row] for other in originals.get(bucket, ())})
        if candidates:
            similarity = (signatures[candidates] == signatures[position]).mean(axis=1)
            best = int(similarity.argmax())
            if similarity[best] >= threshold:
                found[row] = int(rows[candidates[best]])
                continue
        for bucket in shared[row]:
            members = originals.setdefault(bucket, [])
            if len(members) < COMPARED_PER_BAND:  # boilerplate shared by very many texts stays cheap
                members.append(position)
    return found


def _shared_bands(batches: list[np.ndarray], rows: int) -> dict[int, list[int]]:
    """Row -> numbers of the buckets that it shares with another row, over all bands of `rows` columns."""
    mix = np.random.default_rng(SEED).integers(1, 2**63, size=rows, dtype=np.uint64)
    shared: dict[int, list[int]] = {}
    n_buckets = 0
    for start in range(0, PERMUTATIONS, rows):
        keys = np.concatenate([batch[:, start : start + rows].astype(np.uint64) @ mix for batch in batches])
        order = np.argsort(keys, kind="stable")
        same = keys[order][1:] == keys[order][:-1]
        member = np.zeros(len(keys), dtype=bool)  # at a position of `order`: a neighbour has the same key
        member[1:] |= same
        member[:-1] |= same
        bucket = n_buckets + np.cumsum(np.concatenate([[1], ~same]))
        for row, number in zip(order[member].tolist(), bucket[member].tolist(), strict=True):
            shared.setdefault(row, []).append(number)
        n_buckets = int(bucket[-1])
    return shared
