"""Checks steering plans against a model and sums their terms into tables. Plain numpy, both back ends use it.

In: plans of named terms. Out: per block the fp32 vectors to add, one row a plan, and what other operators do. Doses
stay fp32 up to here; each back end casts the finished sum to the dtype of its residual stream.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.sites import ADD, INNER, KINDS, OPERATORS, SteeringPlan, SteeringTerm

NOT_IN_MLX = "the mlx back end knows block outputs and logits, not what attention and MLP add; set model.backend: torch"


@dataclass(frozen=True, eq=False)
class OperatorTable:
    """One operator at one block, a row a plan.

    Attributes:
        units: fp32 [n_plans, hidden].
        doses: fp32 [n_plans].
        used: bool [n_plans]; the plans whose operator it is.
    """

    operator: str
    units: np.ndarray
    doses: np.ndarray
    used: np.ndarray


def check_plans(model: LoadedModel, plans: Sequence[SteeringPlan]) -> None:
    """Every plan fits the model.

    Raises:
        ValueError: a variant twice, an unknown scope or site, a vector of the wrong width or not finite;
        with variant,
            term and cure.
    """
    names = [plan.variant for plan in plans]
    if len(set(names)) != len(names):
        raise ValueError(f"variants {names}: each may be given once")
    for plan in plans:
        if plan.scope not in ("all", "generated"):
            raise ValueError(f"variant {plan.variant!r}: scope {plan.scope!r}; choose 'all' or 'generated'")
        for term in plan.terms:
            where = f"variant {plan.variant!r}, term {term.name!r}"
            if term.site.kind not in KINDS:
                raise ValueError(f"{where}: site kind {term.site.kind!r}; choose from {', '.join(KINDS)}")
            if term.site.kind in INNER and model.backend == "mlx":
                raise ValueError(f"{where}: {NOT_IN_MLX}")
            if not 0 <= term.site.block < model.n_blocks:
                raise ValueError(
                    f"{where}: block {term.site.block} is outside the model's {model.n_blocks} blocks"
                )
            if term.unit.shape != (model.hidden_size,):
                raise ValueError(
                    f"{where}: the vector has shape {term.unit.shape}, the model's residual stream is "
                    f"({model.hidden_size},) wide; compute or convert the vector for this model"
                )
            if not (np.isfinite(term.unit).all() and np.isfinite(term.alpha)):
                raise ValueError(f"{where}: vector or dose is NaN or infinite; compute the vector again")
            _check_operator(model, term, where)


def _check_operator(model: LoadedModel, term: SteeringTerm, where: str) -> None:
    if term.operator == ADD:
        return
    if term.operator not in OPERATORS:
        raise ValueError(f"{where}: operator {term.operator!r}; choose from {', '.join(OPERATORS)}")
    if term.site.kind != "output":
        raise ValueError(
            f"{where}: operator {term.operator!r} acts on the residual stream, site {term.site.kind!r} is only a part "
            "of it; take site 'output', or operator 'add'"
        )
    if model.backend == "mlx":
        raise ValueError(
            f"{where}: the mlx back end knows operator 'add' and not {term.operator!r}; set model.backend: torch"
        )
    if term.operator == "rotate" and abs(term.alpha) > 1:
        raise ValueError(
            f"{where}: rotates by {term.alpha:g} of the angle to the direction; give a share from -1 to 1"
        )


def inner_deltas(plans: Sequence[SteeringPlan]) -> dict[int, dict[str, np.ndarray]]:
    """`block_deltas` of attention and MLP sites, by block and kind."""
    found: dict[int, dict[str, np.ndarray]] = {}
    for kind in INNER:
        for block, table in block_deltas(plans, kind).items():
            found.setdefault(block, {})[kind] = table
    return found


def block_deltas(plans: Sequence[SteeringPlan], kind: str = "output") -> dict[int, np.ndarray]:
    """fp32 [n_plans, hidden] by block: the sum of alpha * unit over each plan's terms that add there."""
    deltas: dict[int, np.ndarray] = {}
    for index, plan in enumerate(plans):
        for term in plan.terms:
            if term.site.kind == kind and term.operator == ADD:
                shape = (len(plans), len(term.unit))
                table = deltas.setdefault(term.site.block, np.zeros(shape, dtype=np.float32))
                table[index] += np.float32(term.alpha) * term.unit.astype(np.float32)
    return deltas


def block_operators(plans: Sequence[SteeringPlan]) -> dict[int, list[OperatorTable]]:
    """By block what follows after its deltas, in this order; a plan's own operators keep the order of its terms."""
    found: dict[int, dict[tuple[int, str], OperatorTable]] = {}
    for index, plan in enumerate(plans):
        turns: dict[int, int] = {}  # by block, the plan's operators so far
        for term in plan.terms:
            if term.operator == ADD:
                continue
            block = term.site.block
            turn = turns[block] = turns.get(block, -1) + 1
            empty = OperatorTable(
                term.operator,
                np.zeros((len(plans), len(term.unit)), dtype=np.float32),
                np.zeros(len(plans), dtype=np.float32),
                np.zeros(len(plans), dtype=bool),
            )
            table = found.setdefault(block, {}).setdefault((turn, term.operator), empty)
            table.units[index], table.doses[index], table.used[index] = term.unit, term.alpha, True
    return {block: [tables[key] for key in sorted(tables)] for block, tables in found.items()}
