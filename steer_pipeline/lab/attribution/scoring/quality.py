"""How good a ranking is: does it foretell what trainings without some rows do to the queries' losses?

In: rankings, and a `Replay` whose training is run again with some rows at weight zero: same start, same order, same
batches, same number of steps. Out: numbers with intervals, beside the protocol.
    LDS     Spearman correlation, over subsets, of the summed scores of the rows left out with the queries' NLL
            (the linear datamodeling score of Park et al. 2023); interval over subsets.
    effect  the queries' NLL without the first rows of a ranking, less the same without as many random rows; interval
            over queries.
    recall  of rows that are known to be informative, among as many first rows; interval over these rows.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from scipy.stats import rankdata

from steer_pipeline.catalogue.attribution_scoring import QualitySpec
from steer_pipeline.lab.attribution.scoring.passes import Progress, Record
from steer_pipeline.lab.attribution.scoring.ranking import Ranking, ScoringError
from steer_pipeline.lab.attribution.scoring.replay import Replay
from steer_pipeline.lab.columns import described
from steer_pipeline.lab.stats import (
    Interval,
    auc_interval,
    cluster_bootstrap,
    mean_interval,
    paired_difference,
)

SMALL, HALVES = "small_drop", "halves"
RANDOM_DROPS = 4  # random sets that an effect is compared with

RETRAINED_SCHEMA, RETRAINED_COLUMNS = described(
    protocol=(pl.String(), f"{SMALL} | {HALVES}"),
    subset=(pl.Int64(), "training of this protocol"),
    dropped=(pl.List(pl.String()), "rows of weight zero"),
    loss=(pl.Float64(), "the queries' NLL in nats a supervised token"),
    base_loss=(pl.Float64(), "the same after the training with all rows"),
)


class Retrainings:
    """Trainings without some rows, each made once; what they cost the queries is kept."""

    def __init__(self, replay: Replay, record: Path | None = None, progress: Progress | None = None) -> None:
        """
        Args:
            record: of this replay; see `Record`.
        """
        self.replay, self._progress = replay, progress
        self.row_ids = [one.row_id for one in replay.train_rows]
        self._known = Record(record)

    def losses(self, dropped: Collection[str] = ()) -> np.ndarray:
        """float64 [queries]: NLL in nats a token of each query, after a training without these rows."""
        gone = set(dropped)
        if strange := gone - set(self.row_ids):
            raise ScoringError(f"row {min(strange)!r} is not among the training rows")
        key = hashlib.sha256("\x1f".join(sorted(gone)).encode()).hexdigest()[:16]
        values = self._known.get(key)
        if values is None:
            weights = torch.tensor([0.0 if one in gone else 1.0 for one in self.row_ids])
            nll, tokens = self.replay.query_losses(self.replay.trained(weights))
            values = (nll / tokens).tolist()
            self._known.put(key, values)
        return np.array(values)

    @property
    def tokens(self) -> np.ndarray:
        """int64 [queries]: supervised tokens of each query."""
        return np.array([one.n_supervised for one in self.replay.queries])

    def loss(self, dropped: Collection[str] = ()) -> float:
        """The mean over all supervised tokens of the queries."""
        return float(np.average(self.losses(dropped), weights=self.tokens))

    def over(self, spec: QualitySpec) -> pl.DataFrame:
        """All subsets of the protocols, of `RETRAINED_SCHEMA`."""
        rows = []
        for protocol, share in protocols(spec).items():
            for index, dropped in enumerate(subsets(self.row_ids, share, spec.n_subsets, spec.seed)):
                rows.append((protocol, index, dropped, self.loss(dropped), self.loss()))
                if self._progress is not None and (index + 1) % 8 == 0:
                    self._progress(f"{protocol}: {index + 1} of {spec.n_subsets} trainings")
        return pl.DataFrame(rows, schema=RETRAINED_SCHEMA, orient="row")


def protocols(spec: QualitySpec) -> dict[str, float]:
    """Share of rows that each protocol leaves out."""
    return {SMALL: spec.small_drop} | ({HALVES: 0.5} if spec.halves else {})


def subsets(row_ids: Sequence[str], share: float, n: int, seed: int) -> list[list[str]]:
    """Rows to leave out, drawn for each subset on its own, at least one; by id, not by place."""
    ids, count = sorted(row_ids), max(1, round(share * len(row_ids)))
    rng = np.random.default_rng([seed, round(1e6 * share)])
    return [sorted(str(one) for one in rng.choice(ids, count, replace=False)) for _ in range(n)]


def protocol(replay: Replay, spec: QualitySpec) -> dict[str, Any]:
    """What a reader needs to judge the numbers, or to do it again."""
    return {
        "training": replay.recipe.model_dump(mode="json"),
        "steps": len(replay.steps),
        "rows": len(replay.train_rows),
        "queries": len(replay.queries),
        "model_below": str(replay.below),
        "left_out": protocols(spec),
        "subsets": spec.n_subsets,
        "subsets_seed": spec.seed,
        "a row left out": "its weight is zero; start, order, batches and steps stay, as does the number of tokens that "
        "a batch's loss is divided by",
        "outcome": "NLL of all queries a supervised token; one model, one seed",
    }


def lds(ranking: Ranking, retrained: pl.DataFrame, name: str, *, seed: int = 0) -> Interval:
    """The linear datamodeling score under one protocol; 1 is a perfect forecast, 0 chance.

    Rows that have no score count with the mean of the others.

    Args:
        retrained: of `RETRAINED_SCHEMA`.
        name: of the protocol.
    """
    found = retrained.filter(protocol=name)
    if found.height < 8:
        raise ScoringError(f"protocol {name!r}: {found.height} trainings; a correlation needs at least 8")
    scores = ranking.scores
    missing = float(np.mean(list(scores.values()))) if scores else 0.0
    forecast = np.array([sum(scores.get(one, missing) for one in dropped) for dropped in found["dropped"]])
    outcome = found["loss"].to_numpy()
    return cluster_bootstrap(
        lambda rows: spearman(forecast[rows], outcome[rows]), np.arange(found.height), seed=seed
    )


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Rank correlation, ties averaged; NaN where one side is constant."""
    first, second = rankdata(one), rankdata(other)
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(np.corrcoef(first, second)[0, 1])


