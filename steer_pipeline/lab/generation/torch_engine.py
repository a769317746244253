"""The engine's Torch back end: shared prefill, batches that stay full, attention over shared prompts.

In: jobs (row, plans, prompt ids). Out: what each sequence generated, as sequences end. Rows whose prompts need
the same padded length are prefilled together as a `Cohort`. At each block a cohort has *streams*: the
distinct histories of its prompts so far. A stream splits where plans steer it apart (before the block, where
they do so inside of it), so keys and values of a prompt are stored once a stream, not once a variant. While
decoding, all cohorts share the batch of every linear layer; attention goes cohort by cohort, each stream's keys read
once for all sequences on it.

Shapes in comments: n sequences, s streams, h heads, k key/value heads, g = h / k, d head size, T padded
prompt. Equal results whatever the batch: padded lengths are a row's own, batches have at least `_MIN_ROWS`
rows (matrix products of few rows take other code paths with other rounding) and each sequence is drawn by
its own key.
"""

import contextlib
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steer_pipeline.catalogue.specs import SamplingSpec
from steer_pipeline.lab.generation.jobs import Generated, Job, OutOfMemory, broken_logits, is_out_of_memory
from steer_pipeline.lab.generation.sampler import History, pick, stream_key, uniforms
from steer_pipeline.lab.models.blocks import (
    COMPILER,
    Attend,
    Blocks,
    Call,
    Inner,
    Stop,
    blocks_of,
    cap,
    causal,
)
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.operators import Operator, operated, operators_of
from steer_pipeline.lab.models.plans import OperatorTable, block_deltas, block_operators, inner_deltas
from steer_pipeline.lab.models.sites import SteeringPlan

log = logging.getLogger(__name__)

_PAD_TO = 64  # prompt lengths are padded to multiples of this
_MIN_ROWS = 32  # of a decoding batch; smaller ones are padded
_ROWS_TO = 8  # batches are padded to multiples of this
_READ_AHEAD = 256  # rows waiting, so that there are enough of one length
_PREFILL_TOKENS = {"cpu": 4096, "mps": 16384, "cuda": 65536}  # positions x streams of one prefill call


def run_jobs(
    model: LoadedModel, plans: Sequence[SteeringPlan], sampling: SamplingSpec, jobs: Iterator[Job]
) -> Iterator[list[Generated]]:
    """Runs every job; yields finished sequences in small lists, some of them empty."""
    blocks = blocks_of(model)
    batch = _Batch(_Decoder(model, blocks, plans, sampling))
    waiting = _Waiting(jobs)
    budget = model.spec.batch_tokens
    with_rows = True
    while with_rows:
        with_rows = waiting.read()
        yield []
        while waiting or batch.cohorts:
            if with_rows and waiting.low():
                break
            with blocks.ready():
                try:
                    _advance(batch, waiting, budget)
                except (MemoryError, RuntimeError) as error:
                    if not is_out_of_memory(error):
                        raise
                    budget = _make_room(batch, waiting, budget, error)
            generated, batch.generated = batch.generated, []
            yield generated


def _advance(batch: "_Batch", waiting: "_Waiting", budget: int) -> None:
    """Lets sequences enter while there is room, then makes one step."""
    free = budget - batch.cost
    while waiting and (not batch.cohorts or free >= budget / 4):
        group = waiting.take(free, batch.decoder.cost, alone=not batch.cohorts)
        if not group:
            break
        batch.enter(group)
        waiting.entered()
        free = budget - batch.cost
    if batch.cohorts:
        batch.step()


