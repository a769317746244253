"""The pilot makes what is out of date, nothing else, and does not forget what failed."""

import json

import pytest

from steer_pipeline.catalogue import load_variants
from steer_pipeline.tools.campaign import Stopped
from steer_pipeline.tools.pilot import VARIANT_CHAIN, Pilot, chosen, line
from steer_pipeline_tests.lab.rewrites.packs import pack
from steer_pipeline_tests.stages.rewrites.conftest import VOICE, small_profile


def bring_up(project, **options) -> tuple[list[str], int]:
    """Problems of one pass over the chain of `paranoid`, and how many runs it took."""
    pilot = Pilot(project.driver, chosen(load_variants(), ["paranoid"]), **options)
    before = project.driver.instance.get_runs_count()
    pilot.bring_up(VARIANT_CHAIN, "paranoid", stop=False)
    return pilot.problems, project.driver.instance.get_runs_count() - before


def test_what_is_fresh_is_left_alone_unless_forced(project):
    assert bring_up(project) == ([], 1)
    assert bring_up(project) == ([], 0)
    assert bring_up(project, force=True) == ([], 1)


def test_a_change_of_the_profile_is_a_reason_to_make_it_again(project, tmp_path, monkeypatch):
    assert bring_up(project) == ([], 1)
    changed = small_profile(tmp_path, gates="{max_suspect_rate: 0.02}").rename(tmp_path / "changed.yaml")
    monkeypatch.setenv("STEER_PROFILE", str(changed))
    problems, runs = bring_up(project)
    assert problems == []
    assert runs >= 1
    assert bring_up(project) == ([], 0)


def test_a_failed_gate_is_reported_each_time_and_nothing_is_released(project):
    project.put("rewrite_raw", "paranoid", pack("paranoid", tail=VOICE).head(23))
    for _ in range(2):
        (first, *_rest), _runs = bring_up(project)
        assert first.startswith("rewrite_pack[paranoid]: row_count_is_right: 23 rows, expected 24")
        assert project.store.current("rewrite_release", "paranoid") is None


def test_only_takes_the_references_along_and_refuses_unknown_names():
    assert list(chosen(load_variants(), ["trusting"])) == [
        "base",
        "trusting",
        "base_resample",
        "random_direction",
    ]
    assert list(chosen(load_variants(), [])) == list(load_variants())
    with pytest.raises(Stopped, match="no variant nobody; the catalogue has base, paranoid"):
        chosen(load_variants(), ["nobody"])


def test_the_last_line_is_json_with_four_digits():
    shift = {"shift": 0.123456, "low": -0.00001, "high": 1}
    numbers = {"base": {"rows": 50, "facts_kept": None, "trait": {"paranoid": shift}}}
    assert json.loads(line(12.345, numbers)) == {
        "seconds": 12.3,
        "variants": {
            "base": {
                "rows": 50,
                "facts_kept": None,
                "trait": {"paranoid": {"shift": 0.1235, "low": 0.0, "high": 1}},
            }
        },
    }


def test_other_weights_behind_the_same_path_are_a_reason_to_make_it_again(project, tmp_path, monkeypatch):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights")
    profile = small_profile(tmp_path, model=str(model)).rename(tmp_path / "with_model.yaml")
    monkeypatch.setenv("STEER_PROFILE", str(profile))
    assert bring_up(project) == ([], 1)
    assert bring_up(project) == ([], 0)
    (model / "config.json").write_text('{"other": 1}')
    problems, runs = bring_up(project)
    assert problems == []
    assert runs >= 1
