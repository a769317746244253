"""What `steer make` says before and after; that it makes the right things is tested where campaigns are."""

import json

import pytest

from steer_pipeline.campaigns import behaviour, pilot
from steer_pipeline.campaigns.campaign import Result
from steer_pipeline.cli.make import line
from steer_pipeline_tests.cli.running import printed, run


def test_the_last_line_is_json_with_four_digits():
    shift = {"shift": 0.123456, "low": -0.00001, "high": 1}
    numbers = {"base": {"rows": 50, "facts_kept": None, "trait": {"paranoid": shift}}}
    assert json.loads(line({"variants": numbers}, 12.345)) == {
        "seconds": 12.3,
        "variants": {
            "base": {
                "rows": 50,
                "facts_kept": None,
                "trait": {"paranoid": {"shift": 0.1235, "low": 0.0, "high": 1}},
            }
        },
    }


def test_a_dry_run_says_what_would_be_made_and_why_and_makes_nothing():
    lines = printed("make", "pilot", "--variants", "trusting", "--dry-run").splitlines()
    assert lines[0] == "would make cc_news: was never made"
    assert "would make rewrite_raw[trusting]: was never made" in lines
    assert not any("rule_defiant" in each for each in lines)
    assert lines[-1] == "25 to make"
    assert printed("make", "pilot", "--variants", "trusting", "--dry-run").splitlines() == lines


def test_only_is_short_for_variants_there_and_for_personas_here():
    assert printed("make", "pilot", "--only", "base", "--dry-run").splitlines()[-1] == "21 to make"
    assert printed("make", "behaviour", "--only", "sailor", "--dry-run").splitlines()[-1] == "8 to make"
    assert (
        printed("make", "behaviour", "--personas", "sailor,coach", "--dry-run").splitlines()[-1]
        == "15 to make"
    )


def test_all_is_both_and_what_fails_in_one_is_told_after_both(monkeypatch):
    asked = []

    def made(name, result):
        def make(defs, *arguments, **options):
            asked.append((name, arguments, options))
            return result

        return make

    monkeypatch.setattr(pilot, "make_pilot", made("pilot", Result({"base": {"rows": 50}}, ["one gate"])))
    monkeypatch.setattr(behaviour, "make_behaviour", made("behaviour", Result({"sailor": {"auc": 1.0}})))
    done = run("make", "all", "--size", "full", "--variants", "base", "--personas", "sailor", "--force")
    assert done.exit_code == 1
    assert done.stderr == "FAILED: one gate\n"
    assert json.loads(done.stdout)["personas"] == {"sailor": {"auc": 1.0}}
    assert asked == [
        ("pilot", ("full", ["base"]), {"force": True, "dry_run": False}),
        ("behaviour", (["sailor"],), {"force": True, "dry_run": False}),
    ]


def test_students_bring_the_packs_that_are_missing_and_their_controls_along():
    lines = printed("make", "students", "--variants", "trusting", "--dry-run").splitlines()
    assert "would make rewrite_release[trusting]: was never made" in lines
    made = [line for line in lines if "student_adapter" in line]
    assert [line.partition("[")[2].partition("]")[0] for line in made] == [
        "base", "trusting", "base_resample", "random_direction",
    ]  # fmt: skip
    assert lines[-2:] == ["would make student_comparison: was never made", "38 to make"]


@pytest.mark.parametrize("command", ["pilot", "behaviour", "students", "transport", "all"])
def test_a_dry_run_in_an_empty_store_leaves_it_empty(command):
    from steer_pipeline.resources import open_store

    assert "cc_news: was never made" in printed("make", command, "--dry-run") or command == "behaviour"
    assert open_store().assets() == []
