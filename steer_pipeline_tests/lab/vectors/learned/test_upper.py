"""The training pass is the steered model: same likelihoods, and the gradient that plain autograd finds."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from steer_pipeline.lab.models.blocks import blocks_of
from steer_pipeline.lab.models.hidden import residual_norms, sequence_nll
from steer_pipeline.lab.models.sites import Site, SteeringPlan, SteeringTerm
from steer_pipeline.lab.vectors.learned import packing
from steer_pipeline.lab.vectors.learned.packing import make_pack
from steer_pipeline.lab.vectors.learned.states import SiteStates
from steer_pipeline.lab.vectors.learned.upper import UpperBlocks
from steer_pipeline_tests.lab.generation.reference import loaded
from steer_pipeline_tests.lab.vectors.learned.rows import dialogues

ARCHITECTURES = ["qwen3", "llama", "gemma", "gemma2"]


def vectors(lanes, hidden=64, length=2.0):
    drawn = np.random.default_rng(7).standard_normal((lanes, hidden))
    return torch.tensor(length * drawn / np.linalg.norm(drawn, axis=1, keepdims=True), dtype=torch.float32)


def passes(model, site, data, added, *, room=None, checkpointing=False, cache_gb=1.0):
    """NLL [lanes, rows] and the gradient [lanes, hidden] of its sum."""
    blocks = blocks_of(model)
    states = SiteStates(model, site, data.ids, cache_gb=cache_gb)
    upper = UpperBlocks(blocks, site, checkpointing=checkpointing)
    upper.room = room or upper.room
    out, gradients = np.zeros((len(added), len(data))), torch.zeros_like(added)
    items = [(lane, row) for lane in range(len(added)) for row in range(len(data))]
    for some in packing.passes(data, items, upper.room):
        pack = make_pack(data, states, some, len(added))
        nll, gradient = upper.gradient(added, pack, torch.ones(len(pack.rows)))
        assert torch.allclose(upper.nll(added, pack), nll, rtol=1e-5)
        out[pack.lanes, pack.rows] = nll.numpy()
        gradients += gradient
    return out, gradients


def plan(vector, site):
    length = float(np.linalg.norm(vector))
    return SteeringPlan(
        "x", (SteeringTerm("x", np.asarray(vector / length, np.float32), Site(site), length),)
    )


def hidden_at(model, ids, block):
    with torch.no_grad():
        return model.module(torch.tensor([ids]), output_hidden_states=True).hidden_states[block + 1][0]


def windowed_nll(model, ids, start, vector):
    """By transformers' eager attention with a mask of its own for the windows."""
    module = model.module
    at = torch.arange(len(ids))
    distance = at[:, None] - at[None]
    seen = (distance >= 0) & (distance < module.model.layers[0].self_attn.sliding_window)
    mask = torch.zeros(seen.shape).masked_fill_(~seen, float("-inf"))[None, None]
    hidden = module.model.embed_tokens(torch.tensor([ids]))
    rotary = module.model.rotary_emb(hidden, at[None])
    for number, layer in enumerate(module.model.layers):
        hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary)
        hidden = hidden + vector if number == 1 else hidden
    logits = module.lm_head(module.model.norm(hidden))[0]
    return F.cross_entropy(logits[start - 1 : -1], torch.tensor(ids[start:]), reduction="sum")


@contextmanager
def trainable_hook(model, site, vector):
    handle = model.module.model.layers[site].register_forward_hook(lambda _m, _i, out: out + vector)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_training_pass_is_the_model_under_the_plan(tmp_path, arch):
    model, data, added = loaded(tmp_path, arch), dialogues(alike=True), vectors(2)
    for site in (0, 2, 3):
        found, _ = passes(model, site, data, added)
        for lane, vector in enumerate(added.numpy()):
            expected, tokens = sequence_nll(model, data.ids, data.starts, plan(vector, site))
            assert np.allclose(found[lane], expected, rtol=1e-4, atol=1e-3), site
            assert (tokens == data.n_tokens).all()


