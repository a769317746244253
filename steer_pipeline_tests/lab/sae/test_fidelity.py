"""Reconstruction and loss of autoencoders whose numbers are known: perfect, constant, empty."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from steer_pipeline.catalogue.specs import ModelSpec
from steer_pipeline.lab.finetune.data import TextRow, encode_examples
from steer_pipeline.lab.models.hidden import each_states, sequence_nll
from steer_pipeline.lab.models.loading import load_model
from steer_pipeline.lab.models.sites import Site
from steer_pipeline.lab.sae.claims import is_sparse, reconstructs
from steer_pipeline.lab.sae.dictionary import Sae, SaeError
from steer_pipeline.lab.sae.features import shared_prefix
from steer_pipeline.lab.sae.fidelity import fidelity
from steer_pipeline_tests.tiny import SENTENCES, tiny_model_dir

HIDDEN = 64


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tiny_model_dir(tmp_path_factory.mktemp("model"), "llama")
    return load_model(ModelSpec(path=str(folder), dtype="float32", device="cpu"), folder)


@pytest.fixture(scope="module")
def rows(model):
    return encode_examples(
        model.tokenizer, [TextRow(f"r{i}", SENTENCES[i], SENTENCES[i + 1]) for i in range(5)]
    )


def pairs(site, scale=1.0, bias=None):
    """Each number of a state as two features, its positive and its negative part: nothing is lost."""
    eye = torch.eye(HIDDEN)
    both = torch.cat([eye, -eye])
    bias = torch.zeros(HIDDEN) if bias is None else bias
    return Sae(both.T.clone(), both * scale, torch.zeros(2 * HIDDEN), bias, centred=False, site=site)


@pytest.mark.parametrize("site", [Site(1), Site(1, "mlp"), Site(3)])
def test_a_lossless_autoencoder_explains_and_recovers_everything(model, rows, site):
    found = fidelity(model, pairs(site), rows, seed=0)
    assert found.explained.estimate == pytest.approx(1.0, abs=1e-6)
    assert found.recovered.estimate == pytest.approx(1.0, abs=1e-3)
    assert found.l0.estimate == pytest.approx(HIDDEN, abs=0.01)
    assert found.dead == 0.0
    assert reconstructs(found).passed


def test_zeros_recover_nothing_and_the_mean_explains_nothing(model, rows):
    zeros = fidelity(model, pairs(Site(1), scale=0.0), rows, seed=0)
    assert zeros.recovered.estimate == pytest.approx(0.0, abs=1e-3)
    begin = shared_prefix(rows)
    states = torch.cat([own[begin:] for _, own in each_states(model, [list(one.ids) for one in rows], 1)])
    mean = fidelity(model, pairs(Site(1), scale=0.0, bias=states.mean(dim=0)), rows, seed=0)
    assert mean.explained.estimate == pytest.approx(0.0, abs=1e-4)
    assert not reconstructs(mean).passed
    half = fidelity(model, pairs(Site(1), scale=0.5, bias=states.mean(dim=0) / 2), rows, seed=0)
    assert half.explained.estimate == pytest.approx(0.75, abs=1e-4)


def test_losses_are_those_of_the_rows_own_tokens(model, rows):
    begin = shared_prefix(rows)
    assert begin > 1
    sums, counts = sequence_nll(model, [list(one.ids) for one in rows], [begin] * len(rows))
    found = fidelity(model, pairs(Site(1)), rows, seed=0).rows
    np.testing.assert_allclose(found["nll"].to_numpy(), sums, rtol=1e-4)
    assert found["n_tokens"].to_list() == counts.tolist()


def test_many_active_or_dead_features_are_told(model, rows):
    dense = fidelity(model, pairs(Site(1)), rows, seed=0)
    assert not is_sparse(dense, 2 * HIDDEN, trained=True).passed
    sae = pairs(Site(1))
    never = torch.zeros(2 * HIDDEN)
    never[HIDDEN:] = -1e6
    few = replace(sae, encoder_bias=never, activation="topk", k=4)
    sparse = fidelity(model, few, rows, seed=0)
    assert sparse.l0.estimate == 4.0
    assert is_sparse(sparse, 2 * HIDDEN, trained=False).passed
    assert 0.5 <= sparse.dead < 1
    assert not is_sparse(sparse, 2 * HIDDEN, trained=True).passed
    seen = fidelity(model, few, rows, seed=0, density=(np.ones(2 * HIDDEN), 1000))
    assert seen.dead == 0.0
    assert seen.dead_tokens == sparse.dead_tokens + 1000


def test_one_row_is_too_few(model, rows):
    with pytest.raises(SaeError, match="an interval needs two"):
        fidelity(model, pairs(Site(1)), rows[:1], seed=0)
