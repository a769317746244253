"""Games in the published layout: `messages`, and `meta` of game, game_role, outcome, experiment and task_id.

The last assistant turn is what is learned. Aborted games are none of the rows, and are counted. The logs do not say
which word was to be guessed: of games that were won it is the guess, of the others it stands in the game's instances.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from steer_pipeline.catalogue.attribution import InteractionsSpec
from steer_pipeline.lab.attribution.rows import (
    ABORTED,
    HELD_OUT,
    POOL,
    SUCCESS,
    AttributionError,
    flattened,
    sft_frame,
)
from steer_pipeline.lab.attribution.sources.files import records, required
from steer_pipeline.lab.word_games import read_guess


@dataclass(frozen=True)
class Read:
    """Rows of a source, and how many records became none of them, by reason."""

    rows: pl.DataFrame
    left_out: Mapping[str, int]


def interaction_rows(spec: InteractionsSpec, home: Path) -> Read:
    """Rows of both files.

    Raises:
        AttributionError: a file is missing or of another layout.
    """
    targets = {} if spec.targets is None else _targets(spec.targets, home)
    left_out: Counter[str] = Counter()
    rows = [
        row
        for split, path in ((POOL, spec.train), (HELD_OUT, spec.validation))
        for row in _rows(path, split, spec, targets, home, left_out)
    ]
    return Read(sft_frame(rows, "interactions"), dict(left_out))


def _rows(
    path: str,
    split: str,
    spec: InteractionsSpec,
    targets: Mapping[tuple[str, str], str],
    home: Path,
    left_out: Counter[str],
) -> Iterator[dict[str, Any]]:
    number = 0
    for where, record in records(path, home):
        meta = required(record, "meta", where)
        if meta.get("game") != spec.game or meta.get("game_role") != spec.game_role:
            left_out["another game or role"] += 1
            continue
        outcome = str(required(meta, "outcome", where))
        if outcome == ABORTED:
            left_out["aborted"] += 1
            continue
        messages = required(record, "messages", where)
        if not messages or messages[-1]["role"] != "assistant" or not messages[-1]["content"].strip():
            left_out["no answer at the end"] += 1
            continue
        prompt, completion, system = flattened(messages, where)
        experiment, task = str(required(meta, "experiment", where)), str(required(meta, "task_id", where))
        guess = read_guess(completion) or None
        known = {"game", "game_role", "outcome", "experiment", "task_id"}
        yield {
            "row_id": f"{split}-{number}",
            "prompt": prompt,
            "completion": completion,
            "system": system,
            "source_split": split,
            "game": spec.game,
            "game_role": spec.game_role,
            "experiment": experiment,
            "task_id": task,
            "group_id": f"{experiment}::{task}",
            "outcome": outcome,
            "target_word": targets.get((experiment, task)) or (guess if outcome == SUCCESS else None),
            "logged_word": guess,
            "meta": {name: value for name, value in meta.items() if name not in known} or None,
        }
        number += 1


def _targets(path: str, home: Path) -> dict[tuple[str, str], str]:
    """(experiment, task) -> word, of a game's instances."""
    file = Path(path) if Path(path).is_absolute() else home / path
    try:
        experiments = json.loads(file.read_text(encoding="utf-8"))["experiments"]
        return {
            (str(one["name"]), str(instance["game_id"])): str(instance["target_word"]).lower()
            for one in experiments
            for instance in one["game_instances"]
        }
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise AttributionError(
            f"{file}: no game instances ({type(error).__name__}: {error}); correct attribution.sources.targets"
        ) from error
