"""A judge behind an OpenAI-compatible endpoint: how much of a persona an answer shows, by the persona's rubric.

In: a persona with a `judge_rubric`, and pairs of question and answer. Out: one judgement a pair. Temperature 0.
Answers are on disk as soon as they come, keyed by their content, so that a run after a killed or stopped one
asks only what is missing, whichever endpoint serves the model. The key is read from STEER_JUDGE_KEY at the
moment of use and goes nowhere but into the request's header.

Endpoints differ: where one refuses `max_tokens`, it is asked with `max_completion_tokens`; where one refuses the
temperature, with its own; where a reply is empty because the model spent its room on thinking, again with more. What
an endpoint took is remembered for the next rows of this process.

Retries are those of package openai: 408, 409, 429, 5xx, timeouts and broken connections, after 0.5 s doubled
each time up to 8 s, less up to a quarter at random, or after what Retry-After says, up to two minutes. Every
attempt, retries included, passes the rate limit.
"""

import asyncio
import hashlib
import json
import logging
import os
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

from steer_pipeline.catalogue.scale import ScoreScale
from steer_pipeline.catalogue.specs import JudgeSpec, Persona
from steer_pipeline.lab.evaluation.judgement import MISSING, Judgement, read_judgement
from steer_pipeline.lab.generation.journal import Mirror, as_line, parse_line

log = logging.getLogger(__name__)

KEY_VARIABLE = "STEER_JUDGE_KEY"
URL_VARIABLE = "STEER_JUDGE_URL"
NO_KEY = "none"  # sent to endpoints that want no key; the client refuses an empty one
TEMPERATURE = 0.0
GIVE_UP_AFTER = 10  # failed rows in a row, each with its retries
LOCK_SECONDS = 30.0  # a write of another process takes milliseconds

_THOUGHT = re.compile(r"\s*<think>.*?(</think>|\Z)", re.DOTALL)  # of servers that leave it in the reply
_ROOMS = (1, 16, 256)  # times max_tokens, one after the other while replies come back empty
_REFUSED = (400, 422)  # what endpoints say to a field that they do not know
_REPORT_SECONDS = 5.0
_SHOWN_CHARS = 200


class JudgeError(ValueError):
    """The judge cannot be asked as it is set up. The message says what to change; trying again does not help."""


class JudgeUnavailable(RuntimeError):
    """The endpoint fails again and again. What was answered is kept; start again when it is back."""


def judge_texts(
    persona: Persona,
    pairs: Sequence[tuple[str, str]],
    spec: JudgeSpec,
    url: str,
    cache_dir: Path,
    mirror: Mirror | None = None,
) -> list[Judgement]:
    """A judgement for every (question, answer), in order; equal pairs are asked once.

    Args:
        url: base address of the endpoint, e.g. http://localhost:8000/v1.
        cache_dir: where the judge's answers are kept; it may be shared by personas, models and processes.
        mirror: shares them with other machines.

    Raises:
        JudgeError: the persona has no rubric, the address or key is of no use, the endpoint refuses
            (401, 403, 404), package openai is missing, or the cache cannot be written.
        ValueError: an axis has no scale.
        JudgeUnavailable: `GIVE_UP_AFTER` rows failed one after the other.
    """
    return _run(_judge_all(persona, pairs, spec, url, AnswerCache(cache_dir, mirror)))


def fill_rubric(rubric: str, question: str, answer: str) -> str:
    """The rubric with `{question}` and `{answer}` filled in; braces in either text stay as they are."""
    values = {"{question}": question, "{answer}": answer}
    return re.sub(r"\{question\}|\{answer\}", lambda field: values[field[0]], rubric)


