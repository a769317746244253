"""Rows ranked by how far their gradients lie along those of queries, with and without a preconditioner.

In: `Gradients`, queries, a pool and a `GradientMethod`. Out: a score a row. With G a row's gradient, q a query's, H the
damped second moment of gradients, module by module, and u(x) = x / |x| (where unit_norm; else x):
    none:       < mean_q u(q), u(G) >
    one-sided:  < u(H^-1 mean_q u(q)), u(G) >; without unit_norm < mean_q H^-1 q, G >
    two-sided:  < mean_q u(H^-1/2 q), u(H^-1/2 G) >
"nearest" takes the largest over queries in place of the mean. Rows are scored batch by batch and forgotten.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from steer_pipeline.catalogue.attribution_scoring import GradientMethod
from steer_pipeline.lab.attribution.scoring.gradients import Gradients, Objective
from steer_pipeline.lab.attribution.scoring.passes import Progress, batches_of, scored
from steer_pipeline.lab.attribution.scoring.ranking import ScoringError
from steer_pipeline.lab.finetune.data import Example

Moments = dict[str, Tensor]  # module -> fp32 [d, d]


@dataclass(frozen=True)
class Task:
    """What is compared with what.

    Attributes:
        aim: whose gradient a query has; default: that of rows.
    """

    gradients: Gradients
    pool: Sequence[Example]
    queries: Sequence[Example]
    objective: Objective
    batch_tokens: int
    aim: Objective | None = None


def similarities(
    task: Task, method: GradientMethod, record: Path | None = None, progress: Progress | None = None
) -> tuple[dict[str, float], dict[str, str]]:
    """Scores by row id, and rows that have none with the reason."""
    moments = _moments(task, method)
    aims = _aims(task, method, moments)  # [queries or 1, D]
    roots = powers(moments, method.damping, -0.5) if method.sides == "two" else {}
    zero: dict[str, str] = {}

    def score(batch: list[Example]) -> list[float]:
        rows = applied(task.gradients.of(batch, task.objective), task.gradients.sizes, roots)
        if method.unit_norm:
            norms = rows.norm(dim=1, keepdim=True)
            rows = rows / norms.masked_fill(norms == 0, 1.0)
        return (rows @ aims.T).amax(1).tolist()

    found = scored(task.pool, task.batch_tokens, score, record, progress)
    if method.unit_norm:  # a product with a vector of zeros is exactly zero; one of others hardly ever
        zero = {row_id: "its gradient is zero" for row_id, value in found.items() if value == 0.0}
    return {row_id: value for row_id, value in found.items() if row_id not in zero}, zero


def _moments(task: Task, method: GradientMethod) -> Moments:
    if method.preconditioning == "none":
        return {}
    queries = second_moment(task, task.queries, task.aim or task.objective)
    if method.preconditioning == "query":
        return queries
    pool = second_moment(task, task.pool, task.objective)
    return {name: method.mixing * queries[name] + (1 - method.mixing) * pool[name] for name in queries}


def _aims(task: Task, method: GradientMethod, moments: Moments) -> Tensor:
    """The queries' gradients, preconditioned, normed and, for "mean", averaged."""
    sizes, split = task.gradients.sizes, method.sides == "two"
    first = powers(moments, method.damping, -0.5) if split else {}
    after = {} if split else powers(moments, method.damping, -1.0)
    parts = []
    for batch in batches_of(task.queries, task.batch_tokens):
        found = applied(task.gradients.of(batch, task.aim or task.objective), sizes, first)
        if method.unit_norm:
            norms = found.norm(dim=1)
            _require_gradients(batch, norms)
            found = found / norms[:, None]
        parts.append(found.sum(0, keepdim=True) if method.query == "mean" else found)
    aims = torch.cat(parts)
    if method.query == "mean":
        aims = aims.sum(0, keepdim=True) / len(task.queries)
    aims = applied(aims, sizes, after)
    return aims / aims.norm(dim=1, keepdim=True) if after and method.unit_norm else aims


def _require_gradients(batch: Sequence[Example], norms: Tensor) -> None:
    for example, norm in zip(batch, norms.tolist(), strict=True):
        if not 0 < norm < float("inf"):
            raise ScoringError(
                f"query {example.row_id!r}: its gradient has the norm {norm}; leave the row out, or repair the adapter"
            )


def second_moment(task: Task, examples: Sequence[Example], objective: Objective) -> Moments:
    """Mean over rows of a gradient's outer product with itself, module by module."""
    sizes = task.gradients.sizes
    sums = {name: torch.zeros(size, size) for name, size in sizes.items()}
    for batch in batches_of(examples, task.batch_tokens):
        rows = task.gradients.of(batch, objective)
        for name, part in _parts(rows, sizes).items():
            sums[name] += part.T @ part
    return {name: total / len(examples) for name, total in sums.items()}


def powers(moments: Moments, damping: float, power: float) -> Moments:
    """(H + damping * mean eigenvalue)^power, by eigenvalues in fp64."""
    found = {}
    for name, moment in moments.items():
        values, vectors = torch.linalg.eigh(moment.double())
        values = values.clamp(min=0)
        found[name] = (vectors * (values + damping * values.mean()) ** power @ vectors.T).float()
    return found


def applied(rows: Tensor, sizes: dict[str, int], moments: Moments) -> Tensor:
    """[n, D] times the matrices of their modules; unchanged where there are none."""
    if not moments:
        return rows
    return torch.cat([part @ moments[name] for name, part in _parts(rows, sizes).items()], dim=1)


def _parts(rows: Tensor, sizes: dict[str, int]) -> dict[str, Tensor]:
    return dict(zip(sizes, rows.split(list(sizes.values()), dim=1), strict=True))
