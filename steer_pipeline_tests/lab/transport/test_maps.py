"""Maps between spaces: what was planted comes back, and what cannot be carried is refused."""

import numpy as np
import pytest

from steer_pipeline.lab.transport import MapError, fit_map, random_rotation
from steer_pipeline.lab.transport.maps import WAYS


def states(n: int = 400, width: int = 24, seed: int = 1) -> np.ndarray:
    """Correlated states with a mean, as residual streams are."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, width)) @ rng.standard_normal((width, width)) + 3.0


def test_procrustes_recovers_a_planted_rotation_exactly():
    x, planted = states(), random_rotation(24, 24, 5).matrix
    made = fit_map("procrustes", x, 2.5 * x @ planted + 1.0)
    assert np.allclose(made.matrix, planted, atol=1e-8)
    assert made.rank == 24
    assert made.scale == pytest.approx(2.5)
    fresh = states(seed=1)[:50]
    fit = made.judged(fresh, 2.5 * fresh @ planted + 1.0)
    assert (fit.r2, fit.cosine, fit.n) == (pytest.approx(1.0), pytest.approx(1.0), 50)


@pytest.mark.parametrize(("narrow", "wide"), [(16, 24), (24, 16)])
def test_widths_may_differ_and_lengths_are_kept_as_far_as_the_narrower_space_has_room(narrow, wide):
    rng = np.random.default_rng(0)
    x, planted = rng.standard_normal((4000, narrow)), random_rotation(narrow, wide, 6).matrix
    made = fit_map("procrustes", x, x @ planted)
    assert made.matrix.shape == (narrow, wide)
    assert made.rank == 16
    # W W' or W' W is the identity of the narrower space
    small = made.matrix @ made.matrix.T if narrow < wide else made.matrix.T @ made.matrix
    assert np.allclose(small, np.eye(16), atol=1e-8)
    direction = rng.standard_normal(narrow)
    expected = direction @ planted
    cosine = float(made.carry(direction) @ expected / np.linalg.norm(expected))
    assert cosine > 0.99


def test_the_subspace_carries_what_lies_in_it_and_drops_the_rest():
    rng = np.random.default_rng(2)
    basis = np.linalg.qr(rng.standard_normal((24, 24)))[0]
    x = (rng.standard_normal((300, 4)) * [8, 6, 5, 4]) @ basis[:, :4].T
    x += 1e-3 * rng.standard_normal(x.shape)
    planted = random_rotation(24, 30, 7).matrix
    made = fit_map("subspace", x, x @ planted, components=4)
    assert made.rank == 4
    inside = basis[:, 1]
    assert float(made.carry(inside) @ (inside @ planted)) == pytest.approx(1.0, abs=1e-3)
    exact = fit_map("subspace", x @ basis[:, :4] @ basis[:, :4].T, x @ planted, components=4)
    with pytest.raises(MapError, match="keep more components"):
        exact.carry(basis[:, 10])


def test_ridge_learns_any_linear_map_between_different_widths():
    rng = np.random.default_rng(12)
    x, planted = states(600), rng.standard_normal((24, 40))
    made = fit_map("ridge", x, x @ planted + 0.01 * rng.standard_normal((600, 40)))
    assert made.judged(x, x @ planted).r2 > 0.999
    sheared = rng.standard_normal(24)
    assert float(made.carry(sheared) @ (sheared @ planted)) / np.linalg.norm(sheared @ planted) > 0.99


def test_ridge_on_fewer_rows_than_dimensions_stays_finite_and_beats_nothing_on_noise():
    x, y = states(20, 64), np.random.default_rng(9).standard_normal((20, 8))
    made = fit_map("ridge", x, y)
    assert np.isfinite(made.matrix).all()
    fresh = states(20, 64, seed=4)
    assert made.judged(fresh, np.random.default_rng(10).standard_normal((20, 8))).r2 < 0.2


def test_embeddings_are_fitted_on_tokens_and_judged_on_states():
    rng = np.random.default_rng(0)
    planted = random_rotation(24, 24, 8).matrix
    tokens, x = rng.standard_normal((500, 24)), states()
    made = fit_map("embeddings", x, x @ planted, embeddings=(tokens, tokens @ planted))
    assert np.allclose(made.matrix, planted, atol=1e-8)
    assert made.judged(x, x @ planted).r2 == pytest.approx(1.0)
    with pytest.raises(MapError, match="give `embeddings`"):
        fit_map("embeddings", x, x)


def test_random_rotations_are_orthogonal_and_know_nothing():
    rng = np.random.default_rng(0)
    one = random_rotation(64, 48, 1)
    assert np.allclose(one.matrix.T @ one.matrix, np.eye(48), atol=1e-8)
    direction, native = rng.standard_normal(64), rng.standard_normal(48)
    native /= np.linalg.norm(native)
    cosines = [float(random_rotation(64, 48, seed).carry(direction) @ native) for seed in range(200)]
    assert abs(np.mean(cosines)) < 0.05
    assert np.std(cosines) == pytest.approx(48**-0.5, rel=0.2)


def test_unrelated_states_give_a_fit_of_nothing():
    for way in set(WAYS) - {"embeddings"}:
        made = fit_map(way, states(2000, 12), np.random.default_rng(3).standard_normal((2000, 12)))
        judged = made.judged(states(500, 12, seed=1), np.random.default_rng(11).standard_normal((500, 12)))
        assert abs(judged.r2) < 0.05, way


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        (np.ones((5, 3)), np.ones((4, 3)), "of the same n texts"),
        (np.ones((2, 3)), np.ones((2, 3)), "at least 3"),
        (np.array([[1.0, np.nan], [1, 2], [3, 4]]), np.ones((3, 2)), "row 0 of the source"),
    ],
)
def test_unusable_states_are_refused(x, y, said):
    with pytest.raises(MapError, match=said):
        fit_map("procrustes", x, y)


def test_a_direction_of_another_width_and_an_unknown_way_are_refused():
    with pytest.raises(MapError, match="width 24"):
        fit_map("procrustes", states(), states()).carry(np.ones(5))
    with pytest.raises(MapError, match="there is procrustes"):
        fit_map("magic", states(), states())
