"""A training that runs again step by step, with a weight for each row, and that can be differentiated by the weights.

In: examples, a model below and a `ReplaySpec`. Out: the LoRA's parameters as one vector, the queries' losses under it,
and by MAGIC (Ilyas and Engstrom 2025) the derivative of their mean by each row's weight. The step is AdamW's as optax
and torchopt write it, with `eps_root` inside the root; its loss is the batch's NLL, weighted, over the number of its
supervised tokens, whatever their weights: a row of weight zero is left out and nothing else changes. Order of rows,
batches and schedule are those of Bergson's trainer.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from steer_pipeline.catalogue.attribution_scoring import ReplaySpec
from steer_pipeline.catalogue.specs import ModelSpec
from steer_pipeline.lab.attribution.scoring.gradients import Batch, row_nll
from steer_pipeline.lab.attribution.scoring.passes import Progress, batches_of
from steer_pipeline.lab.attribution.scoring.ranking import ScoringError
from steer_pipeline.lab.finetune.data import Example, collate
from steer_pipeline.lab.finetune.recipe import LoraRecipe
from steer_pipeline.lab.models.loading import load_for_training


@dataclass(frozen=True)
class State:
    """fp32 [P] each: parameters, and Adam's first and second moment of their gradients."""

    theta: Tensor
    mean: Tensor
    square: Tensor

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.theta, self.mean, self.square


