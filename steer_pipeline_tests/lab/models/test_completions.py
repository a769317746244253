"""Claims about the likelihood of completions: one shared pass says what a pass for each says, on every architecture."""

import numpy as np
import pytest
import torch

from steer_pipeline.lab.models import completions
from steer_pipeline.lab.models.completions import completion_losses, completion_nll
from steer_pipeline_tests.lab.generation.reference import loaded, prompts
from steer_pipeline_tests.lab.models import test_architectures as architectures


def transformers_nll(model, prompt, completion):
    ids = torch.tensor([[*prompt, *completion]])
    with torch.inference_mode():
        logits = model.module(ids).logits[0].float()
    losses = -logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(1, ids[0, len(prompt) :, None])
    return float(losses.mean())


def branches(model):
    ids = prompts(model)
    return [ids[0], ids[3]], [[one[:length] for one, length in zip(ids[1:], (1, 9, 24), strict=False)]] * 2


@pytest.mark.parametrize("arch", ["qwen3", "llama", "gemma", "gemma2"])
def test_branches_are_as_likely_as_whole_sequences(tmp_path, arch):
    model = loaded(tmp_path, arch)
    asked, answers = branches(model)
    found = completion_nll(model, asked, answers)
    for prompt, own, means in zip(asked, answers, found, strict=True):
        wanted = [transformers_nll(model, prompt, one) for one in own]
        assert np.allclose(means, wanted, atol=2e-3), (means, wanted)


@pytest.mark.parametrize("name", ["gpt2", "gemma3"])
def test_other_paths_and_windows_say_the_same(tmp_path, name):
    model = architectures.loaded(name, tmp_path)
    ids = architectures.rows((40, 9, 33))
    found = completion_nll(model, [ids[0]], [[ids[1], ids[2]]])
    wanted = [transformers_nll(model, ids[0], one) for one in ids[1:]]
    assert np.allclose(found[0], wanted, atol=2e-3)


def test_a_small_room_and_empty_completions_change_nothing(tmp_path, monkeypatch):
    model = loaded(tmp_path, "llama")
    asked, answers = branches(model)
    wanted = completion_nll(model, asked, answers)
    monkeypatch.setitem(completions._ROOM, "cpu", 8)
    found = completion_nll(model, asked, [[[], *own] for own in answers])
    assert all(np.isnan(means[0]) for means in found)
    assert np.allclose([means[1:] for means in found], wanted, atol=1e-4)


def test_an_empty_prompt_is_named(tmp_path):
    model = loaded(tmp_path, "llama")
    with pytest.raises(ValueError, match="prompt 1 has no tokens"):
        completion_nll(model, [[1], []], [[[2]], [[3]]])


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_losses_token_by_token_have_the_means_and_the_lengths(tmp_path, arch):
    model = loaded(tmp_path, arch) if arch == "llama" else architectures.loaded(arch, tmp_path)
    ids = prompts(model) if arch == "llama" else architectures.rows((12, 9, 33))
    found = completion_losses(model, [ids[0]], [[ids[1], [], ids[2]]])[0]
    assert [len(losses) for losses in found] == [len(ids[1]), 0, len(ids[2])]
    assert [found[0].mean(), found[2].mean()] == pytest.approx(
        [transformers_nll(model, ids[0], one) for one in (ids[1], ids[2])], abs=2e-3
    )
    whole = torch.tensor([[*ids[0], *ids[2]]])
    with torch.inference_mode():
        logits = model.module(whole).logits[0, len(ids[0]) - 1].float()
    assert found[2][0] == pytest.approx(float(-logits.log_softmax(-1)[ids[2][0]]), abs=2e-3)
