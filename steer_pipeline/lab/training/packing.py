"""Sequences of one pass, side by side without padding: what prompts of one lane share lies there once.

In: encoded dialogues, their states at the site and (lane, row) pairs. Out: passes of about the same cost, and the
`Pack` of each: tensors on the device of the states, and how sequences are padded for attention alone.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from steer_pipeline.lab.models.blocks import Call
from steer_pipeline.lab.training.data import Dialogues
from steer_pipeline.lab.training.states import SiteStates

ALIKE = 0.6  # sequences of one group of attention are at least this share of its longest

Item = tuple[int, int]  # lane, row


@dataclass(frozen=True)
class Group:
    """Sequences of similar length, of which attention sees right-padded rows [n * longest, width]."""

    members: np.ndarray  # sequences of the pass
    to_padded: (
        Tensor  # int64 [n * longest]: packed row; where padding is, one of the same sequence: lanes never mix
    )
    own: Tensor  # fp32 [n * longest, 1]: 0 for padding and for what is shared with a sequence before, else 1


@dataclass(frozen=True)
class Layout:
    """How packed positions [N, width] are padded for attention: the less the sequences of a group differ, the less is
    wasted.
    """

    groups: tuple[Group, ...]
    shapes: tuple[tuple[int, int], ...]  # (n, longest) of each group
    to_packed: (
        Tensor  # int64 [N]: where a packed row lies in the padded rows of all groups, one after the other
    )
    again: tuple[Tensor, Tensor] | None  # int64 [S] each: padded rows that share a packed row, and which

    @classmethod
    def of(cls, lengths: np.ndarray, shared: np.ndarray, device: torch.device) -> "Layout":
        """Groups of sequences of these lengths, the first `shared` positions of which are those of the one before."""
        order = np.argsort(-lengths, kind="stable")
        members, begin = [], 0
        for i in range(1, len(order) + 1):
            if i == len(order) or lengths[order[i]] < ALIKE * lengths[order[begin]]:
                members.append(order[begin:i])
                begin = i
        return cls._of(members, lengths, shared, device)

    @classmethod
    def _of(
        cls, members: list[np.ndarray], lengths: np.ndarray, shared: np.ndarray, device: torch.device
    ) -> "Layout":
        ends = np.cumsum(lengths - shared)
        at = np.arange(lengths.max())
        packed = (ends - lengths)[:, None] + np.minimum(at, lengths[:, None] - 1)
        for i in np.flatnonzero(shared):
            packed[i, : shared[i]] = packed[i - 1, : shared[i]]
        to_packed = np.empty(ends[-1], dtype=np.int64)
        groups, shapes, before = [], [], 0
        twice: list[tuple[np.ndarray, np.ndarray]] = []
        for some in members:
            longest = int(lengths[some].max())
            rows, common = packed[some, :longest].ravel(), (at[:longest] < shared[some, None]).ravel()
            own = (at[:longest] < lengths[some, None]).ravel() & ~common
            to_packed[rows[own]] = before + np.flatnonzero(own)
            if common.any():
                twice.append((before + np.flatnonzero(common), rows[common]))
            before += len(rows)
            shapes.append((len(some), longest))
            groups.append(Group(some, _to(device, rows), _to(device, own.astype(np.float32)[:, None])))
        again = None
        if twice:
            padded, shares = (_to(device, np.concatenate(a)) for a in zip(*twice, strict=True))
            again = padded, shares
        return cls(tuple(groups), tuple(shapes), _to(device, to_packed), again)

    def ends(self, counts: np.ndarray, device: torch.device) -> "Layout":
        """The same sequences in the same groups, of each its last `counts` positions alone, which none shares."""
        return self._of([group.members for group in self.groups], counts, np.zeros_like(counts), device)

    def pad(self, rows: Tensor) -> list[Tensor]:
        """[N, width] -> [n * longest, width] of each group; padding is some position of the same sequence."""
        return [rows.index_select(0, group.to_padded) for group in self.groups]

    def unpad(self, parts: Sequence[Tensor]) -> Tensor:
        """[n * longest, width] of each group -> [N, width]; of a position that sequences share, the first one's."""
        return _whole(parts).index_select(0, self.to_packed)

    def pad_back(self, parts: Sequence[Tensor]) -> Tensor:
        """As `unpad`, but the sum over all sequences that share a position: the gradient of `pad`, where padding feeds
        no real position.
        """
        whole = _whole(parts)
        packed = whole.index_select(0, self.to_packed)
        if self.again is not None:
            padded, rows = self.again
            packed.index_add_(0, rows, whole.index_select(0, padded))
        return packed

    def unpad_back(self, rows: Tensor) -> list[Tensor]:
        """As `pad`, but zero for padding and for what is shared with a sequence before: the gradient of `unpad`."""
        return [rows.index_select(0, group.to_padded).mul_(group.own) for group in self.groups]