class Replay:
    """One training: its start, its batches in order, its step."""

    def __init__(
        self,
        spec: ModelSpec,
        home: Path,
        train: Sequence[Example],
        queries: Sequence[Example],
        recipe: ReplaySpec,
        batch_tokens: int,
    ) -> None:
        """
        Args:
            spec: the model below the new LoRA; adapters that it names stay frozen.
            train, queries: rows that have supervised tokens (`usable`).
            batch_tokens: of one pass over queries.
        """
        self.recipe, self.train_rows, self.queries = recipe, list(train), list(queries)
        if not train or not queries:
            raise ScoringError(
                f"{len(train)} training rows and {len(queries)} queries; give at least one of each"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)  # the LoRA's start is drawn from it
            self.model, self.below = load_for_training(spec, home, self._lora())
        self.model.eval()
        self._names = [name for name, one in self.model.named_parameters() if one.requires_grad]
        start = [self.model.get_parameter(name).detach() for name in self._names]
        self._shapes = [one.shape for one in start]
        self.start = torch.cat([one.flatten() for one in start])
        self._query_batches = [self._collated(one) for one in batches_of(self.queries, batch_tokens)]
        self._order = [e.row_id for one in batches_of(self.queries, batch_tokens) for e in one]
        self.steps = self._steps()

    def _lora(self) -> Any:
        from steer_pipeline.lab.finetune.training import lora_config

        recipe = LoraRecipe(rank=self.recipe.rank, targets=self.recipe.targets)
        return lora_config(recipe, 1)  # the whole depth, however many blocks there are

    def _collated(self, examples: Sequence[Example]) -> Batch:
        return {name: one.to(self.model.device) for name, one in collate(examples, 0).items()}

    def _steps(self) -> list[Tensor]:
        """Of each step the rows [batch_rows], -1 where the last one is filled up."""
        n, size = len(self.train_rows), self.recipe.batch_rows
        epochs = [
            np.random.default_rng(self.recipe.seed + epoch).permutation(n)
            for epoch in range(self.recipe.epochs)
        ]
        order = np.concatenate(epochs)
        order = np.concatenate([order, np.full(-len(order) % size, -1)])
        return list(torch.from_numpy(order.reshape(-1, size)))

    def rate(self, step: int) -> float:
        """Learning rate of a step, the first being 0."""
        recipe, total = self.recipe, len(self.steps)
        warmup = math.ceil(total * recipe.warmup)
        if step < warmup:
            return recipe.learning_rate * step / warmup
        gone = (step - warmup) / max(total - warmup, 1)
        left = {"constant": 1.0, "linear": 1 - gone, "cosine": 0.5 * (1 + math.cos(math.pi * gone))}
        return recipe.learning_rate * left[recipe.schedule]

    def save(self, folder: Path, state: State | None = None) -> None:
        """The LoRA as PEFT reads it: as it is in `state`, or before the first step."""
        theta = self.start if state is None else state.theta
        parts = theta.split([shape.numel() for shape in self._shapes])
        with torch.no_grad():
            for name, part, shape in zip(self._names, parts, self._shapes, strict=True):
                self.model.get_parameter(name).copy_(part.view(shape))
        self.model.save_pretrained(folder, selected_adapters=["default"])

    # ------------------------------------------------------------------------------------------ forwards

    def begin(self) -> State:
        return State(self.start.clone(), torch.zeros_like(self.start), torch.zeros_like(self.start))

    def step(self, state: State, index: int, weights: Tensor, *, traced: bool = False) -> State:
        """The state after step `index`.

        Args:
            weights: [n], of the training rows.
            traced: keep the graph, to differentiate by state and weights.
        """
        recipe, rows = self.recipe, self.steps[index]
        theta = state.theta if traced else state.theta.detach().requires_grad_()
        batch = self._collated([self.train_rows[row] for row in self._filled(rows)])
        with torch.enable_grad():
            nll, counts = row_nll(self._at(theta), batch)
            shares = (weights[rows.clamp(min=0)] * (rows >= 0)).to(nll.device)
            loss = (nll * shares).sum() / counts.sum()
            (gradient,) = torch.autograd.grad(loss, theta, create_graph=traced)
        if recipe.clip:
            gradient = gradient * (recipe.clip / (gradient.norm() + 1e-6)).clamp(max=1.0)
        mean = recipe.beta1 * state.mean + (1 - recipe.beta1) * gradient
        square = recipe.beta2 * state.square + (1 - recipe.beta2) * gradient**2
        first, second = (1 - beta ** (index + 1) for beta in (recipe.beta1, recipe.beta2))
        update = (mean / first) / ((square / second + recipe.eps_root).sqrt() + recipe.eps)
        theta = theta - self.rate(index) * (update + recipe.weight_decay * theta)
        after = State(theta, mean, square)
        return after if traced else State(*(one.detach() for one in after.tensors))

    def _filled(self, rows: Tensor) -> list[int]:
        """Places of -1 repeat the last row: their tokens count in the mean, as in Bergson, their weight is zero."""
        last = int(self.steps[-1][self.steps[-1] >= 0][-1])
        return [row if row >= 0 else last for row in rows.tolist()]

    def _at(self, theta: Tensor) -> Any:
        parts = theta.split([shape.numel() for shape in self._shapes])
        parameters = {n: part.view(s) for n, part, s in zip(self._names, parts, self._shapes, strict=True)}
        return lambda **inputs: functional_call(self.model, parameters, (), inputs)

    def trained(self, weights: Tensor | None = None, until: int | None = None) -> State:
        """The state after all steps, or before step `until`.

        Raises:
            ScoringError: the parameters are not finite.
        """
        weights = torch.ones(len(self.train_rows)) if weights is None else weights
        state = self.begin()
        for index in range(len(self.steps) if until is None else until):
            state = self.step(state, index, weights)
        if not state.theta.isfinite().all():
            raise ScoringError("the training diverged; lower replay.learning_rate")
        return state

    def query_losses(self, state: State) -> tuple[Tensor, Tensor]:
        """Summed NLL in nats and number of supervised tokens of each query: [q] each, in the order of `queries`."""
        found: dict[str, tuple[float, float]] = {}
        ids = iter(self._order)
        with torch.no_grad():
            for batch in self._query_batches:
                nll, counts = row_nll(self._at(state.theta), batch)
                found |= {next(ids): pair for pair in zip(nll.tolist(), counts.tolist(), strict=True)}
        pairs = torch.tensor([found[one.row_id] for one in self.queries], dtype=torch.float64)
        return pairs[:, 0], pairs[:, 1]

    # ------------------------------------------------------------------------------------------ backwards

    def query_gradient(self, state: State) -> Tensor:
        """[P]: of the queries' NLL over all their supervised tokens."""
        total, tokens = torch.zeros_like(state.theta), 0
        for batch in self._query_batches:
            theta = state.theta.detach().requires_grad_()
            with torch.enable_grad():
                nll, counts = row_nll(self._at(theta), batch)
                total += torch.autograd.grad(nll.sum(), theta)[0]
            tokens += int(counts.sum())
        return total / tokens

    def influences(self, record: Path | None = None, progress: Progress | None = None) -> Tensor:
        """fp32 [n]: the derivative of the queries' NLL a token by each row's weight, through all steps.

        Only every sqrt(steps)-th state is kept; those between are run again.

        Args:
            record: where the way back is noted after each such stretch; a killed run goes on from there.
        """
        ones = torch.ones(len(self.train_rows))
        every = max(1, math.isqrt(len(self.steps)))
        kept = dict(self._kept(every, ones))
        left, cotangent, weights = self._resumed(record, kept[len(self.steps)])
        with _twice_differentiable(self.model):
            for begin in sorted((one for one in kept if one < left), reverse=True):
                states = [kept[begin]]
                for index in range(begin, left - 1):
                    states.append(self.step(states[-1], index, ones))
                for index in reversed(range(begin, left)):
                    cotangent, more = self._back(states[index - begin], index, cotangent)
                    weights += more
                left = begin
                _note(record, left, cotangent, weights)
                if progress is not None:
                    progress(f"MAGIC: {left} of {len(self.steps)} steps left on the way back")
        return weights

    def _kept(self, every: int, weights: Tensor) -> Iterator[tuple[int, State]]:
        state = self.begin()
        for index in range(len(self.steps)):
            if index % every == 0:
                yield index, state
            state = self.step(state, index, weights)
        yield len(self.steps), state

    def _back(self, state: State, index: int, cotangent: State) -> tuple[State, Tensor]:
        """What a step makes of the cotangent of its result: that of its state, and of the weights."""
        before = [one.detach().requires_grad_() for one in state.tensors]
        weights = torch.ones(len(self.train_rows), requires_grad=True)
        after = self.step(State(*before), index, weights, traced=True)
        found = torch.autograd.grad(after.tensors, [*before, weights], cotangent.tensors)
        return State(*found[:3]), found[3]

    def _resumed(self, record: Path | None, end: State) -> tuple[int, State, Tensor]:
        if record is not None and record.is_file():
            noted = torch.load(record, weights_only=True)
            return int(noted["left"]), State(*noted["cotangent"]), noted["weights"]
        zero = torch.zeros_like(self.start)
        cotangent = State(self.query_gradient(end), zero, zero.clone())
        return len(self.steps), cotangent, torch.zeros(len(self.train_rows))

    def metasmoothness(self, fd_step: float, seed: int = 0) -> float:
        """Whether trainings answer to their weights in a smooth way (Engstrom et al. 2025, definition 2): 1 if so.

        Of the parameters' two consecutive finite differences along random weights, the agreement of signs, each
        parameter weighing as much as it moves.
        """
        direction = torch.randn(len(self.train_rows), generator=torch.Generator().manual_seed(seed))
        ends = [self.trained(1 + fd_step * times * direction).theta for times in range(3)]
        moved = (ends[2] - ends[0]).abs()
        if not moved.sum():
            return 1.0
        agree = (ends[1] - ends[0]).sign() * (ends[2] - ends[1]).sign()
        return float((moved / moved.sum() * agree).sum())


def require_smooth(found: float, least: float) -> None:
    """Raises a ScoringError where `Replay.metasmoothness` found less than `least`."""
    if found < least:
        raise ScoringError(
            f"metasmoothness is {found:.2f}, below {least:g}: derivatives through this training predict nothing; raise "
            "replay.eps_root, lower replay.learning_rate, or take larger batches"
        )


@contextmanager
def _twice_differentiable(model: Any) -> Iterator[None]:
    """Attention as plain products: the fused ones have no second derivative."""
    with sdpa_kernel(SDPBackend.MATH) if model.device.type in ("cpu", "cuda") else nullcontext():
        yield


def _note(record: Path | None, left: int, cotangent: State, weights: Tensor) -> None:
    if record is None:
        return
    record.parent.mkdir(parents=True, exist_ok=True)
    part = record.with_name(record.name + ".part")
    torch.save({"left": left, "cotangent": cotangent.tensors, "weights": weights}, part)
    part.replace(record)
