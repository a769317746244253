"""Durable record of finished rows: what a killed run need not do again.

In: finished rows with the fingerprint of everything that made them. Out: the same rows after a restart, each at
most once. One JSON line a row with a checksum and the model that said it, flushed to disk before the caller hands the
row on. A torn last line is cut off on opening; any other line that fails its checksum counts as not done. One process
at a time may hold a journal. With a mirror, machines that do not share a disk share what is finished: rows are merged
by key on opening.
"""

import fcntl
import json
import logging
import os
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from steer_pipeline.lab.generation.jobs import FinishedRow

log = logging.getLogger(__name__)

Key = tuple[str, str, str]  # row id, variant, fingerprint; of a note of use: "", variant, its time
_CHUNK = 1000  # lines
_DAY_S = 24 * 3600.0


class JournalError(RuntimeError):
    """The journal is held by another process, or cannot be written. The message names file and cure."""


class Mirror(Protocol):
    """Where lines are kept beside a store that is not on this machine. It never holds up the work."""

    def fetch(self) -> Iterator[bytes]:
        """All lines that any machine has left there, in no order, some perhaps twice."""

    def add(self, lines: Iterable[bytes]) -> None:
        """Lines to be kept there, soon."""

    def replace(self, lines: Iterable[bytes]) -> None:
        """Puts `lines` in the place of all that has been fetched and added."""

    def close(self) -> None:
        """Sends what is left."""


@dataclass(frozen=True)
class Spare:
    """What compaction drops, or would drop, from a journal: lines that no run will take, and their bytes."""

    lines: int
    bytes: int