def _whole(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _to(device: torch.device, array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).to(device)


@dataclass(frozen=True)
class Pack:
    """Sequences of one pass, side by side; `rows` and `lanes` name them, in order of lane."""

    rows: np.ndarray  # int64 [n]
    lanes: np.ndarray  # int64 [n]
    states: Tensor  # [N, hidden]
    known: Tensor | None  # [N, width]: their projection in the block above the site, where it is cached
    sizes: list[int]  # positions of each lane
    positions: Tensor  # int64 [N]
    longest: int  # positions of the longest sequence
    layout: Layout
    answers: Tensor  # int64 [R]: packed positions that predict a response token
    targets: Tensor  # int64 [R]
    owners: Tensor  # int64 [R]: sequence of each
    answer_layout: Layout
    firsts: Tensor  # int64 [n]: position that predicts a sequence's first response token


def make_pack(data: Dialogues, states: SiteStates, items: Sequence[Item], n_lanes: int) -> Pack:
    """One pass: a copy of the states of its sequences."""
    ordered, shared = data.in_prompt_order(items)
    lanes, rows = np.array(ordered).T
    lengths, firsts = data.lengths[rows] - 1, data.firsts[rows]  # the last token predicts nothing
    own, counts = lengths - shared, lengths - firsts
    begins = np.cumsum(own) - lengths  # of a sequence whose positions were all its own
    packed = np.arange(own.sum())
    answers = np.arange(counts.sum()) + np.repeat(begins + firsts - np.cumsum(counts) + counts, counts)
    taken, known = states.take(packed + np.repeat(data.offsets[rows] - begins, own))
    device = taken.device
    layout = Layout.of(lengths, shared, device)
    return Pack(
        rows,
        lanes,
        taken,
        known,
        np.bincount(lanes, weights=own, minlength=n_lanes).astype(int).tolist(),
        _to(device, packed - np.repeat(begins, own)),
        int(lengths.max()),
        layout,
        _to(device, answers),
        _to(device, data.flat[answers + np.repeat(data.offsets[rows] - begins + 1, counts)]),
        _to(device, np.repeat(np.arange(len(rows)), counts)),
        layout.ends(counts, device),
        _to(device, firsts),
    )


def passes(
    data: Dialogues, items: Sequence[Item], room: int, response_cost: float, *, power_of_two: bool
) -> list[list[Item]]:
    """(lane, row) pairs in passes that cost about the same, of about `room` positions each.

    Rows of a question stay together, as long as passes are even: what they share is run once.

    Args:
        response_cost: of a response token, over that of any position.
        power_of_two: of the number of passes, for cores that take one each. It does not depend on how many cores there
            are, so that they all learn the same vector.
    """
    ordered, shared = data.in_prompt_order(items)
    own = [int(data.lengths[row] - common) for (_, row), common in zip(ordered, shared, strict=True)]
    costs = {item: n + response_cost * data.n_tokens[item[1]] for item, n in zip(ordered, own, strict=True)}
    together: dict[Item, list[Item]] = {}
    for lane, row in ordered:
        together.setdefault((lane, int(data.questions[row])), []).append((lane, row))
    share = sum(own) / room
    count = 2 ** max(0, round(math.log2(share))) if power_of_two else math.ceil(share)
    fair = sum(costs.values()) / count
    loads = [(0.0, i) for i in range(count)]
    found: list[list[Item]] = [[] for _ in range(count)]
    for some in sorted(
        together.values(), key=lambda some: -sum(costs[item] for item in some)
    ):  # dearest first
        load, i = heapq.heappop(loads)
        for item in some:
            if found[i] and load + costs[item] / 2 > fair:
                load, i = heapq.heappushpop(loads, (load, i))
            load += costs[item]
            found[i].append(item)
        heapq.heappush(loads, (load, i))
    return [one for one in found if one]


def seen_from(firsts: Tensor, call: Call) -> Tensor:
    """bool [n, 1, queries, keys]: what queries at positions firsts[i], firsts[i] + 1, ... see of whole sequences."""
    queries = firsts[:, None] + torch.arange(call.query.shape[2], device=firsts.device)
    distance = queries[:, None, :, None] - torch.arange(call.key.shape[2], device=firsts.device)
    return distance >= 0 if call.window is None else (distance >= 0) & (distance < call.window)
