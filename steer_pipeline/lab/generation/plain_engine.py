"""The engine's general Torch back end: the model's own forward and cache, steered by hooks on its blocks.

In: jobs (row, plans, prompt ids). Out: what each sequence generated, in groups that end together. It serves models
whose blocks the fast back end cannot prove that it runs rightly. Sequences of a group are padded on the left where a
test of the model shows that this changes nothing, else they have prompts of one length. Sampling is that of the other
back ends: the same processors and the same random numbers. Nothing is shared between a row's variants, and a sequence
that has ended waits for its group.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from steer_pipeline.catalogue.specs import SamplingSpec
from steer_pipeline.lab.generation.jobs import Generated, Job, OutOfMemory, broken_logits, is_out_of_memory
from steer_pipeline.lab.generation.sampler import History, pick, stream_key, uniforms
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.operators import operated, operators_of
from steer_pipeline.lab.models.plain import Change, Plain, plain_of
from steer_pipeline.lab.models.plans import block_deltas, inner_deltas
from steer_pipeline.lab.models.sites import SteeringPlan

log = logging.getLogger(__name__)

_READ_AHEAD = 64  # rows waiting, so that there are enough of one length


@dataclass(frozen=True)
class _Lane:
    """One sequence."""

    row_id: str
    plan: int
    prompt: list[int]


def run_jobs(
    model: LoadedModel, plans: Sequence[SteeringPlan], sampling: SamplingSpec, jobs: Iterator[Job]
) -> Iterator[list[Generated]]:
    """Runs every job; yields finished sequences in lists, some of them empty."""
    decoder = _Decoder(model, plain_of(model), plans, sampling)
    waiting: list[_Lane] = []
    budget = model.spec.batch_tokens
    more = True
    while more or waiting:
        if more and len(waiting) < _READ_AHEAD * max(len(plans), 1):
            more = _read(jobs, waiting)
            yield []
            continue
        group = _take(waiting, budget, decoder)
        try:
            yield decoder.run(group)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if len(group) == 1:
                raise OutOfMemory(
                    f"row {group[0].row_id!r}, variant {plans[group[0].plan].variant!r} does not fit into memory; "
                    "shorten prompts (corpus.max_tokens) or take a smaller dtype"
                ) from error
            waiting += group
            smaller = max(1, min(budget, sum(map(decoder.cost, group))) // 2)
            log.warning("out of memory; the token budget of a batch goes from %d to %d", budget, smaller)
            budget = smaller
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def _read(jobs: Iterator[Job], waiting: list[_Lane]) -> bool:
    """Up to `_READ_AHEAD` rows more; False at the end of the stream."""
    for _ in range(_READ_AHEAD):
        job = next(jobs, None)
        if job is None:
            return False
        waiting += [
            _Lane(job.row_id, plan, prompt) for plan, prompt in zip(job.plans, job.prompts, strict=True)
        ]
    return True


def _take(waiting: list[_Lane], budget: int, decoder: "_Decoder") -> list[_Lane]:
    """The longest sequences that may run together, out of those that wait; at least one."""
    waiting.sort(key=lambda lane: len(lane.prompt))  # stable: variants of a row stay together
    longest = len(waiting[-1].prompt)
    room = max(1, budget // decoder.cost(waiting[-1]))
    group = waiting[-room:]
    if not decoder.plain.left_padding:
        group = [lane for lane in group if len(lane.prompt) == longest]
    del waiting[-len(group) :]
    return group


class _Decoder:
    """Model, plans and sampling of one run, as tensors."""

    def __init__(
        self, model: LoadedModel, plain: Plain, plans: Sequence[SteeringPlan], sampling: SamplingSpec
    ):
        self.plain, self.plans, self.sampling = plain, plans, sampling
        self.eos = sorted(model.eos_ids)
        self._end = torch.tensor(self.eos, device=plain.device)
        self._everywhere = torch.tensor([plan.scope == "all" for plan in plans], device=plain.device)
        self._deltas = {block: self._tensor(table) for block, table in block_deltas(plans).items()}
        self._operators = operators_of(plans, plain.device)
        self._inner = {
            block: {kind: self._tensor(table) for kind, table in of.items()}
            for block, of in inner_deltas(plans).items()
        }
        tables = block_deltas(plans, "logits")
        self._bias: Tensor | None = None
        if tables:
            with torch.inference_mode():
                rows = [
                    plain.direction_logits(self._tensor(row)) for row in np.sum(list(tables.values()), axis=0)
                ]
            self._bias = torch.stack(rows)  # fp32 [n_plans, vocabulary]

    def _tensor(self, table: np.ndarray) -> Tensor:
        return torch.from_numpy(table).to(self.plain.device).to(self.plain.dtype)

    def cost(self, lane: _Lane) -> int:
        """Tokens whose keys and values a sequence holds."""
        return len(lane.prompt) + self.sampling.max_new_tokens

    def _wanted(self, group: "_Group", width: int, hidden: Tensor) -> Tensor:
        """bool [n, t]: which positions of [n, t, hidden], that ends at the group's newest token, are steered.

        Args:
            width: of its prompts, padding on the left included.
        """
        t = hidden.shape[1]
        at = width + group.step - t + torch.arange(t, device=hidden.device)
        return self._everywhere[group.plans][:, None] | (at >= width)[None]

    def run(self, lanes: list[_Lane]) -> list[Generated]:
        """Every sequence from its prompt to its end."""
        group = _Group(self, lanes)
        plans = group.plans
        wanted = partial(self._wanted, group, max(len(lane.prompt) for lane in lanes))

        def steered(table: Tensor, hidden: Tensor) -> Tensor:
            """Adds each sequence's row of `table` [n_plans, hidden]."""
            return hidden + table[plans][:, None] * wanted(hidden)[..., None].to(hidden.dtype)

        def output(block: int, hidden: Tensor) -> Tensor:
            if block in self._deltas:
                hidden = steered(self._deltas[block], hidden)
            return operated(self._operators.get(block, []), hidden, plans, wanted(hidden))

        outputs: dict[int, Change] = {
            block: partial(output, block) for block in {*self._deltas, *self._operators}
        }
        inner = {
            block: {kind: partial(steered, table) for kind, table in of.items()}
            for block, of in self._inner.items()
        }
        head = None
        if self._bias is not None:
            last, before = len(self.plain.layers) - 1, outputs.get(len(self.plain.layers) - 1)

            def keep_rms(hidden: Tensor) -> Tensor:
                hidden = hidden if before is None else before(hidden)
                group.rms = hidden[:, -1:].float().pow(2).mean(-1, keepdim=True).sqrt()  # [n, 1, 1]
                return hidden

            def head(logits: Tensor) -> Tensor:
                assert self._bias is not None
                wanted = self._everywhere[plans] | (group.step > 0)
                bias = self._bias[plans] * wanted[:, None] / group.rms[:, 0]
                logits = logits.float()
                logits[:, -1] += bias
                return logits

            outputs[last] = keep_rms
        with self.plain.hooked(outputs, inner, head):
            self.plain.generate(
                [lane.prompt for lane in lanes],
                self.sampling.max_new_tokens,
                group.choose,
                self.eos,
                cached=self.plain.cached,
            )
        return group.finished()


