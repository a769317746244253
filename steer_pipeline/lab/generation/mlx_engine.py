"""The engine's MLX back end: batches that stay full on mlx-lm's own batch caches, with the shared sampler.

In: jobs (row, plans, prompt ids). Out: what each sequence generated, as they end. Prompts are left-padded, as mlx-lm's
batch caches want them. A prompt runs once up to the first block that steers its variants apart; then its keys and
values are copied to each variant. Sampling is the same code as Torch's, on the logits as fp32.
"""

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import torch

from steer_pipeline.catalogue.specs import SamplingSpec
from steer_pipeline.lab.generation.jobs import Generated, Job, OutOfMemory, broken_logits, is_out_of_memory
from steer_pipeline.lab.generation.sampler import History, pick, stream_key, uniforms
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.mlx import MlxModel, batch_cache, logit_bias, splits_of
from steer_pipeline.lab.models.plans import block_deltas
from steer_pipeline.lab.models.sites import SteeringPlan

log = logging.getLogger(__name__)

_READ_AHEAD = 64  # rows


def run_jobs(
    model: LoadedModel, plans: Sequence[SteeringPlan], sampling: SamplingSpec, jobs: Iterator[Job]
) -> Iterator[list[Generated]]:
    """Runs every job; yields finished sequences in small lists, some of them empty."""
    batch = _Batch(model, plans, sampling)
    waiting: deque[_Lane] = deque()
    budget = model.spec.batch_tokens
    more = True
    try:
        while more or waiting or batch.lanes:
            if more and len(waiting) < _READ_AHEAD:
                more = _read(jobs, waiting)
                yield []
                continue
            group: list[_Lane] = []
            room = budget - batch.cost
            while waiting and (room >= waiting[0].cost(sampling) or not (group or batch.lanes)):
                room -= waiting[0].cost(sampling)
                group.append(waiting.popleft())
            if not (group and (4 * len(group) >= len(batch.lanes) or not waiting)):
                waiting.extendleft(reversed(group))  # wait until more can enter at once
                group = []
            try:
                generated = batch.enter(group) if group else batch.step()
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                budget = _make_room(batch, group, waiting, budget, error)
                continue
            yield generated
    finally:
        batch.wrapped.steer({})


@dataclass
class _Lane:
    """One sequence under way."""

    row_id: str
    plan: int
    prompt: list[int]
    key: int
    tokens: list[int]

    def cost(self, sampling: SamplingSpec) -> int:
        return len(self.prompt) + sampling.max_new_tokens


