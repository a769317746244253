"""What the extraction benchmark compares is the same quantity, and it says how to get what it lacks."""

import numpy as np
import pytest
import torch

from benchmarks import bench_extract
from benchmarks.models import profile_for
from steer_pipeline_tests.lab.generation.reference import loaded
from steer_pipeline_tests.tiny import SENTENCES

PAIRS = list(zip(SENTENCES[::2], SENTENCES[1::2], strict=True))


def transformers_states(model):
    """[2 * pairs, blocks, hidden] at the last token, by transformers' own hidden states."""
    rows = []
    for text in (text for pair in PAIRS for text in pair):
        ids = torch.tensor([model.tokenizer(text).input_ids])
        with torch.inference_mode():
            states = model.module(ids, output_hidden_states=True).hidden_states[1:]
        rows.append(torch.stack([one[0, -1] for one in states]).numpy())
    return np.stack(rows)


@pytest.mark.parametrize("arch", ["qwen3", "gemma"])
def test_our_states_with_the_last_block_normed_are_those_that_repeng_reads(tmp_path, arch):
    model = loaded(tmp_path, arch)
    expected = transformers_states(model)
    states = bench_extract.last_states(model, PAIRS)
    assert not np.allclose(states[:, -1], expected[:, -1], atol=1e-2)
    assert np.allclose(bench_extract.as_repeng_reads(model, states), expected, atol=2e-3)
    mean = bench_extract.ours(model, PAIRS, "mean_difference", blocks=[1])[0]
    assert np.allclose(mean, (expected[::2, 1] - expected[1::2, 1]).mean(0), atol=1e-3)


def test_the_worst_block_decides_and_a_turned_direction_counts_only_where_signs_are_free():
    a = np.eye(3, 4)
    b = a.copy()
    b[1] = [0, -1, 1, 0]
    assert bench_extract.least_cosine(a, b, signed=True) == pytest.approx(-(0.5**0.5))
    assert bench_extract.least_cosine(a, b, signed=False) == pytest.approx(0.5**0.5)


def test_packages_that_cannot_be_installed_are_named_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_extract, "PACKAGES", tmp_path / "packages")
    failed = type("Done", (), {"returncode": 1})
    monkeypatch.setattr(bench_extract.subprocess, "run", lambda *_args, **_kwargs: failed)
    with pytest.raises(SystemExit, match="pip install .*--no-deps --target .*repeng==0.4.0"):
        bench_extract.install()


def test_another_model_gets_a_site_at_half_its_depth_and_may_read_the_newsrooms_dialogues(
    tmp_path, monkeypatch
):
    newsroom = profile_for("newsroom")
    assert (newsroom.training.block, newsroom.behaviour.allow_other_model) == (2, False)
    monkeypatch.setattr("benchmarks.models.install_smollm2", lambda home: tmp_path)
    for name in ("smollm2", str(tmp_path)):
        profile = profile_for(name)
        assert profile.model.path == str(tmp_path)
        assert (profile.training.block, profile.behaviour.allow_other_model) == (0.5, True)
