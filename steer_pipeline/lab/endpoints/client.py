"""An OpenAI-compatible endpoint: messages in, a reply and what it used out. It knows nothing of what they are about.

The key is read from the environment at the moment of use and goes nowhere but into the request's header.

Endpoints differ: where one refuses `max_tokens`, it is asked with `max_completion_tokens`; where one refuses the
temperature or the seed, with its own; where a reply is empty because the model spent its room on thinking, again with
more. What an endpoint took is remembered for the next requests of this process.

Retries are those of package openai: 408, 409, 429, 5xx, timeouts and broken connections, after 0.5 s doubled
each time up to 8 s, less up to a quarter at random, or after what Retry-After says, up to two minutes. Every
attempt, retries included, passes the rate limit.
"""

import asyncio
import json
import os
import re
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit, urlunsplit

NO_KEY = "none"  # sent to endpoints that want no key; the client refuses an empty one
GIVE_UP_AFTER = 10  # failed requests in a row, each with its retries

_THOUGHT = re.compile(r"\s*<think>.*?(</think>|\Z)", re.DOTALL)  # of servers that leave it in the reply
_ROOMS = (1, 16, 256)  # times max_tokens, one after the other while replies come back empty
_REFUSED = (400, 422)  # what endpoints say to a field that they do not know
_SHOWN_CHARS = 200

T = TypeVar("T")
Message = dict[str, str]  # role, content


class EndpointError(ValueError):
    """The endpoint cannot be asked as it is set up. The message says what to change; trying again does not help."""


class EndpointUnavailable(RuntimeError):
    """The endpoint fails again and again. What was answered is kept; start again when it is back."""


@dataclass(frozen=True)
class Endpoint:
    """Where a model is asked, and how.

    Attributes:
        url: base address, e.g. http://localhost:8000/v1.
        who: what errors call it, e.g. "judge".
        section: of the profile, where its settings stand.
        url_variable, key_variable: of the environment; the first for errors alone, the second holds the key.
        timeout_s: seconds that one attempt may take.
    """

    url: str
    model: str
    who: str
    section: str
    url_variable: str
    key_variable: str
    requests_per_second: float
    timeout_s: float
    max_retries: int


@dataclass(frozen=True)
class Usage:
    """What replies used.

    Attributes:
        cost_usd: where the endpoint says it; else None.
        unmetered: replies that did not say their tokens.
    """

    replies: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = None
    unmetered: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        costs = [cost for cost in (self.cost_usd, other.cost_usd) if cost is not None]
        return Usage(
            self.replies + other.replies,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            sum(costs) if costs else None,
            self.unmetered + other.unmetered,
        )


@dataclass(frozen=True)
class Reply:
    """What came of one request: a text, or why there is none.

    Attributes:
        refused: no other request will fare better.
        refusal: what the endpoint said of the request's fields.
    """

    text: str | None = None
    failure: str = ""
    refused: bool = False
    refusal: str = ""
    usage: Usage = Usage()


