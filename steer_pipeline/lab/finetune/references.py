"""The model that a divergence is measured against: the learner's own weights, with other adapters on and perhaps
steered. Never a second model.

In: a reference as a value, and a PEFT model whose adapter "default" learns on frozen ones. Out: a context in which
that model is the reference. The learner's gradients and graphs stay as they are.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from steer_pipeline.lab.generation.jobs import plan_hash
from steer_pipeline.lab.models.adapters import Adapter, attach, switches_of
from steer_pipeline.lab.models.hooks import additions, hooked
from steer_pipeline.lab.models.identity import adapter_identity
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.plain import plain_of
from steer_pipeline.lab.models.plans import check_plans
from steer_pipeline.lab.models.sites import SteeringPlan

LEARNER = "default"  # the adapter that learns


@dataclass(frozen=True, eq=False)
class Reference:
    """Which model it is.

    Attributes:
        adapters: folders of all adapters that are on; (): the base alone; None: those below the one that learns, which
            is the previous student, or the base where there is none.
        plan: what steers it.
    """

    adapters: tuple[Path, ...] | None = None
    plan: SteeringPlan | None = None

    def digest(self) -> str:
        """16 hex digits of all that decides what it says, on a given model."""
        adapters = (
            None if self.adapters is None else [adapter_identity(Path(folder)) for folder in self.adapters]
        )
        steered = None if self.plan is None else plan_hash(self.plan)
        return hashlib.sha256(repr((adapters, steered)).encode()).hexdigest()[:16]


class Bound:
    """A reference on one model."""

    def __init__(self, reference: Reference, live: LoadedModel, below: Sequence[Path]) -> None:
        """Attaches adapters that the model does not have yet; they stay off but within `on`.

        Args:
            live: the model that learns.
            below: folders of its frozen adapters, in order.

        Raises:
            ModelLoadError: an adapter does not fit.
            ValueError: a plan that does not fit, or that steers logits.
            SteeringHasNoEffect: the plan changes nothing.
        """
        self._model, self._live, self._plan = live.module, live, reference.plan
        self._frozen = frozen_adapters(self._model)
        self._names = self._frozen
        if reference.adapters is not None:
            self._names = [self._name_of(folder, below) for folder in reference.adapters]
        if self._plan is not None:
            check_plans(live, [self._plan])
            with hooked(live, replace(self._plan, scope="all")):  # it has an effect, and hooks can serve it
                pass

    @contextmanager
    def on(self, completion: Tensor) -> Iterator[None]:
        """The model is the reference.

        Args:
            completion: bool [n, t]: positions of generated tokens in the batch that it will read.
        """
        with only(self._model, self._names, self._frozen), self._steered(completion):
            yield

    def _steered(self, completion: Tensor) -> Any:
        if self._plan is None:
            return nullcontext()
        plain = plain_of(self._live)
        where = None if self._plan.scope == "all" else completion
        return plain.hooked(*additions(plain, self._plan, where))

    def _name_of(self, folder: Path, below: Sequence[Path]) -> str:
        identity = adapter_identity(folder)
        known = [adapter_identity(one) for one in below]
        if identity in known:
            return self._frozen[known.index(identity)]
        name = f"reference_{identity[:12]}"
        if name not in self._model.peft_config:
            attach(self._model, Adapter(folder, identity), name)
            self._model.to(self._live.device)
            switches_of(self._model)[0] += 1  # what was found out about the model's modules is of before
            learn(self._model, self._frozen)
        return name


def frozen_adapters(model: Any) -> list[str]:
    """Names of the adapters below the one that learns, in order."""
    return [name for name in model.base_model.active_adapters if name != LEARNER]


def learn(model: Any, frozen: Sequence[str]) -> None:
    """The adapter that learns is on, on these frozen ones, and alone has gradients."""
    model.base_model.set_adapter([*frozen, LEARNER])
    others = [name for name in model.peft_config if name != LEARNER]
    if others:
        model.set_requires_grad(others, requires_grad=False)


@contextmanager
def only(model: Any, names: Sequence[str], frozen: Sequence[str]) -> Iterator[None]:
    """The model with these adapters on, and afterwards as `learn` has it."""
    try:
        if names:
            model.base_model.set_adapter(list(names))
            yield
        else:
            with model.disable_adapter():
                yield
    finally:
        learn(model, frozen)


@contextmanager
def adapter_off(model: Any) -> Iterator[None]:
    """The model below the adapter that learns: frozen adapters stay on."""
    frozen = frozen_adapters(model)
    with only(model, frozen, frozen):
        yield
