"""Claims about choices: branches behind a shared beginning say what whole sequences say, steered or not."""

import numpy as np
import pytest
import torch

from steer_pipeline.lab.models import choices
from steer_pipeline.lab.models.choices import next_choices, phrase_choices
from steer_pipeline.lab.models.hidden import answer_logits, sequence_nll
from steer_pipeline_tests.lab.generation.reference import loaded, plans, prompts
from steer_pipeline_tests.lab.models import test_architectures as architectures

OPTIONS = [11, 5, 30]


def sequences(model):
    """Three sequences with a long beginning in common, and a prefill of four tokens each."""
    ids = prompts(model)
    rests = (ids[1][-7:], ids[2][-12:], ids[3][-5:])
    whole = [[*ids[0], *rest, 9, 40, 41, 12] for rest in rests]
    return whole, [len(one) - 4 for one in whole]


def one_at_a_time(model, whole, starts, plan=None):
    """What the readers of whole sequences say."""
    logits = [
        answer_logits(model, [ids], [start], plan)[0][-1] for ids, start in zip(whole, starts, strict=True)
    ]
    logprobs = torch.tensor(np.stack(logits)).double().log_softmax(-1).numpy()
    sums, counts = sequence_nll(model, whole, starts, plan)
    return logprobs, sums / counts


@pytest.mark.parametrize("arch", ["qwen3", "llama", "gemma", "gemma2"])
def test_branches_say_what_whole_sequences_say(tmp_path, arch):
    model = loaded(tmp_path, arch)
    whole, starts = sequences(model)
    found = next_choices(model, whole, starts, OPTIONS)
    logprobs, nll = one_at_a_time(model, whole, starts)
    assert np.allclose(found.logprobs, logprobs[:, OPTIONS], atol=1e-3)
    assert np.allclose(found.prefill_nll, nll, atol=1e-3)
    assert np.allclose(found.mass, np.exp(logprobs[:, OPTIONS]).sum(axis=1), atol=1e-3)
    assert found.is_top.tolist() == [int(row.argmax()) in OPTIONS for row in logprobs]


@pytest.mark.parametrize("scope", ["all", "generated"])
def test_steered_branches_too(tmp_path, scope):
    model = loaded(tmp_path, "llama")
    whole, starts = sequences(model)
    for plan in plans(scope)[2:]:
        found = next_choices(model, whole, starts, OPTIONS, plan)
        logprobs, nll = one_at_a_time(model, whole, starts, plan)
        assert np.allclose(found.logprobs, logprobs[:, OPTIONS], atol=1e-3), plan.variant
        assert np.allclose(found.prefill_nll, nll, atol=1e-3), plan.variant
    base = next_choices(model, whole, starts, OPTIONS)
    assert not np.allclose(found.logprobs, base.logprobs, atol=1e-2)


def test_models_that_run_as_they_are_say_the_same(tmp_path):
    model = architectures.loaded("gpt2", tmp_path)
    whole = architectures.rows((40, 9, 33))
    starts = [len(one) - 4 for one in whole]
    found = next_choices(model, whole, starts, OPTIONS)
    with torch.inference_mode():
        for ids, start, row, nll in zip(whole, starts, found.logprobs, found.prefill_nll, strict=True):
            wanted = model.module(torch.tensor([ids])).logits[0].double().log_softmax(-1)
            assert np.allclose(row, wanted[-1, OPTIONS].numpy(), atol=2e-3)
            said = -wanted[start - 1 : -1].gather(1, torch.tensor(ids[start:])[:, None])
            assert nll == pytest.approx(float(said.mean()), abs=2e-3)


@pytest.mark.parametrize("scope", ["all", "generated"])
@pytest.mark.parametrize("arch", ["qwen3", "gemma"])
def test_phrases_are_as_likely_as_in_whole_sequences(tmp_path, arch, scope):
    model = loaded(tmp_path, arch)
    whole, starts = sequences(model)
    phrases = [[11, 5], [11, 30, 8, 9], [7]]
    for plan in (None, plans(scope)[4]):
        found = phrase_choices(model, whole, starts, phrases, plan)
        beginning = next_choices(model, whole, starts, [7, 11], plan)
        for row, (ids, start) in enumerate(zip(whole, starts, strict=True)):
            # Scope "generated" steers from the prefill on: the sums are taken from there, less the prefill's.
            prefill, _ = sequence_nll(model, [ids], [start], plan)
            sums, _ = sequence_nll(model, [[*ids, *phrase] for phrase in phrases], [start] * 3, plan)
            assert found.logprobs[row] == pytest.approx(prefill - sums, abs=5e-3)
        assert np.allclose(found.mass, beginning.mass, atol=1e-4)
        assert np.allclose(found.prefill_nll, beginning.prefill_nll, atol=1e-3)
        assert found.is_top.tolist() == beginning.is_top.tolist()


def test_little_room_changes_nothing(tmp_path, monkeypatch):
    model = loaded(tmp_path, "llama")
    whole, starts = sequences(model)
    wanted = next_choices(model, whole, starts, OPTIONS)
    monkeypatch.setitem(choices._ROOM, "cpu", 8)
    assert np.allclose(next_choices(model, whole, starts, OPTIONS).logprobs, wanted.logprobs, atol=1e-4)


def test_what_cannot_be_read_is_named(tmp_path):
    model = loaded(tmp_path, "llama")
    with pytest.raises(ValueError, match="sequence 1: start 0 of 2 tokens"):
        next_choices(model, [[1, 2], [3, 4]], [1, 0], OPTIONS)
    with pytest.raises(ValueError, match="each token may be given once"):
        next_choices(model, [[1, 2]], [1], [4, 4])
    with pytest.raises(ValueError, match="a phrase has no tokens"):
        phrase_choices(model, [[1, 2]], [1], [[4], []])
