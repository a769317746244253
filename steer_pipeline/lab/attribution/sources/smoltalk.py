"""A chat corpus in the SmolTalk layout: messages, category, difficulty, quality, reward_model_score.

The last assistant turn is what is learned; what the corpus says of a row is checked and goes with it. Rows are drawn
so that every category keeps its share; conversations that begin alike are one group.
"""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steer_pipeline.catalogue.attribution import ChatSpec
from steer_pipeline.lab.attribution.rows import HELD_OUT, POOL, AttributionError, flattened, sft_frame
from steer_pipeline.lab.attribution.sources.files import records, required
from steer_pipeline.lab.attribution.sources.interactions import Read

DIFFICULTIES = ("very easy", "easy", "medium", "hard", "very hard")
QUALITIES = ("very poor", "poor", "average", "good", "excellent")


def chat_rows(spec: ChatSpec, home: Path) -> Read:
    """Rows of both files.

    Raises:
        AttributionError: a file is missing or of another layout, or a field has no value that the layout knows.
    """
    left_out: Counter[str] = Counter()
    rows = []
    for split, path, wanted in (
        (POOL, spec.train, spec.rows),
        (HELD_OUT, spec.validation, spec.held_out_rows),
    ):
        own = _read(path, split, home, left_out)
        drawn = _stratified(own, wanted, spec.seed)
        left_out["not drawn"] += len(own) - len(drawn)
        rows += drawn
    return Read(sft_frame(rows, "smoltalk"), dict(left_out))


def _read(path: str, split: str, home: Path, left_out: Counter[str]) -> list[dict[str, Any]]:
    rows = []
    for number, (where, record) in enumerate(records(path, home)):
        messages = required(record, "messages", where)
        if len(messages) < 2 or messages[-1]["role"] != "assistant" or not messages[-1]["content"].strip():
            left_out["no answer at the end"] += 1
            continue
        prompt, completion, system = flattened(messages, where)
        first = next(str(one["content"]) for one in messages if one["role"] != "system")
        rows.append(
            {
                "row_id": f"{split}-{number:06d}",
                "prompt": prompt,
                "completion": completion,
                "system": system,
                "source_split": split,
                "game": "chat",
                "game_role": "assistant",
                "group_id": hashlib.sha256(" ".join(first.split()).encode()).hexdigest()[:16],
                **_told(record, where),
            }
        )
    return rows


def _told(record: dict[str, Any], where: str) -> dict[str, Any]:
    """What the corpus says of a row, checked."""
    found: dict[str, Any] = {"category": str(required(record, "category", where))}
    for name, known in (("difficulty", DIFFICULTIES), ("quality", QUALITIES)):
        found[name] = str(required(record, name, where))
        if found[name] not in known:
            raise AttributionError(
                f"{where}: {name} {found[name]!r} is none of {', '.join(known)}; mend or drop the row"
            )
    score = required(record, "reward_model_score", where)
    if not isinstance(score, int | float) or not math.isfinite(score):
        raise AttributionError(f"{where}: reward_model_score {score!r} is no number; mend or drop the row")
    return found | {"reward_model_score": float(score)}


def _stratified(rows: Sequence[dict[str, Any]], wanted: int, seed: int) -> list[dict[str, Any]]:
    """`wanted` rows, of each category its share by largest remainders; within it by a keyed draw, in file order."""
    if len(rows) <= wanted:
        return list(rows)
    strata: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        strata[row["category"]].append(row)
    exact = {name: wanted * len(own) / len(rows) for name, own in strata.items()}
    counts = {name: int(share) for name, share in exact.items()}
    lacking = wanted - sum(counts.values())
    for name in sorted(exact, key=lambda one: (counts[one] - exact[one], one))[:lacking]:
        counts[name] += 1
    chosen = {
        row["row_id"]
        for name, own in strata.items()
        for row in sorted(own, key=lambda row: _key(seed, row["row_id"]))[: counts[name]]
    }
    return [row for row in rows if row["row_id"] in chosen]


def _key(seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"{seed}\x1f{name}".encode()).digest()
