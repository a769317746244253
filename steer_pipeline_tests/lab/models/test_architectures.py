"""Claims about every architecture: both paths read and generate as plain transformers with hooks does."""

from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
import torch

from steer_pipeline.catalogue.specs import ModelSpec, SamplingSpec
from steer_pipeline.lab.generation.engine import generate
from steer_pipeline.lab.generation.jobs import PromptRow
from steer_pipeline.lab.generation.probe import probe_steering
from steer_pipeline.lab.models import plain as plain_path
from steer_pipeline.lab.models import proof
from steer_pipeline.lab.models.blocks import blocks_of
from steer_pipeline.lab.models.hidden import (
    HiddenRequest,
    answer_logits,
    collect_means,
    each_states,
    mean_kl,
    residual_norms,
    sequence_nll,
)
from steer_pipeline.lab.models.hooks import hooked as steered_outside
from steer_pipeline.lab.models.identity import ModelLoadError
from steer_pipeline.lab.models.loading import load_model
from steer_pipeline.lab.models.plain import find_blocks, plain_of
from steer_pipeline.lab.models.sites import SteeringPlan
from steer_pipeline_tests.lab.generation.reference import term
from steer_pipeline_tests.lab.models.architectures import SHAPES, architecture_dir

NEW = 4
GREEDY = SamplingSpec(temperature=0.0, max_new_tokens=NEW)
# Written out, not what the package finds by itself.
BLOCKS = {
    **dict.fromkeys(("gpt2", "gpt_bigcode", "gpt_neo", "gptj", "falcon", "bloom"), "transformer.h"),
    "bloom_windowed": "transformer.h",
    "rwkv": "rwkv.blocks",
    "gpt_neox": "gpt_neox.layers",
    "opt": "model.decoder.layers",
    "mamba": "backbone.layers",
}
GENERAL = [name for name, shape in SHAPES.items() if shape[1] == "torch-plain"]


def loaded(name, tmp_path):
    return load_model(ModelSpec(path=str(architecture_dir(name)), device="cpu"), tmp_path)


def plans(scope="all"):
    return [
        SteeringPlan("base"),
        SteeringPlan("up", (term(0, 4.0, hidden=32), term(1, 3.0, 1, hidden=32)), scope),
        SteeringPlan("down", (term(1, -6.0, hidden=32),), scope),
    ]


def rows(lengths=(9, 40)):
    """Ids of different lengths: within and beyond the windows and chunks of 16."""
    return [[(37 * i + 11 * n) % 400 + 5 for i in range(n)] for n in lengths]


def layers(model, name):
    return model.module.get_submodule(BLOCKS.get(name, "model.layers"))


def hooked(model, name, plan, begin, seen=None):
    """Adds a plan's vectors at block outputs, everywhere or from position `begin` on; keeps what comes out."""
    stack = ExitStack()

    def hook(block):
        delta = sum(
            (
                torch.from_numpy(np.float32(one.alpha) * one.unit)
                for one in plan.terms
                if one.site.block == block
            ),
            torch.zeros(32),
        )

        def change(_module, _inputs, output):
            whole = output[0] if isinstance(output, tuple) else output
            first = whole[0] if whole.ndim == 4 else whole  # Gemma 3n: the active one of several predictions
            at = torch.arange(first.shape[1])
            first = first + delta * ((at >= begin) | (plan.scope == "all"))[None, :, None]
            if seen is not None:
                seen[block] = first[0]
            whole = torch.cat([first[None], whole[1:]]) if whole.ndim == 4 else first
            return (whole, *output[1:]) if isinstance(output, tuple) else whole

        return change

    for block, layer in enumerate(layers(model, name)):
        stack.callback(layer.register_forward_hook(hook(block)).remove)
    return stack