def shown_url(url: str) -> str:
    """The address without user, password and query: for logs, errors and metadata."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


# ------------------------------------------------------------------------------------------ cache


class AnswerCache:
    """The judge's replies on disk: one SQLite file, one transaction a reply, safe for killed and parallel runs.

    Holds hashes, the judge's name and its replies; neither questions and answers nor keys. With a mirror, replies of
    all machines are brought together on opening.
    """

    def __init__(self, folder: Path, mirror: Mirror | None = None) -> None:
        self.path, self._mirror = folder / "answers.sqlite", mirror

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
                raise JudgeError(
                    f"{self.path}: another process has been writing the judge's cache for {LOCK_SECONDS:g} s; wait "
                    "for it or stop it, then start again: what was answered is kept"
                ) from None
            raise JudgeError(
                f"{self.path}: the judge's cache cannot be used ({error}); free space, or remove the file if it "
                "is damaged: its answers are then asked again"
            ) from error


def _answer_line(key: str, model: str, answer: str) -> bytes:
    return as_line({"key": key, "model": model, "answer": answer})


def cache_key(spec: JudgeSpec, rubric: str, question: str, answer: str) -> str:
    """64 hex digits of everything that decides the reply; the endpoint is not part of it."""
    parts = [spec.model, rubric, question, answer, TEMPERATURE, spec.max_tokens]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


# ----------------------------------------------------------------------------------------- asking


class _Pace:
    """At most so many requests a second, evenly. A request takes the next slot, then sleeps until it comes."""

    def __init__(self, requests_per_second: float) -> None:
        self._gap, self._next = 1.0 / requests_per_second, 0.0

    async def wait(self, _: Any = None) -> None:
        now = time.monotonic()
        slot = max(now, self._next)
        self._next = slot + self._gap
        await asyncio.sleep(slot - now)


@dataclass(frozen=True)
class _Reply:
    """What came of one request: a text, or why there is none."""

    text: str | None = None
    failure: str = ""
    refused: bool = False  # no other row will fare better
    refusal: str = ""  # what the endpoint said of the request's fields


@dataclass(frozen=True)
class _Dialect:
    """What an endpoint takes: the name of the limit, a temperature or none, and which of `_ROOMS` its model needs."""

    limit: str = "max_tokens"
    temperature: bool = True
    room: int = 0

    def request(self, spec: JudgeSpec) -> dict[str, Any]:
        temperature = {"temperature": TEMPERATURE} if self.temperature else {}
        return temperature | {self.limit: spec.max_tokens * _ROOMS[self.room]}

    def after(self, refusal: str) -> "_Dialect":
        """What to try next; itself where the refusal names none of its fields."""
        other = self
        if re.search(r"\bmax_tokens\b", refusal):
            other = replace(other, limit="max_completion_tokens")
        return replace(other, temperature=False) if "temperature" in refusal else other


_dialects: dict[tuple[str, str], _Dialect] = {}  # by endpoint and model, as replies came


@dataclass
class _Asked:
    """What the workers of one call share."""

    answers: dict[str, Judgement]
    failures: int = 0
    failed_in_a_row: int = 0
    last_failure: str = ""
    reported: float = 0.0


async def _judge_all(
    persona: Persona, pairs: Sequence[tuple[str, str]], spec: JudgeSpec, url: str, answers: "AnswerCache"
) -> list[Judgement]:
    scale, rubric = persona.scale, persona.judge_rubric
    if not rubric:
        raise JudgeError(
            f"persona {persona.name}: judge_rubric is empty; write one with {{question}} and {{answer}}"
        )
    texts = [(_sendable(question), _sendable(answer)) for question, answer in pairs]
    keys = [cache_key(spec, rubric, question, answer) for question, answer in texts]
    with answers as cache:
        asked = _Asked({})
        todo: dict[str, str] = {}
        for key, (question, answer) in zip(keys, texts, strict=True):
            if key in todo or key in asked.answers:
                continue
            if (before := cache.get(key)) is not None:
                asked.answers[key] = replace(read_judgement(before, scale), cached=True)
            else:
                todo[key] = fill_rubric(rubric, question, answer)
        if todo:
            await _ask_all(todo, spec, url, cache, asked, scale)
    _report(asked, len(asked.answers), last=True)
    return [asked.answers[key] for key in keys]


async def _ask_all(
    todo: dict[str, str], spec: JudgeSpec, url: str, cache: AnswerCache, asked: _Asked, scale: ScoreScale
) -> None:
    key = _judge_key()
    client = _client(spec, url, key)
    jobs = iter(todo.items())
    total = len(asked.answers) + len(todo)

    async def work() -> None:
        for name, prompt in jobs:
            reply = await _ask(client, spec, prompt, url, key)
            if reply.text is None:
                asked.answers[name] = MISSING
                _count_failure(asked, reply, url)
            else:
                cache.put(name, spec.model, reply.text)
                asked.answers[name] = read_judgement(reply.text, scale)
                asked.failed_in_a_row = 0
            _report(asked, total)

    stopped: list[BaseException] = []
    async with client:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(spec.concurrency, len(todo))):
                    group.create_task(work())
        except* (JudgeError, JudgeUnavailable) as failed:
            stopped += failed.exceptions
    if stopped:
        raise stopped[0]


def _count_failure(asked: _Asked, reply: _Reply, url: str) -> None:
    asked.failures += 1
    asked.failed_in_a_row += 1
    asked.last_failure = reply.failure
    if reply.refused:
        raise JudgeError(reply.failure)
    if asked.failed_in_a_row >= GIVE_UP_AFTER:
        raise JudgeUnavailable(
            f"judge {shown_url(url)}: {asked.failed_in_a_row} rows in a row got no answer, the last: "
            f"{reply.failure}. See to the endpoint and start again; what was answered is kept"
        )


def _client(spec: JudgeSpec, url: str, key: str) -> Any:
    try:
        import openai
    except ImportError as error:
        raise JudgeError(
            "judging needs the package openai; install steer-pipeline with its extra: pip install -e '.[judge]'"
        ) from error
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise JudgeError(
            f"{URL_VARIABLE} is not the address of an endpoint: {shown_url(url)!r}; give one such as "
            "http://localhost:8000/v1"
        )
    return openai.AsyncOpenAI(
        base_url=url,
        api_key=key,
        timeout=spec.timeout_s,
        max_retries=spec.max_retries,
        http_client=openai.DefaultAsyncHttpxClient(
            event_hooks={"request": [_Pace(spec.requests_per_second).wait]}
        ),
    )


async def _ask(client: Any, spec: JudgeSpec, prompt: str, url: str, key: str) -> _Reply:
    """One row, in whatever dialect the endpoint takes."""
    dialect = _dialects.get((url, spec.model), _Dialect())
    while True:
        reply = await _ask_once(client, spec, prompt, url, key, dialect)
        if reply.text is not None and reply.text.strip():
            _dialects[url, spec.model] = dialect
            return reply
        if reply.text is None:
            other = dialect.after(reply.refusal)
            if other == dialect:
                return reply
            dialect = other
        elif dialect.room + 1 == len(_ROOMS):
            return _Reply(
                failure=f"the reply is empty, also with room for {spec.max_tokens * _ROOMS[-1]} tokens: raise "
                "judge.max_tokens if the model thinks longer, or name one that answers at once in judge.model"
            )
        else:
            dialect = replace(dialect, room=dialect.room + 1)


async def _ask_once(
    client: Any, spec: JudgeSpec, prompt: str, url: str, key: str, dialect: _Dialect
) -> _Reply:
    """One request, with its retries. An error becomes a sentence here, so that no trace holds the request."""
    import openai

    try:
        completion = await client.chat.completions.create(
            model=spec.model, messages=[{"role": "user", "content": prompt}], **dialect.request(spec)
        )
        return _text_of(completion)
    except openai.APIStatusError as error:
        message = error.body.get("message") if isinstance(error.body, dict) else error.message
        failure = f"HTTP {error.status_code}: {_without(key, str(message))}"
        if error.status_code in _REFUSED:
            return _Reply(failure=failure, refusal=str(error.body or message))
        if cure := _CURES.get(error.status_code):
            return _Reply(
                failure=f"judge {shown_url(url)}, model {spec.model!r}: {failure}. {cure}", refused=True
            )
        return _Reply(failure=failure)
    except openai.APITimeoutError:
        return _Reply(failure=f"no answer within {spec.timeout_s:g} s")
    except openai.APIConnectionError as error:
        return _Reply(failure=f"no connection ({type(error.__cause__).__name__})")
    except (openai.APIError, json.JSONDecodeError) as error:
        return _Reply(failure=f"the reply is no chat completion ({type(error).__name__})")


_CURES = {
    401: f"Set {KEY_VARIABLE} to a key that this endpoint accepts",
    403: f"The key in {KEY_VARIABLE} may not use this model; ask for access, or name another in judge.model",
    404: f"Check judge.model of the profile, and that {URL_VARIABLE} ends as the endpoint wants it, mostly with /v1",
}


def _text_of(completion: Any) -> _Reply:
    """The reply's text without what the model thought; empty where it only thought."""
    try:
        message = completion.choices[0].message
        text = message.content
    except (AttributeError, IndexError, TypeError):
        return _Reply(failure="the reply is no chat completion")
    if text is not None and not isinstance(text, str):
        return _Reply(failure="the reply is no chat completion")
    text = _THOUGHT.sub("", text, count=1) if text and _THOUGHT.match(text) else text
    return _Reply(_sendable(text or getattr(message, "refusal", None) or ""))


