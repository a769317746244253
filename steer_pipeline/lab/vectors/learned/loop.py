"""Learns one vector at one site: AdamW on response NLL, everything else frozen, many lanes in one pass.

In: encoded training and validation dialogues, a profile's `training` section and lanes (learning rate, seed).
Out: for each lane the vector that was best on validation, the last one, and its curve. A lane trained alone
and the same lane among others see the same rows in the same order and learn the same vector.

Lengths of residual units are fractions of the mean residual norm at the site; a learning rate in them is the
Euclidean length of a full AdamW step (lr * norm / sqrt(hidden) a coordinate), so that it means the same at
every width. The clip bounds the gradient's length times that norm. Absolute learning rates are AdamW's own, a
coordinate.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from torch import Tensor

from steer_pipeline.catalogue.specs import TrainingSpec
from steer_pipeline.lab.models.blocks import blocks_of
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.vectors.learned.data import Dialogues, TrainingError
from steer_pipeline.lab.vectors.learned.packing import make_pack, passes
from steer_pipeline.lab.vectors.learned.states import SiteStates
from steer_pipeline.lab.vectors.learned.upper import UpperBlocks

HISTORY_SCHEMA = pl.Schema(
    {
        "lane": pl.Int64(),
        "seed": pl.Int64(),
        "learning_rate": pl.Float64(),  # in the profile's units
        "step": pl.Int64(),  # optimizer steps done
        "epoch": pl.Float64(),
        "train_nll": pl.Float64(),  # nats a token, since the lane's last row here; null at step 0
        "validation_nll": pl.Float64(),  # nats a token, token-weighted; null where a lane left in between
        "norm": pl.Float64(),
        "stopped": pl.String(),  # of the lane: finished | patience | outpaced | not finite
    }
)
Stopped = Literal["finished", "patience", "outpaced", "not finite"]
INIT_STREAM = 1 << 30  # of the random start; epochs count from 0


@dataclass(frozen=True)
class Lane:
    """One vector to learn: its learning rate in the profile's units, and the seed of row order and start."""

    learning_rate: float
    seed: int


@dataclass
class Trained:
    """What a lane has learned.

    Attributes:
        best, last: fp32 [hidden], natural magnitude: best by validation NLL, and after the last step.
        best_nll, vanilla_nll: nats a validation token; vanilla is the model without a vector.
        row_nll, vanilla_row_nll: fp64 [n validation rows], summed: under `best`, and without a vector.
        curve: rows of HISTORY_SCHEMA but for `lane`.
    """

    lane: Lane
    best: np.ndarray
    last: np.ndarray
    best_nll: float
    best_step: int
    steps: int
    stopped: Stopped
    row_nll: np.ndarray
    vanilla_nll: float
    vanilla_row_nll: np.ndarray
    curve: list[dict[str, Any]]


@dataclass
class _Running:
    """A lane while it learns."""

    lane: Lane
    parameter: torch.nn.Parameter  # fp32 [hidden]
    optimizer: torch.optim.Optimizer
    rate: float  # AdamW's, at its peak
    best: Tensor | None = None
    best_nll: float = math.inf
    best_step: int = 0
    row_nll: np.ndarray = field(default_factory=lambda: np.empty(0))
    mark: float = math.inf  # validation NLL that the next progress is measured from
    waited: int = 0
    steps: int = 0
    train_sum: float = 0.0
    train_count: int = 0
    window_sum: float = 0.0  # as train_sum, since the last halving
    window_count: int = 0
    stopped: Stopped | None = None
    curve: list[dict[str, Any]] = field(default_factory=list)


def evaluation_steps(total: int, epochs: int, patience: int) -> list[int]:
    """After which optimizer steps validation runs: at the end of every epoch, evenly between, and at least
    `patience + 2` times in all, so that patience can end a run (each step, where there are not so many).
    """
    an_epoch = math.ceil((patience + 2) / epochs)
    count = an_epoch * epochs
    return sorted({math.ceil(total * (i + 1) / count) for i in range(count)})


def schedule(kind: str, step: int, total: int, warmup: float) -> float:
    """Factor of the learning rate at step 0 .. total - 1: never zero, 1 right after the warmup."""
    ramp = round(warmup * total)
    if step < ramp:
        return (step + 1) / (ramp + 1)
    if kind == "constant":
        return 1.0
    rest = (step - ramp) / (total - ramp)
    return 1 - rest if kind == "linear" else 0.5 * (1 + math.cos(math.pi * rest))


