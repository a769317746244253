"""Claims about the dictionary: no two directions share a name, all files are read, scalers undone, absences told.

Faults of the system that this replaces: names that are both role and trait lost in a merge; only the first file of
components read; components taken from scaled space; one shared direction that dominates every role.
"""

import numpy as np
import pytest
import torch

from steer_pipeline.lab.analysis.directions import (
    Directions,
    joined,
    of_published,
    of_states,
    of_vectors,
    read_directions,
    save_directions,
    unscaled_components,
)
from steer_pipeline.lab.vectors.formats import FormatError
from steer_pipeline.lab.vectors.vector import PersonaVector, VectorError
from steer_pipeline_tests.lab.analysis.conftest import directions, neutral
from steer_pipeline_tests.lab.personas.builders import model_like

QWEN = model_like(name="Qwen/Qwen3-32B")  # 4 blocks, width 8
SHAPE = (4, 8)


def drawn(seed):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def published(tmp_path):
    root = tmp_path / "qwen-3-32b"
    for kind in ("roles_240", "traits_240"):
        (root / kind / "vectors").mkdir(parents=True)
    shared = 5 * drawn(0)
    torch.save({"activations": {"default_1": drawn(1)}}, root / "roles_240" / "default_vectors.pt")
    for seed, role in enumerate(("pirate", "coach", "skeptic"), start=2):
        torch.save({"pos_3": shared + drawn(seed)}, root / "roles_240" / "vectors" / f"{role}.pt")
    torch.save({"pos_3": torch.zeros(SHAPE)}, root / "roles_240" / "vectors" / "mime.pt")
    for seed, trait in enumerate(("skeptic", "petty"), start=7):
        torch.save({"pos_neg_50": drawn(seed)}, root / "traits_240" / "vectors" / f"{trait}.pt")
    return root


def test_a_name_that_is_both_role_and_trait_is_two_directions(published):
    found = of_published(published, QWEN)
    assert {"role:skeptic", "trait:skeptic"} < set(found.names)
    assert len(found.names) == len(set(found.names)) == 3 + 1 + 2  # roles, what they share, traits
    assert np.allclose(found.raw[found.names.index("trait:skeptic")], drawn(7).numpy())


def test_what_is_missing_upstream_is_told_and_never_zeros(published):
    found = of_published(published, QWEN)
    assert "role:mime" not in found.names
    assert "all zeros" in found.left_out["role:mime"]


def test_what_all_roles_share_is_a_direction_of_its_own(published):
    found = of_published(published, QWEN)
    roles = [row for row, name in enumerate(found.names) if name.startswith("role:")]
    assert found.names[roles[-1]] == "role:shared"
    assert np.allclose(found.raw[roles[:-1]].sum(axis=0), 0, atol=1e-4)
    raw = drawn(2).numpy() + 5 * drawn(0).numpy() - drawn(1).numpy()
    at = found.names.index("role:pirate")
    assert np.allclose(found.raw[at] + found.raw[roles[-1]], raw, atol=1e-4)


def test_components_are_of_every_block_that_has_a_file_with_the_scaler_undone(published):
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    folder = published / "traits_240" / "pca"
    folder.mkdir()
    wanted = {}
    for block in (1, 3):
        states = np.random.default_rng(block).normal(size=(30, 8)) * np.geomspace(10, 0.1, 8)
        scaler = StandardScaler().fit(states)
        pca = PCA(n_components=3).fit(scaler.transform(states))
        torch.save({"pca": pca, "scaler": scaler, "layer": block}, folder / f"layer{block}_pos-neg50.pt")
        # One unit along a component, from scaled space back into the stream.
        step = scaler.inverse_transform(pca.components_[:2]) - scaler.inverse_transform(np.zeros((2, 8)))
        wanted[block] = step
    found = of_published(published, QWEN, components=2)
    rows = [found.names.index(f"pc:trait:{k}") for k in (1, 2)]
    for block, components in wanted.items():
        assert np.allclose(found.raw[rows, block], components, rtol=1e-4)
    assert np.isnan(found.raw[rows][:, [0, 2]]).all()
    assert found.writing(0)[0] == [name for name in found.names if not name.startswith("pc:")]
    assert "pc:trait:1" in found.reading(2)[0]


def test_a_file_with_other_code_in_it_is_not_run(tmp_path):
    torch.save({"pca": print, "scaler": None}, tmp_path / "layer1_x.pt")
    with pytest.raises(FormatError, match="no PCA with its scaler"):
        unscaled_components(tmp_path / "layer1_x.pt")


def test_reading_stands_one_block_below_and_units_have_length_one():
    found = directions()
    names, units = found.reading(2)
    assert names == list(found.names)
    assert np.allclose(units, found.writing(1)[1])
    assert np.allclose(np.linalg.norm(units, axis=1), 1)
    assert found.reading(0)[0] == []


def test_two_directions_of_one_name_are_refused():
    with pytest.raises(VectorError, match="persona:p0"):
        joined(directions(1), directions(1, seed=6))


def test_a_vector_of_another_site_is_refused():
    metadata = {"n_blocks": 4, "hidden_size": 8, "site": "mlp"}
    vector = PersonaVector("coach", drawn(1).numpy(), metadata)
    with pytest.raises(VectorError, match="site mlp"):
        of_vectors("persona", {"coach": vector}, {})


def test_components_of_states_are_the_axes_of_their_covariance():
    states = neutral().states
    found = of_states(states, 2)
    values, axes = np.linalg.eigh(np.cov(states[:, 1].T))
    assert abs(found.raw[0, 1] @ axes[:, -1]) == pytest.approx(values[-1] ** 0.5, rel=1e-3)
    assert found.names == ("pc:states:1", "pc:states:2")


def test_directions_are_stored_as_they_are(tmp_path):
    raw = directions().raw.copy()
    raw[1, 2] = np.nan
    before = Directions(("persona:a", "trait:a", "role:a"), raw, ("x", "y", "z"), {"role:b": "zeros"})
    save_directions(before, tmp_path)
    after = read_directions(tmp_path)
    assert after.names == before.names
    assert after.sources == before.sources
    assert after.left_out == before.left_out
    assert np.array_equal(after.raw, raw, equal_nan=True)
    assert before.table()["blocks"].to_list() == [4, 3, 4]
