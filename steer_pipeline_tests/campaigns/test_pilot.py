"""The pilot makes what is out of date, nothing else, and does not forget what failed."""

import pytest

from steer_pipeline.campaigns.driver import Outcome
from steer_pipeline.campaigns.errors import NoSuchName, Stopped
from steer_pipeline.campaigns.pilot import REFERENCES, VARIANT_CHAIN, Pilot, chosen
from steer_pipeline.catalogue import load_variants
from steer_pipeline_tests.lab.rewrites.packs import pack
from steer_pipeline_tests.stages.rewrites.conftest import VOICE


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
    with pytest.raises(NoSuchName, match="no variant nobody; the catalogue has base, paranoid"):
        chosen(load_variants(), ["nobody"])


class Chains(Pilot):
    """A pilot whose runs are only written down; `broken` assets fail."""

    def __init__(self, driver, variants, broken=()):
        super().__init__(driver, variants)
        self.broken, self.runs = broken, []

    def is_stale(self, asset, partition):
        return True

    def materialize(self, assets, **what):
        partition = what.get("partition")
        self.runs.append((assets[0], partition or what.get("span")))
        failed = [f"{name}: no coherent dose" for name in assets if (name, partition) in self.broken]
        return Outcome("run", not failed, tuple(failed), (), ())

    def diagnosed(self):
        return ""

    def numbers(self):
        return {}


def test_a_model_that_does_not_do_the_job_stops_the_pilot_before_any_persona(project):
    pilot = Chains(project.driver, load_variants(), broken=[("model_diagnosis", None)])
    with pytest.raises(Stopped, match="model_diagnosis: no coherent dose"):
        pilot.run()
    assert [asset for asset, _ in pilot.runs] == ["cc_news", "model_diagnosis"]


def test_a_persona_without_a_dose_stops_its_variants_and_no_other(project):
    """One variant without a dose stopped all the others."""
    pilot = Chains(project.driver, load_variants(), broken=[("dose_curve", "rule_defiant")])
    pilot.run()
    made = {partition for asset, partition in pilot.runs if asset == "rewrite_pack"}
    assert made == set(load_variants()) - {"rule_defiant", "paranoid_rule_defiant"}
    assert [partition for asset, partition in pilot.runs if asset == "rewrite_raw"] == [
        ("base", "paranoid"),
        ("trusting", "prompted_paranoid"),
    ]
    assert pilot.problems == [
        "dose_curve: no coherent dose",
        "rule_defiant is not made: it needs rule_defiant, which failed",
        "paranoid_rule_defiant is not made: it needs rule_defiant, which failed",
    ]
    assert pilot.runs[-1][0] == "rewrite_comparison"


def test_what_is_damaged_is_made_again(project):
    """The cure that the store names: `steer make pilot`."""
    assert bring_up(project) == ([], 1)
    path = project.store.current("rewrite_pack", "paranoid").path / "data.parquet"
    path.write_bytes(b"X" * path.stat().st_size)
    assert bring_up(project)[0] == []
    assert project.store.current("rewrite_pack", "paranoid").path == path.parent


def test_of_broken_variants_only_those_asked_for_are_spoken_of():
    """The only reason shown was about a variant that nobody had asked for."""
    sound = {name: spec for name, spec in load_variants().items() if name != "paranoid"}
    assert "paranoid" not in chosen(sound, ["paranoid"], broken=["paranoid"])
    assert list(chosen(sound, ["paranoid"], broken=["paranoid"])) == list(REFERENCES)
