"""Claims about the sampler: transformers' processors, keyed numbers, draws from the filtered distribution."""

import numpy as np
import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from steer_pipeline.catalogue.specs import SamplingSpec
from steer_pipeline.lab.generation import sampler
from steer_pipeline.lab.generation.sampler import History, filtered, pick, stream_key, uniforms


@pytest.fixture
def logits():
    return torch.randn(40, 700, generator=torch.Generator().manual_seed(0)) * 3


@pytest.fixture
def history():
    return torch.randint(0, 12, (40, 30), generator=torch.Generator().manual_seed(1))


def counts_of(history):
    return History.start(
        SamplingSpec(presence_penalty=1, penalty_scope="prompt_and_generated"), history.tolist(), 700, "cpu"
    ).counts


def test_temperature_and_filters_are_those_of_transformers(logits):
    assert torch.equal(sampler.temperature(logits, 0.7), TemperatureLogitsWarper(0.7)(None, logits))
    for k in (1, 5, 699, 2000):
        assert torch.equal(sampler.top_k(logits, k), TopKLogitsWarper(k)(None, logits))
    for p in (0.05, 0.5, 0.9, 0.999):
        assert torch.equal(sampler.top_p(logits, p), TopPLogitsWarper(p)(None, logits))
        assert torch.equal(sampler.min_p(logits, p), MinPLogitsWarper(p)(None, logits))


def test_repetition_and_ngram_guards_are_those_of_transformers(logits, history):
    ours = sampler.repetition_penalty(logits, counts_of(history), 1.3)
    assert torch.equal(ours, RepetitionPenaltyLogitsProcessor(1.3)(history, logits))
    for n in (1, 2, 3):
        assert torch.equal(
            sampler.no_repeat_ngram(logits, history, n), NoRepeatNGramLogitsProcessor(n)(history, logits)
        )
    padded = torch.cat([torch.full((40, 9), -1), history], dim=1)
    assert torch.equal(
        sampler.no_repeat_ngram(logits, padded, 2), sampler.no_repeat_ngram(logits, history, 2)
    )


def test_frequency_and_presence_penalties_count(logits, history):
    row, counts = history[0], counts_of(history)
    token = int(row[0])
    times = int((row == token).sum())
    assert sampler.frequency_penalty(logits, counts, 0.2)[0, token] == logits[0, token] - 0.2 * times
    assert sampler.presence_penalty(logits, counts, 0.2)[0, token] == logits[0, token] - 0.2
    assert torch.equal(sampler.presence_penalty(logits, counts, 0.2)[:, 12:], logits[:, 12:])


def test_history_of_generated_text_knows_nothing_of_the_prompt():
    spec = SamplingSpec(repetition_penalty=1.5)
    history = History.start(spec, [[1, 2], [3]], 10, "cpu")
    assert not history.counts.any()
    history.add(torch.tensor([4, 5]))
    assert history.counts.nonzero().tolist() == [[0, 4], [1, 5]]
    assert History.start(SamplingSpec(), [[1]], 10, "cpu") is None


@pytest.mark.parametrize(
    "spec",
    [
        SamplingSpec(temperature=0.7, top_p=0.9),
        SamplingSpec(temperature=3.0, top_p=0.99),
        SamplingSpec(temperature=1.0, top_p=1.0),
        SamplingSpec(temperature=2.0, top_p=1.0, top_k=50),
        SamplingSpec(temperature=2.0, top_p=0.8, top_k=400, min_p=0.01),
        SamplingSpec(temperature=4.0, top_p=1.0, min_p=0.05),
    ],
)
def test_a_draw_is_the_inverse_cdf_of_the_filtered_distribution(logits, spec):
    draws = torch.from_numpy(np.random.default_rng(0).random((50, 40)))
    probabilities = filtered(logits, spec).double().softmax(-1)
    ordered, ids = probabilities.sort(dim=-1, descending=True, stable=True)
    edges = ordered.cumsum(-1)
    for one in draws:
        at = (edges <= one[:, None] * edges[:, -1:]).sum(-1)
        assert torch.equal(pick(logits, one, spec), ids.gather(1, at[:, None])[:, 0])


def test_draws_have_the_right_frequencies():
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05])).repeat(20_000, 1)
    keys = np.full(20_000, stream_key(1, "row", "base"), dtype=np.uint64)
    draws = torch.from_numpy(uniforms(keys, np.arange(20_000, dtype=np.uint64)))
    spec = SamplingSpec(temperature=1.0, top_p=0.9)  # the crossing token (0.15) stays, the last goes
    shares = torch.bincount(pick(logits, draws, spec), minlength=4) / 20_000
    assert torch.allclose(shares, torch.tensor([0.5, 0.3, 0.15, 0.0]) / 0.95, atol=0.012)


def test_ties_and_neighbours_do_not_matter(logits):
    tied = (logits * 2).round() / 2
    spec = SamplingSpec(temperature=1.0, top_p=0.9)
    draws = torch.rand(40, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    together = pick(tied, draws, spec)
    alone = torch.cat([pick(tied[i : i + 1], draws[i : i + 1], spec) for i in range(40)])
    assert torch.equal(together, alone)


def test_greedy_takes_the_largest(logits):
    assert torch.equal(pick(logits, torch.zeros(40), SamplingSpec(temperature=0)), logits.argmax(-1))


def test_numbers_are_uniform_and_keyed():
    keys = np.array([stream_key(20, f"row{i}", "base") for i in range(200)], dtype=np.uint64)
    grid = np.stack([uniforms(keys, np.full(200, step, dtype=np.uint64)) for step in range(100)])
    assert grid.min() >= 0
    assert grid.max() < 1
    assert abs(grid.mean() - 0.5) < 0.01
    assert abs(grid.var() - 1 / 12) < 0.003
    assert abs(np.corrcoef(grid[:-1].ravel(), grid[1:].ravel())[0, 1]) < 0.03
    assert abs(np.corrcoef(grid[:, :-1].ravel(), grid[:, 1:].ravel())[0, 1]) < 0.03
    assert np.unique(grid).size == grid.size
    assert len({stream_key(20, "a", "base"), stream_key(21, "a", "base"), stream_key(20, "a", "b")}) == 3