@pytest.mark.parametrize("arch", ["qwen3", "gemma2"])
def test_so_it_is_in_bf16(tmp_path, arch):
    model, data, added = loaded(tmp_path, arch, dtype="bfloat16"), dialogues(alike=True), vectors(1)
    found, gradient = passes(model, 1, data, added)
    expected, _ = sequence_nll(model, data.ids, data.starts, plan(added[0].numpy(), 1))
    assert np.allclose(found[0], expected, rtol=0.05, atol=1.0)
    assert gradient.dtype == torch.float32


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_gradient_is_that_of_a_hook_and_response_tokens_alone_are_supervised(tmp_path, arch):
    model, data, added = loaded(tmp_path, arch), dialogues(5, alike=True), vectors(1)
    _, gradient = passes(model, 1, data, added)
    parameter = added[0].clone().requires_grad_()
    with trainable_hook(model, 1, parameter):
        for ids, start in zip(data.ids, data.starts, strict=True):
            labels = torch.tensor(ids)
            labels[: max(start, 1)] = -100
            logits = model.module(torch.tensor([ids])).logits[0]
            F.cross_entropy(logits[:-1], labels[1:], ignore_index=-100, reduction="sum").backward()
    assert torch.allclose(
        gradient[0], parameter.grad, rtol=1e-3, atol=1e-3 * float(parameter.grad.abs().max())
    )
    assert all(weight.grad is None for weight in model.module.parameters())


@pytest.mark.parametrize("arch", ["qwen3", "gemma"])
def test_lanes_passes_checkpoints_and_mapped_states_change_nothing(tmp_path, arch):
    model, data, added = loaded(tmp_path, arch), dialogues(alike=True), vectors(3)
    together, gradients = passes(model, 1, data, added)
    ways = {
        "alone": [passes(model, 1, data, added[lane : lane + 1]) for lane in range(3)],
        "small passes": [passes(model, 1, data, added, room=50)],
        "checkpoints": [passes(model, 1, data, added, checkpointing=True)],
        "mapped": [passes(model, 1, data, added, cache_gb=1e-9)],
    }
    for way, found in ways.items():
        assert np.allclose(np.concatenate([one[0] for one in found]), together, rtol=1e-4), way
        assert torch.allclose(torch.cat([one[1] for one in found]), gradients, rtol=1e-3, atol=1e-3), way


def test_each_lane_has_rows_of_its_own(tmp_path):
    model, data, added = loaded(tmp_path), dialogues(alike=True), vectors(2)
    blocks = blocks_of(model)
    everything, _ = passes(model, 1, data, added)
    states, upper = SiteStates(model, 1, data.ids, cache_gb=1), UpperBlocks(blocks, 1)
    items = [(0, 3), (1, 0), (1, 5), (0, 1), (1, 3)]
    for some in packing.passes(data, items, upper.room):
        pack = make_pack(data, states, some, 2)
        for lane, row, nll in zip(pack.lanes, pack.rows, upper.nll(added, pack), strict=True):
            assert float(nll) == pytest.approx(everything[lane, row], rel=1e-4)
            items.remove((lane, row))
    assert not items


@pytest.mark.parametrize("window", [5, 30])
def test_so_it_is_with_sliding_windows(tmp_path, window):
    model, data, added = loaded(tmp_path), dialogues(6, longest=60, alike=True), vectors(1)
    blocks_of(model)  # its check is of the model as it was built
    for layer in model.module.model.layers:
        layer.self_attn.sliding_window = window
    found, gradient = passes(model, 1, data, added)
    parameter = added.clone().requires_grad_()
    for row, (ids, start) in enumerate(zip(data.ids, data.starts, strict=True)):
        nll = windowed_nll(model, ids, max(start, 1), parameter)
        assert found[0, row] == pytest.approx(float(nll.detach()), rel=1e-4)
        nll.backward()
    assert torch.allclose(gradient, parameter.grad, rtol=1e-3, atol=1e-3 * float(gradient.abs().max()))


def test_cached_states_measure_the_residual_norm_and_leave_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model, data = loaded(tmp_path), dialogues(alike=True)
    for cache_gb, mapped in ((1.0, False), (1e-9, True)):
        states = SiteStates(model, 2, data.ids, cache_gb=cache_gb)
        assert states.mapped is mapped
        assert states.mean_norm == pytest.approx(residual_norms(model, data.ids)[2], rel=1e-4)
        whole = states.take(np.arange(sum(data.lengths)))
        for row, ids in enumerate(data.ids):
            own = whole[data.offsets[row] : data.offsets[row] + len(ids)]
            assert torch.allclose(own, hidden_at(model, ids, 2), rtol=1e-4, atol=1e-4)
        assert not list(tmp_path.glob("site_states-*"))
