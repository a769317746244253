"""What prompts share lies in a pass once, under the same vector alone, and passes stay even."""

import itertools

import numpy as np
import pytest
import torch

from steer_pipeline.lab.training.data import Dialogues
from steer_pipeline.lab.training.packing import Layout, make_pack, passes
from steer_pipeline.lab.training.states import SiteStates
from steer_pipeline_tests.lab.generation.reference import loaded
from steer_pipeline_tests.lab.training.rows import dialogues

CPU = torch.device("cpu")


def asked(questions, answers, prompt=12, response=20, head=4):
    """Rows of `answers` responses to each question; all prompts begin with the same `head` tokens."""
    rng = np.random.default_rng(3)
    common = rng.integers(5, 400, head).tolist()
    prompts = [
        [*common, 400 + i, *rng.integers(5, 400, prompt - head - 1).tolist()] for i in range(questions)
    ]
    ids = [
        prompts[i // answers] + rng.integers(5, 400, response).tolist() for i in range(questions * answers)
    ]
    rows = np.arange(len(ids))
    return Dialogues([str(i) for i in rows], ids, [prompt] * len(ids), rows // answers)


def alike(first, second):
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b),
        min(len(first), len(second)),
    )


def test_rows_are_ordered_so_that_each_shares_all_it_can_with_the_one_before():
    data = dialogues(30, alike=True)
    rng = np.random.default_rng(0)
    for _ in range(30):
        items = [(int(rng.integers(2)), int(row)) for row in rng.choice(30, 12, replace=False)]
        ordered, shared = data.in_prompt_order(items)
        assert sorted(ordered) == sorted(items)
        for i, (lane, row) in enumerate(ordered):
            prompt = data.ids[row][: data.firsts[row]]
            known = [data.ids[other][: data.firsts[other]] for own, other in ordered[:i] if own == lane]
            assert shared[i] == max((alike(prompt, one) for one in known), default=0)


def test_a_shared_prompt_lies_in_a_pack_once(tmp_path):
    model, data = loaded(tmp_path), asked(questions=2, answers=3)
    states = SiteStates(model, 1, data.ids, cache_gb=1)
    one = make_pack(data, states, [(0, row) for row in range(6)], 1)
    # six responses but for their last tokens, with the prompt's last token, which predicts: each its own
    assert one.sizes == [6 * 20 + 4 + 2 * (12 - 1 - 4)]
    assert len(one.answers) == 6 * 20
    two = make_pack(data, states, [(0, 0), (1, 1), (0, 2)], 2)
    assert two.sizes == [2 * 20 + 11, 20 + 11]  # another vector, other states
    whole, _ = states.take(np.arange(data.lengths.sum()))
    for pass_ in (one, two):
        padded = pass_.layout.pad(pass_.states)
        for group, rows, (_, longest) in zip(pass_.layout.groups, padded, pass_.layout.shapes, strict=True):
            for member, found in zip(group.members, rows.view(-1, longest, 64), strict=True):
                row = pass_.rows[member]
                own = whole[data.offsets[row] :][: data.lengths[row] - 1]
                assert torch.equal(found[: len(own)], own)


@pytest.mark.parametrize("seed", range(5))
def test_the_ways_back_are_the_transposes_of_padding_and_unpadding(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 40, 7)
    shared = np.array([0, *(int(rng.integers(0, min(pair))) for pair in itertools.pairwise(lengths))])
    shared[3] = 0
    layout = Layout.of(lengths, shared, CPU)
    packed = int((lengths - shared).sum())
    own = torch.cat([group.own for group in layout.groups])
    used = own.clone()
    assert int(own.sum()) == packed
    if layout.again is not None:
        used[layout.again[0]] = 1
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(packed, 5, generator=draw, dtype=torch.float64)
    sizes = [n * longest for n, longest in layout.shapes]
    parts = (torch.randn(sum(sizes), 5, generator=draw, dtype=torch.float64) * used).split(sizes)
    there = sum((a * b).sum() for a, b in zip(layout.pad(x), parts, strict=True))
    assert torch.allclose(there, (x * layout.pad_back(parts)).sum())
    there = (layout.unpad(parts) * x).sum()
    assert torch.allclose(there, sum((a * b).sum() for a, b in zip(parts, layout.unpad_back(x), strict=True)))
    assert torch.equal(layout.unpad(layout.pad(x)), x)


@pytest.mark.parametrize(
    ("answers", "chosen", "counts"),
    [
        (2, range(8), (4, 4)),  # four questions
        (5, range(8), (4, 4)),  # five rows of one and three of another: one row gives way
        (8, range(8), (4, 4)),  # a single question
        (1, range(8), (4, 4)),
    ],
)
def test_rows_of_a_question_stay_together_as_long_as_passes_are_even(answers, chosen, counts):
    data = asked(questions=8, answers=answers)
    found = passes(data, [(0, row) for row in chosen], 110, 1.0, power_of_two=True)
    assert sorted(row for some in found for _, row in some) == list(chosen)
    assert tuple(len(some) for some in found) == counts
    apart = sum(len({int(data.questions[row]) for _, row in some}) for some in found)
    assert apart <= len({int(data.questions[row]) for row in chosen}) + 1


def test_a_model_of_another_device_kind_has_as_many_passes_as_it_needs():
    data = asked(questions=6, answers=2)
    found = passes(
        data, [(lane, row) for lane in range(3) for row in range(12)], 300, 1.0, power_of_two=False
    )
    own = 3 * (12 * 20 + 6 * 7 + 4 + 12)  # with each response's last token
    assert len(found) == -(-own // 300)