def logits_of(model, name, ids, plan, begin, seen=None):
    with hooked(model, name, plan, begin, seen), torch.inference_mode():
        return model.module(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()


def greedy(model, name, ids, plan):
    """A loop of whole forward passes without any cache."""
    said = []
    for _ in range(NEW):
        token = int(logits_of(model, name, ids + said, plan, len(ids))[-1].argmax())
        if token in model.eos_ids:
            break
        said.append(token)
    return said


@pytest.mark.parametrize("name", SHAPES)
def test_each_architecture_generates_and_reads_as_plain_transformers_does(name, tmp_path):
    model = loaded(name, tmp_path)
    assert model.backend == SHAPES[name][1]
    assert (model.n_blocks, model.hidden_size) == (len(layers(model, name)), 32)
    prompts = [PromptRow(f"row{i}", {"*": ids}) for i, ids in enumerate(rows())]
    chosen = [*plans()[:2], replace(plans("generated")[1], variant="later")]
    said = {(one.row_id, one.variant): one for one in generate(model, prompts, chosen, GREEDY)}
    for row in prompts:
        for plan in chosen:
            got = said[row.row_id, plan.variant]
            assert got.token_ids == greedy(model, name, row.ids["*"], plan), plan.variant
            assert got.n_prompt_tokens == len(row.ids["*"])

    plan, starts = plans("generated")[1], [4, 30]
    found = collect_means(
        model, [HiddenRequest(ids, s, len(ids) - 1) for ids, s in zip(rows(), starts, strict=True)], plan
    )
    sums, _ = sequence_nll(model, rows(), starts, plan)
    whole = dict(each_states(model, rows(), 1))
    for i, (ids, start) in enumerate(zip(rows(), starts, strict=True)):
        seen: dict = {}
        logits = logits_of(model, name, ids, plan, start, seen)
        for block in range(model.n_blocks):
            expected = seen[block][start : len(ids) - 1].mean(0)
            assert np.allclose(found[i, block], expected, atol=2e-4 * float(expected.abs().max()))
        losses = -logits[start - 1 : -1].log_softmax(-1)[range(len(ids) - start), ids[start:]]
        assert sums[i] == pytest.approx(float(losses.sum()), rel=1e-4)
        logits_of(model, name, ids, SteeringPlan("base"), 0, seen)
        assert torch.allclose(whole[i], seen[1], atol=2e-4 * float(seen[1].abs().max()))


@pytest.fixture
def both_ways(tmp_path):
    """One model on either path."""
    model = loaded("qwen3", tmp_path)
    return model, replace(model, backend="torch-plain")


def every_site():
    kinds = {"output": 4.0, "attention": 4.0, "mlp": -4.0, "logits": 8.0}
    terms = {kind: term(1, dose, hidden=32, kind=kind) for kind, dose in kinds.items()}
    return [
        SteeringPlan(f"{kind} {scope}", (one,), scope)
        for kind, one in terms.items()
        for scope in ("all", "generated")
    ] + [SteeringPlan("several", tuple(terms.values())), SteeringPlan("base")]


def test_both_paths_say_the_same_with_every_site_penalty_and_random_number(both_ways):
    sampling = SamplingSpec(
        temperature=0.9, top_p=0.95, max_new_tokens=8, repetition_penalty=1.2, no_repeat_ngram=2, seed=5
    )
    prompts = [PromptRow(f"row{i}", {"*": ids}) for i, ids in enumerate(rows((9, 40, 21, 9)))]
    both_ways = [replace(model, eos_ids=frozenset(range(20))) for model in both_ways]
    said = [
        {
            (one.row_id, one.variant): (one.token_ids, one.finish_reason)
            for one in generate(model, prompts, every_site(), sampling)
        }
        for model in both_ways
    ]
    assert said[0] == said[1]
    assert len({str(said[0]["row1", plan.variant]) for plan in every_site()}) > 5
    assert len({reason for _, reason in said[0].values()}) == 2


def test_both_paths_read_the_same(both_ways):
    ids, starts = rows((9, 40, 21)), [3, 20, 9]
    requests = [HiddenRequest(one, start, len(one)) for one, start in zip(ids, starts, strict=True)]
    for plan in every_site():
        for kind in ("output", "attention", "mlp"):
            a, b = (collect_means(model, requests, plan, kind=kind, blocks=[1, 0]) for model in both_ways)
            assert np.allclose(a, b, atol=1e-4), (plan.variant, kind)
        for read in (sequence_nll, answer_logits, mean_kl):
            a, b = (read(model, ids, starts, plan) for model in both_ways)
            for one, other in zip(a, b, strict=True):
                assert np.allclose(one, other, atol=1e-3), (plan.variant, read.__name__)
    norms = [residual_norms(model, ids) for model in both_ways]
    assert np.allclose(*norms, rtol=1e-5)
    delta = [
        probe_steering(model, [PromptRow("r", {"*": ids[1]})], every_site()[:1])[0].max_abs_logit_delta
        for model in both_ways
    ]
    assert delta[0] == pytest.approx(delta[1], rel=1e-3)


@pytest.mark.parametrize("budget", [1, 100])
def test_batches_change_nothing_on_the_general_path(tmp_path, budget):
    model = loaded("gpt_neox", tmp_path)
    small = replace(model, spec=model.spec.model_copy(update={"batch_tokens": budget}))
    prompts = [PromptRow(f"row{i}", {"*": ids}) for i, ids in enumerate(rows((9, 40, 21)))]
    sampling = SamplingSpec(temperature=0.8, max_new_tokens=6)
    said = [
        {(one.row_id, one.variant): one.token_ids for one in generate(which, prompts, plans(), sampling)}
        for which in (model, small)
    ]
    assert said[0] == said[1]


@pytest.mark.parametrize("name", ["gpt_neox", "gptj", "phi", "deepseek_v3", "cohere2", "olmo_hybrid"])
def test_sites_inside_of_a_block_add_up_on_the_general_path(tmp_path, name):
    model, requests = loaded(name, tmp_path), [HiddenRequest(ids, 3, len(ids)) for ids in rows()]
    output, attention, mlp = (
        collect_means(model, requests, kind=kind) for kind in ("output", "attention", "mlp")
    )
    change = attention + mlp
    assert np.allclose(output[:, 1:] - output[:, :-1], change[:, 1:], atol=1e-4 * np.abs(output).max())
    for kind, plain in (("attention", attention), ("mlp", mlp)):
        one = term(1, 3.0, hidden=32, kind=kind)
        steered = collect_means(model, requests, SteeringPlan("p", (one,)), kind=kind)
        assert np.allclose(steered[:, 1] - plain[:, 1], np.float32(3.0) * one.unit, atol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "opt", "deepseek_v3"])