class Patience:
    """Counts failures; a refusal, or too many failures in a row, ends the run."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self.failures = self.in_a_row = 0
        self.last = ""

    def take(self, reply: Reply) -> None:
        """Notes a reply.

        Raises:
            EndpointError: the endpoint refuses. EndpointUnavailable: `GIVE_UP_AFTER` requests failed in a row.
        """
        if reply.text is not None:
            self.in_a_row = 0
            return
        self.failures, self.in_a_row, self.last = self.failures + 1, self.in_a_row + 1, reply.failure
        if reply.refused:
            raise EndpointError(reply.failure)
        if self.in_a_row >= GIVE_UP_AFTER:
            raise EndpointUnavailable(
                f"{self._endpoint.who} {shown_url(self._endpoint.url)}: {self.in_a_row} rows in a row got no answer, "
                f"the last: {reply.failure}. See to the endpoint and start again; what was answered is kept"
            )


def shown_url(url: str) -> str:
    """The address without user, password and query: for logs, errors and metadata."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def sendable(text: str) -> str:
    """Lone surrogates, which no request can carry, become question marks."""
    return text.encode("utf-8", "replace").decode()


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs it to its end, also where an event loop is running already, as in a notebook."""
    if not _loop_is_running():
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


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
class _Dialect:
    """What an endpoint takes: the name of the limit, temperature and seed or none, and which of `_ROOMS` it needs."""

    limit: str = "max_tokens"
    temperature: bool = True
    seed: bool = True
    room: int = 0

    def request(self, max_tokens: int, temperature: float, seed: int | None) -> dict[str, Any]:
        fields: dict[str, Any] = {"temperature": temperature} if self.temperature else {}
        if self.seed and seed is not None:
            fields["seed"] = seed
        return fields | {self.limit: max_tokens * _ROOMS[self.room]}

    def after(self, refusal: str) -> "_Dialect":
        """What to try next; itself where the refusal names none of its fields."""
        other = self
        if re.search(r"\bmax_tokens\b", refusal):
            other = replace(other, limit="max_completion_tokens")
        if re.search(r"\bseed\b", refusal):
            other = replace(other, seed=False)
        return replace(other, temperature=False) if "temperature" in refusal else other


_dialects: dict[tuple[str, str], _Dialect] = {}  # by endpoint and model, as replies came


class Client:
    """An open connection to an endpoint; an async context manager.

    Raises:
        EndpointError: address or key are of no use, or package openai is missing.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._key = _key(endpoint.key_variable)
        self._client = _opened(endpoint, self._key)

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *failed: Any) -> None:
        await self._client.__aexit__(*failed)

    async def ask(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        temperature: float,
        seed: int | None = None,
    ) -> Reply:
        """The reply in whatever dialect the endpoint takes, with the usage of all attempts that were answered."""
        place = (self.endpoint.url, self.endpoint.model)
        dialect, used = _dialects.get(place, _Dialect()), Usage()
        while True:
            reply = await self._ask_once(messages, dialect.request(max_tokens, temperature, seed))
            used += reply.usage
            if reply.text is not None and reply.text.strip():
                _dialects[place] = dialect
                return replace(reply, usage=used)
            if reply.text is None:
                other = dialect.after(reply.refusal)
                if other == dialect:
                    return replace(reply, usage=used)
                dialect = other
            elif dialect.room + 1 == len(_ROOMS):
                return Reply(
                    failure=f"the reply is empty, also with room for {max_tokens * _ROOMS[-1]} tokens: raise "
                    f"{self.endpoint.section}.max_tokens if the model thinks longer, or name one that answers at once "
                    f"in {self.endpoint.section}.model",
                    usage=used,
                )
            else:
                dialect = replace(dialect, room=dialect.room + 1)

    async def _ask_once(self, messages: Sequence[Message], fields: dict[str, Any]) -> Reply:
        """One request, with its retries. An error becomes a sentence here, so that no trace holds the request."""
        import openai

        endpoint = self.endpoint
        try:
            completion = await self._client.chat.completions.create(
                model=endpoint.model, messages=list(messages), **fields
            )
            return _reply_of(completion)
        except openai.APIStatusError as error:
            message = error.body.get("message") if isinstance(error.body, dict) else error.message
            failure = f"HTTP {error.status_code}: {_without(self._key, str(message))}"
            if error.status_code in _REFUSED:
                return Reply(failure=failure, refusal=str(error.body or message))
            if cure := _CURES.get(error.status_code):
                where = f"{endpoint.who} {shown_url(endpoint.url)}, model {endpoint.model!r}"
                return Reply(failure=f"{where}: {failure}. {cure.format(e=endpoint)}", refused=True)
            return Reply(failure=failure)
        except openai.APITimeoutError:
            return Reply(failure=f"no answer within {endpoint.timeout_s:g} s")
        except openai.APIConnectionError as error:
            return Reply(failure=f"no connection ({type(error.__cause__).__name__})")
        except (openai.APIError, json.JSONDecodeError) as error:
            return Reply(failure=f"the reply is no chat completion ({type(error).__name__})")


_CURES = {
    401: "Set {e.key_variable} to a key that this endpoint accepts",
    403: "The key in {e.key_variable} may not use this model; ask for access, or name another in {e.section}.model",
    404: "Check {e.section}.model of the profile, and that {e.url_variable} ends as the endpoint wants it, mostly with "
    "/v1",
}


def _opened(endpoint: Endpoint, key: str) -> Any:
    try:
        import openai
    except ImportError as error:
        raise EndpointError(
            f"asking the {endpoint.who} needs the package openai; install steer-pipeline with its extra: "
            "pip install -e '.[judge]'"
        ) from error
    if urlsplit(endpoint.url).scheme not in ("http", "https") or not urlsplit(endpoint.url).hostname:
        raise EndpointError(
            f"{endpoint.url_variable} is not the address of an endpoint: {shown_url(endpoint.url)!r}; give one such as "
            "http://localhost:8000/v1"
        )
    return openai.AsyncOpenAI(
        base_url=endpoint.url,
        api_key=key,
        timeout=endpoint.timeout_s,
        max_retries=endpoint.max_retries,
        http_client=openai.DefaultAsyncHttpxClient(
            event_hooks={"request": [_Pace(endpoint.requests_per_second).wait]}
        ),
    )


def _reply_of(completion: Any) -> Reply:
    """The reply's text without what the model thought; empty where it only thought."""
    try:
        message = completion.choices[0].message
        text = message.content
    except (AttributeError, IndexError, TypeError):
        return Reply(failure="the reply is no chat completion")
    if text is not None and not isinstance(text, str):
        return Reply(failure="the reply is no chat completion")
    text = _THOUGHT.sub("", text, count=1) if text and _THOUGHT.match(text) else text
    said = sendable(text or getattr(message, "refusal", None) or "")
    return Reply(said, usage=_usage_of(getattr(completion, "usage", None)))


def _usage_of(usage: Any) -> Usage:
    """Tokens and, where the endpoint tells it (OpenRouter's `cost`), US dollars."""
    prompt, said = (getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens"))
    if not isinstance(prompt, int) or not isinstance(said, int):
        return Usage(replies=1, unmetered=1)
    cost = getattr(usage, "cost", None)
    return Usage(1, prompt, said, float(cost) if isinstance(cost, int | float) else None)


def _key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not all("!" <= letter <= "~" for letter in key):
        raise EndpointError(f"{variable} holds a character that no request may carry; set it to the bare key")
    return key or NO_KEY


def _without(key: str, text: str) -> str:
    shown = text if key == NO_KEY else text.replace(key, "***")
    return " ".join(shown.split())[:_SHOWN_CHARS]


def _loop_is_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
