"""Steers a transformers module from outside, for as long as a `with` block lasts.

In: a loaded Torch model and a steering plan. Out: the module, which adds the plan's vectors wherever it runs: in its
own `generate`, in a trainer, in another library. The hooks sit at the sites where `hidden` reads and the engine adds,
the last block's output before the final norm included. It knows nothing of personas or doses.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.operators import operated, operators_of
from steer_pipeline.lab.models.plain import Change, Plain, plain_of
from steer_pipeline.lab.models.plans import block_deltas, check_plans, inner_deltas
from steer_pipeline.lab.models.prompts import encode_prompt
from steer_pipeline.lab.models.sites import SteeringPlan

MIN_LOGIT_DELTA = 1e-3  # a plan that moves no logit by as much does nothing
# words, since a padding token's embedding is often zero, which the first norm blows up from any rounding
_PROBE_TEXT = "A storm closed 14 schools on Monday, and nobody was hurt."


class SteeringHasNoEffect(RuntimeError):
    """A term, or a plan's terms together, change no logit. The message names variant, term, site and dose."""


@contextmanager
def hooked(model: LoadedModel, plan: SteeringPlan) -> Iterator[Any]:
    """The model's module with the plan's vectors added at every position, padding included.

    The hooks are gone when the block is left, by an error too. Plans of nested blocks add up. Every LoadedModel of the
    same base shares its blocks, and so is steered as well; the engine and `hidden` are no exception.

    Raises:
        ValueError: an MLX model, a scope or site that hooks cannot serve, or a plan that does not fit the model.
        SteeringHasNoEffect: the plan has terms and changes no logit of a probe sentence.
    """
    _require_hooks(model, plan)
    module, plain = model.module, plain_of(model)
    outputs, inner = additions(plain, plan)
    words = encode_prompt(model.tokenizer, user=_PROBE_TEXT, chat_template=False)
    probe = torch.tensor([words], device=plain.device)
    before = _logits(module, probe) if outputs or inner else None
    with plain.hooked(outputs, inner):
        if before is not None:
            _require_effect(plan, float((_logits(module, probe) - before).abs().max()))
        yield module


def additions(
    plain: Plain, plan: SteeringPlan, where: Tensor | None = None
) -> tuple[dict[int, Change], dict[int, dict[str, Change]]]:
    """What a plan does at block outputs, and inside of blocks, as `Plain.hooked` takes it.

    Args:
        where: bool [n, t], the positions that are steered; None: all.
    """
    wanted = None if where is None else where[..., None].to(plain.dtype)

    def adds(table: np.ndarray) -> Change:
        delta = torch.from_numpy(table[0]).to(plain.device).to(plain.dtype)
        return lambda hidden: hidden + (delta if wanted is None else delta * wanted)

    outputs = {block: adds(table) for block, table in block_deltas([plan]).items()}
    for block, operators in operators_of([plan], plain.device).items():
        operate = partial(operated, operators, where=where)
        added = outputs.get(block)
        outputs[block] = operate if added is None else _after(added, operate)
    inner = {
        block: {kind: adds(table) for kind, table in tables.items()}
        for block, tables in inner_deltas([plan]).items()
    }
    return outputs, inner


def _after(first: Change, then: Change) -> Change:
    return lambda hidden: then(first(hidden))


def _require_hooks(model: LoadedModel, plan: SteeringPlan) -> None:
    if model.backend == "mlx":
        raise ValueError(
            "an mlx model has no module to hook; use generate(model, prompts, vector), or load it with backend='torch'"
        )
    check_plans(model, [plan])
    if plan.scope != "all":
        raise ValueError(
            f"scope {plan.scope!r}: hooks steer all positions; generate() knows scope 'generated'"
        )
    if any(term.site.kind == "logits" for term in plan.terms):
        raise ValueError("a bias on the logits has no block to hook; generate() knows site 'logits'")


def _require_effect(plan: SteeringPlan, change: float) -> None:
    if not change >= MIN_LOGIT_DELTA:  # NaN is no effect either
        message = ", ".join(
            f"{term.name} at {term.site.kind} of block {term.site.block} with alpha {term.alpha:g}"
            for term in plan.terms
        )
        raise SteeringHasNoEffect(
            f"steering ({message}) changes no logit by more than {change:.3g}, the floor is {MIN_LOGIT_DELTA:g}; "
            "give a larger dose (a fraction of the residual norm, or alpha as a length), or check the vector"
        )


def _logits(module: Any, ids: Tensor) -> Tensor:
    """fp32 [t, vocabulary] of ids [1, t]."""
    with torch.no_grad():
        return module(input_ids=ids, use_cache=False).logits[0].float()