def batches(questions: np.ndarray, batch_rows: int, seed: int, epoch: int) -> Iterator[np.ndarray]:
    """Row indices of each step of an epoch: a permutation drawn from seed and epoch alone.

    Rows of one question come two by two, where a question has two: the prompt that they share is run once. No more than
    two, so that a step still sees many questions.

    Args:
        questions: int64 [n rows]
    """
    drawn = np.random.default_rng([seed, epoch]).permutation(len(questions))
    together: dict[int, list[int]] = {}
    for place, row in enumerate(drawn):
        together.setdefault(int(questions[row]), []).append(place)
    pairs = [places[i : i + 2] for places in together.values() for i in range(0, len(places) - 1, 2)]
    single = [places[-1] for places in together.values() if len(places) % 2]
    pairs += [single[i : i + 2] for i in range(0, len(single), 2)]
    order = drawn[[place for pair in sorted(pairs, key=lambda pair: (-len(pair), pair)) for place in pair]]
    for start in range(0, len(order), batch_rows):
        yield order[start : start + batch_rows]


class Trainer:
    """Training and validation rows at one site of one model; lower blocks run once, when it is made.

    Attributes:
        residual_norm: mean Euclidean norm of the training rows' states at the site.
        seconds: time by `clock` spent so far in lower blocks (`lower`), optimizer steps (`train`) and `validation`.
    """

    def __init__(
        self,
        model: LoadedModel,
        site: int,
        train: Dialogues,
        validation: Dialogues,
        spec: TrainingSpec,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if model.backend != "torch":
            cure = (
                "set model.backend: torch"
                if model.backend == "mlx"
                else "this architecture cannot be run block by block, take an extracted vector"
            )
            raise TrainingError(f"model {model.name}: vectors are trained on the torch back end; {cure}")
        if not 0 <= site < model.n_blocks:
            raise TrainingError(f"training.block: {site} is outside a model of {model.n_blocks} blocks")
        for name, data in (("training", train), ("validation", validation)):
            if not len(data) or not data.n_tokens.all():
                empty = f"row {data.row_ids[int(data.n_tokens.argmin())]} has" if len(data) else "rows have"
                raise TrainingError(
                    f"{name}: {empty} no response token; bring rows that count, or raise max_response_tokens"
                )
        self.spec, self.site, self.train, self.validation = spec, site, train, validation
        self.blocks = blocks_of(model)
        self.seconds, self._clock = {"lower": 0.0, "train": 0.0, "validation": 0.0}, clock
        half, began = spec.cache_gb / 2, clock()
        self._train_states = SiteStates(model, site, train.ids, cache_gb=half)
        self._validation_states = SiteStates(model, site, validation.ids, cache_gb=half)
        self.residual_norm = self._train_states.mean_norm
        self._upper = UpperBlocks(self.blocks, site, checkpointing=spec.gradient_checkpointing)
        self.seconds["lower"] = clock() - began
        self._vanilla: np.ndarray | None = None

    @property
    def total_steps(self) -> int:
        return self.spec.epochs * math.ceil(len(self.train) / self.spec.batch_rows)

    def vanilla(self) -> np.ndarray:
        """fp64 [n validation rows]: NLL without a vector."""
        if self._vanilla is None:
            zero = torch.zeros(1, self.blocks.config.hidden_size, device=self.blocks.device)
            self._vanilla = self._evaluate(zero)[0]
        return self._vanilla

    def run(self, lanes: Sequence[Lane], *, prune: bool = False) -> list[Trained]:
        """Trains all lanes together.

        Args:
            prune: lanes that fall behind leave early (`outpaced`), and one whose loss is not finite leaves
                alone, as long as another goes on: for lanes to choose from, which share their seed.

        Raises:
            TrainingError: a loss is not finite, or a vector never left zero.
        """
        spec, total = self.spec, self.total_steps
        steps_an_epoch = total // spec.epochs
        running = [self._start(lane) for lane in lanes]
        vanilla = self.vanilla()
        vanilla_nll = float(vanilla.sum() / self.validation.n_tokens.sum())
        evaluations = set(evaluation_steps(total, spec.epochs, spec.patience))
        rungs = halvings(total, len(lanes)) if prune else {}
        for one in running:
            at_zero = not one.parameter.any()
            one.curve.append(self._point(one, vanilla_nll if at_zero else None))
        step = 0
        for epoch in range(spec.epochs):
            orders = {
                seed: list(batches(self.train.questions, spec.batch_rows, seed, epoch))
                for seed in {one.lane.seed for one in running}
            }
            for number in range(steps_an_epoch):
                active = [one for one in running if one.stopped is None]
                if not active:
                    break
                self._step(active, orders, number, step, prune)
                step += 1
                active = [one for one in active if one.stopped is None]
                if step in evaluations:
                    active = self._validate(active, prune)
                if step in rungs:
                    self._halve(active, rungs[step], step)
                elif prune and step in evaluations and len(active) == 2:
                    self._settle(active, step)
        return [self._finished(one, vanilla_nll, vanilla) for one in running]

    # ------------------------------------------------------------------------------- parts of a run

    def _start(self, lane: Lane) -> _Running:
        hidden = self.blocks.config.hidden_size
        unit = self.residual_norm if self.spec.units == "residual" else 1.0
        start = np.zeros(hidden)
        if self.spec.init:
            drawn = np.random.default_rng([lane.seed, INIT_STREAM]).standard_normal(hidden)
            start = self.spec.init * unit * drawn / np.linalg.norm(drawn)
        rate = lane.learning_rate
        if self.spec.units == "residual":
            rate *= self.residual_norm / math.sqrt(hidden)
        parameter = torch.nn.Parameter(torch.tensor(start, dtype=torch.float32, device=self.blocks.device))
        optimizer = torch.optim.AdamW([parameter], lr=rate, weight_decay=self.spec.weight_decay)
        return _Running(lane, parameter, optimizer, rate)

    def _step(
        self,
        active: list[_Running],
        orders: dict[int, list[np.ndarray]],
        number: int,
        step: int,
        prune: bool,
    ) -> None:
        """One optimizer step of every active lane."""
        spec, total, began = self.spec, self.total_steps, self._clock()
        vectors = torch.stack([one.parameter.detach() for one in active])
        rows = [orders[one.lane.seed][number] for one in active]
        items = [(lane, int(row)) for lane, some in enumerate(rows) for row in some]
        tokens = np.array([self.train.n_tokens[some].sum() for some in rows])
        weights = torch.tensor(1.0 / tokens, dtype=torch.float32, device=vectors.device)
        sums, gradients = np.zeros(len(active)), torch.zeros_like(vectors)
        for some in passes(self.train, items, self._upper.room):
            pack = make_pack(self.train, self._train_states, some, len(active))
            own = weights[torch.from_numpy(pack.lanes).to(weights.device)]
            nll, gradient = self._upper.gradient(vectors, pack, own)
            np.add.at(sums, pack.lanes, nll.double().cpu().numpy())
            gradients += gradient
        finite = np.isfinite(sums) & gradients.isfinite().all(1).cpu().numpy()
        for lane, one in enumerate(active):
            if not finite[lane]:
                self._not_finite(one, step, alone=not prune or not finite.any())
                continue
            one.parameter.grad = gradients[lane].clone()
            if spec.clip:
                unit = self.residual_norm if spec.units == "residual" else 1.0
                torch.nn.utils.clip_grad_norm_([one.parameter], spec.clip / unit)
            one.optimizer.param_groups[0]["lr"] = one.rate * schedule(spec.schedule, step, total, spec.warmup)
            one.optimizer.step()
            one.steps += 1
            one.train_sum += float(sums[lane])
            one.train_count += int(tokens[lane])
            one.window_sum += float(sums[lane])
            one.window_count += int(tokens[lane])
        self.seconds["train"] += self._clock() - began

    def _not_finite(self, one: _Running, step: int, *, alone: bool) -> None:
        if alone:
            raise TrainingError(
                f"lane of learning rate {one.lane.learning_rate:g}, seed {one.lane.seed}: the loss is not finite "
                f"at step {step}; lower the learning rate, set training.clip, or load the model in float32"
            )
        one.stopped = "not finite"

    def _halve(self, active: list[_Running], keep: int, step: int) -> None:
        """Lets the best `keep` go on. They are compared by the NLL of the batches since the last halving, each
        taken before it was trained on: rows that are new to all lanes alike, at no cost. From the second epoch on
        no batch is new, and the validation rows decide.
        """
        if len(active) > keep and step > self.total_steps // self.spec.epochs:
            if active[0].curve[-1]["step"] != step:
                active = self._validate(active, True)
            order = sorted(active, key=lambda one: one.curve[-1]["validation_nll"])
        else:
            order = sorted(active, key=lambda one: one.window_sum / one.window_count)
        for one in order[keep:]:
            if one.stopped is None:
                one.stopped = "outpaced"
                if one.curve[-1]["step"] != step:
                    one.curve.append(self._point(one, None))
        for one in active:
            one.window_sum, one.window_count = 0.0, 0

    def _settle(self, active: list[_Running], step: int) -> None:
        """Of the last two, one leaves once it is clearly behind on validation, and in any case half-way."""
        ahead, behind = sorted(active, key=lambda one: one.best_nll)
        half_way = 2 * step >= self.total_steps
        if half_way or clearly_behind(behind.row_nll, ahead.row_nll, self.validation.questions):
            behind.stopped = behind.stopped or "outpaced"

    def _validate(self, active: list[_Running], prune: bool) -> list[_Running]:
        """Evaluates active lanes, keeps the best vector of each, and ends those whose patience is over.

        Returns:
            The lanes with a finite NLL.
        """
        tokens = self.validation.n_tokens.sum()
        found = self._evaluate(torch.stack([one.parameter.detach() for one in active]))
        for one, rows in zip(active, found, strict=True):
            nll = float(rows.sum() / tokens)
            if not math.isfinite(nll):
                self._not_finite(one, one.steps, alone=not prune or not np.isfinite(found).all(1).any())
                continue
            if nll < one.best_nll:
                one.best, one.best_nll, one.best_step = one.parameter.detach().clone(), nll, one.steps
                one.row_nll = rows
            one.curve.append(self._point(one, nll))
            if nll < one.mark - self.spec.min_delta:
                one.mark, one.waited = nll, 0
            else:
                one.waited += 1
                if self.spec.patience and one.waited >= self.spec.patience:
                    one.stopped = "patience"
        return [one for one in active if one.stopped != "not finite"]

    def _point(self, one: _Running, nll: float | None) -> dict[str, Any]:
        train = one.train_sum / one.train_count if one.train_count else None
        one.train_sum, one.train_count = 0.0, 0
        return {
            "seed": one.lane.seed,
            "learning_rate": one.lane.learning_rate,
            "step": one.steps,
            "epoch": one.steps * self.spec.epochs / self.total_steps,
            "train_nll": train,
            "validation_nll": nll,
            "norm": float(one.parameter.detach().norm()),
        }

    def _evaluate(self, vectors: Tensor) -> np.ndarray:
        """fp64 [lanes, n validation rows]: NLL of each row under each vector."""
        lanes, n, began = len(vectors), len(self.validation), self._clock()
        out = np.zeros((lanes, n))
        items = [(lane, row) for lane in range(lanes) for row in range(n)]
        for some in passes(self.validation, items, self._upper.room):
            pack = make_pack(self.validation, self._validation_states, some, lanes)
            out[pack.lanes, pack.rows] = self._upper.nll(vectors, pack).double().cpu().numpy()
        self.seconds["validation"] += self._clock() - began
        return out

    def _finished(self, one: _Running, vanilla_nll: float, vanilla: np.ndarray) -> Trained:
        if one.best is None:  # it left before its first evaluation
            one.best, one.row_nll = one.parameter.detach().clone(), np.full(len(vanilla), math.inf)
        if one.stopped in (None, "patience") and not one.best.any():
            raise TrainingError(
                f"lane of learning rate {one.lane.learning_rate:g}, seed {one.lane.seed}: the vector never left "
                f"zero in {one.steps} steps, its gradient is zero; raise the learning rate, or look at the rows"
            )
        return Trained(
            one.lane,
            one.best.cpu().numpy(),
            one.parameter.detach().cpu().numpy().copy(),
            one.best_nll,
            one.best_step,
            one.steps,
            one.stopped or "finished",
            one.row_nll,
            vanilla_nll,
            vanilla,
            one.curve,
        )


def halvings(total: int, lanes: int) -> dict[int, int]:
    """After which steps the worse half of the lanes leaves, and how many stay: down to two, the last at an eighth
    of the steps, each one before at half of that (successive halving, Jamieson and Talwalkar 2016).
    """
    sizes = []
    while lanes > 2:
        lanes = math.ceil(lanes / 2)
        sizes.append(lanes)
    last = len(sizes) - 1
    return {max(2, math.ceil(total / 8 / 2 ** (last - i))): size for i, size in enumerate(sizes)}


def clearly_behind(behind: np.ndarray, ahead: np.ndarray, questions: np.ndarray) -> bool:
    """Whether paired NLLs [n] are worse by more than two standard errors over questions."""
    _, group = np.unique(questions, return_inverse=True)
    gaps = np.bincount(group, weights=behind - ahead)
    return bool(gaps.sum() > 2 * math.sqrt(len(gaps)) * gaps.std(ddof=1)) if len(gaps) > 1 else False


def history(results: Sequence[Trained]) -> pl.DataFrame:
    """All curves as one table of HISTORY_SCHEMA."""
    rows = [
        {"lane": lane, **point, "stopped": one.stopped}
        for lane, one in enumerate(results)
        for point in one.curve
    ]
    return pl.DataFrame(rows, schema=HISTORY_SCHEMA)