def test_a_module_is_steered_from_outside_whatever_path_it_takes(tmp_path, name):
    model, steering = loaded(name, tmp_path), plans()[1]
    (ids,) = rows((21,))
    with steered_outside(model, steering) as module, torch.inference_mode():
        inside = module(input_ids=torch.tensor([ids])).logits[0]
    torch.testing.assert_close(inside, logits_of(model, name, ids, steering, 0), atol=1e-4, rtol=1e-4)


def test_sites_that_a_model_does_not_have_are_refused_in_a_sentence(tmp_path):
    model = loaded("bloom", tmp_path)
    with pytest.raises(ModelLoadError, match="bloom: block 0 adds something else.*site: output"):
        collect_means(model, [HiddenRequest(rows()[0], 0, 5)], kind="mlp")
    plan = SteeringPlan("p", (term(1, 3.0, hidden=32, kind="logits"),))
    with pytest.raises(ValueError, match="site logits: bloom has no RMS norm"):
        sequence_nll(model, rows(), [1, 1], plan)
    with pytest.raises(ModelLoadError, match="its blocks cannot be run one by one"):
        blocks_of(model)


def test_a_model_without_a_list_of_blocks_is_refused_in_a_sentence(tmp_path):
    module = loaded("gpt2", tmp_path).module
    assert [type(one).__name__ for one in find_blocks(module)[0]] == ["GPT2Block"] * 2
    module.config.n_layer = 7
    try:
        with pytest.raises(ModelLoadError, match=r"gpt2 \(GPT2LMHeadModel\): no list of 7 decoder blocks"):
            find_blocks(module)
    finally:
        module.config.n_layer = 2


