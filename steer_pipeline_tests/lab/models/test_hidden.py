"""Claims about reading a model: vectors are collected where they are injected, sums are transformers' own."""

import weakref

import numpy as np
import pytest
import torch

from steer_pipeline.lab.models import hidden
from steer_pipeline.lab.models.hidden import (
    HiddenRequest,
    collect_means,
    mean_kl,
    residual_norms,
    sequence_nll,
)
from steer_pipeline.lab.models.sites import SteeringPlan
from steer_pipeline_tests.lab.generation.reference import hooks, loaded, prompts, term


def hf_states(model, ids, plan=None):
    """[n_blocks, t, hidden] by hooks on the blocks, and the logits [t, vocabulary]."""
    caught = []
    with hooks(model.module, plan or SteeringPlan("none")):
        handles = [
            layer.register_forward_hook(lambda _m, _i, out: caught.append(out[0].clone()))
            for layer in model.module.model.layers
        ]
        with torch.inference_mode():
            logits = model.module(torch.tensor([ids])).logits[0]
        for handle in handles:
            handle.remove()
    return torch.stack(caught).float(), logits.float()


@pytest.mark.parametrize("arch", ["qwen3", "llama", "gemma", "gemma2"])
def test_means_are_the_block_outputs_before_the_final_norm(tmp_path, arch):
    model = loaded(tmp_path, arch)
    spans = [(0, 3), (10, 40), (5, 6), (50, 55), (2, 30)]
    requests = [HiddenRequest(ids, *span) for ids, span in zip(prompts(model), spans, strict=True)]
    means = collect_means(model, requests)
    for got, request in zip(means, requests, strict=True):
        states, _ = hf_states(model, request.ids)
        assert np.allclose(got, states[:, request.start : request.stop].mean(1), atol=2e-4)


@pytest.mark.parametrize("arch", ["qwen3", "llama", "gemma"])
def test_a_vector_is_collected_where_it_was_injected(tmp_path, arch):
    model = loaded(tmp_path, arch)
    request = [HiddenRequest(prompts(model, 1)[0], 4, 20)]
    for block in range(4):
        one = term(block, 5.0)
        moved = collect_means(model, request, SteeringPlan("x", (one,)))[0] - collect_means(model, request)[0]
        assert np.allclose(moved[block], 5.0 * one.unit, atol=1e-3)
        assert np.allclose(moved[:block], 0, atol=1e-4)


def test_norms_leave_out_the_first_position(tmp_path):
    model = loaded(tmp_path)
    ids = prompts(model)
    states = torch.cat([hf_states(model, one)[0][:, 1:] for one in ids], dim=1)
    assert np.allclose(residual_norms(model, ids), states.norm(dim=-1).mean(1), rtol=1e-4)


@pytest.mark.parametrize("scope", ["all", "generated"])
def test_likelihood_and_divergence_under_steering(tmp_path, scope):
    model = loaded(tmp_path)
    ids = prompts(model)
    starts = [len(one) - 7 for one in ids]
    plan = SteeringPlan("x", (term(1, 3.0), term(2, 2.0, 1)), scope)
    everywhere = SteeringPlan("x", plan.terms)
    sums, counts = sequence_nll(model, ids, starts, plan)
    divergences = mean_kl(model, ids, starts, plan)
    for i, one in enumerate(ids):
        targets = torch.tensor(one[starts[i] :])
        _, base = hf_states(model, one)
        if scope == "all":
            _, steered = hf_states(model, one, everywhere)
        else:  # prompt unsteered, then steered positions one by one over its cache
            with torch.inference_mode():
                out = model.module(torch.tensor([one[: starts[i]]]), use_cache=True)
                rows = [out.logits[0]]
                with hooks(model.module, everywhere):
                    for token in one[starts[i] :]:
                        out = model.module(torch.tensor([[token]]), past_key_values=out.past_key_values)
                        rows.append(out.logits[0])
            steered = torch.cat(rows)
        p, q = (x[starts[i] - 1 : -1].double().log_softmax(-1) for x in (steered, base))
        assert counts[i] == 7
        assert np.isclose(sums[i], -p.gather(1, targets[:, None]).sum(), rtol=1e-4)
        assert np.isclose(divergences[i], (p.exp() * (p - q)).sum(-1).mean(), rtol=1e-3)


def test_bad_spans_are_named(tmp_path):
    model = loaded(tmp_path)
    with pytest.raises(ValueError, match=r"request 1: span \[3, 3\)"):
        collect_means(model, [HiddenRequest([1, 2, 3], 0, 1), HiddenRequest([1, 2, 3], 3, 3)])
    with pytest.raises(ValueError, match="sequence 0 has no tokens"):
        sequence_nll(model, [[]], [0])


def test_many_small_batches_give_what_one_gives(tmp_path, monkeypatch):
    model = loaded(tmp_path, "gemma")
    ids = prompts(model, 12)
    starts = [len(one) - 7 for one in ids]
    plan = SteeringPlan("x", (term(1, 3.0), term(3, 2.0, 1)), "generated")
    requests = [HiddenRequest(one, start, len(one)) for one, start in zip(ids, starts, strict=True)]

    def everything():
        return (
            collect_means(model, requests, plan),
            residual_norms(model, ids),
            *sequence_nll(model, ids, starts, plan),
            mean_kl(model, ids, starts, plan),
        )

    own = model.module.config._attn_implementation
    together = everything()
    monkeypatch.setattr(hidden, "_BATCH_TOKENS", {"cpu": 100})
    for a, b in zip(together, everything(), strict=True):
        assert np.allclose(a, b, rtol=1e-4, atol=1e-5)
    assert model.module.config._attn_implementation == own


