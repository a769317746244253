"""Work in progress beside the store: where journals lie, and how machines share them.

A store in a directory holds them itself, under `.work`. Beside a store in S3 or GCS, what is finished is mirrored to
`<base>/_work/<asset>/<name>/` as immutable segments, so that a pod that is started again elsewhere goes on.
"""

import logging
import time
import uuid
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

from steer_pipeline.io.store import ArtifactStore, Segments
from steer_pipeline.lab.endpoints import AnswerCache
from steer_pipeline.lab.generation.journal import Journal

log = logging.getLogger(__name__)

SUFFIX = ".jsonl"
EVERY_LINES = 200
EVERY_SECONDS = 20.0
MANY_SEGMENTS = 64


def open_journal(store: ArtifactStore, asset: str, name: str = "journal") -> Journal:
    """The journal of an asset, not yet entered; `name` tells those of its partitions apart."""
    file = f"{name}{SUFFIX}"
    return Journal(store.work(asset) / file, mirror_of(store, asset, file))


def open_answers(store: ArtifactStore, asset: str, of: str) -> AnswerCache:
    """Replies that an asset was given, not yet entered; `of` names who gives them in errors."""
    return AnswerCache(store.work(asset), mirror_of(store, asset, "answers"), of)


def mirror_of(store: ArtifactStore, asset: str, name: str) -> "SegmentMirror | None":
    """The mirror of append-only work; None for a store in a directory, which needs none."""
    segments = store.segments(asset, name)
    return None if segments is None else SegmentMirror(segments)


def journals(store: ArtifactStore) -> list[tuple[str, str]]:
    """(asset, name) of all journals, here and in the store."""
    return [
        (asset, name.removesuffix(SUFFIX)) for asset, name in store.in_progress() if name.endswith(SUFFIX)
    ]


class SegmentMirror:
    """Lines in segments of an object store. A segment is written once and never changed.

    Lines wait until there are `EVERY_LINES` of them or the last segment is `EVERY_SECONDS` old; a process that is
    killed loses no more than these. A segment that cannot be sent waits for the next: the work goes on.
    """

    def __init__(self, segments: Segments) -> None:
        self._segments = segments
        self._name, self._number = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}", 0
        self._waiting: list[bytes] = []
        self._known: set[str] = set()  # whose lines this process has seen
        self._sent = time.monotonic()

    def fetch(self) -> Iterator[bytes]:
        """All lines; where segments are merged meanwhile, those of the merged one."""
        while new := [name for name in self._segments.names() if name not in self._known]:
            for name in new:
                self._known.add(name)
                yield from (self._segments.read(name) or b"").splitlines(keepends=True)

    def add(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            self._waiting.append(line)
            if len(self._waiting) >= EVERY_LINES:
                self._send()
        if self._waiting and time.monotonic() - self._sent >= EVERY_SECONDS:
            self._send()

    def replace(self, lines: Iterable[bytes]) -> None:
        """The new segment comes first: whoever reads meanwhile finds lines twice, and none missing."""
        before = set(self._known)
        self._waiting = []
        self._put(b"".join(lines))
        for name in before:
            self._segments.remove(name)
        self._known -= before

    def close(self) -> None:
        self._send()
        if self._waiting:
            log.warning(
                "%s: %d finished lines could not be sent and lie on this machine alone; the next run here sends them",
                self._segments.url,
                len(self._waiting),
            )
        elif len(self._known) > MANY_SEGMENTS:
            self._known = set()
            self.replace(dict.fromkeys(self.fetch()))

    def _send(self) -> None:
        if not self._waiting:
            return
        self._sent = time.monotonic()
        try:
            self._put(b"".join(self._waiting))
        except Exception as error:  # each kind of store has errors of its own
            log.warning(
                "%s: a segment could not be sent (%s); it waits for the next", self._segments.url, error
            )
        else:
            self._waiting = []

    def _put(self, data: bytes) -> None:
        name = f"{self._name}-{self._number:05d}{SUFFIX}"
        self._segments.put(name, data)
        self._number += 1
        self._known.add(name)
