"""What prompts share lies in a pass once, under the same vector alone, and passes keep to their room."""

import itertools

import numpy as np
import pytest
import torch

from steer_pipeline.lab.vectors.learned.data import Dialogues
from steer_pipeline.lab.vectors.learned.packing import Layout, make_pack, passes
from steer_pipeline.lab.vectors.learned.states import SiteStates
from steer_pipeline_tests.lab.generation.reference import loaded
from steer_pipeline_tests.lab.vectors.learned.rows import dialogues

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
    whole = states.take(np.arange(data.lengths.sum()))
    for pass_ in (one, two):
        padded = pass_.layout.pad(pass_.states)
        for group, rows in zip(pass_.layout.groups, padded, strict=True):
            for member, found in zip(group.members, rows, strict=True):
                row = pass_.rows[member]
                own = whole[data.offsets[row] :][: data.lengths[row] - 1]
                assert torch.equal(found[: len(own)], own)


@pytest.mark.parametrize("seed", range(3))
def test_padding_takes_nothing_from_a_row_and_gives_nothing_to_another(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 40, 7)
    shared = np.array([0, *(int(rng.integers(0, min(pair))) for pair in itertools.pairwise(lengths))])
    layout = Layout.of(lengths, shared, CPU)
    x = torch.randn(int((lengths - shared).sum()), 5, requires_grad=True)
    back = layout.unpad(layout.pad(x))
    assert torch.equal(back, x)
    weights = torch.randn_like(x)
    assert torch.allclose(torch.autograd.grad((back * weights).sum(), x)[0], weights)


@pytest.mark.parametrize("answers", [1, 2, 5])
def test_passes_hold_every_pair_once_in_as_few_positions_as_there_is_room_for(answers):
    data = asked(questions=6, answers=answers)
    items = [(lane, row) for lane in range(2) for row in range(len(data))]
    found = passes(data, items, 110)
    assert sorted(item for some in found for item in some) == sorted(items)
    for some in found:
        ordered, shared = data.in_prompt_order(some)
        assert sum(data.lengths[row] for _, row in ordered) - sum(shared) <= 110
    # rows of a question come together: it is split where a pass ends, and nowhere else
    apart = sum(len({(lane, int(data.questions[row])) for lane, row in some}) for some in found)
    assert apart <= 12 + len(found) - 1


def test_a_row_that_is_longer_than_a_pass_has_one_to_itself():
    data = asked(questions=3, answers=1)
    assert passes(data, [(0, 0), (0, 1), (0, 2)], 10) == [[(0, row)] for row in range(3)]
