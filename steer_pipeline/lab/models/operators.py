"""What a steering term can do with the residual stream beside adding: ablate, rotate, cap.

In: states [n, t, hidden], unit directions and doses. Out: states of the same shape and dtype; sums and angles are
computed in fp32. Every operator acts on each position by itself, so that batch and padding do not matter. It knows no
model; adding is done where states are (`plans.block_deltas`), these follow after it. Below, h is a state and u the unit
direction.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steer_pipeline.lab.models.plans import OperatorTable, block_operators
from steer_pipeline.lab.models.sites import SteeringPlan

_PARALLEL = 1e-4  # sine of the angle under which h and u span no plane to turn in

# states fp32 [n, t, hidden], units fp32 [n or 1, 1, hidden], doses fp32 [n or 1, 1, 1] -> states
Operate = Callable[[Tensor, Tensor, Tensor], Tensor]


def ablate(hidden: Tensor, unit: Tensor, dose: Tensor) -> Tensor:
    """h - (h.u) u + dose u: the projection becomes the dose, a length. Dose 0 removes the direction (Arditi et al.
    2024); no dose leaves h as it is, but for states that have this projection already.
    """
    return hidden + (dose - _projection(hidden, unit)) * unit


def cap(hidden: Tensor, unit: Tensor, dose: Tensor) -> Tensor:
    """h - max(0, h.u - dose) u: the projection is at most the dose, a length. From the largest projection on, the dose
    changes nothing. With -u and -f in place of u and dose it is a floor: the projection on u is at least f.
    """
    return hidden - (_projection(hidden, unit) - dose).clamp(min=0) * unit


def rotate(hidden: Tensor, unit: Tensor, dose: Tensor) -> Tensor:
    """slerp(h / |h|, u, dose) |h|: turned by the share `dose` of the angle to u, the length kept. Dose 0 changes
    nothing, 1 points along u; a negative dose turns towards -u. A state that lies along u, or against it, stays.
    """
    length = hidden.norm(dim=-1, keepdim=True)
    towards, share = torch.where(dose < 0, -unit, unit), dose.abs()
    along = hidden / length.clamp(min=1e-12)
    cosine = _projection(along, towards)
    across = towards - cosine * along  # in the plane of the two, at a right angle to h
    sine = across.norm(dim=-1, keepdim=True)
    angle = share * torch.atan2(sine, cosine)
    turned = torch.cos(angle) * along + torch.sin(angle) * across / sine.clamp(min=_PARALLEL)
    stays = (sine < _PARALLEL) | (share == 0) | (length == 0)
    return torch.where(stays, hidden, turned * length)


_OPERATE: dict[str, Operate] = {"ablate": ablate, "rotate": rotate, "cap": cap}


def _projection(hidden: Tensor, unit: Tensor) -> Tensor:
    return (hidden * unit).sum(-1, keepdim=True)


@dataclass(frozen=True, eq=False)
class Operator:
    """An `OperatorTable` as tensors: units fp32 [n_plans, hidden], doses fp32 [n_plans], used bool [n_plans]."""

    operator: str
    units: Tensor
    doses: Tensor
    used: Tensor

    @classmethod
    def of(cls, table: OperatorTable, device: torch.device) -> "Operator":
        tensors = (torch.from_numpy(one.copy()).to(device) for one in (table.units, table.doses, table.used))
        return cls(table.operator, *tensors)


def operators_of(plans: Sequence[SteeringPlan], device: torch.device) -> dict[int, list[Operator]]:
    """By block, what its plans do beside adding, in order; blocks without such are left out."""
    return {
        block: [Operator.of(table, device) for table in tables]
        for block, tables in block_operators(plans).items()
    }


def operated(
    operators: Sequence[Operator], hidden: Tensor, rows: Tensor | None = None, where: Tensor | None = None
) -> Tensor:
    """What operators make of states [n, t, hidden].

    Args:
        rows: int64 [n], the row of the tables (the plan) of each sequence; default: all have the first.
        where: bool [n or 1, t], the positions that are steered; default: all.
    """
    for one in operators:
        at = torch.zeros(1, dtype=torch.int64, device=hidden.device) if rows is None else rows
        changed = _OPERATE[one.operator](
            hidden.float(), one.units[at][:, None], one.doses[at][:, None, None]
        ).to(hidden.dtype)
        steered = one.used[at][:, None] if where is None else one.used[at][:, None] & where
        hidden = torch.where(steered[..., None], changed, hidden)
    return hidden