def test_the_general_path_warns_once_and_is_told_by_the_record(tmp_path, caplog, monkeypatch):
    from steer_pipeline.lab.generation.jobs import decoding_hash

    monkeypatch.setattr(proof, "_verdicts", {})
    known = ("base", "float32", "cpu")
    module = loaded("diffllama", tmp_path).module
    caplog.clear()
    assert proof.path_of(module, "models/mine", known) == proof.path_of(module, "models/mine", known)
    assert [record.message for record in caplog.records if "models/mine (diffllama)" in record.message] != []
    assert len(caplog.records) == 1
    assert "do not each ask attention once" in caplog.text
    model = loaded("qwen3", tmp_path)
    assert decoding_hash(GREEDY, model) != decoding_hash(GREEDY, replace(model, backend="torch-plain"))


def test_a_window_that_stands_in_the_mask_alone_is_found(tmp_path, monkeypatch):
    from transformers.models.qwen3 import modeling_qwen3

    model = loaded("qwen3", tmp_path)
    assert proof.why_not_fast(model.module) == ""
    plain = modeling_qwen3.create_causal_mask

    def narrow(*args, **kwargs):
        return plain(*args, **kwargs, and_mask_function=lambda _b, _h, q, k: q - k < 40)

    monkeypatch.setattr(modeling_qwen3, "create_causal_mask", narrow)
    assert "the states after block 0 differ" in proof.why_not_fast(model.module)


def test_windows_too_long_to_try_are_trusted_by_type(tmp_path, monkeypatch):
    module = loaded("mistral", tmp_path).module
    monkeypatch.setattr(plain_path, "_AFFORDED", {"cpu": 0})
    monkeypatch.setattr(module.config, "sliding_window", 10**9)
    assert proof.why_not_fast(module) == ""
    monkeypatch.setattr(proof, "_TRUSTED", set())
    assert "its window is too long to be tried here" in proof.why_not_fast(module)


def test_rows_on_both_sides_of_the_original_positions_never_share_a_batch(tmp_path):
    model = loaded("longrope", tmp_path)
    ids, starts = rows((9, 90, 47, 46, 30)), [3, 20, 30, 20, 8]
    together = collect_means(
        model, [HiddenRequest(one, s, s + 1) for one, s in zip(ids, starts, strict=True)]
    )
    for i, one in enumerate(ids):
        seen: dict = {}
        logits_of(model, "longrope", one, SteeringPlan("base"), 0, seen)
        assert np.allclose(together[i, 1], seen[1][starts[i]], atol=1e-4)
    prompts = [PromptRow(f"row{i}", {"*": one}) for i, one in enumerate(ids)]
    said = {(one.row_id, one.variant): one.token_ids for one in generate(model, prompts, plans(), GREEDY)}
    for row in prompts:
        for plan in plans():
            assert said[row.row_id, plan.variant] == greedy(model, "longrope", row.ids["*"], plan)


def test_padding_is_trusted_only_where_it_changes_nothing(tmp_path):
    for name, trusted in (("gpt_neox", True), ("opt", True), ("mamba", False), ("longrope", False)):
        plain = plain_of(loaded(name, tmp_path))
        assert (plain.left_padding, plain.right_padding) == (trusted, trusted), name


def test_a_cache_that_changes_what_is_said_is_not_used(tmp_path, caplog):
    assert plain_of(loaded("bloom", tmp_path)).cached
    caplog.clear()
    assert not plain_of(loaded("bloom_windowed", tmp_path)).cached
    assert "bloom: decodes without" in caplog.text


@pytest.mark.parametrize("name", ["gpt2", "qwen3_next"])
def test_broken_weights_are_named_by_row_and_variant_on_the_general_path(tmp_path, name):
    from steer_pipeline.lab.generation.jobs import BrokenLogits

    model = loaded(name, tmp_path)
    weight = next(one for one in layers(model, name)[1].parameters() if one.ndim > 1)
    before = weight.clone()
    weight.fill_(float("nan"))
    try:
        with pytest.raises(BrokenLogits, match="row 'r', variant 'base'"):
            list(generate(model, [PromptRow("r", {"*": rows()[0]})], plans()[:1], GREEDY))
    finally:
        weight.copy_(before)
