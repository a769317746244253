"""Proves before a pack starts that every steering term changes what the model says.

In: a few rows and the plans of the run. Out: one result a term and one a plan of several terms, with the
size of the change. A term that leaves the logits as they are is an error: steering that does nothing must
not make a pack.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from steer_pipeline.catalogue.specs import SamplingSpec
from steer_pipeline.lab.generation.engine import generate
from steer_pipeline.lab.generation.jobs import PromptRow
from steer_pipeline.lab.models.hooks import MIN_LOGIT_DELTA, SteeringHasNoEffect
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.plans import check_plans
from steer_pipeline.lab.models.sites import SteeringPlan

_ROWS = 4
_TOKENS = 8  # of the unsteered greedy answer that the logits are compared on


@dataclass(frozen=True)
class ProbeResult:
    """What one term (or "all terms") did on the probe rows.

    `max_abs_logit_delta`, `mean_abs_logit_delta`: over vocabulary, rows and steered positions.
    `greedy_tokens_changed`: of `positions` next-token choices, how many differ from the unsteered model's.
    """

    variant: str
    term: str
    max_abs_logit_delta: float
    mean_abs_logit_delta: float
    greedy_tokens_changed: int
    positions: int


def probe_steering(
    model: LoadedModel,
    rows: list[PromptRow],
    plans: Sequence[SteeringPlan],
    *,
    min_logit_delta: float = MIN_LOGIT_DELTA,
) -> list[ProbeResult]:
    """Compares logits with and without each term on the first rows' prompts and the unsteered greedy
    answers to them.

    Raises:
        SteeringHasNoEffect: the largest change stays under `min_logit_delta`; names variant and term.
        ValueError: no rows, or a plan does not fit the model.
    """
    if not rows:
        raise ValueError("probe_steering: no rows; give at least one")
    check_plans(model, plans)
    results = []
    for plan in plans:
        parts = [
            (f"{term.name} (term {i})", replace(plan, terms=(term,))) for i, term in enumerate(plan.terms)
        ]
        if len(parts) > 1:
            parts.append(("all terms", plan))
        if not parts:
            continue
        ids, starts = _answers(model, rows[:_ROWS], plan)
        plain = _logits(model, ids, starts, None)
        for name, part in parts:
            result = _compare(plan.variant, name, plain, _logits(model, ids, starts, part))
            if not result.max_abs_logit_delta >= min_logit_delta:
                where = ", ".join(
                    f"{term.name} at {term.site.kind} of block {term.site.block} with alpha {term.alpha:g}"
                    for term in part.terms
                )
                raise SteeringHasNoEffect(
                    f"variant {plan.variant!r}, {name}: steering ({where}) changes no logit by more than "
                    f"{result.max_abs_logit_delta:.3g}, the floor is {min_logit_delta:g}; "
                    "check dose and vector"
                )
            results.append(result)
    return results


def _answers(
    model: LoadedModel, rows: list[PromptRow], plan: SteeringPlan
) -> tuple[list[list[int]], list[int]]:
    """Prompts with their unsteered greedy answers, and where the answers start."""
    greedy = SamplingSpec(temperature=0.0, top_p=1.0, max_new_tokens=_TOKENS)
    replies = {row.row_id: row for row in generate(model, rows, [SteeringPlan(plan.variant)], greedy)}
    prompts = [row.ids.get(plan.variant, row.ids.get("*", [])) for row in rows]
    # an answer that ends at once still leaves one position to compare: its end token
    filler = [min(model.eos_ids)]
    ids = [
        prompt + (replies[row.row_id].token_ids or filler) for prompt, row in zip(prompts, rows, strict=True)
    ]
    return ids, [len(prompt) for prompt in prompts]


def _logits(
    model: LoadedModel, ids: list[list[int]], starts: list[int], plan: SteeringPlan | None
) -> list[np.ndarray]:
    """fp32 [tokens of the answer, vocabulary] a row: at the positions of generated tokens."""
    if model.backend == "mlx":
        from steer_pipeline.lab.models.mlx import answer_logits
    else:
        from steer_pipeline.lab.models.hidden import answer_logits
    return answer_logits(model, ids, starts, plan)


def _compare(variant: str, name: str, plain: list[np.ndarray], steered: list[np.ndarray]) -> ProbeResult:
    deltas = [np.abs(a - b) for a, b in zip(plain, steered, strict=True)]
    changed = [(a.argmax(-1) != b.argmax(-1)) for a, b in zip(plain, steered, strict=True)]
    return ProbeResult(
        variant=variant,
        term=name,
        max_abs_logit_delta=float(max(delta.max() for delta in deltas)),
        mean_abs_logit_delta=float(np.mean([delta.mean() for delta in deltas])),
        greedy_tokens_changed=int(sum(part.sum() for part in changed)),
        positions=int(sum(len(part) for part in changed)),
    )
