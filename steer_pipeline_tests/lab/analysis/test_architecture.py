"""Claims about the one description of Llama-, Qwen- and Gemma-like blocks: it is what their own modules do."""

import pytest
import torch

from steer_pipeline.lab.analysis.architecture import Block, NotDescribed, check_block, describe
from steer_pipeline_tests.lab.analysis.conftest import N_BLOCKS, states
from steer_pipeline_tests.tiny import tiny_model_dir


def own(tiny, index, part, given):
    layer = tiny.module.model.layers[index]
    with torch.inference_mode():
        return getattr(layer, part)(given)


def test_every_block_is_described_as_its_own_module_does_it(tiny):
    for index in range(N_BLOCKS):
        check_block(tiny.base_block(index))


def test_parts_are_those_of_the_whole_model(tiny):
    """Against the model's forward on tokens, not through `check_block`: norms, rotary positions, caps and windows."""
    ids = torch.arange(5, 29)[None]
    with torch.inference_mode():
        hidden = tiny.module(ids, output_hidden_states=True).hidden_states
    for index in range(N_BLOCKS - 1):  # the last one is given after the final norm
        got = tiny.base_block(index).output(hidden[index][0])
        assert torch.allclose(got, hidden[index + 1][0], rtol=1e-4, atol=1e-3)


def test_a_direction_at_the_output_of_a_block_is_what_the_next_one_reads(tiny):
    """The output of block L is the input of block L + 1: there is no off-by-one to get wrong."""
    ids = torch.arange(5, 17)[None]
    seen = {}
    layers = tiny.module.model.layers
    with torch.inference_mode():
        hooks = [layers[1].register_forward_hook(lambda _m, _i, out: seen.update(out=out))]
        hooks.append(layers[2].register_forward_pre_hook(lambda _m, args: seen.update(into=args[0])))
        tiny.module(ids)
    for hook in hooks:
        hook.remove()
    out = seen["out"][0] if isinstance(seen["out"], tuple) else seen["out"]
    assert torch.equal(out.reshape(-1), seen["into"].reshape(-1))


def test_norms_add_one_to_weights_where_the_model_does(tiny):
    block = tiny.base_block()
    given = states(5)
    assert block.architecture.plus_one == (1.0 if tiny.arch.startswith("gemma") else 0.0)
    assert torch.allclose(
        block.normed(given, "attention"), own(tiny, 2, "input_layernorm", given), rtol=1e-5, atol=1e-6
    )


def test_affinities_have_scaling_caps_and_rotary_positions(tiny):
    """Against the eager attention of the whole model: weights of the last position are the softmax of our logits."""
    ids = torch.arange(5, 17)[None]
    with torch.inference_mode():
        found = tiny.module(ids, output_hidden_states=True, output_attentions=True)
    block, stream = tiny.base_block(), found.hidden_states[2][0]
    last = len(stream) - 1
    logits = torch.cat(
        [block.affinities(stream[last:], stream[[k]], last - k)[:, 0] for k in range(len(stream))], dim=1
    )
    assert torch.allclose(logits.softmax(-1), found.attentions[2][0, :, last], atol=1e-4)
    pairs = block.affinity(stream[:3], stream[3:6], 4)
    every = block.affinities(stream[:3], stream[3:6], 4)
    assert torch.allclose(pairs, every.diagonal(dim1=1, dim2=2), atol=1e-5)


def test_distance_matters_and_only_the_distance(tiny):
    block, (query, key) = tiny.base_block(), states(2).split(1)
    near, far = (block.affinities(query, key, distance) for distance in (1, 40))
    assert not torch.allclose(near, far, rtol=1e-2)
    moved = (block.queries(query, torch.tensor([47])), block.keys(key, torch.tensor([7])))
    logits = torch.einsum("nhd,mhd->hnm", *moved) * block.scaling
    if block.softcap:
        logits = torch.tanh(logits / block.softcap) * block.softcap
    assert torch.allclose(far, logits, atol=1e-4)


def test_heads_add_up_to_what_attention_writes(tiny):
    block, given = tiny.base_block(), states(7)
    assert torch.allclose(block.head_writes(given).sum(1), block.written(given), rtol=1e-4, atol=1e-4)
    assert torch.allclose(block.attention(given[:1]), block.written(given[:1]), rtol=1e-4, atol=1e-4)


def test_a_mixture_of_experts_is_refused_by_name(tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tiny_model_dir(tmp_path, "qwen3_moe")
    layer = AutoModelForCausalLM.from_pretrained(folder).model.layers[0]
    with pytest.raises(NotDescribed, match=r"mlp\.gate_proj"):
        Block(describe(AutoConfig.from_pretrained(folder)), 0, layer.state_dict())


def test_a_block_that_computes_otherwise_is_refused(qwen):
    block = qwen.base_block(1)
    block.scaling *= 1.1
    with pytest.raises(NotDescribed, match="attention of block 1 differs"):
        check_block(block)
