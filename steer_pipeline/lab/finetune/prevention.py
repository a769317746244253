"""Keeps a trait out of a student that learns from rows which show it: what acts in training and is gone afterwards.

In: a persona vector or an instruction. Out: a plan that steers the learner while it trains, or rows with another system
turn. Three ways. `steer`: the vector is added, so that the rows' trait is there already and the gradient has no reason
to write it into the weights (preventative steering, Chen et al. 2025). `ablate`: the direction is taken out of the
stream, so that learning cannot use it (Casademunt et al. 2025). `inoculate`: the rows' prompts ask for the trait, so
that it is learned as an answer to that request (Tan et al. 2025, Wichers et al. 2025).
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from torch import Tensor

from steer_pipeline.lab.finetune.data import FinetuneError, TextRow
from steer_pipeline.lab.models.hooks import additions, hooked
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.plain import Change, plain_of
from steer_pipeline.lab.models.plans import check_plans
from steer_pipeline.lab.models.sites import Site, SteeringPlan, SteeringTerm
from steer_pipeline.lab.vectors.doses import make_term
from steer_pipeline.lab.vectors.vector import PersonaVector

STEER, ABLATE, INOCULATE = "steer", "ablate", "inoculate"
WAYS = (STEER, ABLATE, INOCULATE)


class Steered:
    """A plan on the learner's own passes: forward and backward, and nobody else's."""

    def __init__(self, plan: SteeringPlan, live: LoadedModel) -> None:
        """Args:
            live: the model that learns.

        Raises:
            ValueError: a plan that does not fit, or that steers logits.
            SteeringHasNoEffect: the plan changes nothing.
        """
        check_plans(live, [plan])
        with hooked(live, replace(plan, scope="all")):  # it has an effect, and hooks can serve it
            pass
        self._plan, self._live, self._acts = plan, live, False
        self._outputs: dict[int, Change] = {}
        self._inner: dict[int, dict[str, Change]] = {}

    @contextmanager
    def on(self) -> Iterator[None]:
        """Within it, what the model reads after `reads` is steered."""
        plain = plain_of(self._live)
        outputs, inner = additions(plain, self._plan)
        parts = {
            block: {kind: partial(self._part, block, kind) for kind in own} for block, own in inner.items()
        }
        with plain.hooked({block: partial(self._output, block) for block in outputs}, parts):
            try:
                yield
            finally:
                self._acts = False

    def reads(self, completion: Tensor) -> None:
        """The learner is about to read a batch whose generated tokens are at positions `completion`, bool [n, t]."""
        where = None if self._plan.scope == "all" else completion
        self._outputs, self._inner = additions(plain_of(self._live), self._plan, where)
        self._acts = True

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The model as it is, for what a reference says."""
        before, self._acts = self._acts, False
        try:
            yield
        finally:
            self._acts = before

    def _output(self, block: int, hidden: Tensor) -> Tensor:
        return self._outputs[block](hidden) if self._acts else hidden

    def _part(self, block: int, kind: str, added: Tensor) -> Tensor:
        return self._inner[block][kind](added) if self._acts else added


def preventing(vector: PersonaVector, block: int, alpha: float, *, scope: str = "all") -> SteeringPlan:
    """The plan that adds `alpha` (a length) along a vector at the output of a block while a student learns.

    Towards the trait that is to be kept out: the sign is that of the rows.

    Raises:
        FinetuneError: alpha is 0.
        VectorError: the vector has no direction at the block.
    """
    if not alpha:
        raise FinetuneError(f"vector {vector.persona!r}: alpha is 0, which prevents nothing; give a length")
    return SteeringPlan(STEER, (make_term(vector, Site(block, vector.site), alpha),), scope)


def ablating(vector: PersonaVector, blocks: Sequence[int], *, scope: str = "all") -> SteeringPlan:
    """The plan that takes a vector's direction out of the stream at the output of blocks while a student learns."""
    terms = tuple(
        SteeringTerm(vector.persona, vector.unit_at(block), Site(block), 0.0, operator="ablate")
        for block in blocks
    )
    return SteeringPlan(ABLATE, terms, scope)


def inoculated(rows: Iterable[TextRow], instruction: str) -> list[TextRow]:
    """Rows whose system turn asks for what they show; the neutral one follows it, where there is one.

    Raises:
        FinetuneError: an empty instruction.
    """
    if not instruction.strip():
        raise FinetuneError("inoculation needs an instruction that asks for the trait; give the persona one")
    return [
        replace(row, system=instruction if row.system is None else f"{instruction} {row.system}")
        for row in rows
    ]
