"""Losses of fine-tuning, on the supervised positions alone.

In: logits [n, vocabulary] at supervised positions, in fp32. Out: sums or scalars with gradients. The divergences are
those of Hinton et al. (2015) and Agarwal et al. (2024, generalised distillation): `forward` is KL(reference || model),
`reverse` is KL(model || reference).
"""

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from steer_pipeline.lab.finetune.data import IGNORED

Direction = Literal["forward", "reverse"]
Aggregate = Literal["mean", "rmse", "p95", "max"]


def supervised_logits(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits that predict supervised tokens, and these tokens.

    Args:
        logits: [n, span + 1, vocabulary] of the last span + 1 positions of a batch.
        labels: int64 [n, t] with `IGNORED`, t > span.

    Returns:
        fp32 [supervised, vocabulary] and int64 [supervised], row after row.
    """
    span = logits.shape[1] - 1
    targets = labels[:, labels.shape[1] - span :]
    chosen = targets != IGNORED
    return logits[:, :-1][chosen].float(), targets[chosen]


def nll_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """Summed negative log-likelihood in nats of targets [n] under logits [n, vocabulary]."""
    return functional.cross_entropy(logits, targets, reduction="sum")


def divergence(logits: Tensor, reference: Tensor, direction: Direction) -> Tensor:
    """KL in nats at each position [n] between softmax of logits and of the reference, both [n, vocabulary]."""
    model, ref = logits.log_softmax(-1), reference.log_softmax(-1)
    first, second = (ref, model) if direction == "forward" else (model, ref)
    return (first.exp() * (first - second)).sum(-1)


def generalised_jsd(logits: Tensor, reference: Tensor, beta: float) -> Tensor:
    """Generalised Jensen-Shannon divergence in nats at each position [n], in TRL's convention of beta.

    0 is KL(reference || model), 1 is KL(model || reference). Between them, with m = (1 - beta) model + beta reference,
    it is beta KL(reference || m) + (1 - beta) KL(model || m), which goes to zero towards both ends: other settings of
    beta are other scales.
    """
    if beta in (0, 1):
        return divergence(logits, reference, "reverse" if beta else "forward")
    model, ref = logits.log_softmax(-1), reference.log_softmax(-1)
    mixed = torch.logaddexp(model + math.log1p(-beta), ref + math.log(beta))
    to_ref = (ref.exp() * (ref - mixed)).sum(-1)
    to_model = (model.exp() * (model - mixed)).sum(-1)
    return beta * to_ref + (1 - beta) * to_model


def hinge(value: Tensor, tau: float) -> Tensor:
    """What of `value` is above tau, in nats; tau 0 leaves it as it is (linear)."""
    return (value - tau).clamp(min=0)


def gradient_norm(term: Tensor, parameters: Iterable[Tensor]) -> float:
    """Euclidean norm of the gradient of a scalar; its graph stays for the step's own backward pass."""
    found = torch.autograd.grad(term, list(parameters), retain_graph=True, allow_unused=True)
    return math.sqrt(sum(float(gradient.square().sum()) for gradient in found if gradient is not None))


def aggregate(values: Tensor, how: Aggregate) -> Tensor:
    """One number over positions [n]; `p95` interpolates between the two positions beside the quantile."""
    if how == "mean":
        return values.mean()
    if how == "rmse":
        return values.square().mean().add(1e-12).sqrt()
    return values.max() if how == "max" else torch.quantile(values, 0.95)


def spectral_penalty(pairs: Iterable[tuple[Tensor, Tensor, float]]) -> Tensor:
    """Mean over LoRA layers of the largest singular value of scaling * B @ A.

    The singular vectors are found without gradient; the gradient of a simple singular value is exact that way.

    Args:
        pairs: A [rank, in], B [out, rank] and the scaling of each layer.
    """
    found = []
    for a, b, scaling in pairs:
        with torch.no_grad():
            left, right = torch.linalg.qr(b.float()), torch.linalg.qr(a.float().T)
            u, _, vh = torch.linalg.svd(left.R @ right.R.T)
            first, last = left.Q @ u[:, 0], right.Q @ vh[0]
        found.append(scaling * (first @ b.float()) @ (a.float() @ last))
    return torch.stack(found).mean()


def lora_pairs(model: Any, name: str = "default") -> list[tuple[Tensor, Tensor, float]]:
    """A, B and scaling of each LoRA layer of a PEFT model that has the adapter `name`."""
    return [
        (module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name])
        for module in model.modules()
        if hasattr(module, "lora_A") and name in module.lora_A
    ]
