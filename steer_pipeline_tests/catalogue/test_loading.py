"""What is wrong in a catalogue file is named, and nothing in it is dropped in silence."""

import pytest

from steer_pipeline.catalogue.loading import CatalogueError, load_profile

HEAD = "name: mine\nsummary: Mine.\nmodel: {path: here}\n"


def test_a_section_that_stands_twice_is_an_error_with_both_lines(tmp_path):
    """YAML takes the second one: half of what the author wrote would be gone."""
    path = tmp_path / "mine.yaml"
    path.write_text(f"{HEAD}sae: {{fidelity_rows: 8}}\nrewrites: {{pilot_rows: 20}}\nsae: {{block: 3}}\n")
    with pytest.raises(CatalogueError, match="sae stands twice, in lines 4 and 6; keep one"):
        load_profile(str(path))


def test_a_key_inside_a_section_counts_there_alone_and_merges_may_repeat_one(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"{HEAD}vector: {{seed: 3}}\ndose: {{seed: 4}}\n")
    profile = load_profile(str(path))
    assert (profile.vector.seed, profile.dose.seed) == (3, 4)
    path.write_text(f"{HEAD}dose:\n  seed: 4\n  n_rows: 5\n  seed: 6\n")
    with pytest.raises(CatalogueError, match="seed stands twice, in lines 5 and 7"):
        load_profile(str(path))
