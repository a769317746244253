"""Trains a small sparse autoencoder on the states of rows: top-k, or JumpReLU, for models without a published one.

In: states fp32 [tokens, hidden] of one site. Out: an `Sae` in the units of the residual stream, its decoder rows of
length one. Top-k as Gao et al. (2024) have it, with their auxiliary loss for features that have died. JumpReLU by way
of BatchTopK (Bussmann et al. 2024): the largest activations of a whole batch count, so that tokens have as many
features as they need, and the smallest of those that count becomes the threshold. Seeded: the same states on the same
machine give the same bytes.
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
from steer_pipeline.lab.sae.features import shared_prefix

HISTORY_SCHEMA, HISTORY_COLUMNS = described(
    step=(pl.Int64(), "optimiser step, from 1"),
    unexplained=(pl.Float64(), "share of the batch's variance that the reconstruction leaves"),
    l0=(pl.Float64(), "active features a token"),
    dead=(pl.Float64(), "share of the features that no token of late has activated"),
)
_WARMUP, _DECAY = 0.05, 0.2  # of the steps: the rate grows over the first, falls over the last
_AUXILIARY = 1 / 32  # weight of the loss of dead features
_DEAD_AFTER = 4096  # tokens without which a feature counts as dead
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
    """fp32 [at most `tokens`, hidden] on the CPU: states of rows in an order keyed by `seed`.

    First positions are left out, and a beginning that all rows share is taken once.

    Raises:
        SaeError: the rows have no token to count.
    """
    if not examples:
        raise SaeError("no row to train a sparse autoencoder on; the pool of sft_manifest is empty")
    begin, room = shared_prefix(examples), tokens
    chosen: list[tuple[Example, int]] = []  # with the first of its positions that is taken
    for example in in_keyed_order(examples, seed):
        if room <= 0:
            break
        first = begin if chosen else 1
        chosen.append((example, first))
        room -= len(example.ids) - first
    ends = np.cumsum([len(one.ids) - first for one, first in chosen])
    states = torch.empty(int(ends[-1]), model.hidden_size)
    for i, whole in each_states(model, [list(one.ids) for one, _ in chosen], site.block, site.kind):
        own = whole[chosen[i][1] :]
        states[ends[i] - len(own) : ends[i]] = own.float().cpu()
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
    sae = checked(learner.result(states, site, metadata or {}), "the sparse autoencoder trained here")
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
        learned = [self.decoder, self.encoder, self.encoder_bias, self.decoder_bias]
        self.optimiser = torch.optim.Adam(learned, lr=spec.learning_rate, betas=(0.9, 0.999))
        self.silent = torch.zeros(n_features, device=device)  # tokens since each feature was active

    def _scaled(self, states: Tensor) -> Tensor:
        return (states - self.mean) * self.scale

    def _raw(self, scaled: Tensor) -> Tensor:
        return (scaled - self.decoder_bias) @ self.encoder + self.encoder_bias

    def _features(self, raw: Tensor) -> Tensor:
        """What of raw values [tokens, features] counts."""
        if self.spec.kind == "topk":
            return top_k(raw, self.spec.l0)
        return raw * (raw >= _least(raw.detach(), self.spec.l0))

    def step(self, states: Tensor, rate: float) -> dict[str, float]:
        """One optimiser step on states [tokens, hidden]; the numbers of the history."""
        scaled = self._scaled(states)
        raw = self._raw(scaled)
        features = self._features(raw)
        left = scaled - (features @ self.decoder + self.decoder_bias)
        variance = (scaled - scaled.mean(dim=0)).pow(2).sum().clamp(min=1e-12)
        unexplained = left.pow(2).sum() / variance
        dead = self.silent > _DEAD_AFTER
        loss = unexplained + _AUXILIARY * self._auxiliary(raw, left.detach(), dead)
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
            "unexplained": float(unexplained.detach()),
            "l0": float((features > 0).sum(dim=1).float().mean()),
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
    def result(self, states: Tensor, site: Site, metadata: dict[str, Any]) -> Sae:
        """In the units of the states: features and thresholds are lengths along unit directions.

        Args:
            states: of training, from some of which the threshold is read.
        """
        threshold = None
        if self.spec.kind == "jumprelu":
            some = self._scaled(
                states[torch.linspace(0, len(states) - 1, _PIECE).long()].to(self.mean.device)
            )
            threshold = _least(self._raw(some), self.spec.l0).expand(self.decoder.shape[0]) / self.scale
        return Sae(
            encoder=self.encoder.detach().cpu().clone(),
            decoder=self.decoder.detach().cpu().clone(),
            encoder_bias=(self.encoder_bias / self.scale).cpu(),
            decoder_bias=(self.decoder_bias / self.scale + self.mean).cpu(),
            activation=self.spec.kind,
            threshold=None if threshold is None else threshold.cpu().clone(),
            k=self.spec.l0 if threshold is None else None,
            site=site,
            metadata=metadata,
        )


def _unit_rows(matrix: Tensor) -> Tensor:
    return matrix / matrix.norm(dim=1, keepdim=True).clamp(min=1e-12)


def _least(raw: Tensor, l0: int) -> Tensor:
    """The smallest of the activations that count in a batch [tokens, features]: `l0` a token, and none below zero."""
    return raw.flatten().topk(len(raw) * l0, sorted=False).values.min().clamp(min=0.0)
