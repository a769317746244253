"""Claims about MLPs and directions: the whole MLP at the state where it works, shares that add up, parts that add up.

Faults of the system that this replaces: the direction alone as the MLP's input; projections of one shared direction.
"""

import numpy as np
import pytest
import torch

from steer_pipeline.lab.analysis.mlp import (
    ALONE,
    MEAN_STATE,
    REALISTIC,
    REST,
    Mlps,
    decomposed,
    reaction,
    split,
)
from steer_pipeline_tests.lab.analysis.conftest import N_BLOCKS, directions, neutral, units


def theirs(tiny, index, states):
    """What the model's own MLP adds to the stream, its norms included."""
    layer = tiny.module.model.layers[index]
    with torch.inference_mode():
        if hasattr(layer, "pre_feedforward_layernorm"):
            return layer.post_feedforward_layernorm(layer.mlp(layer.pre_feedforward_layernorm(states)))
        return layer.mlp(layer.post_attention_layernorm(states))


def test_the_reaction_is_the_model_s_own_mlp_with_the_direction_less_without(tiny):
    states, given = neutral(), units(3)
    mean, length = torch.from_numpy(states.mlp_input(2)), 1.7
    on = torch.from_numpy(given) * length
    block = tiny.base_block()
    wanted = theirs(tiny, 2, mean + on) - theirs(tiny, 2, mean[None])
    assert torch.allclose(reaction(block, given, length, mean), wanted, rtol=1e-3, atol=1e-4)
    assert torch.allclose(reaction(block, given, length, None), theirs(tiny, 2, on), rtol=1e-3, atol=1e-4)


def test_both_states_are_shown_and_differ_in_every_block_but_the_first(qwen):
    gathered = Mlps(directions(), neutral(), 0.2)
    for pair in qwen.pair.blocks(check=False):
        gathered.see(pair)
    tables = gathered.tables()
    assert set(tables.rows["block"]) == set(range(1, N_BLOCKS))
    wide = tables.rows.pivot("state", index=["block", "direction"], values="angle")
    assert (np.abs(wide[REALISTIC] - wide[ALONE]) > 1e-3).all()
    sums = (
        tables.projections.select("block", "changed", "share")
        .group_by("block", "changed")
        .sum()["share"]
        .to_numpy()
    )
    assert sums == pytest.approx(np.ones((N_BLOCKS - 1) * 4))  # of the mean state and of three directions
    whole = tables.projections.filter(changed=MEAN_STATE, block=2)["direction"].to_list()
    assert whole == ["persona:p0", "persona:p1", "persona:p2", REST]


def test_parallel_and_orthogonal_make_up_the_difference():
    vectors, draws = units(4) * 2.5, torch.Generator().manual_seed(0)
    base, tuned = torch.randn(2, 4, 64, generator=draws)
    parts = split(vectors, base, tuned)
    lengths = (tuned - base).double().norm(dim=1).numpy() / 2.5
    assert np.hypot(parts["parallel"], parts["orthogonal"]) == pytest.approx(lengths)
    echo = split(vectors, torch.zeros_like(base), torch.from_numpy(0.3 * vectors))
    assert echo["parallel"] == pytest.approx([0.3] * 4)
    assert echo["orthogonal"] == pytest.approx([0.0] * 4, abs=1e-6)


def test_shares_add_up_whatever_the_angles_and_a_shared_direction_is_not_everybody_s():
    """Directions that have one part in common: the change is that of one of them, and so is its share."""
    axes = units(5) + 3 * units(1, seed=9)
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    alone = axes @ axes[2]
    assert alone.min() > 0.8  # by cosine it is all of them
    coefficients, shares = decomposed(4.0 * axes[2], axes)
    assert coefficients == pytest.approx([0, 0, 4, 0, 0], abs=1e-5)
    assert shares == pytest.approx([0, 0, 1, 0, 0], abs=1e-5)
    change = np.random.default_rng(0).normal(size=64)
    twice = np.concatenate([axes, axes[:1]])  # not independent
    for some in (axes, twice):
        inside = some.T @ np.linalg.pinv(some.T) @ change
        assert decomposed(change, some)[1].sum() == pytest.approx((inside @ inside) / (change @ change))


def test_a_direction_that_tuning_pushes_along_is_found_with_its_sign(qwen):
    named, states = directions(), neutral()
    gathered = Mlps(named, states, 0.2)
    for index in range(1, N_BLOCKS):
        pair = qwen.block(index)
        pair.tuned.tensors.update(pair.base.tensors)
        mean, along = torch.from_numpy(states.mlp_input(index)), torch.from_numpy(named.writing(index)[1][0])
        block = pair.base
        normed = block.normed(mean[None], "mlp")
        inner = block._activation(block.linear("gate", normed)) * block.linear("up", normed)
        update = -along[:, None] * inner / inner.norm()
        pair.tuned.tensors["mlp.down_proj.weight"] = block.weight("down") + update
        gathered.see(pair)
    pushed = gathered.tables().pushed
    assert pushed.filter("found")["direction"].to_list() == ["persona:p0"]
    assert pushed.filter(direction="persona:p0")["mean_z"][0] < -3
