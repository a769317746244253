"""Rows in batches that are the same in every run, with a record of what is done: a killed scoring goes on from there.

In: examples, a token budget, and a function from a batch to a number for each row. Out: the numbers by row id. Only
they are kept, so that memory does not grow with the pool.
"""

import json
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from steer_pipeline.lab.attribution.scoring.ranking import require_finite
from steer_pipeline.lab.finetune.data import Example

Progress = Callable[[str], None]


class Record:
    """Numbers by key, a line each, on disk before the next ones are made.

    It is of certain rows and settings: give others another file. A torn or damaged line counts as not there.
    """

    def __init__(self, path: Path | None) -> None:
        """
        Args:
            path: None: nothing is kept.
        """
        self._path = path
        self._known = dict(self._read())

    def get(self, key: str) -> list[float] | None:
        return self._known.get(key)

    def put(self, key: str, values: Sequence[float]) -> None:
        self._known[key] = list(values)
        if self._path is None:
            return
        text = json.dumps([key, list(values)])
        self._path.parent.mkdir(parents=True, exist_ok=True)
        torn = self._path.is_file() and not self._path.read_bytes().endswith(b"\n")
        with self._path.open("ab") as file:
            file.write(f"{chr(10) if torn else ''}{zlib.crc32(text.encode()):08x} {text}\n".encode())
            file.flush()
            os.fsync(file.fileno())

    def _read(self) -> list[tuple[str, list[float]]]:
        if self._path is None or not self._path.is_file():
            return []
        lines = [line.partition(" ") for line in self._path.read_text(errors="replace").splitlines()]
        return [json.loads(text) for check, _, text in lines if check == f"{zlib.crc32(text.encode()):08x}"]


def batches_of(examples: Sequence[Example], batch_tokens: int) -> list[list[Example]]:
    """Rows of similar length together, at most `batch_tokens` with padding, or one row that is longer."""
    batches: list[list[Example]] = []
    for example in sorted(examples, key=lambda one: (len(one.ids), one.row_id)):
        if batches and len(example.ids) * (len(batches[-1]) + 1) <= batch_tokens:
            batches[-1].append(example)
        else:
            batches.append([example])
    return batches


def scored(
    examples: Sequence[Example],
    batch_tokens: int,
    score: Callable[[list[Example]], Sequence[float]],
    record: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, float]:
    """A number for each row, batch after batch.

    Args:
        record: where finished batches are noted, which are not made again.

    Raises:
        ScoringError: a number is not finite; the row is named.
    """
    batches, known = batches_of(examples, batch_tokens), Record(record)
    found: dict[str, float] = {}
    for index, batch in enumerate(batches):
        values = known.get(str(index))
        if values is None:
            values = [float(value) for value in score(batch)]
            for example, value in zip(batch, values, strict=True):
                require_finite(example.row_id, value)
            known.put(str(index), values)
        found.update(zip((one.row_id for one in batch), values, strict=True))
        if progress is not None and (index + 1) % max(1, len(batches) // 10) == 0:
            progress(f"{len(found)} of {len(examples)} rows")
    return found
