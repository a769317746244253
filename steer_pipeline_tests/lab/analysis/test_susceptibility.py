"""Claims about weight susceptibility: angle and length are the modules' own, nulls are matched, and verdicts keep
their level.

Faults of the system that this replaces: an isotropic null that claims nearly everything; Gemma's norm taken for all.
"""

import numpy as np
import pytest
import torch

from steer_pipeline.lab.analysis.architecture import LINEAR, READS_AT, WRITES_AT
from steer_pipeline.lab.analysis.directions import Directions
from steer_pipeline.lab.analysis.pairs import PairBlock
from steer_pipeline.lab.analysis.susceptibility import (
    ANGLE,
    CHANGE,
    LENGTH,
    MEASURES,
    Susceptibilities,
    made_of,
    measured,
    susceptibility,
)
from steer_pipeline_tests.lab.analysis.conftest import HIDDEN, N_BLOCKS, directions, neutral, units


def test_what_a_module_makes_of_a_direction_is_what_the_model_s_own_makes(tiny):
    layer, given = tiny.module.model.layers[2], units(3)
    block, states = tiny.base_block(), torch.from_numpy(given) * HIDDEN**0.5
    before_mlp = getattr(layer, "pre_feedforward_layernorm", layer.post_attention_layernorm)
    norms = {"attention": layer.input_layernorm, "mlp": before_mlp}
    with torch.inference_mode():
        for module, part in READS_AT.items():
            theirs = layer.get_submodule(LINEAR[module])(norms[part](states))
            assert torch.allclose(made_of(block, module, given), theirs, rtol=1e-4, atol=1e-4), module


def test_what_writes_along_a_direction_is_the_gradient_of_the_written_along_it(tiny):
    """For o and down: how the stream's coordinate along the direction answers to each of the module's inputs."""
    given, block = units(2), tiny.base_block()
    for module, part in WRITES_AT.items():
        weight = block.weight(module)
        inputs = torch.zeros(weight.shape[1], requires_grad=True)
        for direction, got in zip(given, made_of(block, module, given), strict=True):
            written = (block.gain(part) * (weight @ inputs)) @ torch.from_numpy(direction) * HIDDEN**0.5
            (gradient,) = torch.autograd.grad(written, inputs)
            assert torch.allclose(got, gradient, atol=1e-4), module


def test_angle_length_and_change():
    base = torch.tensor([[1.0, 0.0], [3.0, 4.0], [1.0, 1e-7]])
    tuned = torch.tensor([[0.0, 2.0], [3.0, 4.0], [1.0, 0.0]])
    found = measured(base, tuned)
    assert found[ANGLE] == pytest.approx([90.0, 0.0, np.rad2deg(1e-7)], rel=1e-3)
    assert found[LENGTH] == pytest.approx([np.log(2), 0.0, 0.0])
    assert found[CHANGE] == pytest.approx([5**0.5, 0.0, 1e-7], rel=1e-3)


def edited(pair: PairBlock, direction: np.ndarray, module: str, strength: float) -> PairBlock:
    """Tuned: base whose module reacts otherwise to one direction, by a matrix of rank one."""
    tuned, base = pair.tuned, pair.base
    tuned.tensors.update(base.tensors)
    weight, along = base.weight(module), torch.from_numpy(direction)
    draws = torch.Generator().manual_seed(1)
    noise = torch.randn(weight.shape, generator=draws) * weight.std() * 0.01
    other = torch.randn(weight.shape[0 if module in READS_AT else 1], generator=draws)
    rank_one = other[:, None] * along[None] if module in READS_AT else along[:, None] * other[None]
    tuned.tensors[f"{LINEAR[module]}.weight"] = weight + noise + strength * weight.std() * rank_one
    return PairBlock(pair.index, base, tuned)


def test_a_planted_reaction_is_found_in_its_module_and_others_are_not(qwen):
    named = directions(4)
    gathered = Susceptibilities(named, neutral())
    for index in range(N_BLOCKS):
        pair = qwen.block(index)
        written = named.writing(index)[1]
        gathered.see(edited(pair, written[1], "down", 3.0))
    tables = gathered.tables()
    found = tables.found.filter("found")
    assert found.select("direction", "side", "module").rows() == [("persona:p1", "writes", "down")]
    assert found["rank"][0] == 1
    rows = tables.rows.filter(module="down", measure=CHANGE)
    assert (rows.filter(direction="persona:p1")["p_holm"] <= 0.05).all()
    assert (
        rows.filter(direction="persona:p1")["value"] > rows.filter(direction="persona:p1")["null_high"]
    ).all()
    assert tables.rows["direction"].n_unique() == 4
    assert set(tables.rows["measure"]) == set(MEASURES)
    assert tables.weights.filter(module="q")["difference"].to_list() == [0.0] * N_BLOCKS


def test_directions_that_are_read_stand_at_the_block_below_and_none_at_the_embeddings(qwen):
    rows = susceptibility(qwen.pair, directions(), neutral()).rows
    assert set(rows.filter(block=0)["module"]) == set(WRITES_AT)
    named, pair = directions(), qwen.block(3)
    own = measured(*(made_of(one, "gate", named.writing(2)[1]) for one in (pair.base, pair.tuned)))[ANGLE]
    got = rows.filter(block=3, module="gate", measure=ANGLE)["value"]
    assert np.allclose(got, own, rtol=1e-5)


def test_verdicts_keep_the_level_where_directions_are_drawn_as_the_null_is_and_isotropic_nulls_do_not(qwen):
    """Training changes what the stream is full of: against isotropic directions all of that is a finding."""
    states, n = neutral(3), 60
    drawn = neutral(3, n_null=200).drawing(200, 99)
    raw = np.stack([drawn.matched(block)[:n] for block in range(N_BLOCKS)], axis=1)
    named = Directions(tuple(f"persona:d{k}" for k in range(n)), raw, ("",) * n, {})
    gathered = Susceptibilities(named, states)
    generator = torch.Generator().manual_seed(0)
    for index in range(1, N_BLOCKS):
        pair = qwen.block(index)
        pair.tuned.tensors.update(pair.base.tensors)
        seen = torch.from_numpy(states.states[:, index - 1] - states.states[:, index - 1].mean(0))
        for module in ("q", "gate"):
            weight = pair.base.weight(module)
            update = torch.randn(weight.shape[0], len(seen), generator=generator) @ seen
            pair.tuned.tensors[f"{LINEAR[module]}.weight"] = (
                weight + 0.1 * update / update.std() * weight.std()
            )
        gathered.see(pair)
    tables = gathered.tables()
    rows = tables.rows.filter(measure=CHANGE).filter(module="gate")
    assert (rows["p"] <= 0.05).mean() <= 0.12
    assert (rows["p_isotropic"] <= 0.05).mean() >= 0.4
    assert tables.found.filter("found").height <= 1
