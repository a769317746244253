"""All games of a profile, played at the same time and written as a bundle.

What was said is on disk before the next request goes out, keyed by game, turn and attempt: a killed run that starts
again takes up every game where it was, asks only what is missing, and ends as if it had never stopped.
"""

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl

from steer_pipeline.catalogue.word_games import PlayerSpec, WordGamesSpec
from steer_pipeline.lab.endpoints import AnswerCache, Client, run
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.word_games.players import (
    EndpointPlayer,
    HintsPlayer,
    LocalPlayer,
    Player,
    Remembered,
    endpoint_of,
)
from steer_pipeline.lab.word_games.playing import Game, play
from steer_pipeline.lab.word_games.tables import games_table, results_table, training_rows, usage_table
from steer_pipeline.lab.word_games.words import Match, as_rows, digest, matches, word_list

log = logging.getLogger(__name__)

GAMES, ABORTED, ROWS = "games.parquet", "aborted.parquet", "rows.parquet"
USAGE, RESULTS, WORDS, SUMMARY = "usage.parquet", "results.parquet", "words.parquet", "summary.json"
_REPORT_SECONDS = 5.0


@dataclass(frozen=True)
class WordGames:
    """Games as they were stored: finished and aborted ones apart, rows of the finished ones alone."""

    games: pl.DataFrame
    aborted: pl.DataFrame
    rows: pl.DataFrame
    usage: pl.DataFrame
    results: pl.DataFrame
    summary: dict[str, Any]


def make_word_games(
    spec: WordGamesSpec,
    home: Path,
    folder: Path,
    *,
    answers: AnswerCache,
    load: Callable[[], LoadedModel],
    url: str | None = None,
) -> WordGames:
    """Plays all games and writes them to `folder`.

    Args:
        home: where relative paths of the profile start.
        answers: where replies are kept, not yet entered.
        load: the profile's model; called only where it plays.
        url: of endpoints that have no address of their own.

    Raises:
        WordError, EndpointError: words or endpoints are of no use as they are set up. EndpointUnavailable: an endpoint
        fails again and again; what was answered is kept.
    """
    words = word_list(spec, home)
    games = play_games(spec, matches(spec, words), answers=answers, load=load, url=url)
    table = games_table(games, spec)
    aborted = pl.col("outcome") == "aborted"
    played = WordGames(
        table.filter(~aborted),
        table.filter(aborted),
        training_rows(games, spec),
        usage_table(games),
        results_table(table),
        _summary(games, len(words), digest(words)),
    )
    for name, rows in (
        (GAMES, played.games),
        (ABORTED, played.aborted),
        (ROWS, played.rows),
        (USAGE, played.usage),
        (RESULTS, played.results),
        (WORDS, pl.DataFrame(as_rows(words))),
    ):
        rows.write_parquet(folder / name)
    (folder / SUMMARY).write_text(json.dumps(played.summary, indent=2, sort_keys=True) + "\n")
    return played


def read_word_games(folder: Path) -> WordGames:
    """What `make_word_games` wrote."""
    games, aborted, rows, usage, results = (
        pl.read_parquet(folder / name) for name in (GAMES, ABORTED, ROWS, USAGE, RESULTS)
    )
    return WordGames(games, aborted, rows, usage, results, json.loads((folder / SUMMARY).read_text()))


def play_games(
    spec: WordGamesSpec,
    played: Sequence[Match],
    *,
    answers: AnswerCache,
    load: Callable[[], LoadedModel],
    url: str | None = None,
) -> list[Game]:
    """The games of these matches, in their order."""
    return run(_play_all(spec, played, answers, cache(load), url))


async def _play_all(
    spec: WordGamesSpec,
    played: Sequence[Match],
    answers: AnswerCache,
    load: Callable[[], LoadedModel],
    url: str | None,
) -> list[Game]:
    local = cache(lambda: LocalPlayer(load()))  # one for all roles: their requests share batches
    done: dict[str, Game] = {}
    told = time.monotonic()
    at_once = asyncio.Semaphore(spec.games_at_once)
    stopped: list[BaseException] = []
    with answers:
        async with AsyncExitStack() as stack:

            async def player(own: PlayerSpec, section: str) -> Player:
                if own.kind == "hints":
                    return HintsPlayer(spec)
                if own.kind == "local":
                    return Remembered(local(), answers)
                client = await stack.enter_async_context(Client(endpoint_of(own, url, section)))
                return Remembered(EndpointPlayer(own, client), answers)

            describer = await player(spec.describer, "word_games.describer")
            guessers = [await player(own, f"word_games.guessers[{i}]") for i, own in enumerate(spec.guessers)]

            async def game(match: Match) -> None:
                nonlocal told
                async with at_once:
                    done[match.game_id] = await play(match, spec, describer, guessers[match.guesser])
                if time.monotonic() - told >= _REPORT_SECONDS or len(done) == len(played):
                    told = time.monotonic()
                    outcomes = Counter(one.outcome for one in done.values())
                    log.info(
                        "played %d of %d games: %s", len(done), len(played), dict(sorted(outcomes.items()))
                    )

            try:
                async with asyncio.TaskGroup() as group:
                    for match in played:
                        group.create_task(game(match))
            except* Exception as failed:
                stopped += failed.exceptions
    if stopped:
        raise stopped[0]
    return [done[match.game_id] for match in played]


def _summary(games: Sequence[Game], n_words: int, words: str) -> dict[str, Any]:
    return {
        "games": len(games),
        "outcomes": dict(sorted(Counter(game.outcome for game in games).items())),
        "aborted_because": dict(sorted(Counter(_kind(game.error) for game in games if game.aborted).items())),
        "repaired_clues": sum(one.role == "describer" for game in games for one in game.rejected),
        "repaired_guesses": sum(one.role == "guesser" for game in games for one in game.rejected),
        "words": n_words,
        "word_list": words,
    }


def _kind(error: str) -> str:
    """A reason without its words, to be counted: "describer: rule violation"."""
    return ":".join(error.split(" (")[0].split(":")[:2])
