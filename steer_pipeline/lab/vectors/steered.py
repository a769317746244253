"""One vector at one dose on a model that is at hand: as a plan, and as a `with` block.

In: a vector, a dose and perhaps a block. Out: a `SteeringPlan`, or the Hugging Face module that follows it for a while.
What a variant of the catalogue needs (recommended doses, several terms, controls) is in `doses`.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from steer_pipeline.lab.models.hidden import residual_norms
from steer_pipeline.lab.models.hooks import hooked
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.prompts import encode_prompt
from steer_pipeline.lab.models.sites import Site, SteeringPlan, resolve_site
from steer_pipeline.lab.personas.contexts import general_contexts
from steer_pipeline.lab.vectors.doses import make_term
from steer_pipeline.lab.vectors.vector import PersonaVector, VectorError, require_same_model

_NORM_CONTEXTS = 32  # our own contexts over which norms are taken where a vector brings none


@contextmanager
def steered(
    model: LoadedModel,
    vector: PersonaVector,
    dose: float = 0.1,
    block: int | float | None = None,
    *,
    alpha: float | None = None,
    allow_other_model: bool = False,
) -> Iterator[Any]:
    """Within it, `model.module` is steered, whoever runs it: `with steered(model, vector): model.module.generate(…)`.

    The vector is added at every position to the place where it was collected. Afterwards the module is as it was, after
    an error too; nested blocks add up; `dose=0` is the module as it is.

    Args:
        dose: fraction of the mean norm of the residual stream at the block; negative steers to the other pole. 0.1 to
            0.4 is the usual range, above that text falls apart.
        block: index, negative from the end, or a float as fraction of depth; default: `vector.default_block`.
        alpha: the length that is added, in place of `dose`.
        allow_other_model: use a vector of another model of the same width.

    Yields:
        The Hugging Face module.

    Raises:
        VectorError: the vector is of another model, or has no direction at the block.
        SteeringHasNoEffect: the dose is so small that no logit changes.
        ValueError: an MLX model; `generate` steers it.
    """
    plan = plan_for(model, vector, dose, block, alpha=alpha, allow_other_model=allow_other_model)
    with hooked(model, plan) as module:
        yield module


def plan_for(
    model: LoadedModel,
    vector: PersonaVector,
    dose: float = 0.1,
    block: int | float | None = None,
    *,
    alpha: float | None = None,
    allow_other_model: bool = False,
    variant: str = "steered",
    scope: str = "all",
    stream: str | None = None,
) -> SteeringPlan:
    """The plan of `steered`; a dose of 0 has no terms.

    A vector without residual norms (most imported ones) gets them from this model, measured on contexts of our own.

    Raises:
        VectorError: as `steered`.
    """
    if isinstance(vector, str | bytes) or not isinstance(vector, PersonaVector):
        raise VectorError(
            f"a PersonaVector is needed, not {vector!r}; make one with extract() or load_vector()"
        )
    require_same_model(vector, model, allow_other_model=allow_other_model)
    try:
        at = vector.default_block if block is None else resolve_site(block, model.n_blocks).block
    except ValueError as error:
        raise VectorError(f"vector {vector.persona!r}: {error}") from error
    vector.at(at)  # the sentence about a missing block comes before any measuring
    if alpha is None:
        if vector.metadata.get("residual_norms") is None:
            norms = [float(norm) for norm in _norms(model)]
            vector = replace(vector, metadata={**vector.metadata, "residual_norms": norms})
        alpha = dose * vector.residual_norm(at)
    terms = (make_term(vector, Site(at, vector.site), alpha),) if alpha else ()
    return SteeringPlan(variant, terms, scope, stream)


_KNOWN_NORMS: "weakref.WeakKeyDictionary[LoadedModel, np.ndarray]" = weakref.WeakKeyDictionary()


def _norms(model: LoadedModel) -> np.ndarray:
    """fp32 [n_blocks]: mean residual norms over prompts of our own, measured once a model."""
    if model not in _KNOWN_NORMS:
        ids = [
            encode_prompt(model.tokenizer, user=context.user, chat_template=model.spec.chat_template)
            for context in general_contexts(_NORM_CONTEXTS, seed=0)
        ]
        _KNOWN_NORMS[model] = residual_norms(model, ids)
    return _KNOWN_NORMS[model]