def _make_room(batch: "_Batch", waiting: "_Waiting", budget: int, error: BaseException) -> int:
    """After running out of memory: everything unfinished waits again, under half the budget."""
    in_use = max(batch.cost, 1) if batch.cohorts else budget
    jobs = batch.abandon() + waiting.give_back()
    if len(jobs) <= 1:
        raise OutOfMemory(
            f"row {jobs[0].row_id!r} does not fit into memory with its {len(jobs[0].plans)} variants; "
            "shorten prompts (corpus.max_tokens), generate fewer variants at once or take a smaller dtype"
        ) from error
    waiting.put_back(jobs)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    smaller = max(1, min(budget, int(in_use)) // 2)
    log.warning("out of memory; the token budget of a batch goes from %d to %d", budget, smaller)
    return smaller


def _numbered(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows of an fp32 table, zeros first, and the number of each row's among them."""
    numbers = {np.zeros_like(table[0]).tobytes(): 0}
    number = np.array([numbers.setdefault((row + 0.0).tobytes(), len(numbers)) for row in table])
    return np.stack([np.frombuffer(raw, dtype=np.float32) for raw in numbers]), number


def _flat(table: OperatorTable) -> np.ndarray:
    """fp32 [n_plans, 2 + hidden]: whether a plan has the operator, its dose and direction. Zeros: it has none."""
    return np.concatenate([table.used[:, None], table.doses[:, None], table.units], axis=1).astype(np.float32)


def _unflat(operator: str, rows: np.ndarray) -> OperatorTable:
    return OperatorTable(operator, rows[:, 2:], rows[:, 1], rows[:, 0] > 0)


def _plus(delta: Tensor, added: Tensor) -> Tensor:
    return added + delta


def padded_length(prompts: Sequence[list[int]]) -> int:
    return -(-max(map(len, prompts)) // _PAD_TO) * _PAD_TO


class _Waiting:
    """Jobs that wait, by padded prompt length; reads ahead a bounded number of rows."""

    def __init__(self, jobs: Iterator[Job]):
        self._jobs = jobs
        self._by_length: dict[int, list[Job]] = defaultdict(list)
        self._taken: list[Job] = []  # of the group that is being prefilled
        self._count = 0

    def __bool__(self) -> bool:
        return self._count > 0

    def low(self) -> bool:
        return self._count < _READ_AHEAD // 2

    def read(self) -> bool:
        """Reads up to `_READ_AHEAD` rows; False at the end of the stream."""
        for _ in range(_READ_AHEAD):
            job = next(self._jobs, None)
            if job is None:
                return False
            if job.plans:
                self._put(job)
        return True

    def take(self, free: float, cost, *, alone: bool) -> list[Job]:
        """Jobs of one length that fit into `free` tokens; at least one where nothing else runs."""
        length = max(self._by_length, key=lambda t: (len(self._by_length[t]) * t, t))
        jobs = self._by_length[length]
        group: list[Job] = []
        while jobs and (cost(jobs[0], length) <= free or (alone and not group)):
            free -= cost(jobs[0], length)
            group.append(jobs.pop(0))
        if not jobs:
            del self._by_length[length]
        self._count -= len(group)
        self._taken = group
        return group

    def give_back(self) -> list[Job]:
        """The group last taken, when it could not enter."""
        group, self._taken = self._taken, []
        return group

    def entered(self) -> None:
        self._taken = []

    def put_back(self, jobs: list[Job]) -> None:
        for job in jobs:
            self._put(job)

    def _put(self, job: Job) -> None:
        self._by_length[padded_length(job.prompts)].append(job)
        self._count += 1


@dataclass
class _Lane:
    """One sequence under way."""

    row_id: str
    plan: int
    prompt: list[int]


class _Decoder:
    """Model, plans and sampling of one run, as tensors."""

    def __init__(
        self, model: LoadedModel, blocks: Blocks, plans: Sequence[SteeringPlan], sampling: SamplingSpec
    ):
        self.model, self.blocks, self.plans, self.sampling = model, blocks, plans, sampling
        self.device, self.n_blocks = blocks.device, len(blocks.layers)
        everywhere = np.array([plan.scope == "all" for plan in plans])
        tables = block_deltas(plans)
        self.deltas = {b: self._tensor(table) for b, table in tables.items() if table.any()}
        # Prompt positions are steered by scope "all" only. Equal deltas share a number, 0 is "none": what
        # splits streams.
        self.prompt_deltas: dict[int, tuple[Tensor, np.ndarray]] = {}
        self.operators = operators_of(plans, self.device)
        self.prompt_operators: dict[int, list[Operator]] = {}  # rows as numbered in `prompt_deltas`
        operators = block_operators(plans)
        for b in sorted({*tables, *operators}):
            table = tables.get(b, np.zeros((len(plans), model.hidden_size), dtype=np.float32))
            parts = [table, *(_flat(one) for one in operators.get(b, []))]
            distinct, number = _numbered(np.concatenate(parts, axis=1) * everywhere[:, None])
            if len(distinct) > 1:
                delta, *flat = np.split(distinct, np.cumsum([part.shape[1] for part in parts])[:-1], axis=1)
                self.prompt_deltas[b] = (self._tensor(delta), number)
                self.prompt_operators[b] = [
                    Operator.of(_unflat(one.operator, rows), self.device)
                    for one, rows in zip(operators.get(b, []), flat, strict=True)
                ]
        # The same for what attention and MLP of a block add: both together split streams, before the block.
        inner = inner_deltas(plans)
        self.inner = {b: {kind: self._tensor(one) for kind, one in of.items()} for b, of in inner.items()}
        self.prompt_inner: dict[int, tuple[dict[str, Tensor], np.ndarray]] = {}
        for b, of in inner.items():
            distinct, number = _numbered(np.concatenate(list(of.values()), axis=1) * everywhere[:, None])
            if len(distinct) > 1:
                parts = np.split(distinct, len(of), axis=1)
                self.prompt_inner[b] = (dict(zip(of, map(self._tensor, parts), strict=True)), number)
        self.bias = self._logit_bias(everywhere)
        self.streams = [plan.stream or plan.variant for plan in plans]
        config = blocks.config
        self.grouped = config.num_attention_heads > config.num_key_value_heads
        self.static = model.spec.compile
        self.step_blocks = blocks.compiled if self.static else blocks
        self._end = torch.tensor(sorted(model.eos_ids), device=self.device)

    def _tensor(self, table: np.ndarray) -> Tensor:
        return torch.from_numpy(table).to(self.device).to(self.blocks.dtype)

    def _logit_bias(self, everywhere: np.ndarray) -> tuple[Tensor, Tensor] | None:
        """fp32 [n_plans, vocabulary] and which plans use it on the prompt's last position."""
        tables = block_deltas(self.plans, "logits")
        if not tables:
            return None
        total = np.sum(list(tables.values()), axis=0)
        with torch.inference_mode():
            rows = [self.blocks.direction_logits(self._tensor(row)) for row in total]
        return torch.stack(rows), torch.from_numpy(everywhere).to(self.device)

    def cost(self, job: Job, length: int) -> float:
        """Tokens whose keys and values a job holds: each prompt once a stream, averaged over blocks, and new
        ones.
        """
        streams: list[set] = []
        history: list[tuple] = [(tuple(prompt),) for prompt in job.prompts]
        for b in range(self.n_blocks):
            splits = [self.prompt_inner[b][1]] if b in self.prompt_inner else []
            if b and b - 1 in self.prompt_deltas:
                splits.append(self.prompt_deltas[b - 1][1])
            for numbers in splits:
                history = [(*past, numbers[plan]) for past, plan in zip(history, job.plans, strict=True)]
            streams.append(set(history) if splits or not streams else streams[-1])
        shared = sum(map(len, streams)) / self.n_blocks
        return shared * length + len(job.plans) * self.sampling.max_new_tokens

    def steer(self, block: int, hidden: Tensor, plans: Tensor) -> None:
        """Changes, in place, a block's output [n, 1, hidden] at tokens under way, whose plans are `plans` [n]."""
        if block in self.deltas:
            hidden += self.deltas[block][plans][:, None]
        if block in self.operators:
            hidden.copy_(operated(self.operators[block], hidden, plans))

    def run_inner(
        self, block: int, hidden: Tensor, rotary: Any, attend: Attend, deltas: Mapping[str, Tensor]
    ) -> Tensor:
        """The output of a block where `deltas` [n, hidden] are added to what its attention or MLP adds."""
        inner: Inner = {kind: partial(_plus, delta[:, None]) for kind, delta in deltas.items()}
        return self.blocks.run(block, hidden, rotary, attend, inner)

    def bias_of(self, plans: Tensor, hidden: Tensor, on_prompt: bool) -> Tensor | None:
        """What logit-bias terms add: alpha * E (gamma * v) / rms(h), fp32 [n, vocabulary]; hidden [n,
        hidden].
        """
        if self.bias is None:
            return None
        table, everywhere = self.bias
        rms = hidden.float().pow(2).mean(-1, keepdim=True).sqrt()
        bias = table[plans] / rms
        return bias * everywhere[plans][:, None] if on_prompt else bias

    def ended(self, tokens: Tensor) -> np.ndarray:
        return torch.isin(tokens, self._end).cpu().numpy()


class _Prefix:
    """Keys and values of a cohort's prompts at one block, [s, k, T, d], and which sequence reads which
    stream.
    """

    def __init__(
        self, key: Tensor, value: Tensor, lengths: Tensor, stream_of_lane: np.ndarray, grouped: bool
    ):
        self.key, self.value, self.lengths = key, value, lengths  # lengths int64 [s]
        self._least = 1 if grouped else 2  # seats: a product with a single row would round in another way
        self._link(stream_of_lane)

    def _link(self, stream_of_lane: np.ndarray) -> None:
        """Sets `members` [s * m], the sequence at each of a stream's m seats, and `seat` [n], a sequence's seat."""
        self.stream_of_lane = stream_of_lane
        n, s = len(stream_of_lane), self.key.shape[0]
        self.direct = self._least == 1 and n == s and bool((stream_of_lane == np.arange(n)).all())
        if not self.direct:
            order = np.argsort(stream_of_lane, kind="stable")
            sizes = np.bincount(stream_of_lane, minlength=s)
            self.m = max(self._least, int(sizes.max()))
            place = np.arange(n) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            seat = np.empty(n, dtype=np.int64)
            seat[order] = stream_of_lane[order] * self.m + place
            members = np.zeros(s * self.m, dtype=np.int64)
            members[seat] = np.arange(n)
            self.members = torch.from_numpy(members).to(self.key.device)
            self.seat = torch.from_numpy(seat).to(self.key.device)
        t = self.key.shape[2]
        at = torch.arange(t, device=self.key.device)
        padded = bool((self.lengths < t).any())
        self._at = at
        self.mask = (at[None] >= self.lengths[:, None])[:, None, None] if padded else None  # [s, 1, 1, T]

    def keep(self, lanes: np.ndarray) -> None:
        """Sequences `lanes` (indices) stay; streams that nobody reads any more are freed."""
        left = self.stream_of_lane[lanes]
        used, renumbered = np.unique(left, return_inverse=True)
        if len(used) < self.key.shape[0]:
            index = torch.from_numpy(used).to(self.key.device)
            self.key, self.value = self.key[index], self.value[index]
            self.lengths = self.lengths[index]
            left = renumbered.reshape(-1)
        self._link(left)

    def masked(self, window: int | None, step: int) -> Tensor | None:
        """True where the prompt may not be seen by the token at position length + step."""
        if window is None or self.key.shape[2] + step < window:
            return self.mask
        outside = self._at[None] <= (self.lengths + step - window)[:, None]
        outside = outside[:, None, None]
        return outside if self.mask is None else outside | self.mask


class _Cohort:
    """Sequences that were prefilled together and are equally long: `step` tokens are in their own caches."""

    def __init__(
        self, lanes: list[_Lane], prefixes: list[_Prefix], history: History | None, decoder: _Decoder
    ):
        self.lanes, self.prefixes, self.history, self.decoder = lanes, prefixes, history, decoder
        self.step = 0
        limit = decoder.sampling.max_new_tokens
        _, k, _, d = prefixes[0].key.shape
        device = decoder.device
        shape = (len(lanes), k, max(limit - 1, 1), d)
        self.own = [
            (prefix.key.new_zeros(shape), prefix.key.new_zeros(shape)) for prefix in prefixes
        ]  # keys and values of generated tokens; what is masked still enters products, so it must be finite
        self.plan = torch.tensor([lane.plan for lane in lanes], device=device)
        self.start = torch.tensor([len(lane.prompt) for lane in lanes], device=device)
        seed = decoder.sampling.seed
        self.keys = np.array(
            [stream_key(seed, lane.row_id, decoder.streams[lane.plan]) for lane in lanes], dtype=np.uint64
        )
        self.tokens = np.zeros((len(lanes), limit), dtype=np.int64)
        self.n_tokens = 0
        self.active = np.ones(len(lanes), dtype=bool)
        self.next = self.plan  # int64 [n]: the tokens that go in next; `accept` sets them

    @property
    def cost(self) -> float:
        stored = sum(prefix.key.shape[0] * prefix.key.shape[2] for prefix in self.prefixes) / len(
            self.prefixes
        )
        return stored + len(self.lanes) * self.tokens.shape[1]

    def attend(self, call: Call) -> Tensor:
        """Attention of one new token a sequence to its prompt's stream and to itself so far; [n, 1, h, d].

        With a static cache (`model.compile`) shapes stay the same from token to token, and what is still empty is
        masked.
        """
        prefix, (own_key, own_value) = self.prefixes[call.block], self.own[call.block]
        own_key[:, :, self.step] = call.key[:, :, 0]
        own_value[:, :, self.step] = call.value[:, :, 0]
        first = 0 if call.window is None else max(0, self.step + 1 - call.window)
        at, attention, unseen = slice(first, self.step + 1), _attention_to_both, None
        if self.decoder.static:
            place = torch.arange(own_key.shape[2], device=own_key.device)
            at, attention, unseen = slice(None), _compiled(COMPILER), (place < first) | (place > self.step)
        seats = None if prefix.direct else (prefix.members, prefix.seat, prefix.m)
        return attention(
            call.query * call.scale,
            (prefix.key, prefix.value, prefix.masked(call.window, self.step)),
            (own_key[:, :, at], own_value[:, :, at], unseen),
            seats,
            call.softcap,
        )

    def accept(self, tokens: Tensor, ended: np.ndarray) -> list[Generated]:
        """Takes one more token a sequence; returns the sequences that ended with it."""
        if self.history is not None:
            self.history.add(tokens)
        self.tokens[:, self.n_tokens] = tokens.cpu().numpy()
        self.n_tokens += 1
        self.next = tokens
        full = self.n_tokens == self.tokens.shape[1]
        finished = np.flatnonzero(self.active & (ended | full))
        self.active[finished] = False
        generated = []
        for i in finished:
            lane = self.lanes[i]
            kept = self.tokens[i, : self.n_tokens - bool(ended[i])].tolist()
            generated.append(Generated(lane.row_id, lane.plan, len(lane.prompt), kept, bool(ended[i])))
        return generated

    def shrink(self) -> None:
        """Frees what finished sequences held, once they are an eighth of the cohort."""
        gone = len(self.lanes) - int(self.active.sum())
        if gone * 8 < len(self.lanes) or gone == 0:
            return
        lanes = np.flatnonzero(self.active)
        rows = torch.from_numpy(lanes).to(self.plan.device)
        for prefix in self.prefixes:
            prefix.keep(lanes)
        self.own = [(key[rows], value[rows]) for key, value in self.own]
        self.plan, self.start = self.plan[rows], self.start[rows]
        self.next = self.next[rows]
        self.keys, self.tokens = self.keys[lanes], self.tokens[lanes]
        self.lanes = [self.lanes[i] for i in lanes]
        self.active = self.active[lanes]
        if self.history is not None:
            self.history.keep(rows)


_Stored = tuple[Tensor, Tensor, Tensor | None]  # keys, values, and True where they may not be seen
_Seats = tuple[Tensor, Tensor, int]  # `members`, `seat` and `m` of a prefix


def _attention_to_both(
    query: Tensor, prompt: _Stored, own: _Stored, seats: _Seats | None, softcap: float | None
) -> Tensor:
    """[n, 1, h, d] from scaled queries [n, h, 1, d], prompts [s, k, T, d] and generated tokens [n, k, own, d]."""
    n, h, _, d = query.shape
    (prompt_key, prompt_value, prompt_unseen), (key, value, unseen) = prompt, own
    k, t = prompt_key.shape[1:3]
    query = query.view(n, k, h // k, d)
    to_own = query @ key.transpose(2, 3)  # [n, k, g, own]
    if seats is not None:
        query = _seated(query, seats)  # [s, k, m * g, d]
        to_own = _seated(to_own, seats)
    to_prompt = query @ prompt_key.transpose(2, 3)  # [s, k, m * g, T]
    scores = cap(torch.cat([to_prompt, to_own], dim=-1).float(), softcap)
    if prompt_unseen is not None:
        scores[..., :t].masked_fill_(prompt_unseen, float("-inf"))
    if unseen is not None:
        scores[..., t:].masked_fill_(unseen, float("-inf"))
    weights = scores.softmax(-1).to(value.dtype)
    of_prompt = weights[..., :t] @ prompt_value  # [s, k, m * g, d]
    of_own = weights[..., t:]
    if seats is not None:
        of_prompt, of_own = _unseated(of_prompt, seats), _unseated(of_own, seats)
    return (of_prompt + of_own @ value).reshape(n, 1, h, d)


@lru_cache
def _compiled(backend: str) -> Callable[..., Tensor]:
    return torch.compile(_attention_to_both, dynamic=True, backend=backend)


def _seated(x: Tensor, seats: _Seats) -> Tensor:
    """[n, k, g, x] in sequence order -> [s, k, m * g, x]."""
    members, _, m = seats
    k, g, width = x.shape[1:]
    x = x[members].view(-1, m, k, g, width).transpose(1, 2)
    return x.reshape(-1, k, m * g, width)


def _unseated(x: Tensor, seats: _Seats) -> Tensor:
    """[s, k, m * g, x] -> [n, k, g, x]."""
    _, seat, m = seats
    s, k, mg, width = x.shape
    x = x.view(s, k, m, mg // m, width).transpose(1, 2)
    return x.reshape(s * m, k, mg // m, width)[seat]


class _Batch:
    """All cohorts under way."""

    def __init__(self, decoder: _Decoder):
        self.decoder = decoder
        self.cohorts: list[_Cohort] = []
        self.generated: list[Generated] = []  # finished and not yet handed on

    @property
    def cost(self) -> float:
        return sum(cohort.cost for cohort in self.cohorts)

    def enter(self, jobs: list[Job]) -> None:
        """Prefills jobs of one padded length as a new cohort and draws each sequence's first token."""
        cohort, logits = _prefill(self.decoder, jobs)
        self._draw([cohort], logits)
        if cohort.active.any():
            self.cohorts.append(
                cohort
            )  # and nothing that may fail from here on: what is generated is generated once

    def step(self) -> None:
        """One more token for every sequence."""
        decoder, cohorts = self.decoder, self.cohorts
        blocks = decoder.blocks
        sizes = [len(cohort.lanes) for cohort in cohorts]
        n = sum(sizes)
        padding = _padding(n)
        zeros = torch.zeros(padding, dtype=torch.int64, device=decoder.device)
        tokens = torch.cat([*(cohort.next for cohort in cohorts), zeros])
        positions = torch.cat([*(cohort.start + cohort.step for cohort in cohorts), zeros])
        plans = torch.cat([cohort.plan for cohort in cohorts])

        def attend(call: Call) -> Tensor:
            outs, at = [], 0
            for cohort, size in zip(cohorts, sizes, strict=True):
                rows = slice(at, at + size)
                at += size
                part = Call(
                    call.block,
                    call.query[rows],
                    call.key[rows],
                    call.value[rows],
                    call.scale,
                    call.window,
                    call.softcap,
                )
                outs.append(cohort.attend(part))
            if padding:
                outs.append(outs[0].new_zeros(padding, *outs[0].shape[1:]))
            return torch.cat(outs) if len(outs) > 1 else outs[0]

        hidden = blocks.embed(tokens[:, None])  # [n + padding, 1, hidden]
        rotary = blocks.rotary(hidden, positions[:, None])
        with decoder.step_blocks.ready():
            for block in range(decoder.n_blocks):
                if block in decoder.inner:
                    tables = decoder.inner[block]
                    rows = {kind: _with_zeros(table[plans], padding) for kind, table in tables.items()}
                    with blocks.ready():  # never compiled ones
                        hidden = decoder.run_inner(block, hidden, rotary, attend, rows)
                else:
                    hidden = decoder.step_blocks.run(block, hidden, rotary, attend)
                decoder.steer(block, hidden[:n], plans)
        last = hidden[:, 0]
        logits = blocks.logits(last, _padded(decoder.bias_of(plans, last[:n], on_prompt=False), padding))[:n]
        for cohort in cohorts:
            cohort.step += 1
        self._draw(cohorts, logits)
        self.cohorts = [cohort for cohort in cohorts if cohort.active.any()]
        for cohort in self.cohorts:
            cohort.shrink()

    def abandon(self) -> list[Job]:
        """Drops everything under way; returns it as jobs to do again from the start."""
        jobs: dict[str, list[_Lane]] = defaultdict(list)
        for cohort in self.cohorts:
            for lane, active in zip(cohort.lanes, cohort.active, strict=True):
                if active:
                    jobs[lane.row_id].append(lane)
        self.cohorts = []
        return [
            Job(row_id, tuple(lane.plan for lane in lanes), tuple(lane.prompt for lane in lanes))
            for row_id, lanes in jobs.items()
        ]

    def _draw(self, cohorts: list[_Cohort], logits: Tensor) -> None:
        """Draws a token for each sequence of `cohorts` from fp32 logits [n, vocabulary]."""
        decoder = self.decoder
        self._check(cohorts, logits)
        if cohorts[0].history is not None:
            parts = logits.split([len(cohort.lanes) for cohort in cohorts])
            logits = torch.cat(
                [cohort.history.apply(part) for cohort, part in zip(cohorts, parts, strict=True)]  # type: ignore[union-attr]
            )
        keys = np.concatenate([cohort.keys for cohort in cohorts])
        steps = np.repeat(
            np.array([cohort.n_tokens for cohort in cohorts], dtype=np.uint64),
            [len(cohort.lanes) for cohort in cohorts],
        )
        draws = torch.from_numpy(uniforms(keys, steps)).to(decoder.device)
        tokens = pick(logits, draws, decoder.sampling)
        ended = decoder.ended(tokens)
        at = 0
        for cohort in cohorts:
            rows = slice(at, at + len(cohort.lanes))
            at = rows.stop
            self.generated += cohort.accept(tokens[rows], ended[rows])

    def _check(self, cohorts: list[_Cohort], logits: Tensor) -> None:
        fine = logits.amax(-1).isfinite()
        if bool(fine.all()):
            return
        lanes = [
            lane if active else None
            for cohort in cohorts
            for lane, active in zip(cohort.lanes, cohort.active, strict=True)
        ]
        for i in (~fine).nonzero()[:, 0].tolist():
            if (lane := lanes[i]) is not None:
                raise broken_logits(lane.row_id, self.decoder.plans[lane.plan].variant)


def _padding(rows: int) -> int:
    return max(_MIN_ROWS, -(-rows // _ROWS_TO) * _ROWS_TO) - rows


def _padded(bias: Tensor | None, padding: int) -> Tensor | None:
    return bias if bias is None else _with_zeros(bias, padding)


def _with_zeros(rows: Tensor, more: int) -> Tensor:
    return torch.cat([rows, rows.new_zeros(more, rows.shape[1])]) if more else rows


# ---------------------------------------------------------------------------------------- prefill


@dataclass
class _Chunk:
    """Prefilled prompts: per block keys, values, stream lengths and each sequence's stream; logits a
    sequence.
    """

    stored: list[tuple[Tensor, Tensor, Tensor, np.ndarray]]
    logits: Tensor


def _prefill(decoder: _Decoder, jobs: list[Job]) -> tuple[_Cohort, Tensor]:
    """A cohort of every sequence of `jobs`, and the fp32 logits [n, vocabulary] of their first tokens."""
    length = padded_length([prompt for job in jobs for prompt in job.prompts])
    room = _PREFILL_TOKENS[decoder.device.type]
    lanes: list[_Lane] = []
    chunks: list[_Chunk] = []
    group: list[Job] = []
    streams = 0
    for job in [*jobs, None]:
        if group and (job is None or (streams + len(job.plans)) * length > room):
            part = [
                _Lane(one.row_id, plan, prompt)
                for one in group
                for plan, prompt in zip(one.plans, one.prompts, strict=True)
            ]
            chunks.append(_prefill_chunk(decoder, part, length))
            lanes += part
            group, streams = [], 0
        if job is not None:
            group.append(job)
            streams += len(job.plans)
    prefixes = []
    for block in range(decoder.n_blocks):
        parts = [chunk.stored[block] for chunk in chunks]
        shift = np.cumsum([0, *(len(part[2]) for part in parts)])
        prefixes.append(
            _Prefix(
                torch.cat([part[0] for part in parts]),
                torch.cat([part[1] for part in parts]),
                torch.cat([part[2] for part in parts]),
                np.concatenate([part[3] + shift[i] for i, part in enumerate(parts)]),
                grouped=decoder.grouped,
            )
        )
        for chunk in chunks:
            chunk.stored[block] = None  # type: ignore[call-overload]  # frees the parts as we go
    logits = torch.cat([chunk.logits for chunk in chunks])
    prompts = [lane.prompt for lane in lanes]
    history = History.start(decoder.sampling, prompts, logits.shape[1], str(decoder.device))
    return _Cohort(lanes, prefixes, history, decoder), logits


def _distinct_prompts(lanes: list[_Lane], length: int) -> tuple[Tensor, Tensor, np.ndarray]:
    """Rows' distinct prompts: token ids [s, length], zeros behind, and lengths [s]; which one each lane has [n]."""
    numbers: dict[tuple[str, tuple[int, ...]], int] = {}
    of_lane = [numbers.setdefault((lane.row_id, tuple(lane.prompt)), len(numbers)) for lane in lanes]
    ids = torch.zeros(len(numbers), length, dtype=torch.int64)
    for (_, prompt), i in numbers.items():
        ids[i, : len(prompt)] = torch.tensor(prompt)
    return ids, torch.tensor([len(prompt) for _, prompt in numbers]), np.array(of_lane)


def _prefill_chunk(decoder: _Decoder, lanes: list[_Lane], length: int) -> _Chunk:
    blocks, device = decoder.blocks, decoder.device
    ids, of_prompts, stream_of_lane = _distinct_prompts(lanes, length)
    lengths = of_prompts.to(device)  # [s]
    plans = np.array([lane.plan for lane in lanes])
    positions = torch.arange(length, device=device)[None]

    hidden = blocks.embed(ids.to(device))  # [s, T, hidden]
    rotary = blocks.rotary(hidden, positions)
    stored: list[tuple[Tensor, Tensor, Tensor, np.ndarray]] = []
    taken: list[Tensor] = []

    def attend(call: Call) -> Tensor:
        taken[:] = [call.key, call.value]
        return causal(call)

    def take_only(call: Call) -> Tensor:
        taken[:] = [call.key, call.value]
        raise Stop

    def attend_last(call: Call) -> Tensor:
        key, value = taken
        return _attend_at(call, key, value, lengths)

    def split(number: np.ndarray) -> tuple[Tensor, Tensor]:
        """Parts streams whose plans have different numbers: the parent of each, and its number."""
        nonlocal stream_of_lane, lengths
        pairs = np.stack([stream_of_lane, number[plans]], axis=1)
        made, stream_of_lane = np.unique(pairs, axis=0, return_inverse=True)
        stream_of_lane = stream_of_lane.reshape(-1)
        parent = torch.from_numpy(made[:, 0]).to(device)
        lengths = lengths[parent]
        return parent, torch.from_numpy(made[:, 1]).to(device)

    for block in range(decoder.n_blocks):
        inner: dict[str, Tensor] = {}
        if block in decoder.prompt_inner:
            tables, number = decoder.prompt_inner[block]
            parent, numbered = split(number)
            hidden = hidden[parent]
            inner = {kind: table[numbered] for kind, table in tables.items()}
        if block < decoder.n_blocks - 1:
            hidden = decoder.run_inner(block, hidden, rotary, attend, inner)
        else:  # of the last block, only keys and values and the last position are needed
            with contextlib.suppress(Stop):
                blocks.run(block, hidden, rotary, take_only)
            s = len(lengths)
            row = torch.cat([torch.arange(s), torch.zeros(_padding(s), dtype=torch.int64)]).to(device)
            position = lengths[row] - 1
            hidden = hidden[row, position][:, None]
            own = blocks.rotary(hidden, position[:, None])
            inner = {kind: delta[row] for kind, delta in inner.items()}
            hidden = decoder.run_inner(block, hidden, own, attend_last, inner)[:s]
        stored.append((taken[0], taken[1], lengths, stream_of_lane))
        if block in decoder.prompt_deltas:
            table, number = decoder.prompt_deltas[block]
            parent, numbered = split(number)
            hidden = hidden[parent] + table[numbered][:, None]
            hidden = operated(decoder.prompt_operators[block], hidden, numbered)

    last = hidden[torch.from_numpy(stream_of_lane).to(device), 0]  # [n, hidden]
    bias = decoder.bias_of(torch.from_numpy(plans).to(device), last, on_prompt=True)
    padding = _padding(len(lanes))
    last = torch.cat([last, last.new_zeros(padding, last.shape[1])])
    return _Chunk(stored, blocks.logits(last, _padded(bias, padding))[: len(lanes)])


def _attend_at(call: Call, key: Tensor, value: Tensor, lengths: Tensor) -> Tensor:
    """Attention of the query at position `lengths - 1`, [s + padding, h, 1, d], over whole prompts; as
    Attend.
    """
    n, h, _, d = call.query.shape
    s, k, t = key.shape[:3]
    query = (call.query[:s] * call.scale).view(s, k, h // k, d)
    scores = cap((query @ key.transpose(2, 3)).float(), call.softcap)
    at = torch.arange(t, device=key.device)[None]
    unseen = at >= lengths[:, None]
    if call.window is not None:
        unseen |= at <= (lengths - 1 - call.window)[:, None]
    weights = scores.masked_fill(unseen[:, None, None], float("-inf")).softmax(-1).to(value.dtype)
    out = value.new_zeros(n, 1, h, d)
    out[:s] = (weights @ value).reshape(s, 1, h, d)
    return out
