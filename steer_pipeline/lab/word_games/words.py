"""The words that are guessed: from our own list, from a profile, or from clembench's instances; and who plays which.

Words come with what may not be said (`related`) and with what a describer without a model may hint at (`hints`). All
draws are keyed by the seed: nothing depends on what has been played.
"""

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from steer_pipeline.catalogue.word_games import WordGamesSpec
from steer_pipeline.lab.word_games.rules import is_one_word, same_stem, violations

OWN = Path(__file__).with_name("words.yaml")
STRONGEST = (
    4  # of what goes with a word; what nobody may say is drawn from these, or from as many as are forbidden
)
LISTED = "listed"  # theme of words that a profile lists


class WordError(ValueError):
    """A word list cannot be played. The message names the word and the cure."""


@dataclass(frozen=True)
class Word:
    """One word to be guessed.

    Attributes:
        experiment: theme, or level of clembench.
        source_id: its number within the experiment.
    """

    target: str
    related: tuple[str, ...]
    hints: tuple[str, ...]
    experiment: str
    source_id: str


@dataclass(frozen=True)
class Match:
    """One game to be played. `guesser` is the place in the profile's list of guessers."""

    game_id: str
    task_id: str
    guesser: int
    word: Word


def word_list(spec: WordGamesSpec, home: Path) -> list[Word]:
    """All words of a profile, each once.

    Args:
        home: where relative paths of profiles start.

    Raises:
        WordError: a word is not one word, comes twice, is related to itself, or lacks hints that `hints` need.
    """
    if spec.instances is not None:
        words = _instances(home / spec.instances)
    elif spec.words is not None:
        words = _drawn({LISTED: spec.words}, spec)
    else:
        words = _drawn(yaml.safe_load(OWN.read_text(encoding="utf-8")), spec)
    seen: set[str] = set()
    for word in words:
        _require_playable(word, seen, needs_hints=spec.describer.kind == "hints")
        seen.add(word.target)
    return words


def matches(spec: WordGamesSpec, words: Sequence[Word]) -> list[Match]:
    """The games of all guessers, in order. Themes take turns; within one a shuffled deck is dealt and shuffled anew
    when it is used up, so that each word is played as often as any other of its theme, give or take one.
    """
    themes = list(dict.fromkeys(word.experiment for word in words))
    random.Random(f"{spec.seed}/themes").shuffle(themes)
    played = []
    for guesser in range(len(spec.guessers)):
        for number in range(spec.n_games):
            theme = themes[(guesser + number) % len(themes)]
            deck = [word for word in words if word.experiment == theme]
            dealt, place = divmod(number // len(themes), len(deck))
            random.Random(f"{spec.seed}/deck/{guesser}/{theme}/{dealt}").shuffle(deck)
            task = guesser * spec.n_games + number
            played.append(Match(f"game-{task:05d}", str(task), guesser, deck[place]))
    return played


def digest(words: Sequence[Word]) -> str:
    """8 hex digits of a word list: what games are made of."""
    return hashlib.sha256(repr(list(words)).encode()).hexdigest()[:8]


def _drawn(themes: Mapping[str, Mapping[str, str | list[str]]], spec: WordGamesSpec) -> list[Word]:
    words = []
    for theme, targets in themes.items():
        for number, (target, told) in enumerate(targets.items()):
            goes_with = told.split() if isinstance(told, str) else list(told)
            strongest = goes_with[: max(STRONGEST, spec.n_related)]
            drawn = random.Random(f"{spec.seed}/related/{target}").sample(
                strongest, min(spec.n_related, len(strongest))
            )
            related = tuple(one for one in goes_with if one in drawn)
            hints = tuple(one for one in goes_with if not violations(one, target, related))
            words.append(Word(target, related, hints, theme, str(number)))
    return words


def _instances(path: Path) -> list[Word]:
    """clembench's layout: experiments with a name and game_instances of game_id, target_word and related_word."""
    try:
        experiments = json.loads(path.read_text(encoding="utf-8"))["experiments"]
        return [
            Word(
                str(one["target_word"]).strip().lower(),
                tuple(str(word).strip().lower() for word in one["related_word"]),
                (),
                str(experiment["name"]),
                str(one["game_id"]),
            )
            for experiment in experiments
            for one in experiment["game_instances"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WordError(
            f"word_games.instances: {path} cannot be read as instances of taboo ({_said(error)}); give clembench's "
            "taboo/in/instances.json"
        ) from error


def _said(error: Exception) -> str:
    return f"no field {error}" if isinstance(error, KeyError) else str(error)


def _require_playable(word: Word, seen: set[str], *, needs_hints: bool) -> None:
    where = f"word {word.target!r} of {word.experiment!r}"
    if not is_one_word(word.target):
        raise WordError(f"{where}: not one word in lower case, so no guess can name it; replace it")
    if word.target in seen:
        raise WordError(f"{where}: comes twice; games are grouped by word, so drop one")
    own = [one for one in word.related if same_stem(one, word.target)]
    if own:
        raise WordError(f"{where}: related to itself by {own[0]!r}; replace that")
    if needs_hints and not word.hints:
        raise WordError(f"{where}: nothing is left to hint at; list more than word_games.n_related words")


def as_rows(words: Sequence[Word]) -> list[dict[str, Any]]:
    """A word list as rows: for tables and files."""
    return [
        {
            "target_word": word.target,
            "related_words": list(word.related),
            "hints": list(word.hints),
            "experiment": word.experiment,
            "source_task_id": word.source_id,
        }
        for word in words
    ]