class _Group:
    """Sequences under way together, and what they said."""

    def __init__(self, decoder: _Decoder, lanes: list[_Lane]):
        self.decoder, self.lanes, self.step = decoder, lanes, 0
        seed, plans = decoder.sampling.seed, decoder.plans
        streams = [plans[lane.plan].stream or plans[lane.plan].variant for lane in lanes]
        self._keys = np.array(
            [stream_key(seed, lane.row_id, stream) for lane, stream in zip(lanes, streams, strict=True)],
            dtype=np.uint64,
        )
        self.plans = torch.tensor([lane.plan for lane in lanes], device=decoder.plain.device)
        self.rms = torch.ones(len(lanes), 1, 1, device=decoder.plain.device)
        self._history: History | None = None
        self._said: list[list[int]] = [[] for _ in lanes]
        self._ended = np.zeros(len(lanes), dtype=bool)

    def choose(self, _ids: Tensor, logits: Tensor) -> Tensor:
        """[n, vocabulary], largest at the token that each sequence says next, of its logits."""
        sampling = self.decoder.sampling
        if self._ended.all() or self.step == sampling.max_new_tokens:
            return logits  # the loop asks once more than it needs
        self._check(logits)
        if self.step == 0:
            prompts = [lane.prompt for lane in self.lanes]
            self._history = History.start(sampling, prompts, logits.shape[1], str(logits.device))
        if self._history is not None:
            logits = self._history.apply(logits)
        draws = uniforms(self._keys, np.full(len(self.lanes), self.step, dtype=np.uint64))
        tokens = pick(logits, torch.from_numpy(draws).to(logits.device), sampling)
        if self._history is not None:
            self._history.add(tokens)
        ended = torch.isin(tokens, self.decoder._end).cpu().numpy()
        for i, token in enumerate(tokens.tolist()):
            if not self._ended[i] and not ended[i]:
                self._said[i].append(token)
        self._ended |= ended
        self.step += 1
        return torch.zeros_like(logits).scatter_(1, tokens[:, None], 1.0)

    def finished(self) -> list[Generated]:
        return [
            Generated(lane.row_id, lane.plan, len(lane.prompt), answers, bool(ended))
            for lane, answers, ended in zip(self.lanes, self._said, self._ended, strict=True)
        ]

    def _check(self, logits: Tensor) -> None:
        fine = logits.amax(-1).isfinite().cpu().numpy() | self._ended
        if not fine.all():
            lane = self.lanes[int((~fine).nonzero()[0][0])]
            raise broken_logits(lane.row_id, self.decoder.plans[lane.plan].variant)
