"""Trains a small sparse autoencoder on the states of rows: top-k, or JumpReLU, for models without a published one.

In: states fp32 [tokens, hidden] of one site. Out: an `Sae` in the units of the residual stream, its decoder rows of
length one. Top-k as Gao et al. (2024) have it, with their auxiliary loss for features that have died; JumpReLU as
Rajamanoharan et al. (2024), with thresholds learned straight (not their logarithms, which Adam hardly moves) and a
quadratic penalty that holds L0 at its target. Seeded: the same states on the same machine give the same bytes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from steer_pipeline.catalogue.sae import SaeTrainingSpec
from steer_pipeline.lab.columns import described
from steer_pipeline.lab.finetune.data import Example, in_keyed_order
from steer_pipeline.lab.models.hidden import each_states
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.sites import Site
from steer_pipeline.lab.sae.dictionary import Sae, SaeError, checked, top_k
from steer_pipeline.lab.sae.features import counted

HISTORY_SCHEMA, HISTORY_COLUMNS = described(
    step=(pl.Int64(), "optimiser step, from 1"),
    unexplained=(pl.Float64(), "share of the batch's variance that the reconstruction leaves"),
    l0=(pl.Float64(), "active features a token"),
    dead=(pl.Float64(), "share of the features that no token of late has activated"),
)
_WARMUP, _DECAY = 0.05, 0.2  # of the steps: the rate grows over the first, falls over the last
_AUXILIARY = 1 / 32  # weight of the loss of dead features
_DEAD_AFTER = 4096  # tokens without which a feature counts as dead
_BANDWIDTH = 0.1  # around a threshold, in which it feels a gradient; states have unit variance
_RECORDS = 40  # rows of the history
_PIECE = 2048  # tokens encoded at once where nothing is learned


@dataclass(frozen=True, eq=False)
class TrainedSae:
    """What a training made.

    Attributes:
        density: fp64 [features], share of the training tokens at which each is active.
        history: of `HISTORY_SCHEMA`.
        n_tokens: tokens that it was trained on, each `epochs` times.
    """

    sae: Sae
    density: np.ndarray
    history: pl.DataFrame
    n_tokens: int


def collect_states(
    model: LoadedModel, examples: Sequence[Example], site: Site, tokens: int, seed: int
) -> Tensor:
    """fp32 [at most `tokens`, hidden] on the CPU: states of rows in an order keyed by `seed`, first positions left out.

    Raises:
        SaeError: the rows have no token to count.
    """
    chosen: list[Example] = []
    room = tokens
    for example in in_keyed_order(examples, seed):
        if room <= 0:
            break
        chosen.append(example)
        room -= len(example.ids) - counted(example).start
    if not chosen:
        raise SaeError("no row to train a sparse autoencoder on; the pool of sft_manifest is empty")
    starts = np.cumsum([0, *(len(one.ids) - 1 for one in chosen)])
    states = torch.empty(int(starts[-1]), model.hidden_size)
    for i, own in each_states(model, [list(one.ids) for one in chosen], site.block, site.kind):
        states[starts[i] : starts[i + 1]] = own[1:].float().cpu()
    return states[:tokens]


def train_sae(
    states: Tensor,
    spec: SaeTrainingSpec,
    site: Site,
    metadata: dict[str, Any] | None = None,
    *,
    device: Any = "cpu",
    progress: Callable[[str], None] | None = None,
) -> TrainedSae:
    """A sparse autoencoder of `states` [tokens, hidden], which are scaled on the way and left as they are.

    Raises:
        SaeError: fewer features than are to be active, states that do not vary, or a loss that is not finite.
    """
    n_features = round(spec.expansion * states.shape[1])
    if spec.l0 > n_features:
        raise SaeError(f"sae.training: l0 {spec.l0} of {n_features} features; lower l0 or raise expansion")
    learner = _Learner(states, spec, n_features, device)
    steps = spec.epochs * math.ceil(len(states) / spec.batch_tokens)
    shuffler = torch.Generator().manual_seed(spec.seed)
    records: list[dict[str, float | int]] = []
    for epoch in range(spec.epochs):
        order = torch.randperm(len(states), generator=shuffler)
        for rows in order.split(spec.batch_tokens):
            numbers = learner.step(states[rows].to(device), _rate(learner.steps, steps))
            if not math.isfinite(numbers["unexplained"]):
                raise SaeError(
                    f"sae.training: the loss is {numbers['unexplained']} at step {learner.steps}; lower learning_rate"
                )
            if learner.steps % max(1, steps // _RECORDS) == 0 or learner.steps == steps:
                records.append({"step": learner.steps, **numbers})
        if progress is not None:
            progress(f"sae: epoch {epoch + 1} of {spec.epochs}, {numbers['unexplained']:.3f} unexplained")
    sae = checked(learner.result(site, metadata or {}), "the sparse autoencoder trained here")
    return TrainedSae(sae, density(sae, states), pl.DataFrame(records, schema=HISTORY_SCHEMA), len(states))


def density(sae: Sae, states: Tensor) -> np.ndarray:
    """fp64 [features]: share of the states [tokens, hidden] at which each feature is active."""
    active = torch.zeros(sae.n_features, dtype=torch.int64)
    placed = sae.to(states.device)
    for piece in states.split(_PIECE):
        active += (placed.encode(piece) > 0).sum(dim=0).cpu()
    return (active.double() / len(states)).numpy()


def _rate(step: int, steps: int) -> float:
    """Share of the learning rate at a step, from 0."""
    return min(1.0, (step + 1) / (_WARMUP * steps), (steps - step) / (_DECAY * steps))


class _Learner:
    """Weights, optimiser and what is known of dead features. Works on states of zero mean and unit variance."""

    def __init__(self, states: Tensor, spec: SaeTrainingSpec, n_features: int, device: Any):
        self.spec, self.steps = spec, 0
        self.mean = states.mean(dim=0).to(device)
        spread = float((states - self.mean.cpu()).pow(2).mean().sqrt())
        if not spread > 0:
            raise SaeError("sae.training: the states do not vary; give more rows")
        self.scale = 1 / spread
        hidden = states.shape[1]
        decoder = torch.randn(n_features, hidden, generator=torch.Generator().manual_seed(spec.seed))
        self.decoder = _unit_rows(decoder).to(device).requires_grad_()
        self.encoder = self.decoder.detach().T.clone().requires_grad_()
        self.encoder_bias = torch.zeros(n_features, device=device, requires_grad=True)
        self.decoder_bias = torch.zeros(hidden, device=device, requires_grad=True)
        self.threshold = torch.zeros(n_features, device=device, requires_grad=True)
        learned = [self.decoder, self.encoder, self.encoder_bias, self.decoder_bias]
        if spec.kind == "jumprelu":
            self._start_thresholds(self._scaled(states[: 4 * _PIECE].to(device)))
            learned.append(self.threshold)
        self.optimiser = torch.optim.Adam(learned, lr=spec.learning_rate, betas=(0.9, 0.999))
        self.silent = torch.zeros(n_features, device=device)  # tokens since each feature was active

    def _scaled(self, states: Tensor) -> Tensor:
        return (states - self.mean) * self.scale

    def _raw(self, scaled: Tensor) -> Tensor:
        return (scaled - self.decoder_bias) @ self.encoder + self.encoder_bias

    @torch.no_grad()
    def _start_thresholds(self, scaled: Tensor) -> None:
        """Each feature begins with as large a share of the tokens as L0 leaves it."""
        share = 1 - self.spec.l0 / len(self.threshold)
        raw = self._raw(scaled)
        for piece in torch.arange(len(self.threshold), device=raw.device).split(_PIECE):
            self.threshold[piece] = raw[:, piece].quantile(share, dim=0).clamp(min=0.0)

    def step(self, states: Tensor, rate: float) -> dict[str, float]:
        """One optimiser step on states [tokens, hidden]; the numbers of the history."""
        scaled = self._scaled(states)
        raw = self._raw(scaled)
        if self.spec.kind == "topk":
            features = top_k(raw, self.spec.l0)
            l0 = (features > 0).sum(dim=1).float().mean()
            penalty = torch.zeros(())
        else:
            threshold = self.threshold.relu()
            features = _JumpRelu.apply(raw, threshold)
            l0 = _Step.apply(raw, threshold).sum(dim=1).mean()
            penalty = (l0 / self.spec.l0 - 1) ** 2
        left = scaled - (features @ self.decoder + self.decoder_bias)
        variance = (scaled - scaled.mean(dim=0)).pow(2).sum().clamp(min=1e-12)
        unexplained = left.pow(2).sum() / variance
        dead = self.silent > _DEAD_AFTER
        loss = unexplained + penalty + _AUXILIARY * self._auxiliary(raw, left.detach(), dead)
        self.optimiser.param_groups[0]["lr"] = self.spec.learning_rate * rate
        self.optimiser.zero_grad()
        loss.backward()
        self._keep_off_length()
        self.optimiser.step()
        with torch.no_grad():
            self.decoder.copy_(_unit_rows(self.decoder))
            self.silent += len(states)
            self.silent[(features > 0).any(dim=0)] = 0
        self.steps += 1
        return {
            "unexplained": float(unexplained),
            "l0": float(l0),
            "dead": float(dead.float().mean()),
        }

    def _auxiliary(self, raw: Tensor, left: Tensor, dead: Tensor) -> Tensor:
        """How badly the dead features alone rebuild what is left over, as a share of it: what brings them back."""
        n_dead = int(dead.sum())
        if not n_dead:
            return torch.zeros((), device=raw.device)
        k = min(n_dead, max(self.spec.l0, left.shape[1] // 2))
        revived = top_k(raw.masked_fill(~dead, float("-inf")), k)
        return (revived @ self.decoder - left).pow(2).sum() / left.pow(2).sum().clamp(min=1e-12)

    @torch.no_grad()
    def _keep_off_length(self) -> None:
        """A gradient along a decoder row changes the row's length alone, which is undone; Adam need not see it."""
        gradient = self.decoder.grad
        assert gradient is not None
        gradient -= (gradient * self.decoder).sum(dim=1, keepdim=True) * self.decoder

    @torch.no_grad()
    def result(self, site: Site, metadata: dict[str, Any]) -> Sae:
        """In the units of the states: features and thresholds are lengths along unit directions."""
        jump = self.spec.kind == "jumprelu"
        return Sae(
            encoder=self.encoder.detach().cpu().clone(),
            decoder=self.decoder.detach().cpu().clone(),
            encoder_bias=(self.encoder_bias / self.scale).cpu(),
            decoder_bias=(self.decoder_bias / self.scale + self.mean).cpu(),
            activation=self.spec.kind,
            threshold=(self.threshold.relu() / self.scale).cpu() if jump else None,
            k=None if jump else self.spec.l0,
            site=site,
            metadata=metadata,
        )