def effect(ranking: Ranking, retrainings: Retrainings, spec: QualitySpec) -> Interval:
    """Nats a token that queries lose without the first rows, beyond what they lose without random ones."""
    count = max(1, round(spec.top * len(retrainings.row_ids)))
    without = retrainings.losses(ranking.ordered[:count])
    drawn = subsets(retrainings.row_ids, count / len(retrainings.row_ids), RANDOM_DROPS, spec.seed + 1)
    random = np.mean([retrainings.losses(dropped) for dropped in drawn], axis=0)
    return paired_difference(without, random)


def recall(ranking: Ranking, planted: Collection[str]) -> tuple[Interval, Interval]:
    """Share of the planted rows among as many first rows, and the AUC of scores for being planted.

    A planted row without a score is not found; from the AUC it is left out.
    """
    known = set(planted) & set(ranking.table["row_id"])
    if not known or len(known) == ranking.table.height:
        raise ScoringError(
            f"{len(known)} of {ranking.table.height} rows are planted; recall needs some, and others beside them"
        )
    first = set(ranking.ordered[: len(known)])
    share = mean_interval([float(one in first) for one in sorted(known)], bounds=(0.0, 1.0))
    ids, scores = zip(*sorted(ranking.scores.items()), strict=True)
    return share, auc_interval(scores, [one in known for one in ids])


def agreement(one: Ranking, other: Ranking) -> dict[str, float]:
    """Of two rankings of the same rows: the largest difference of scores, over the largest score, and Spearman's.

    Scores that differ by less than 1e-5 of the largest are ties: arithmetic alone orders them.
    """
    rows = sorted(set(one.scores) & set(other.scores))
    if not rows:
        raise ScoringError(f"{one.method} and {other.method} have no scored row in common")
    first, second = (np.array([ranking.scores[row] for row in rows]) for ranking in (one, other))
    largest = max(np.abs(first).max(), 1e-30)
    difference = float(np.abs(first - second).max())
    return {
        "rows": len(rows),
        "largest_difference": difference,
        "relative_difference": difference / largest,
        "spearman": spearman(np.round(first / largest, 5), np.round(second / largest, 5)),
    }


def table(
    rankings: Mapping[str, Ranking],
    retrained: pl.DataFrame,
    planted: Collection[str],
    *,
    seed: int = 0,
) -> pl.DataFrame:
    """A row a method: seconds, memory, coverage, LDS of each protocol and recall, with intervals."""
    rows = []
    for name, ranking in rankings.items():
        row: dict[str, Any] = {"method": name, "coverage": ranking.coverage}
        row |= {key: ranking.numbers.get(key) for key in ("seconds", "peak_memory_bytes")}
        for protocol_name in retrained["protocol"].unique(maintain_order=True):
            row |= _named(f"lds_{protocol_name}", lds(ranking, retrained, protocol_name, seed=seed))
        if planted:
            share, area = recall(ranking, planted)
            row |= _named("recall", share) | _named("auc", area)
        rows.append(row)
    return pl.DataFrame(rows)


def _named(name: str, found: Interval) -> dict[str, float]:
    return {name: found.estimate, f"{name}_low": found.low, f"{name}_high": found.high}
