"""Who plays: a model behind an endpoint, the profile's own model, or hints put together by no model.

In: a request with messages and a key. Out: a reply with what it used. What a player says depends on its request alone,
not on what is asked beside it. `Remembered` keeps replies on disk as they come, so that no request is paid for twice.
"""

import asyncio
import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

from steer_pipeline.catalogue.specs import SamplingSpec
from steer_pipeline.catalogue.word_games import PlayerSpec, WordGamesSpec
from steer_pipeline.lab.endpoints import AnswerCache, Client, Endpoint, EndpointError, Patience, Reply, Usage
from steer_pipeline.lab.generation.jobs import PromptRow, decoding_hash
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.prompts import encode_prompt
from steer_pipeline.lab.models.sites import SteeringPlan
from steer_pipeline.lab.word_games.words import Word

URL_VARIABLE = "STEER_GAMES_URL"
HINTS = "hints"  # the describer without a model, in tables
TOP_P = 1.0
BATCH = 64  # replies of the local model between two writes to disk

Message = dict[str, str]  # role, content


@dataclass(frozen=True)
class Request:
    """What a player is asked.

    Attributes:
        key: game, turn, role and attempt: with the seed it decides what is drawn.
        turn: from 1.
    """

    key: str
    messages: tuple[Message, ...]
    word: Word
    turn: int
    temperature: float
    max_tokens: int
    seed: int

    def draw(self) -> int:
        """The seed of this request alone, of 31 bits."""
        found = hashlib.blake2b(f"{self.seed}/{self.key}".encode(), digest_size=4).digest()
        return int.from_bytes(found, "little") >> 1


class Player(Protocol):
    """Answers requests.

    Attributes:
        name: as in tables.
        identity: everything beside the request that decides a reply.
    """

    name: str
    identity: str

    async def ask(self, request: Request) -> Reply: ...


class HintsPlayer:
    """Clues from a word's hints: in every turn the next ones of a deck shuffled for the game."""

    name = identity = HINTS

    def __init__(self, spec: WordGamesSpec) -> None:
        self._spec = spec

    async def ask(self, request: Request) -> Reply:
        deck = list(request.word.hints)
        random.Random(f"{request.seed}/{request.key.partition('/')[0]}").shuffle(deck)
        n = min(self._spec.n_hints, len(deck))
        start = (request.turn - 1) * n
        shown = [deck[(start + place) % len(deck)] for place in range(n)]
        clue = self._spec.hint_clue.replace("{hints}", listed(shown))
        return Reply(f"CLUE: {clue}", usage=Usage(cost_usd=0.0))


class EndpointPlayer:
    """A model behind an OpenAI-compatible endpoint. Many failures in a row end the run."""

    def __init__(self, spec: PlayerSpec, client: Client) -> None:
        self.name, self.identity = spec.model, f"endpoint:{spec.model}"
        self._spec, self._client, self._patience = spec, client, Patience(client.endpoint)

    async def ask(self, request: Request) -> Reply:
        reply = await self._client.ask(
            request.messages,
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            seed=request.draw(),
        )
        self._patience.take(reply)
        used = reply.usage
        if used.cost_usd is None and (price := self._price(used)) is not None:
            return Reply(reply.text, reply.failure, usage=used + Usage(cost_usd=price))
        return reply

    def _price(self, used: Usage) -> float | None:
        prices = self._spec.usd_per_million_prompt, self._spec.usd_per_million_completion
        if prices[0] is None or prices[1] is None or used.unmetered:
            return None
        return (used.prompt_tokens * prices[0] + used.completion_tokens * prices[1]) / 1e6