def _make_room(
    batch: "_Batch", group: list[_Lane], waiting: "deque[_Lane]", budget: int, error: BaseException
) -> int:
    """After running out of memory: everything unfinished waits again, under half the budget."""
    inside = {id(lane) for lane in batch.lanes}
    lanes = batch.abandon() + [lane for lane in group if id(lane) not in inside]
    if len(lanes) == 1:
        raise OutOfMemory(
            f"row {lanes[0].row_id!r}, variant {batch.plans[lanes[0].plan].variant!r} does not fit into memory; "
            "shorten prompts (corpus.max_tokens) or take a smaller dtype"
        ) from error
    in_use = sum(lane.cost(batch.sampling) for lane in lanes)
    for lane in lanes:
        lane.tokens = []
    waiting.extendleft(reversed(lanes))
    mx.clear_cache()
    smaller = max(1, min(budget, in_use) // 2)
    log.warning("out of memory; the token budget of a batch goes from %d to %d", budget, smaller)
    return smaller


def _read(jobs: Iterator[Job], waiting: "deque[_Lane]") -> bool:
    """Up to `_READ_AHEAD` rows more; False at the end of the stream."""
    for _ in range(_READ_AHEAD):
        job = next(jobs, None)
        if job is None:
            return False
        for plan, prompt in zip(job.plans, job.prompts, strict=True):
            waiting.append(_Lane(job.row_id, plan, prompt, 0, []))
    return True


class _Batch:
    """All sequences under way, one row of every cache each."""

    def __init__(self, model: LoadedModel, plans: Sequence[SteeringPlan], sampling: SamplingSpec):
        self.plans, self.sampling = plans, sampling
        self.wrapped: MlxModel = model.module
        tables = block_deltas(plans)
        self._everywhere = np.array([plan.scope == "all" for plan in plans])
        self._deltas = {block: self.wrapped.array(table) for block, table in tables.items()}
        self._prompt_deltas = {block: table * self._everywhere[:, None] for block, table in tables.items()}
        self._bias = logit_bias(self.wrapped, plans)
        self._eos = np.array(sorted(model.eos_ids))
        self.lanes: list[_Lane] = []
        self._cache: list[Any] = []
        self._next = np.zeros(0, dtype=np.int64)
        self._history: list[History | None] = []

    @property
    def cost(self) -> int:
        return sum(lane.cost(self.sampling) for lane in self.lanes)

    def enter(self, group: list[_Lane]) -> list[Generated]:
        """Runs the group's prompts, each distinct one once, and draws first tokens."""
        for lane in group:
            stream = self.plans[lane.plan].stream or self.plans[lane.plan].variant
            lane.key = stream_key(self.sampling.seed, lane.row_id, stream)
        numbers: dict[tuple[str, tuple[int, ...]], int] = {}
        prompt_of = [numbers.setdefault((lane.row_id, tuple(lane.prompt)), len(numbers)) for lane in group]
        longest = max(len(prompt) for _, prompt in numbers)
        padding = [longest - len(prompt) for _, prompt in numbers]
        plans = [lane.plan for lane in group]
        splits = splits_of(prompt_of, plans, self._prompt_deltas, len(self.wrapped.taps))
        cache = batch_cache(self.wrapped, [[padding[one] for one in rows] for rows in splits.prompts])
        self.wrapped.split(splits)
        ids = [[0] * pad + list(prompt) for pad, (_, prompt) in zip(padding, numbers, strict=True)]
        states = self.wrapped.states(mx.array(ids), cache)[:, -1]
        rms = self.wrapped.rms()[:, -1]
        for part, lanes in zip(cache, splits.lanes, strict=False):
            part.filter(mx.array(lanes))
        copies = mx.array(splits.lanes[-1])
        bias = None
        if self._bias is not None:
            bias = self._bias[mx.array(plans)] * mx.array(self._everywhere[plans][:, None]) / rms[copies]
        logits = self.wrapped.logits(states[copies], bias)
        vocabulary = logits.shape[-1]
        histories = [History.start(self.sampling, [lane.prompt], vocabulary, "cpu") for lane in group]
        if self.lanes:
            for mine, theirs in zip(self._cache, cache, strict=True):
                mine.extend(theirs)
        else:
            self._cache = cache
        before = len(self.lanes)
        self.lanes += group
        self._history += histories
        self._next = np.concatenate([self._next, np.zeros(len(group), dtype=np.int64)])
        return self._draw(logits, before)

    def step(self) -> list[Generated]:
        """One more token for every sequence."""
        plans = mx.array([lane.plan for lane in self.lanes])
        self.wrapped.steer({block: table[plans][:, None] for block, table in self._deltas.items()})
        states = self.wrapped.states(mx.array(self._next)[:, None], self._cache)[:, -1]
        bias = None if self._bias is None else self._bias[plans] / self.wrapped.rms()[:, -1]
        return self._draw(self.wrapped.logits(states, bias), 0)

    def abandon(self) -> list[_Lane]:
        """Drops everything under way; returns it, to do again from the start."""
        lanes, self.lanes = self.lanes, []
        self._cache, self._history, self._next = [], [], np.zeros(0, dtype=np.int64)
        return lanes

    def _draw(self, logits: mx.array, first: int) -> list[Generated]:
        """Draws for the sequences from `first` on; those that end leave batch and caches."""
        # Step by step, or the graph grows with the answer. What may run out of memory comes before the first draw:
        # what is generated is generated once.
        mx.eval(logits, [part.state for part in self._cache])
        rows = torch.from_numpy(np.array(logits))
        lanes = self.lanes[first:]
        fine = rows.amax(-1).isfinite()
        if not bool(fine.all()):
            lane = lanes[int((~fine).nonzero()[0, 0])]
            raise broken_logits(lane.row_id, self.plans[lane.plan].variant)
        histories = self._history[first:]
        if histories and histories[0] is not None:
            rows = torch.cat([h.apply(row[None]) for h, row in zip(histories, rows, strict=True) if h])
        keys = np.array([lane.key for lane in lanes], dtype=np.uint64)
        steps = np.array([len(lane.tokens) for lane in lanes], dtype=np.uint64)
        tokens = pick(rows, torch.from_numpy(uniforms(keys, steps)), self.sampling)
        drawn = tokens.numpy()
        ended = np.isin(drawn, self._eos)
        generated, stay = [], list(range(first))
        for i, lane in enumerate(lanes):
            history = self._history[first + i]
            if history is not None:
                history.add(tokens[i : i + 1])
            if not ended[i]:
                lane.tokens.append(int(drawn[i]))
            if ended[i] or len(lane.tokens) == self.sampling.max_new_tokens:
                generated.append(
                    Generated(lane.row_id, lane.plan, len(lane.prompt), lane.tokens, bool(ended[i]))
                )
            else:
                stay.append(first + i)
        self._next[first:] = drawn
        if generated:
            self._keep(stay)
        return generated

    def _keep(self, stay: list[int]) -> None:
        if stay:
            index = mx.array(stay)
            for part in self._cache:
                part.filter(index)
        else:
            self._cache = []
        self.lanes = [self.lanes[i] for i in stay]
        self._history = [self._history[i] for i in stay]
        self._next = self._next[stay]
