"""How likely a model finds each of a few answers, tokens or phrases, after sequences that begin alike.

In: token ids, where the part begins that was put into the model's mouth, and the answers to choose from; a steering
plan or none. Out: log-probabilities of the answers, and how likely that part was. What all sequences share is computed
once, and every rest is a branch behind it, where attention can be masked (models that run block by block); others read
each sequence anew.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from steer_pipeline.lab.models.blocks import Call, masked
from steer_pipeline.lab.models.hidden import _Runner, _runner
from steer_pipeline.lab.models.loaded import FAST, LoadedModel
from steer_pipeline.lab.models.sites import SteeringPlan

_ROOM = {
    "cpu": 1024,
    "mps": 4096,
    "cuda": 16384,
}  # tokens of one pass over branches: attention sees all pairs

Ids = Sequence[int]


@dataclass(frozen=True, eq=False)
class Choices:
    """What follows each of n sequences.

    Attributes:
        logprobs: float64 [n, answers], nats, over all that could follow: their exponentials need not add up to 1.
        mass: float64 [n], probability that an answer begins: of the first tokens of all answers together.
        is_top: bool [n], whether the likeliest token of all begins an answer.
        prefill_nll: float64 [n], nats a token of what stands from the start on; NaN where nothing does.
    """

    logprobs: np.ndarray
    mass: np.ndarray
    is_top: np.ndarray
    prefill_nll: np.ndarray

    @classmethod
    def empty(cls, n: int, answers: int) -> "Choices":
        return cls(np.empty((n, answers)), np.empty(n), np.empty(n, bool), np.empty(n))


def next_choices(
    model: LoadedModel,
    sequences: Sequence[list[int]],
    starts: Sequence[int],
    options: Sequence[int],
    plan: SteeringPlan | None = None,
) -> Choices:
    """Log-probabilities of `options` as the next token of each sequence.

    Args:
        sequences: token ids, prompt and prefill; those that begin alike cost less.
        starts: where the prefill begins; plans with scope "generated" steer from there.
        options: different token ids.

    Raises:
        ValueError: an option twice, or a start outside its sequence (with its index).
    """
    if len(set(options)) != len(options):
        raise ValueError(f"options {list(options)}: each token may be given once")
    out = Choices.empty(len(sequences), len(options))
    for row, logprobs in _predictions(model, sequences, starts, plan):
        out.logprobs[row] = logprobs[-1, list(options)].cpu().numpy()
        _note_beginning(out, row, logprobs, sequences[row][starts[row] :], options)
    return out


def phrase_choices(
    model: LoadedModel,
    sequences: Sequence[list[int]],
    starts: Sequence[int],
    phrases: Sequence[Sequence[int]],
    plan: SteeringPlan | None = None,
) -> Choices:
    """Log-probabilities of whole phrases behind each sequence, sums over their tokens; arguments as in `next_choices`.

    Raises:
        ValueError: a phrase without tokens, or a start outside its sequence.
    """
    if not all(phrases):
        raise ValueError("a phrase has no tokens; drop it")
    out = Choices.empty(len(sequences), len(phrases))
    first = sorted({phrase[0] for phrase in phrases})
    for row, (ids, start) in enumerate(zip(sequences, starts, strict=True)):
        said = len(ids) - start
        whole = [[*ids, *phrase] for phrase in phrases]
        for place, logprobs in _predictions(model, whole, [start] * len(whole), plan):
            wanted = torch.tensor(phrases[place], device=logprobs.device)[:, None]
            out.logprobs[row, place] = float(logprobs[said:-1].gather(1, wanted).sum())
            if place == 0:
                _note_beginning(out, row, logprobs[: said + 1], ids[start:], first)
    return out


def _note_beginning(
    out: Choices, row: int, logprobs: Tensor, said: Sequence[int], first: Sequence[int]
) -> None:
    """Writes mass, top and prefill from log-probabilities [prefill + 1, vocabulary] of what was `said` and follows."""
    out.mass[row] = float(logprobs[-1, list(first)].exp().sum())
    out.is_top[row] = int(logprobs[-1].argmax()) in first
    wanted = torch.tensor(said, dtype=torch.long, device=logprobs.device)[:, None]
    out.prefill_nll[row] = float(-logprobs[:-1].gather(1, wanted).mean())


def _predictions(
    model: LoadedModel, sequences: Sequence[list[int]], starts: Sequence[int], plan: SteeringPlan | None
) -> Iterator[tuple[int, Tensor]]:
    """(index, fp64 log-probabilities [tokens from the start on + 1, vocabulary]) of each sequence: what predicts these
    tokens and the one after them.
    """
    for index, (ids, start) in enumerate(zip(sequences, starts, strict=True)):
        if not 1 <= start <= len(ids):
            raise ValueError(
                f"sequence {index}: start {start} of {len(ids)} tokens; a prompt stands before it"
            )
    runner = _runner(model, plan)
    branching = model.backend == FAST and runner.long_after is None
    reading = _branches(runner, sequences, starts) if branching else _one_by_one(runner, sequences, starts)
    for row, logits in reading:
        yield row, logits.double().log_softmax(-1)


def _one_by_one(
    runner: _Runner, sequences: Sequence[list[int]], starts: Sequence[int]
) -> Iterator[tuple[int, Tensor]]:
    """(index, logits [prefill + 1, vocabulary]) of each sequence: what predicts the prefill and the token after it."""
    longer = [
        [*ids, ids[0]] for ids in sequences
    ]  # any token: predictions are asked for by what they predict
    for rows, batch in runner.batches(longer):
        begin = np.array([starts[row] for row in rows])
        states = runner.run(batch, begin)
        parts: dict[int, list[Tensor]] = {}
        for place, _, logits in runner.predictions(states, rows, longer, begin):
            parts.setdefault(int(rows[place]), []).append(logits)
        for row, found in parts.items():
            yield row, torch.cat(found)


# ------------------------------------------------------------------------------------------ branches


@dataclass(frozen=True, eq=False)
class _Tree:
    """A stem and the branches behind it, as one row of tokens.

    Attributes:
        stem: tokens that all share.
        branches: what follows, none empty.
        starts: of each branch's prefill, counted from the stem's first token.
    """

    stem: Ids
    branches: Sequence[Ids]
    starts: Sequence[int]
    device: torch.device

    @cached_property
    def ids(self) -> Tensor:
        flat = [token for branch in self.branches for token in branch]
        return torch.tensor([[*self.stem, *flat]], device=self.device)

    @cached_property
    def owner(self) -> Tensor:
        """[t]: number of each token's branch; -1 on the stem."""
        lengths = torch.tensor([len(branch) for branch in self.branches])
        owner = torch.repeat_interleave(torch.arange(len(self.branches)), lengths)
        return torch.cat([torch.full((len(self.stem),), -1), owner]).to(self.device)

    @cached_property
    def at(self) -> Tensor:
        """[t]: position of each token, as if its branch alone followed the stem."""
        within = [len(self.stem) + torch.arange(len(branch)) for branch in self.branches]
        return torch.cat([torch.arange(len(self.stem)), *within]).to(self.device)

    @cached_property
    def begin(self) -> Tensor:
        """[t]: where each token's prefill starts; the stem lies before all of them."""
        starts = torch.tensor([*self.starts, len(self.stem)], device=self.device)
        return starts[self.owner]  # -1 takes the last

    @cached_property
    def seen(self) -> Tensor:
        """bool [t, t]: a token sees the stem and what stands before it on its own branch."""
        before = self.at[:, None] >= self.at[None]
        return before & ((self.owner[None] == -1) | (self.owner[None] == self.owner[:, None]))

    def attend(self, call: Call) -> Tensor:
        if call.window is None:
            return masked(call, self.seen)
        return masked(call, self.seen & (self.at[:, None] - self.at[None] < call.window))


