"""A small sparse autoencoder of one's own: what it finds is known, because states are made of known directions."""

import numpy as np
import pytest
import torch

from steer_pipeline.catalogue.sae import SaeTrainingSpec
from steer_pipeline.lab.finetune.data import Example
from steer_pipeline.lab.models.sites import Site
from steer_pipeline.lab.sae import training
from steer_pipeline.lab.sae.dictionary import SaeError
from steer_pipeline.lab.sae.features import shared_prefix
from steer_pipeline.lab.sae.formats import read_sae, write_sae
from steer_pipeline.lab.sae.training import train_sae

HIDDEN, PLANTED, ACTIVE = 16, 24, 2
SHORT = {"epochs": 2}
SPEC = SaeTrainingSpec(expansion=2.0, l0=ACTIVE, epochs=12, batch_tokens=128, learning_rate=1e-2, seed=3)


def planted(n=2000, seed=0, offset=3.0):
    """States [n, HIDDEN] that are sums of ACTIVE of PLANTED unit directions, off the origin, and the directions."""
    random = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(
        torch.randn(PLANTED, HIDDEN, generator=torch.Generator().manual_seed(9)), dim=1
    )
    which = torch.stack([torch.randperm(PLANTED, generator=random)[:ACTIVE] for _ in range(n)])
    sizes = 1 + torch.rand(n, ACTIVE, generator=random)
    return offset + (directions[which] * sizes[..., None]).sum(dim=1), directions


@pytest.fixture(scope="module")
def made():
    return train_sae(planted()[0], SPEC, Site(1))


def test_planted_directions_are_found_and_unseen_states_explained(made):
    states, directions = planted(seed=1)
    found = (directions @ made.sae.decoder.T).max(dim=1).values
    assert (found > 0.9).float().mean() > 0.8  # a random decoder's best are about 0.6
    left = (states - made.sae.reconstruct(states)).pow(2).sum()
    assert 1 - left / (states - states.mean(dim=0)).pow(2).sum() > 0.9
    assert ((made.sae.encode(states) > 0).sum(dim=1) <= ACTIVE).all()


def test_thresholds_hold_the_number_of_features_on_unseen_states():
    sae = train_sae(planted()[0], SPEC.model_copy(update={"kind": "jumprelu"}), Site(1)).sae
    states, directions = planted(seed=1)
    active = (sae.encode(states) > 0).sum(dim=1).float()
    assert sae.activation == "jumprelu"
    assert abs(float(active.mean()) - ACTIVE) < 0.3
    assert active.std() > 0  # a token has as many as it needs
    assert (directions @ sae.decoder.T).max(dim=1).values.median() > 0.9


def test_the_same_states_and_seed_give_the_same_bytes(tmp_path):
    spec = SPEC.model_copy(update=SHORT)
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        write_sae(
            train_sae(planted()[0], spec.model_copy(update={"seed": seed}), Site(1)).sae, tmp_path / name
        )
    one, two, other = (
        (tmp_path / name / "sae_weights.safetensors").read_bytes() for name in ("one", "two", "other")
    )
    assert one == two
    assert one != other


def test_features_are_lengths_along_unit_directions_whatever_the_units_of_states(made, tmp_path):
    torch.testing.assert_close(made.sae.decoder.norm(dim=1), torch.ones(made.sae.n_features))
    spec, some = SPEC.model_copy(update=SHORT), planted(n=50, seed=2)[0]
    small, large = (train_sae(planted()[0] * unit, spec, Site(1)).sae for unit in (1, 64))
    torch.testing.assert_close(large.encode(some * 64), small.encode(some) * 64, rtol=1e-2, atol=0.5)
    write_sae(made.sae, tmp_path)
    assert torch.equal(read_sae(tmp_path).encode(some), made.sae.encode(some))


@pytest.mark.parametrize("weight", [0.0, training._AUXILIARY])
def test_only_the_auxiliary_loss_moves_features_that_never_win(monkeypatch, weight):
    monkeypatch.setattr(training, "_AUXILIARY", weight)
    states = planted()[0]
    learner = training._Learner(states, SPEC, 32, "cpu")
    with torch.no_grad():
        learner.encoder_bias[:8] -= 2.5  # above zero now and then, never among the largest
        learner.silent[:8] = 1e9
        before = learner.encoder[:, :8].clone()
    for batch in states[:640].split(128):
        learner.step(batch, 1.0)
    assert torch.equal(before, learner.encoder[:, :8]) == (weight == 0.0)


def test_density_is_the_share_of_tokens_and_the_history_tells_the_way(made):
    states = planted()[0]
    active = (made.sae.encode(states) > 0).double().mean(dim=0).numpy()
    np.testing.assert_allclose(made.density, active)
    unexplained = made.history["unexplained"].to_list()
    assert made.history["step"][-1] == SPEC.epochs * 16
    assert unexplained[-1] < unexplained[0] / 2


@pytest.mark.parametrize(
    "states, changes, message",
    [
        (torch.ones(100, 16), {}, "do not vary"),
        (planted(n=100)[0], {"l0": 33}, "l0 33 of 32 features"),
        (planted(n=100)[0].index_fill(0, torch.tensor([7]), float("inf")), {}, "vary|loss"),
    ],
)
def test_what_cannot_be_trained_is_told(states, changes, message):
    with pytest.raises(SaeError, match=message):
        train_sae(states, SPEC.model_copy(update=changes), Site(1))


def test_a_beginning_that_all_rows_share_counts_once():
    rows = [Example(str(i), (1, 2, 3, *tail), 3) for i, tail in enumerate([(4, 5), (4, 6), (4,)])]
    assert shared_prefix(rows) == 3  # the last position of the shortest row is its own
    assert shared_prefix([Example("a", (1, 2), 1), Example("b", (3, 2), 1)]) == 1
    assert shared_prefix(rows[:1]) == 4
