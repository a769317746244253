"""Taking a direction out of a vector: nothing of it is left, and nothing else is touched."""

import numpy as np
import pytest

from steer_pipeline.lab.vectors.vector import VectorError, load_vector, save_vector
from steer_pipeline.lab.vectors.without import without
from steer_pipeline_tests.lab.personas.builders import vector

BASE = vector(held_out_auc=[0.9] * 4, split_half_cosine=[0.8] * 4)
PROBE = np.random.default_rng(3).standard_normal(8)


def test_what_is_left_is_orthogonal_and_differs_only_along_the_direction():
    made = without(BASE, {1: PROBE, 3: 5 * PROBE})
    unit = PROBE / np.linalg.norm(PROBE)
    for block in (1, 3):
        assert abs(float(made.at(block) @ unit)) < 1e-5
        gone = BASE.at(block) - made.at(block)
        assert np.allclose(gone, (BASE.at(block) @ unit) * unit, atol=1e-5)
        assert made.metadata["removed_cosine"][block] == pytest.approx(
            float(BASE.unit_at(block) @ unit), abs=1e-5
        )
    assert np.array_equal(made.raw[[0, 2]], BASE.raw[[0, 2]])
    assert made.metadata["removed_cosine"][0] is None
    assert np.allclose(without(made, {1: PROBE}).raw, made.raw, atol=1e-5)


def test_the_norm_is_kept_on_request_and_shrinks_otherwise():
    kept, shrunk = (without(BASE, {2: PROBE}, keep_norm=keep) for keep in (True, False))
    whole = np.linalg.norm(BASE.at(2))
    assert np.linalg.norm(kept.at(2)) == pytest.approx(whole, rel=1e-5)
    assert np.linalg.norm(shrunk.at(2)) < whole
    assert shrunk.metadata["raw_norms"][2] == pytest.approx(float(np.linalg.norm(shrunk.at(2))), rel=1e-5)
    assert np.allclose(kept.unit_at(2), shrunk.unit_at(2), atol=1e-6)


def test_another_vector_is_taken_out_block_by_block_and_the_evidence_is_forgotten(tmp_path):
    other = vector(seed=5)
    made = without(BASE, other)
    assert all(abs(float(made.at(block) @ other.unit_at(block))) < 1e-5 for block in range(4))
    assert made.metadata["held_out_auc"] is None
    assert made.digest != BASE.digest
    save_vector(made, tmp_path)
    assert load_vector(tmp_path).digest == made.digest


@pytest.mark.parametrize(
    ("direction", "said"),
    [
        ({1: np.zeros(8)}, "block 1 is zero"),
        ({1: np.full(8, np.nan)}, "zero or not finite"),
        ({1: np.ones(5)}, "shape"),
        ({9: PROBE}, "no block in common"),
        (vector(seed=5, site="mlp"), "same place"),
        (BASE, "nothing is left"),
    ],
)
def test_what_cannot_be_taken_out_is_refused(direction, said):
    with pytest.raises(VectorError, match=said):
        without(BASE, direction)