class LocalPlayer:
    """The profile's model. Requests of games that wait at the same time are answered in one batch."""

    def __init__(self, model: LoadedModel) -> None:
        self.name = model.name
        self._model = model
        self._waiting: list[tuple[Request, asyncio.Future[Reply]]] = []
        self._worker: asyncio.Task[None] | None = None
        self.identity = f"local:{decoding_hash(SamplingSpec(), model)}:{model.spec.chat_template}"

    async def ask(self, request: Request) -> Reply:
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, answer))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await answer

    async def _work(self) -> None:
        while self._waiting:
            await self._all_asked()
            batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
            try:
                replies = await self._replies([request for request, _ in batch])
            except Exception as error:  # whoever waits is told, else the game would wait for ever
                for _, answer in batch:
                    if not answer.done():
                        answer.set_exception(error)
                continue
            for request, answer in batch:
                if not answer.done():
                    answer.set_result(replies[request.key])

    async def _all_asked(self) -> None:
        """Lets every game that can go on come to its next request."""
        before = -1
        while len(self._waiting) != before:
            before = len(self._waiting)
            for _ in range(3):
                await asyncio.sleep(0)

    async def _replies(self, requests: Sequence[Request]) -> dict[str, Reply]:
        if self._model.backend == "mlx":  # its streams belong to the thread that made them
            return self._generate(requests)
        return await asyncio.to_thread(self._generate, requests)

    def _generate(self, requests: Sequence[Request]) -> dict[str, Reply]:
        from steer_pipeline.lab.generation.engine import generate

        replies = {}
        for temperature, max_tokens, seed in dict.fromkeys(map(_decoding, requests)):
            same = [one for one in requests if _decoding(one) == (temperature, max_tokens, seed)]
            sampling = SamplingSpec(
                temperature=temperature, top_p=TOP_P, max_new_tokens=max_tokens, seed=seed
            )
            rows = [PromptRow(one.key, {"*": self._ids(one)}) for one in same]
            for row in generate(self._model, rows, [SteeringPlan("word_games")], sampling):
                used = Usage(1, row.n_prompt_tokens, row.n_new_tokens, 0.0)
                replies[row.row_id] = Reply(row.text, usage=used)
        return replies

    def _ids(self, request: Request) -> list[int]:
        said = [(one["role"], one["content"]) for one in request.messages]
        system = said.pop(0)[1] if said[0][0] == "system" else None
        texts = [text for _, text in said]
        return encode_prompt(
            self._model.tokenizer,
            user=texts[-1],
            system=system,
            chat_template=self._model.spec.chat_template,
            earlier=list(zip(texts[:-1:2], texts[1:-1:2], strict=True)),
        )


class Remembered:
    """A player whose replies are kept: what was answered is not asked again. Failures are not kept."""

    def __init__(self, player: Player, cache: AnswerCache) -> None:
        self.name, self.identity = player.name, player.identity
        self._player, self._cache = player, cache

    async def ask(self, request: Request) -> Reply:
        key = _key(self.identity, request)
        if (before := self._cache.get(key)) is not None:
            stored = json.loads(before)
            return Reply(stored["text"], usage=Usage(**stored["usage"]))
        reply = await self._player.ask(request)
        if reply.text is not None:
            self._cache.put(key, self.name, json.dumps({"text": reply.text, "usage": asdict(reply.usage)}))
        return reply


def endpoint_of(spec: PlayerSpec, url: str | None, section: str) -> Endpoint:
    """Where a player is asked.

    Args:
        url: of the environment, for players that have none of their own.
        section: of the profile, for errors.

    Raises:
        EndpointError: there is no address.
    """
    if not (where := spec.url or url):
        raise EndpointError(
            f"{section} is an endpoint, and neither {URL_VARIABLE} nor {section}.url says where it is; set one such as "
            "http://localhost:8000/v1"
        )
    return Endpoint(
        where,
        spec.model,
        who="player",
        section=section,
        url_variable=f"{section}.url" if spec.url else URL_VARIABLE,
        key_variable=spec.key_variable,
        requests_per_second=spec.requests_per_second,
        timeout_s=spec.timeout_s,
        max_retries=spec.max_retries,
    )


def listed(words: Sequence[str]) -> str:
    """ "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def _decoding(request: Request) -> tuple[float, int, int]:
    return request.temperature, request.max_tokens, request.seed


def _key(identity: str, request: Request) -> str:
    """64 hex digits of everything that decides a reply; the endpoint's address is not part of it."""
    parts = [
        identity, request.key, list(request.messages), request.temperature, request.max_tokens, request.seed
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