def _unit_rows(matrix: Tensor) -> Tensor:
    return matrix / matrix.norm(dim=1, keepdim=True).clamp(min=1e-12)


def _near(raw: Tensor, threshold: Tensor) -> Tensor:
    """Rectangle kernel: where raw values [tokens, n] lie within the band of their threshold [n], over its width."""
    return ((raw - threshold).abs() < _BANDWIDTH / 2).to(raw.dtype) / _BANDWIDTH


class _JumpRelu(torch.autograd.Function):
    """raw where it is above the threshold, else 0; the threshold's gradient is a kernel estimate."""

    @staticmethod
    def forward(ctx: Any, raw: Tensor, threshold: Tensor) -> Tensor:
        ctx.save_for_backward(raw, threshold)
        return raw * (raw > threshold)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        raw, threshold = ctx.saved_tensors
        (gradient,) = gradients
        return gradient * (raw > threshold), -(threshold * _near(raw, threshold) * gradient).sum(dim=0)


class _Step(torch.autograd.Function):
    """1 where raw is above the threshold, else 0; gradients reach the threshold alone."""

    @staticmethod
    def forward(ctx: Any, raw: Tensor, threshold: Tensor) -> Tensor:
        ctx.save_for_backward(raw, threshold)
        return (raw > threshold).to(raw.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        raw, threshold = ctx.saved_tensors
        return None, -(_near(raw, threshold) * gradients[0]).sum(dim=0)
