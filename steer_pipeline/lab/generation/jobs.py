"""What goes into the engine, between it and its back ends, and out: rows, jobs, errors, hashes of what decides them.

Plain values; runs no model.
"""

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from steer_pipeline.catalogue.specs import SamplingSpec
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.sites import ADD, SteeringPlan

FinishReason = Literal["eos", "length"]


@dataclass(frozen=True)
class PromptRow:
    """A row to rewrite.

    Attributes:
        ids: prompt token ids by variant name; "*" serves the variants that have none of their own.
        only: variants that this row is for; None: all of the run.
    """

    row_id: str
    ids: dict[str, list[int]]
    only: frozenset[str] | None = None

    def wants(self, variant: str) -> bool:
        return self.only is None or variant in self.only


@dataclass(frozen=True)
class FinishedRow:
    """One variant of one row.

    Attributes:
        text: decoded without special tokens.
        token_ids: what was generated, without the end token.
        n_new_tokens: tokens drawn, the end token included.
        truncated: stopped by the token limit, not by an end token.
        seed: of the sampling spec; with row id and stream it gives the random numbers.
    """

    row_id: str
    variant: str
    text: str
    token_ids: list[int]
    n_prompt_tokens: int
    n_new_tokens: int
    finish_reason: FinishReason
    truncated: bool
    seed: int


@dataclass(frozen=True)
class Job:
    """The variants of one row that are still to do, perhaps none. `plans` index the run's; `prompts` go with
    them.
    """

    row_id: str
    plans: tuple[int, ...]
    prompts: tuple[list[int], ...]


@dataclass(frozen=True)
class Generated:
    """What one sequence generated: `tokens` without the end token."""

    row_id: str
    plan: int
    n_prompt_tokens: int
    tokens: list[int]
    ended: bool


class Workers(Protocol):
    """Replicas of a model that do its jobs; `fanout.Fanout` is one.

    Attributes:
        memory_bytes: peak of the largest replica.
    """

    memory_bytes: int

    def run_jobs(
        self,
        model: LoadedModel,
        plans: Sequence[SteeringPlan],
        sampling: SamplingSpec,
        jobs: Iterator[Job],
    ) -> Iterator[list[Generated]]:
        """As the back ends' own."""
        ...


class BrokenLogits(RuntimeError):
    """The model's logits are NaN or infinite. The message names row and variant."""


def broken_logits(row_id: str, variant: str) -> BrokenLogits:
    return BrokenLogits(
        f"row {row_id!r}, variant {variant!r}: the logits are NaN or infinite; check the weights for NaN, "
        "lower the dose, or use bfloat16 or float32 for float16"
    )


class OutOfMemory(RuntimeError):
    """One row alone does not fit. The message names the row and the cure."""


_NO_MEMORY = ("can't allocate memory", "out of memory", "insufficient memory", "to allocate", "bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of a back end means that memory ran out: CUDA, Metal, CPU."""
    if isinstance(error, OutOfMemory):
        return False
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or any(text in str(error).lower() for text in _NO_MEMORY)


def decoding_hash(sampling: SamplingSpec, model: LoadedModel) -> str:
    """16 hex digits of everything but row and plan that decides the tokens: sampling, the model's identity, dtype, back
    end.
    """
    identity = {
        "sampling": sampling.model_dump(),
        "model": str(model.identity),
        "dtype": model.dtype,
        "backend": model.backend,
        "eos": sorted(model.eos_ids),
        **({"compiled": True} if model.spec.compile else {}),  # it rounds in another way
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def plan_hash(plan: SteeringPlan) -> str:
    """16 hex digits of what a plan does, its vectors included."""
    digest = hashlib.sha256(f"{plan.variant}\x1f{plan.scope}\x1f{plan.stream or plan.variant}".encode())
    for term in plan.terms:
        operator = (
            "" if term.operator == ADD else f"{term.operator}:"
        )  # journals from before there were others hold
        digest.update(f"{operator}{term.site.kind}:{term.site.block}:{term.alpha!r}:".encode())
        digest.update(np.ascontiguousarray(term.unit, dtype=np.float32).tobytes())
    return digest.hexdigest()[:16]


def peak_memory(device: str) -> int:
    """Bytes: of the GPU, or of this process."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
