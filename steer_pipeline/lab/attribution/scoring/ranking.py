"""What every method of attribution gives back: a score for each row of the pool, the best first, or why it has none.

In: row ids with scores. Out: a `Ranking`. A row that cannot be scored is a failure that is counted; a score that is
not a number is an error.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import polars as pl

from steer_pipeline.lab.columns import described
from steer_pipeline.lab.finetune.data import Example

RANKING_SCHEMA, RANKING_COLUMNS = described(
    row_id=(pl.String(), "row of the pool"),
    score=(pl.Float64(), "the higher, the more a row helps; null where it could not be scored"),
    rank=(pl.Int64(), "1 is the best; null where there is no score"),
    failed=(pl.String(), "why there is no score"),
)


class ScoringError(ValueError):
    """Rows cannot be ranked as asked. The message names the row or the setting, and the cure."""


@dataclass(frozen=True)
class Ranking:
    """Rows of one pool by one method.

    Attributes:
        table: of `RANKING_SCHEMA`, a row of the pool each, in the pool's order.
        numbers: seconds and peak_memory_bytes, and what a method has to say beside.
    """

    method: str
    table: pl.DataFrame
    numbers: Mapping[str, float | int] = field(default_factory=dict)

    @property
    def coverage(self) -> float:
        """Share of the rows that have a score."""
        return float(self.table["score"].is_not_null().mean() or 0.0)  # type: ignore[arg-type]

    @property
    def ordered(self) -> list[str]:
        """Ids of the rows that have a score, the best first."""
        return self.table.drop_nulls("rank").sort("rank")["row_id"].to_list()

    @property
    def scores(self) -> dict[str, float]:
        """Of the rows that have one."""
        return dict(self.table.drop_nulls("score").select("row_id", "score").iter_rows())

    def with_numbers(self, **numbers: float | int) -> "Ranking":
        return replace(self, numbers={**self.numbers, **numbers})


def ranking(
    method: str,
    row_ids: Sequence[str],
    scores: Mapping[str, float],
    failed: Mapping[str, str] | None = None,
    **numbers: float | int,
) -> Ranking:
    """Scores as a ranking; among equal scores a hash of the row id decides, not the order of the pool.

    Raises:
        ScoringError: a row has neither a score nor a failure, or its score is not a number.
    """
    failed = failed or {}
    for row_id in row_ids:
        if row_id in failed:
            continue
        if row_id not in scores:
            raise ScoringError(f"{method}: row {row_id!r} has neither a score nor a reason for having none")
        require_finite(row_id, scores[row_id])
    scored = [row_id for row_id in row_ids if row_id not in failed]
    order = sorted(scored, key=lambda one: (-scores[one], _tie(one)))
    ranks = {row_id: index + 1 for index, row_id in enumerate(order)}
    rows = [
        {
            "row_id": one,
            "score": None if one in failed else float(scores[one]),
            "rank": ranks.get(one),
            "failed": failed.get(one),
        }
        for one in row_ids
    ]
    return Ranking(method, pl.DataFrame(rows, schema=RANKING_SCHEMA), numbers)


def require_finite(row_id: str, score: float) -> None:
    """Raises a ScoringError that names the row."""
    if not math.isfinite(score):
        raise ScoringError(
            f"row {row_id!r}: its score is {score}; look at its loss and gradient: a model in half precision overflows "
            "(use float32), and a damaged adapter gives this for every row"
        )


def _tie(row_id: str) -> bytes:
    return hashlib.blake2b(row_id.encode(), digest_size=8).digest()


def failures(examples: Sequence[Example], max_tokens: int) -> dict[str, str]:
    """Rows that no method can read, each with its reason."""
    found = {}
    for example in examples:
        if len(example.ids) > max_tokens:
            found[example.row_id] = f"{len(example.ids)} tokens, more than the {max_tokens} that fit"
        elif not _predicted(example):
            found[example.row_id] = "no supervised token that the model could predict"
    return found


def _predicted(example: Example) -> int:
    """Supervised tokens that something stands before."""
    start = max(example.start, 1)
    return len(example.ids) - start - sum(position >= start for position in example.masked)


def usable(examples: Sequence[Example], failed: Mapping[str, str]) -> list[Example]:
    """The others, without supervision of a first token, which nothing predicts."""
    return [replace(one, start=max(one.start, 1)) for one in examples if one.row_id not in failed]