class Journal:
    """A context manager; `take` what is done, `record` what gets done, and say when the run is `finished`.

    Attributes:
        model: identity, as text, of the model whose rows are recorded.
        others: how many records of other models it holds, by their identity.
    """

    def __init__(self, path: Path, mirror: Mirror | None = None):
        self.path, self._mirror = path, mirror
        self.model = ""
        self.others: Counter[str] = Counter()
        self._where: dict[Key, int] = {}  # offsets, not rows: memory stays small for large packs
        self._used: dict[str, list[str]] = {}  # variant -> fingerprints of this run

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._locked()
        self._reader = self.path.open("rb")
        try:
            self._scan()
            if self._mirror is not None:
                self._merge(self._mirror)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._mirror is not None:
            self._mirror.close()
        self._close()

    def take(self, row_id: str, variant: str, fingerprint: str) -> FinishedRow | None:
        """The finished row of this key, or None when it is still to do."""
        offset = self._where.get((row_id, variant, fingerprint))
        if offset is None:
            return None
        record = parse_line(self._line_at(offset))
        if record is None:
            raise JournalError(
                f"{self.path}: byte {offset} changed while the run was reading; start the run again"
            )
        self._used.setdefault(variant, []).append(fingerprint)
        return FinishedRow(**record["row"])

    def record(self, rows: list[FinishedRow], fingerprints: list[str]) -> None:
        """Writes and fsyncs rows; a key that is already there is not written twice.

        Raises:
            JournalError: the disk is full or gone. What was half written is cut off.
        """
        lines: dict[Key, bytes] = {}
        for row, fingerprint in zip(rows, fingerprints, strict=True):
            self._used.setdefault(row.variant, []).append(fingerprint)
            key = (row.row_id, row.variant, fingerprint)
            if key not in self._where:
                record = {"row": asdict(row), "fingerprint": fingerprint, "model": self.model, "at": _now()}
                lines[key] = as_line(record)
        self._append(lines)
        if self._mirror is not None:
            self._mirror.add(lines.values())

    def finished(self) -> None:
        """Notes which rows the run took or made, all it was asked for: compaction keeps those of the last such run."""
        notes, (_, last) = {}, self._use()
        for variant, fingerprints in self._used.items():
            before = last.get(variant, {"fingerprints": None, "at": 0.0})
            # Later than the note before, within one millisecond and by a clock put back, too: the last one counts.
            at = max(_now(), round(before["at"] + 0.001, 3))
            note = {"used": variant, "fingerprints": sorted(fingerprints), "at": at}
            if before["fingerprints"] != note["fingerprints"] or note["at"] - before["at"] > _DAY_S:
                notes[_key(note)] = as_line(note)
        self._append(notes)
        if self._mirror is not None:
            self._mirror.add(notes.values())

    def compact(self, unused_since: float, *, write: bool) -> Spare:
        """Drops what no run will take: damaged lines, rows that stand twice, and rows that no run has used since.

        The rows that the last finished run of a variant used are kept, however old: they make the same version
        again at once. The last thing to do with an open journal.

        Args:
            unused_since: seconds since the epoch.
            write: False only tells what would go. The new file takes the place of the old one as a whole.
        """
        size, kept = os.fstat(self._file.fileno()).st_size, 0
        new = self.path.with_name(f"{self.path.name}.new")
        try:
            with open(new if write else os.devnull, "wb") as file:
                for line in self._kept(unused_since):
                    size, kept = size - len(line), kept + 1
                    file.write(line)
                if write:
                    file.flush()
                    os.fsync(file.fileno())
                    os.replace(new, self.path)
        finally:
            new.unlink(missing_ok=True)
        if write and self._mirror is not None:
            with self.path.open("rb") as lines:
                self._mirror.replace(lines)
        return Spare(self._n_lines - kept, size)

    # ------------------------------------------------------------------------------------- private

    def _locked(self) -> Any:
        while True:
            file = self.path.open("ab", buffering=0)  # no buffer: a failed write leaves nothing in memory
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                raise JournalError(
                    f"{self.path}: another run is writing this journal of finished rows; wait for that run or stop "
                    "it, then start this one again: it takes the rows that are done"
                ) from None
            if os.fstat(file.fileno()).st_ino == self.path.stat().st_ino:
                return file
            file.close()  # compaction has put another file there since it was opened

    def _close(self) -> None:
        self._reader.close()
        self._file.close()  # gives the lock back

    def _append(self, lines: dict[Key, bytes]) -> None:
        if not lines:
            return
        start = at = os.fstat(self._file.fileno()).st_size
        added = {}
        for key, line in lines.items():
            added[key] = at
            at += len(line)
        try:
            _write_all(self._file.fileno(), b"".join(lines.values()))
        except OSError as error:
            os.ftruncate(self._file.fileno(), start)
            raise JournalError(
                f"{self.path}: cannot be written ({error.strerror}); free space or mend the disk and start again, "
                "finished rows are kept"
            ) from error
        self._where |= added
        self._n_lines += len(added)

    def _scan(self) -> None:
        offset = bad = self._n_lines = 0
        for line in self._reader:
            record = parse_line(line)
            if record is not None:
                self._where.setdefault(_key(record), offset)
                self._count(record)
            elif not line.endswith(b"\n"):
                log.warning(
                    "%s: last record is torn (byte %d); cut off, its row is done again", self.path, offset
                )
                os.ftruncate(self._file.fileno(), offset)
                break
            else:
                bad += 1
            offset += len(line)
            self._n_lines += 1
        if bad:
            log.warning("%s: %d records fail their checksum; their rows are done again", self.path, bad)

    def _merge(self, mirror: Mirror) -> None:
        """Takes over what other machines have finished, and gives what they lack."""
        there: set[Key] = set()
        new: dict[Key, bytes] = {}
        for line in mirror.fetch():
            record = parse_line(line)
            if record is None or (key := _key(record)) in there:
                continue
            there.add(key)
            if key not in self._where:
                new[key] = line
                self._count(record)
            if len(new) >= _CHUNK:
                self._append(new)
                new = {}
        self._append(new)
        mirror.add(self._line_at(offset) for key, offset in self._where.items() if key not in there)

    def _count(self, record: dict[str, Any]) -> None:
        if record.get("model", self.model) != self.model:
            self.others[record["model"]] += 1

    def _line_at(self, offset: int) -> bytes:
        self._reader.seek(offset)
        return self._reader.readline()

    def _use(self) -> tuple[dict[tuple[str, str], float], dict[str, dict[str, Any]]]:
        """(variant, fingerprint) -> when a finished run last used it; variant -> the last note of use."""
        used: dict[tuple[str, str], float] = {}
        last: dict[str, dict[str, Any]] = {}
        for (row_id, variant, _), offset in self._where.items():
            if not row_id and (note := parse_line(self._line_at(offset))) is not None:
                for fingerprint in note["fingerprints"]:
                    used[variant, fingerprint] = max(note["at"], used.get((variant, fingerprint), 0.0))
                if variant not in last or note["at"] > last[variant]["at"]:
                    last[variant] = note
        return used, last

    def _kept(self, unused_since: float) -> Iterator[bytes]:
        written = os.fstat(self._file.fileno()).st_mtime  # of rows from before they had a time
        used, last = self._use()
        current = {variant: set(note["fingerprints"]) for variant, note in last.items()}
        for (row_id, variant, fingerprint), offset in self._where.items():
            record = parse_line(self._line_at(offset)) if row_id else None
            if record is not None:
                at = max(record.get("at", written), used.get((variant, fingerprint), 0.0))
                if at >= unused_since or fingerprint in current.get(variant, ()):
                    yield as_line(record | {"at": at})
        yield from map(as_line, last.values())


def as_line(record: dict[str, Any]) -> bytes:
    """A record as one line with its checksum."""
    body = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    return b"%08x %b\n" % (zlib.crc32(body), body)


def parse_line(line: bytes) -> dict[str, Any] | None:
    """The record of a line, or None where it is torn or damaged."""
    checksum, _, body = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(body):
        return None
    return json.loads(body.decode("utf-8", "surrogatepass"))


def _key(record: dict[str, Any]) -> Key:
    if "used" in record:
        return "", record["used"], str(record["at"])
    return record["row"]["row_id"], record["row"]["variant"], record["fingerprint"]


def _now() -> float:
    return round(time.time(), 3)


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
    os.fsync(descriptor)
