"""Sequences of one pass, side by side without padding: what prompts of one lane share lies there once.

In: encoded dialogues, their states at the site and (lane, row) pairs. Out: passes within a budget of positions, and
the `Pack` of each: tensors on the device of the states, and how sequences are padded for attention alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from steer_pipeline.lab.models.blocks import Call
from steer_pipeline.lab.vectors.learned.data import Dialogues
from steer_pipeline.lab.vectors.learned.states import SiteStates

ALIKE = 0.6  # sequences of one group of attention are at least this share of its longest

Item = tuple[int, int]  # lane, row


@dataclass(frozen=True)
class Group:
    """Sequences of similar length, of which attention sees right-padded rows."""

    members: np.ndarray  # sequences of the pass
    longest: int  # positions
    to_padded: Tensor  # int64 [members * longest]: packed row; where padding is, the sequence's last


@dataclass(frozen=True)
class Layout:
    """How packed positions [N, ...] are padded for attention: the less the sequences of a group differ, the less is
    wasted. Padding feeds no real position, so that gradients through it are those of the packed rows.
    """

    groups: tuple[Group, ...]
    to_packed: (
        Tensor  # int64 [N]: where a packed row lies in the padded rows of all groups, one after the other
    )

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
        own = (at >= shared[:, None]) & (at < lengths[:, None])
        to_packed, before = np.empty(ends[-1], dtype=np.int64), 0
        groups = []
        for some in members:
            longest = int(lengths[some].max())
            rows, first_seen = packed[some, :longest].ravel(), own[some, :longest].ravel()
            to_packed[rows[first_seen]] = before + np.flatnonzero(first_seen)
            before += len(rows)
            groups.append(Group(some, longest, _to(device, rows)))
        return cls(tuple(groups), _to(device, to_packed))

    def ends(self, counts: np.ndarray, device: torch.device) -> "Layout":
        """The same sequences in the same groups, of each its last `counts` positions alone, which none shares."""
        return self._of([group.members for group in self.groups], counts, np.zeros_like(counts), device)

    def pad(self, rows: Tensor) -> list[Tensor]:
        """[N, ...] -> [n, longest, ...] of each group."""
        return [
            rows.index_select(0, group.to_padded).unflatten(0, (len(group.members), group.longest))
            for group in self.groups
        ]

    def unpad(self, parts: Sequence[Tensor]) -> Tensor:
        """[n, longest, ...] of each group -> [N, ...]; of a position that sequences share, the first one's."""
        return torch.cat([part.flatten(0, 1) for part in parts]).index_select(0, self.to_packed)


def _to(device: torch.device, array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).to(device)


@dataclass(frozen=True)
class Pack:
    """Sequences of one pass, side by side; `rows` and `lanes` name them, in order of lane."""

    rows: np.ndarray  # int64 [n]
    lanes: np.ndarray  # int64 [n]
    states: Tensor  # [N, hidden]
    sizes: list[int]  # positions of each lane
    positions: Tensor  # int64 [N]
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
    taken = states.take(packed + np.repeat(data.offsets[rows] - begins, own))
    device = taken.device
    layout = Layout.of(lengths, shared, device)
    return Pack(
        rows,
        lanes,
        taken,
        np.bincount(lanes, weights=own, minlength=n_lanes).astype(int).tolist(),
        _to(device, packed - np.repeat(begins, own)),
        layout,
        _to(device, answers),
        _to(device, data.flat[answers + np.repeat(data.offsets[rows] - begins + 1, counts)]),
        _to(device, np.repeat(np.arange(len(rows)), counts)),
        layout.ends(counts, device),
        _to(device, firsts),
    )


def passes(data: Dialogues, items: Sequence[Item], room: int) -> list[list[Item]]:
    """(lane, row) pairs in as few passes as `room` positions each allow, what they share counted once; rows that begin
    alike come together. A pair that is longer than `room` has a pass to itself.
    """
    ordered, shared = data.in_prompt_order(items)
    found: list[list[Item]] = []
    free = 0
    for item, common in zip(ordered, shared.tolist(), strict=True):
        length = int(data.lengths[item[1]])
        if not found or length - common > free:
            found.append([])
            free, common = room, 0
        found[-1].append(item)
        free -= length - common
    return found


def seen_from(firsts: Tensor, call: Call) -> Tensor:
    """bool [n, 1, queries, keys]: what queries at positions firsts[i], firsts[i] + 1, ... see of whole sequences."""
    keys = torch.arange(call.key.shape[2], device=firsts.device)
    queries = firsts[:, None] + torch.arange(call.query.shape[2], device=firsts.device)
    distance = queries.clamp(max=len(keys) - 1)[:, None, :, None] - keys  # padding too sees something
    return distance >= 0 if call.window is None else (distance >= 0) & (distance < call.window)
