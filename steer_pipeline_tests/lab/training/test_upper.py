"""The training pass is the steered model: same likelihoods, and the gradient that plain autograd finds."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from steer_pipeline.lab.models.blocks import blocks_of
from steer_pipeline.lab.models.hidden import residual_norms, sequence_nll
from steer_pipeline.lab.models.lean import lean_head
from steer_pipeline.lab.models.steering import Site, SteeringPlan, SteeringTerm
from steer_pipeline.lab.training.data import Dialogues
from steer_pipeline.lab.training.norms import lean_norms
from steer_pipeline.lab.training.packing import make_pack
from steer_pipeline.lab.training.states import SiteStates
from steer_pipeline.lab.training.upper import UpperBlocks
from steer_pipeline.lab.training.written import response_nll
from steer_pipeline_tests.lab.generation.reference import loaded
from steer_pipeline_tests.lab.training.rows import dialogues

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
    with upper.ready():
        for some in upper.passes(data, items):
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


@contextmanager
def trainable_hook(model, site, vector):
    handle = model.module.model.layers[site].register_forward_hook(lambda _m, _i, out: out + vector)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("site", [0, 2, 3])
def test_the_training_pass_is_the_model_under_the_plan(tmp_path, arch, site):
    model, data, added = loaded(tmp_path, arch), dialogues(alike=True), vectors(2)
    found, _ = passes(model, site, data, added)
    for lane, vector in enumerate(added.numpy()):
        expected, tokens = sequence_nll(model, data.ids, data.starts, plan(vector, site))
        assert np.allclose(found[lane], expected, rtol=1e-4, atol=1e-3)
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
    with upper.ready():
        for some in upper.passes(data, items):
            pack = make_pack(data, states, some, 2)
            for lane, row, nll in zip(pack.lanes, pack.rows, upper.nll(added, pack), strict=True):
                assert float(nll) == pytest.approx(everything[lane, row], rel=1e-4)
                items.remove((lane, row))
    assert not items


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("site", [0, 2, 3])
def test_written_gradients_and_cached_projections_change_no_number(tmp_path, arch, site):
    model, data, added = loaded(tmp_path, arch), dialogues(alike=True), vectors(2)
    with torch.no_grad():
        for name, weight in model.module.named_parameters():
            if "norm" in name:
                weight.add_(0.2 * torch.sin(torch.arange(len(weight)) * 1.0))
    blocks = blocks_of(model)
    upper, items = UpperBlocks(blocks, site), [(lane, row) for lane in range(2) for row in range(len(data))]
    assert (upper.written is not None) == (arch in ("qwen3", "llama"))
    found = {}
    for way in ("own modules", "written", "written, cached", "written, again"):
        states = SiteStates(model, site, data.ids, cache_gb=1)
        upper = UpperBlocks(blocks, site, checkpointing="again" in way)
        if way == "own modules":
            upper.written = None
        weight = upper.cached_projection()
        assert (weight is not None) == (
            upper.written is not None and site < 2
        )  # the last block wants few queries
        if way != "written" and weight is not None:
            states.project(weight)
            assert states.projected is not None
        nlls, gradient = [], torch.zeros_like(added)
        with upper.ready():
            for some in upper.passes(data, items):
                pack = make_pack(data, states, some, 2)
                weights = 0.5 + torch.from_numpy(pack.rows % 3)  # each sequence has its own
                nll, one = upper.gradient(added, pack, weights)
                nlls.append(nll)
                gradient += one
        found[way] = torch.cat(nlls), gradient
    for nll, gradient in found.values():
        assert torch.allclose(nll, found["own modules"][0], rtol=1e-4)
        scale = float(gradient.abs().max())
        assert torch.allclose(gradient, found["own modules"][1], rtol=1e-3, atol=1e-3 * scale)


@pytest.mark.parametrize("window", [None, 30, 150])
def test_so_it_is_with_attention_in_chunks_and_windows(tmp_path, window):
    model, data, added = loaded(tmp_path), dialogues(4, longest=260, alike=True), vectors(1)
    assert max(data.lengths) > 2 * 96
    for layer in model.module.model.layers:
        layer.self_attn.sliding_window = window
    upper, found = UpperBlocks(blocks_of(model), 1), []
    assert upper.written is not None
    states = SiteStates(model, 1, data.ids, cache_gb=1)
    for _ in range(2):
        with upper.ready():
            pack = make_pack(data, states, [(0, row) for row in range(4)], 1)
            found.append(upper.gradient(added, pack, torch.ones(4)))
        upper.written = None  # the second time, the model's own modules
    for own, written in zip(found[1], found[0], strict=True):
        assert torch.allclose(own, written, rtol=1e-3, atol=1e-3 * float(own.abs().max()))


def test_a_torch_without_the_kernel_is_served_by_the_models_own_modules(tmp_path, monkeypatch):
    monkeypatch.setattr("steer_pipeline.lab.training.written._KERNEL_BACK", None)
    assert UpperBlocks(blocks_of(loaded(tmp_path)), 1).written is None


def test_another_type_or_an_adapter_keeps_the_models_own_modules(tmp_path):
    assert UpperBlocks(blocks_of(loaded(tmp_path, dtype="bfloat16")), 1).written is None
    model = loaded(tmp_path / "other")
    model.module.model.layers[2].mlp.act_fn = torch.nn.GELU()  # the lean spelling knows one activation
    assert UpperBlocks(blocks_of(model), 1).written is None
    assert UpperBlocks(blocks_of(model), 2).written is not None


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_lean_norms_are_the_models_own_in_both_directions_and_are_gone_afterwards(tmp_path, arch):
    model = loaded(tmp_path, arch)
    layer = model.module.model.layers[1]
    norms = [one for one in layer.modules() if type(one).__name__.endswith("RMSNorm")]
    for norm in norms:
        with torch.no_grad():
            norm.weight.uniform_(0.5, 1.5)
        x = torch.randn(4, 7, len(norm.weight), generator=torch.Generator().manual_seed(0)).requires_grad_()
        gradient = torch.linspace(-1, 1, len(norm.weight)).expand_as(x)
        plain = norm(x)
        plain_gradient = torch.autograd.grad(plain, x, gradient)[0]
        with lean_norms([layer]) as changed:
            assert changed == len(norms)
            lean = norm(x)
            assert type(lean.grad_fn).__name__ == "_RmsNormBackward"
        assert torch.allclose(lean, plain, atol=1e-5)
        assert torch.allclose(torch.autograd.grad(lean, x, gradient)[0], plain_gradient, atol=1e-5)
        assert "forward" not in norm.__dict__
    with lean_norms([loaded(tmp_path, arch, dtype="bfloat16").module]) as changed:
        assert changed == 0


def test_cached_states_measure_the_residual_norm_and_leave_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model, data = loaded(tmp_path), dialogues(alike=True)
    for cache_gb, mapped in ((1.0, False), (1e-9, True)):
        states = SiteStates(model, 2, data.ids, cache_gb=cache_gb)
        assert states.mapped is mapped
        assert states.mean_norm == pytest.approx(residual_norms(model, data.ids)[2], rel=1e-4)
        whole, projected = states.take(np.arange(sum(data.lengths)))
        assert projected is None
        for row, ids in enumerate(data.ids):
            own = whole[data.offsets[row] : data.offsets[row] + len(ids)]
            assert torch.allclose(own, hidden_at(model, ids, 2), rtol=1e-4, atol=1e-4)
        assert not list(tmp_path.glob("site_states-*"))


def test_the_lean_head_is_the_models_own_and_keeps_unlikely_targets(tmp_path):
    blocks = blocks_of(loaded(tmp_path))
    head = lean_head(blocks)
    assert head is not None
    assert lean_head(blocks_of(loaded(tmp_path, "gemma2"))) is None  # its logits are capped
    assert lean_head(blocks_of(loaded(tmp_path, dtype="bfloat16"))) is None
    generator = torch.Generator().manual_seed(0)
    for spread in (1.0, 3000.0):  # at the second, shares of targets are too small for fp32
        hidden = torch.randn(9, blocks.config.hidden_size, generator=generator).requires_grad_()
        targets = torch.randint(blocks.config.vocab_size, (9,), generator=generator)
        lean = replace(head, weight=head.weight * spread)
        weights = torch.arange(1.0, 10)
        nll, own = response_nll(lean, hidden.detach(), targets, weights, cells=4 * blocks.config.vocab_size)
        normed = hidden / (hidden.pow(2).mean(-1, keepdim=True) + lean.eps).sqrt()
        expected = torch.nn.functional.cross_entropy(normed @ lean.weight.T, targets, reduction="none")
        assert torch.allclose(nll, expected, rtol=1e-4, atol=1e-5)
        (plain,) = torch.autograd.grad((expected * weights).sum(), hidden)
        assert torch.allclose(own, plain, rtol=1e-3, atol=1e-4 * float(plain.abs().max()))
    assert float(expected.detach().max()) > 87


@pytest.mark.parametrize("rows", [1, 2, 7, 40])
def test_passes_hold_every_pair_once_and_cost_the_same(tmp_path, rows):
    data, blocks = dialogues(alike=True), blocks_of(loaded(tmp_path))
    upper = UpperBlocks(blocks, 1)
    upper.room = 100
    items = [(i % 3, i % len(data)) for i in range(rows)]
    passes = list(upper.passes(data, items))
    assert sorted(item for some in passes for item in some) == sorted(items)
    assert len(passes) & (len(passes) - 1) == 0 or len(passes) == rows
    block = sum(weight.numel() for weight in blocks.layers[3].parameters())
    head = blocks.head.weight.numel()
    costs = [  # products: block 2 for all, block 3 and the head for responses
        block * len(ids) + (block + head) * (len(ids) - start)
        for ids, start in zip(data.ids, data.starts, strict=True)
    ]
    loads = [sum(costs[row] for _, row in some) for some in passes]
    assert max(loads) - min(loads) <= max(costs)


def test_rows_of_many_responses_are_dealt_out_evenly(tmp_path):
    ids = [
        list(range(5 + row, 45 + row)) for row in range(8)
    ]  # all equally long; every other one is nearly all response
    data = Dialogues([str(i) for i in range(8)], ids, [1, 38] * 4, np.arange(8))
    upper = UpperBlocks(blocks_of(loaded(tmp_path)), 1)
    upper.room = 160
    first, second = upper.passes(data, [(0, row) for row in range(8)])
    assert sorted(data.starts[row] for _, row in first) == sorted(data.starts[row] for _, row in second)
