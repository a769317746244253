"""All methods of attribution behind one function: a method's name in the settings, and out comes a `Ranking`.

In: pool and queries as encoded examples, the tuned model, settings. A killed ranking goes on where it was to the same
result; a finished one is read again.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from steer_pipeline.catalogue.attribution_scoring import (
    AttributionScoringSpec,
    Bm25Method,
    DirectionMethod,
    EkfacMethod,
    GradientMethod,
    LearnedMethod,
    LengthMethod,
    LossMethod,
    MagicMethod,
    RandomMethod,
    RdsMethod,
    ScoringMethod,
    TrackstarMethod,
)
from steer_pipeline.catalogue.specs import ModelSpec
from steer_pipeline.lab.attribution.scoring import bergson
from steer_pipeline.lab.attribution.scoring.gradients import Gradients, row_loss, row_projection
from steer_pipeline.lab.attribution.scoring.measuring import measured
from steer_pipeline.lab.attribution.scoring.passes import Progress
from steer_pipeline.lab.attribution.scoring.ranking import Ranking, ScoringError, failures, ranking, usable
from steer_pipeline.lab.attribution.scoring.replay import Replay, require_smooth
from steer_pipeline.lab.attribution.scoring.rivals import (
    bm25_scores,
    length_scores,
    loss_scores,
    random_scores,
    representation_scores,
)
from steer_pipeline.lab.attribution.scoring.similarity import Task, similarities
from steer_pipeline.lab.finetune.data import Example, digest
from steer_pipeline.lab.models.identity import model_identity
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.loading import load_model

Found = tuple[dict[str, float], dict[str, str]]  # scores, and failures with their reason, by row id


@dataclass(frozen=True, eq=False)
class Direction:
    """Where a direction of `DirectionMethod` lies: fp32 [hidden] at the output of a block."""

    block: int
    unit: np.ndarray


@dataclass(frozen=True, eq=False)
class Scoring:
    """What rows are ranked, for what.

    Attributes:
        tuned: the model whose gradients, states and losses count: base and adapter.
        base: what MAGIC's training begins with: the model below that adapter.
        queries: rows that the model should get better at.
    """

    tuned: ModelSpec
    base: ModelSpec
    home: Path
    pool: tuple[Example, ...]
    queries: tuple[Example, ...]
    settings: AttributionScoringSpec
    direction: Direction | None = None

    def replay(self) -> Replay:
        """The training that MAGIC differentiates and that `quality` runs without some rows.

        Raises:
            ScoringError: a row cannot be read; MAGIC ranks all rows or none, for their order is part of the training.
        """
        _require_readable(self.pool, "row", self._longest())
        _require_readable(self.queries, "query", self._longest())
        return Replay(
            self.base,
            self.home,
            usable(self.pool, {}),
            usable(self.queries, {}),
            self.settings.replay,
            self.settings.batch_tokens,
        )

    def at_replay(self, folder: Path) -> "Scoring":
        """The same with the end of the replayed training as the tuned model; its adapter comes into `folder`.

        Raises:
            ScoringError: as `replay`, or that training diverges.
        """
        replay = self.replay()
        replay.save(folder, replay.trained())
        adapters = (*self.base.adapters, str(folder))
        return replace(self, tuned=self.base.model_copy(update={"adapter": adapters}))

    def _longest(self) -> int:
        return load_model(self.base, self.home).max_positions


@dataclass(frozen=True)
class _Work:
    """What a method is called with: rows that can be read, and a folder of its own."""

    scoring: Scoring
    pool: list[Example]
    queries: list[Example]
    folder: Path
    progress: Progress | None

    @property
    def model(self) -> LoadedModel:
        return load_model(self.scoring.tuned, self.scoring.home)

    @property
    def record(self) -> Path:
        return self.folder / "scores.txt"

    def job(self, spec: ModelSpec) -> bergson.Job:
        settings, model = self.scoring.settings, self.model
        return bergson.Job(
            spec,
            self.scoring.home,
            self.pool,
            self.queries,
            self.folder,
            settings.batch_tokens,
            model.max_positions,
            settings.loss,
        )


def score(name: str, scoring: Scoring, work: Path, progress: Progress | None = None) -> Ranking:
    """The ranking that the settings call `name`.

    Args:
        work: where unfinished and finished rankings lie, of this and other methods.

    Raises:
        ScoringError: no such method, a query that cannot be read, a score that is not a number, a training that MAGIC
            cannot differentiate, or Bergson is asked for and is not there.
    """
    methods = scoring.settings.methods
    if name not in methods:
        raise ScoringError(f"no method {name!r}; the settings have {', '.join(sorted(methods))}")
    method = methods[name]
    folder = work / name
    _claim(folder, _made_of(method, scoring))
    if (done := _finished(name, folder)) is not None:
        return done
    if _replayed(method):
        scoring = scoring.at_replay(folder / "replay")
    model = load_model(scoring.tuned, scoring.home)
    failed = failures(scoring.pool, model.max_positions)
    _require_readable(scoring.queries, "query", model.max_positions)
    pool, queries = usable(scoring.pool, failed), usable(scoring.queries, {})
    if not pool or not queries:
        raise ScoringError(
            f"{len(pool)} rows that can be read and {len(queries)} queries; give at least one of each"
        )
    with measured(model.device) as numbers:
        scores, more = _METHODS[method.kind](method, _Work(scoring, pool, queries, folder, progress))
    made = ranking(name, [one.row_id for one in scoring.pool], scores, failed | more, **numbers)
    _finish(made.with_numbers(coverage=made.coverage), folder)
    return made.with_numbers(coverage=made.coverage)


def _require_readable(examples: tuple[Example, ...], what: str, longest: int) -> None:
    for row_id, reason in failures(examples, longest).items():
        raise ScoringError(f"{what} {row_id!r}: {reason}; leave it out")


# ---------------------------------------------------------------------------------------------- methods


def _gradient(method: GradientMethod, work: _Work) -> Found:
    if method.back_end == "bergson":
        return bergson.gradient_scores(work.job(work.scoring.tuned), method)
    return similarities(_task(work, method.projection, method.seed), method, work.record, work.progress)


def _direction(method: DirectionMethod, work: _Work) -> Found:
    direction = work.scoring.direction
    if direction is None:
        raise ScoringError("method direction: there is none; give a persona vector, or leave the method out")
    task = _task(work, method.projection, method.seed)
    unit = torch.from_numpy(np.array(direction.unit, dtype=np.float32))
    aimed = Task(
        task.gradients,
        task.pool,
        task.queries,
        task.objective,
        task.batch_tokens,
        aim=row_projection(direction.block, unit / unit.norm()),
    )
    plain = GradientMethod(
        projection=method.projection, unit_norm=method.unit_norm, preconditioning="none", seed=method.seed
    )
    return similarities(aimed, plain, work.record, work.progress)


def _task(work: _Work, projection: int, seed: int) -> Task:
    settings = work.scoring.settings
    gradients = Gradients(work.model, side=projection, seed=seed)
    return Task(gradients, work.pool, work.queries, row_loss(settings.loss), settings.batch_tokens)


def _trackstar(method: TrackstarMethod, work: _Work) -> Found:
    return bergson.trackstar_scores(work.job(work.scoring.tuned), method)


def _ekfac(method: EkfacMethod, work: _Work) -> Found:
    return bergson.ekfac_scores(work.job(work.scoring.tuned), method)


def _magic(method: MagicMethod, work: _Work) -> Found:
    replay = work.scoring.replay()
    if method.back_end == "bergson":
        return bergson.magic_scores(work.job(work.scoring.base), method, replay)
    require_smooth(replay.metasmoothness(method.fd_step), method.min_metasmoothness)
    found = replay.influences(work.folder / "way_back.pt", work.progress)
    return {one.row_id: -value for one, value in zip(replay.train_rows, found.tolist(), strict=True)}, {}


def _rds(method: RdsMethod, work: _Work) -> Found:
    tokens = work.scoring.settings.batch_tokens
    return representation_scores(
        work.model, work.pool, work.queries, method, tokens, work.record, work.progress
    ), {}


def _bm25(method: Bm25Method, work: _Work) -> Found:
    return bm25_scores(work.pool, work.queries, method), {}


def _loss(_method: LossMethod, work: _Work) -> Found:
    return loss_scores(
        work.model, work.pool, work.scoring.settings.batch_tokens, work.record, work.progress
    ), {}


def _length(_method: LengthMethod, work: _Work) -> Found:
    return length_scores(work.pool), {}


def _random(method: RandomMethod, work: _Work) -> Found:
    return random_scores(work.pool, method.seed), {}


_METHODS: dict[str, Callable[[Any, _Work], Found]] = {
    "gradient": _gradient,
    "trackstar": _trackstar,
    "ekfac": _ekfac,
    "magic": _magic,
    "direction": _direction,
    "rds": _rds,
    "bm25": _bm25,
    "loss": _loss,
    "length": _length,
    "random": _random,
}


def _replayed(method: ScoringMethod) -> bool:
    return isinstance(method, LearnedMethod) and method.model == "replay"


def needs_bergson(method: ScoringMethod) -> bool:
    return isinstance(method, TrackstarMethod | EkfacMethod) or getattr(method, "back_end", "") == "bergson"


# ------------------------------------------------------------------------------------------ what is kept


def _made_of(method: ScoringMethod, scoring: Scoring) -> str:
    """Everything that decides a ranking, as text."""
    settings, direction = scoring.settings, scoring.direction
    order = "\x1f".join(one.row_id for one in scoring.pool)
    parts: dict[str, Any] = {
        "method": method.model_dump(mode="json"),
        "pool": [digest(scoring.pool), hashlib.sha256(order.encode()).hexdigest()],
        "queries": digest(scoring.queries),
        "batch_tokens": settings.batch_tokens,
        "loss": settings.loss,
        "model": str(model_identity(scoring.tuned, scoring.home)),
    }
    if isinstance(method, MagicMethod) or _replayed(method):
        parts |= {
            "model": str(model_identity(scoring.base, scoring.home)),
            "replay": settings.replay.model_dump(mode="json"),
        }
    if isinstance(method, DirectionMethod) and direction is not None:
        unit = np.ascontiguousarray(direction.unit, dtype=np.float32).tobytes()
        parts["direction"] = [direction.block, hashlib.sha256(unit).hexdigest()]
    return json.dumps(parts, sort_keys=True)


def _claim(folder: Path, made_of: str) -> None:
    """What lies there of other rows or settings goes."""
    told = folder / "made_of.json"
    if not told.is_file() or told.read_text() != made_of:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        told.write_text(made_of)


def _finished(name: str, folder: Path) -> Ranking | None:
    table, numbers = folder / "ranking.parquet", folder / "numbers.json"
    if not numbers.is_file():
        return None
    return Ranking(name, pl.read_parquet(table), json.loads(numbers.read_text()))


def _finish(made: Ranking, folder: Path) -> None:
    """The result takes the place of what it was made with; `numbers.json` comes last."""
    made.table.write_parquet(folder / "ranking.parquet")
    part = folder / "numbers.json.part"
    part.write_text(json.dumps(made.numbers))
    part.replace(folder / "numbers.json")
    keep = {"made_of.json", "ranking.parquet", "numbers.json"}
    for path in folder.iterdir():
        if path.name not in keep:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