def _branches(
    runner: _Runner, sequences: Sequence[list[int]], starts: Sequence[int]
) -> Iterator[tuple[int, Tensor]]:
    """As `_one_by_one`, with what all sequences share computed once a pass."""
    if not sequences:
        return
    first, last = min(sequences), max(sequences)  # whatever these two share, all do
    shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    # What predicts a prefill's first token stands on its own branch, so that its logits are asked for there.
    shared = min(shared, min(starts) - 1)
    room = max(1, _ROOM[runner.device.type] - shared)
    for rows in _passes([len(ids) - shared for ids in sequences], room):
        tree = _Tree(
            sequences[rows[0]][:shared],
            [sequences[row][shared:] for row in rows],
            [starts[row] for row in rows],
            runner.device,
        )
        states = runner.tree(tree.ids, tree.at[None], tree.begin[None], tree.attend)[0]
        for place, row in enumerate(rows):
            own = (tree.owner == place) & (tree.at >= starts[row] - 1)
            yield row, runner.logits_at(states[own], tree.at[own], starts[row])


def _passes(lengths: Sequence[int], room: int) -> Iterator[list[int]]:
    """Indices of the branches that go through the model together."""
    together: list[int] = []
    used = 0
    for index, length in enumerate(lengths):
        if together and used + length > room:
            yield together
            together, used = [], 0
        together.append(index)
        used += length
    if together:
        yield together
