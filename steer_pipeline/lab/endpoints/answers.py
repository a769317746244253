"""Replies that were paid for, by a key of everything that decides them: what a run after a killed one need not ask."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from steer_pipeline.lab.endpoints.client import EndpointError
from steer_pipeline.lab.generation.journal import Mirror, as_line, parse_line

LOCK_SECONDS = 30.0  # a write of another process takes milliseconds


class AnswerCache:
    """A model's replies on disk: one SQLite file, one transaction a reply, safe for killed and parallel runs.

    Holds hashes, the model's name and its replies; neither questions and answers nor keys. With a mirror, replies of
    all machines are brought together on opening.

    Args:
        of: whose replies they are, for errors.
    """

    def __init__(self, folder: Path, mirror: Mirror | None = None, of: str = "judge") -> None:
        self.path, self._mirror, self._of = folder / "answers.sqlite", mirror, of

    def __enter__(self) -> Self:
        with self._plain_errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=LOCK_SECONDS, isolation_level=None)
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, model TEXT NOT NULL, answer TEXT NOT NULL)"
            )
            self._db.execute("DELETE FROM answers WHERE trim(answer) = ''")  # earlier versions kept them
            if self._mirror is not None:
                self._merge(self._mirror)
        return self

    def __exit__(self, *_: object) -> None:
        if self._mirror is not None:
            self._mirror.close()
        self._db.close()

    def get(self, key: str) -> str | None:
        with self._plain_errors():
            row = self._db.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        return None if row is None else row[0]

    def put(self, key: str, model: str, answer: str) -> None:
        """On disk when it returns; what is there already stays."""
        with self._plain_errors():
            self._db.execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?)", (key, model, answer))
        if self._mirror is not None:
            self._mirror.add([_answer_line(key, model, answer)])

    def _merge(self, mirror: Mirror) -> None:
        records = {record["key"]: record for line in mirror.fetch() if (record := parse_line(line))}
        records = {key: record for key, record in records.items() if record["answer"].strip()}
        with self._db:
            self._db.execute("BEGIN")
            for record in records.values():
                self._db.execute("INSERT OR IGNORE INTO answers VALUES (:key, :model, :answer)", record)
        ours = self._db.execute("SELECT key, model, answer FROM answers")
        mirror.add(_answer_line(*row) for row in ours if row[0] not in records)

    @contextmanager
    def _plain_errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            if "locked" in str(error):
                raise EndpointError(
                    f"{self.path}: another process has been writing the {self._of}'s cache for {LOCK_SECONDS:g} s; "
                    "wait for it or stop it, then start again: what was answered is kept"
                ) from None
            raise EndpointError(
                f"{self.path}: the {self._of}'s cache cannot be used ({error}); free space, or remove the file if it "
                "is damaged: its answers are then asked again"
            ) from error


def _answer_line(key: str, model: str, answer: str) -> bytes:
    return as_line({"key": key, "model": model, "answer": answer})