def _judge_key() -> str:
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not all("!" <= letter <= "~" for letter in key):
        raise JudgeError(
            f"{KEY_VARIABLE} holds a character that no request may carry; set it to the bare key"
        )
    return key or NO_KEY


def _without(key: str, text: str) -> str:
    shown = text if key == NO_KEY else text.replace(key, "***")
    return " ".join(shown.split())[:_SHOWN_CHARS]


def _sendable(text: str) -> str:
    """Lone surrogates, which no request can carry, become question marks."""
    return text.encode("utf-8", "replace").decode()


def _report(asked: _Asked, total: int, *, last: bool = False) -> None:
    now = time.monotonic()
    if now - asked.reported < _REPORT_SECONDS and not last:
        return
    asked.reported = now
    counts = Counter(judgement.status for judgement in asked.answers.values())
    by_status = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    log.info("judged %d of %d texts: %s", len(asked.answers), total, by_status or "none")
    if last and asked.failures:
        log.warning("%d texts got no answer from the judge, the last: %s", asked.failures, asked.last_failure)


def _run(work: Coroutine[Any, Any, list[Judgement]]) -> list[Judgement]:
    if not _loop_is_running():
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:  # a notebook has a loop already, which cannot wait for another
        return pool.submit(asyncio.run, work).result()


def _loop_is_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