@pytest.mark.parametrize("arch", ["qwen3", "gemma", "gemma2"])
def test_chosen_blocks_are_those_of_all_blocks_in_the_order_asked_for(tmp_path, arch):
    model = loaded(tmp_path, arch)
    plan = SteeringPlan("x", (term(2, 3.0),), "generated")
    requests = [HiddenRequest(ids, len(ids) - 1 - i, len(ids)) for i, ids in enumerate(prompts(model))]
    every = collect_means(model, requests, plan)
    for chosen in ([2], [2, 0], [3, 1]):
        assert np.allclose(collect_means(model, requests, plan, blocks=chosen), every[:, chosen], atol=1e-5)
    for wrong in ([], [1, 1], [4], [-1]):
        with pytest.raises(ValueError, match="different blocks from 0 to 3"):
            collect_means(model, requests, blocks=wrong)


@pytest.mark.parametrize(
    ("arch", "scope"), [("qwen3", "all"), ("llama", "generated"), ("gemma", "generated")]
)
def test_an_mlx_model_is_read_as_a_torch_model_is(tmp_path, arch, scope):
    pytest.importorskip("mlx_lm")
    terms = (term(1, 3.0), term(2, 2.0, 1), term(3, 4.0, 2, kind="logits"))
    plan = SteeringPlan("x", terms, scope)
    found = []
    for backend in ("torch", "mlx"):
        model = loaded(tmp_path, arch, backend=backend)
        ids = prompts(model, 3)
        starts = [len(one) - 7 for one in ids]
        requests = [HiddenRequest(one, start, len(one)) for one, start in zip(ids, starts, strict=True)]
        found.append(
            (
                collect_means(model, requests),
                collect_means(model, requests, plan),
                collect_means(model, requests, plan, blocks=[2, 0]),
                residual_norms(model, ids),
                *sequence_nll(model, ids, starts),
                *sequence_nll(model, ids, starts, plan),
                mean_kl(model, ids, starts, plan),
                *hidden.answer_logits(model, ids, starts, plan),
            )
        )
    assert not np.allclose(found[1][0], found[1][1], atol=0.1)  # the plan does something
    for ours, theirs in zip(*found, strict=True):
        assert np.allclose(ours, theirs, rtol=1e-3, atol=2e-3)


def test_the_states_of_one_block_at_a_time_are_kept(tmp_path, monkeypatch):
    model = loaded(tmp_path)
    wanted = [HiddenRequest(ids, 0, len(ids)) for ids in prompts(model, 2)]
    expected = collect_means(model, wanted)
    alive, most = [], []
    run = hidden.Blocks.run

    def watched(self, *args):
        out = run(self, *args)
        alive.append(weakref.ref(out))
        most.append(sum(one() is not None for one in alive))
        return out

    monkeypatch.setattr(hidden.Blocks, "run", watched)
    assert np.array_equal(collect_means(model, wanted), expected)
    assert len(most) >= model.n_blocks - 1  # the last block may run for its spans alone
    assert max(most) == 2  # what goes into a block and what comes out of it


def test_nan_in_the_weights_is_read_as_nan_and_not_hidden(tmp_path):
    model = loaded(tmp_path)
    with torch.no_grad():
        model.module.model.layers[2].mlp.up_proj.weight[0, 0] = float("nan")
    means = collect_means(model, [HiddenRequest(prompts(model, 1)[0], 4, 20)])[0]
    assert np.isfinite(means[:2]).all()
    assert np.isnan(means[2:]).any(1).all()


def test_a_model_changed_after_it_was_read_is_read_as_it_is(tmp_path):
    model = loaded(tmp_path)
    request = [HiddenRequest(prompts(model, 1)[0], 4, 20)]
    before = collect_means(model, request)
    with torch.no_grad():
        model.module.model.layers[1].mlp.down_proj.weight.mul_(3)
    after = collect_means(model, request)
    assert np.array_equal(before[:, 0], after[:, 0])
    assert not np.allclose(before[:, 1], after[:, 1], atol=1e-3)


def test_equal_requests_give_equal_rows_whatever_batch_they_would_fall_into(tmp_path, monkeypatch):
    monkeypatch.setattr(hidden, "_BATCH_TOKENS", {"cpu": 150})
    model = loaded(tmp_path)
    ids = prompts(model, 4)
    requests = [HiddenRequest(one, 1, 4) for one in [*ids, *ids[::-1]]]
    requests.append(HiddenRequest(ids[0] + [5], 1, 4))  # the same span after the same tokens
    requests.append(HiddenRequest(ids[0], 2, 4))
    means = collect_means(model, requests)
    assert np.array_equal(means[:4], means[7:3:-1])
    assert np.array_equal(means[8], means[0])
    assert not np.allclose(means[9], means[0], atol=1e-3)
