"""Durable record of finished rows: what a killed run need not do again.

In: finished rows with the fingerprint of everything that made them. Out: the same rows after a restart,
each at most once. One JSON line a row with a checksum and the model that said it, flushed to disk before the caller
hands the row on. A torn last line is cut off on opening; any other line that fails its checksum counts as not done. One
process at a time may hold a journal.
"""

import fcntl
import json
import logging
import os
import zlib
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Self

from steer_pipeline.lab.generation.schema import FinishedRow

log = logging.getLogger(__name__)

Key = tuple[str, str, str]  # row id, variant, fingerprint


class JournalError(RuntimeError):
    """The journal is held by another process, or cannot be written. The message names file and cure."""


class Journal:
    """A context manager; `take` what is done, `record` what gets done.

    Attributes:
        others: how many records of other models than `model` it holds, by their identity as text.
    """

    def __init__(self, path: Path, model: str = ""):
        self.path, self.model = path, model
        self.others: Counter[str] = Counter()
        self._where: dict[Key, int] = {}  # offsets, not rows: memory stays small for large packs

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open(
            "ab", buffering=0
        )  # no buffer: a failed write leaves nothing behind in memory
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise JournalError(f"{self.path}: another run is writing it; wait for it or stop it") from error
        self._reader = self.path.open("rb")
        self._scan()
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()
        self._file.close()  # gives the lock back

    def take(self, row_id: str, variant: str, fingerprint: str) -> FinishedRow | None:
        """The finished row of this key, or None when it is still to do."""
        offset = self._where.get((row_id, variant, fingerprint))
        if offset is None:
            return None
        self._reader.seek(offset)
        record = _parse(self._reader.readline())
        if record is None:
            raise JournalError(
                f"{self.path}: byte {offset} changed while the run was reading; start the run again"
            )
        return FinishedRow(**record["row"])

    def record(self, rows: list[FinishedRow], fingerprints: list[str]) -> None:
        """Writes and fsyncs rows; a key that is already there is not written twice.

        Raises:
            JournalError: the disk is full or gone. What was half written is cut off.
        """
        start = at = os.fstat(self._file.fileno()).st_size
        lines = []
        added: dict[Key, int] = {}
        for row, fingerprint in zip(rows, fingerprints, strict=True):
            key = (row.row_id, row.variant, fingerprint)
            if key in self._where or key in added:
                continue
            line = _line({"row": asdict(row), "fingerprint": fingerprint, "model": self.model})
            added[key] = at
            at += len(line)
            lines.append(line)
        try:
            _write_all(self._file.fileno(), b"".join(lines))
        except OSError as error:
            os.ftruncate(self._file.fileno(), start)
            raise JournalError(
                f"{self.path}: cannot be written ({error.strerror}); free space or mend the "
                "disk and start again, "
                "finished rows are kept"
            ) from error
        self._where |= added

    def _scan(self) -> None:
        offset, bad = 0, 0
        for line in self._reader:
            record = _parse(line)
            if record is not None:
                row = record["row"]
                self._where.setdefault((row["row_id"], row["variant"], record["fingerprint"]), offset)
                if record.get("model", self.model) != self.model:
                    self.others[record["model"]] += 1
            elif not line.endswith(b"\n"):
                log.warning(
                    "%s: last record is torn (byte %d); cut off, its row is done again", self.path, offset
                )
                os.ftruncate(self._file.fileno(), offset)
                break
            else:
                bad += 1
            offset += len(line)
        if bad:
            log.warning("%s: %d records fail their checksum; their rows are done again", self.path, bad)


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
    os.fsync(descriptor)


def _line(record: dict[str, object]) -> bytes:
    body = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    return b"%08x %b\n" % (zlib.crc32(body), body)


def _parse(line: bytes) -> dict | None:
    checksum, _, body = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(body):
        return None
    return json.loads(body.decode("utf-8", "surrogatepass"))
