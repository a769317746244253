"""Claims about nulls: directions have the states' covariance, and a value's place among theirs is calibrated."""

import numpy as np
import pytest

from steer_pipeline.catalogue.specs import ModelSpec
from steer_pipeline.lab.analysis.nulls import isotropic_directions, matched_directions, placed, states_of
from steer_pipeline.lab.models.hidden import HiddenRequest, collect_means, span_means
from steer_pipeline.lab.models.loading import load_model
from steer_pipeline_tests.tiny import tiny_model_dir


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    base = tiny_model_dir(tmp_path_factory.mktemp("nulls"))
    return load_model(ModelSpec(path=str(base), device="cpu"), base.parent)


def test_spans_are_the_means_of_their_positions_and_missing_ones_are_nan(model):
    sequences = [list(range(5, 25)), list(range(40, 46)), [7, 8]]
    found = span_means(model, sequences, [(0, 1), (1, 4), (4, 1000)])
    for row, ids in enumerate(sequences):
        for i, (start, stop) in enumerate([(0, 1), (1, 4), (4, len(ids))]):
            if start >= len(ids):
                assert np.isnan(found[row, i]).all()
            else:
                expected = collect_means(model, [HiddenRequest(ids, start, min(stop, len(ids)))])[0]
                np.testing.assert_allclose(found[row, i], expected, atol=2e-5)
    only = span_means(model, sequences, [(1, 2)], blocks=[2])
    np.testing.assert_allclose(only[:, 0, 0], span_means(model, sequences, [(1, 2)])[:, 0, 2], atol=2e-5)


def test_a_span_or_block_that_is_not_there_is_told(model):
    with pytest.raises(ValueError, match=r"span \(3, 3\)"):
        span_means(model, [[1, 2, 3]], [(3, 3)])
    with pytest.raises(ValueError, match="blocks"):
        span_means(model, [[1, 2, 3]], [(0, 1)], blocks=[9])


def test_states_leave_out_each_texts_first_position(model):
    sequences = [list(range(5, 25)), list(range(40, 46))]
    states = states_of(model, sequences, blocks=[1])[:, 0]
    first = span_means(model, sequences, [(0, 1)], blocks=[1])[:, 0, 0]
    assert np.abs(states[:, None] - first[None]).max(-1).min() > 1e-3
    assert len(states) > 16  # those of the long text, and some of the short one


def test_matched_directions_have_the_covariance_of_the_states():
    rng = np.random.default_rng(0)
    states = rng.normal(size=(400, 12)) * np.array([5.0, 2.0] + [0.2] * 10) + 3.0
    drawn = matched_directions(states, 4000, seed=1)
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), 1, atol=1e-5)
    assert abs(drawn.mean(axis=0)).max() < 0.05  # the mean of the states is no direction of them
    shares = drawn.var(axis=0)
    assert shares[0] > 2 * shares[1] > 20 * shares[2]
    flat = isotropic_directions(12, 4000, seed=1).var(axis=0)
    np.testing.assert_allclose(flat, 1 / 12, atol=0.01)


def test_too_few_directions_and_states_that_do_not_vary_are_refused():
    with pytest.raises(ValueError, match="at least 200"):
        matched_directions(np.eye(5), 50, seed=0)
    with pytest.raises(ValueError, match="do not vary|different states"):
        matched_directions(np.ones((5, 4)), 200, seed=0)


def test_p_is_uniform_for_draws_of_the_null_itself_and_small_for_what_is_not():
    rng = np.random.default_rng(3)
    null, own = rng.normal(2, 3, size=4000), rng.normal(2, 3, size=4000)
    for alternative in ("two-sided", "greater"):
        _, p = placed(own, null, alternative)
        assert np.mean(p <= 0.05) == pytest.approx(0.05, abs=0.012)
    z, p = placed([2.0, 17.0, -13.0], null)
    np.testing.assert_allclose(z, [0, 5, -5], atol=0.2)
    assert p[0] > 0.9
    assert (p[1:] == 1 / 4001).all()
    assert placed([-13.0], null, "greater")[1] == 1.0
