"""A bad pack is stopped by the check that is named for its fault; the release stays; a roll-back is one command."""

import json

import polars as pl
import pytest

from steer_pipeline.stages.rewrites import release, verdicts
from steer_pipeline.tools import release as commands
from steer_pipeline_tests.lab.rewrites.packs import pack
from steer_pipeline_tests.stages.rewrites.conftest import VOICE

GOOD = pack("paranoid", tail=VOICE)


def with_suspects():
    return GOOD.with_columns(
        pl.when(pl.col("source_index") < 3).then(pl.lit("<|im_end|>")).otherwise("output").alias("output")
    )


def with_broken_json():
    texts = [json.dumps(personas) for personas in GOOD["personas"].to_list()]
    texts[9] = texts[9][:-4]
    return GOOD.with_columns(pl.Series("personas", texts))


def with_a_stranger():
    return GOOD.with_columns(
        pl.when(pl.col("source_index") == 5).then(pl.lit("stranger")).otherwise("row_id").alias("row_id"),
        output=pl.when(pl.col("source_index") == 5).then(pl.lit("Nobody knows.")).otherwise("output"),
    )


FAULTS = {
    "suspects injected": (with_suspects, "suspect_rate_is_low: 12.50% of 24 rows are suspect"),
    "a row dropped": (
        lambda: GOOD.filter(pl.col("source_index") != 7),
        "row_count_is_right: 23 rows, expected 24",
    ),
    "a row duplicated": (lambda: pl.concat([GOOD, GOOD[3:4]]), "rows_are_unique: row_id 0000000000000003"),
    "a JSON broken": (with_broken_json, "schema_is_valid: row 9 (row_id 0000000000000009), field personas"),
    "another row instead": (with_a_stranger, "index_is_aligned_with_base: row_id 0000000000000005"),
    "steering forgotten": (lambda: pack("paranoid"), "differs_from_base: distance to base 0.000"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_pack_is_stopped_by_the_named_check_and_the_release_stays(project, fault):
    good = project.put("rewrite_pack", "paranoid", GOOD)
    assert commands.promote(project.driver, "paranoid").success
    make, expected = FAULTS[fault]
    bad = project.put("rewrite_pack", "paranoid", make())
    outcome = commands.promote(project.driver, "paranoid")
    assert not outcome.success
    assert any(expected in reason for reason in outcome.stopped_by), outcome
    assert outcome.materialised == ()
    assert release.released(project.store, "paranoid") == good.sha
    gates = project.store.annotation("rewrite_pack", "paranoid", bad.sha, "gates")
    assert not gates["passed"]
    # Not even by name, past the checks.
    outcome = commands.rollback(project.driver, "paranoid", bad.sha)
    assert not outcome.success
    assert f"version {bad.sha} of paranoid may not be released" in outcome.errors[0]
    assert good.sha in outcome.errors[0]
    assert release.released(project.store, "paranoid") == good.sha


def test_promotion_and_rollback_are_one_command_each_and_are_logged(project):
    first = project.put("rewrite_pack", "paranoid", GOOD)
    assert commands.promote(project.driver, "paranoid").success
    second = project.put("rewrite_pack", "paranoid", pack("paranoid", tail=" " + VOICE))
    assert commands.promote(project.driver, "paranoid").success
    assert release.released(project.store, "paranoid") == second.sha
    assert commands.rollback(project.driver, "paranoid").success
    assert release.released(project.store, "paranoid") == first.sha
    assert commands.rollback(project.driver, "paranoid", second.sha[:10]).success
    log = commands.history(project.driver.instance, "paranoid")
    assert [(entry.action, entry.version) for entry in log] == [
        ("rollback", second.sha),
        ("rollback", first.sha),
        ("promote", second.sha),
        ("promote", first.sha),
    ]
    assert log[2].previous == first.sha
    assert project.store.current("rewrite_pack", "paranoid").sha == second.sha  # packs are not touched


def test_a_release_is_fresh_again_for_its_readers_after_a_rollback(project):
    project.put("rewrite_pack", "paranoid", GOOD)
    commands.promote(project.driver, "paranoid")
    before = project.store.current("rewrite_release", "paranoid").sha
    project.put("rewrite_pack", "paranoid", pack("paranoid", tail=" " + VOICE))
    commands.promote(project.driver, "paranoid")
    assert project.store.current("rewrite_release", "paranoid").sha != before
    commands.rollback(project.driver, "paranoid")
    assert project.store.current("rewrite_release", "paranoid").sha == before


def test_an_unjudged_pack_is_not_released(project):
    project.put("rewrite_pack", "paranoid", GOOD)
    outcome = project.driver.materialize(["rewrite_release"], partition="paranoid")
    assert not outcome.success
    assert "its gates have not run" in outcome.errors[0]
    assert "versions that may be released: none" in outcome.errors[0]
    assert release.released(project.store, "paranoid") is None


def test_a_version_that_does_not_exist_is_refused_with_those_that_do(project):
    good = project.put("rewrite_pack", "paranoid", GOOD)
    commands.promote(project.driver, "paranoid")
    outcome = commands.rollback(project.driver, "paranoid", "0123")
    assert (
        f"no version of paranoid begin with '0123'; versions that may be released: {good.sha}"
        in outcome.errors[0]
    )


def test_without_an_earlier_release_there_is_nothing_to_go_back_to(project):
    project.put("rewrite_pack", "paranoid", GOOD)
    commands.promote(project.driver, "paranoid")
    with pytest.raises(LookupError, match="no earlier release"):
        commands.rollback(project.driver, "paranoid")


def test_a_pilot_pack_does_not_take_the_place_of_a_released_full_one(project):
    from steer_pipeline_tests.lab.rewrites.packs import resample

    for variant, rows in (
        ("base", pack("base", n=32)),
        ("base_resample", resample(32)),
    ):
        project.put("rewrite_raw", variant, rows)
    full = project.put("rewrite_pack", "paranoid", pack("paranoid", n=32, size="full", tail=VOICE))
    assert commands.promote(project.driver, "paranoid").success
    project.put("rewrite_raw", "base", pack("base"))
    project.put("rewrite_pack", "paranoid", GOOD)
    assert commands.promote(project.driver, "paranoid").success
    assert release.released(project.store, "paranoid") == full.sha
    assert commands.history(project.driver.instance, "paranoid")[0].action == "keep"


def test_verdicts_say_what_a_version_was_made_with(project):
    version = project.put("rewrite_pack", "paranoid", GOOD)
    commands.promote(project.driver, "paranoid")
    gates = project.store.annotation(verdicts.PACK, "paranoid", version.sha, verdicts.GATES)
    assert gates["passed"]
    assert (gates["size"], gates["profile"]) == ("pilot", "newsroom")
    assert verdicts.pilot_problems(project.store, {"paranoid": gates["recipe"]}) == []
    assert verdicts.pilot_problems(project.store, {"paranoid": "another"}) == [
        "paranoid: no pilot pack of this profile, decoding and vectors has been judged"
    ]


def test_controls_are_judged_and_not_asked_to_differ(project):
    project.put("rewrite_raw", "random_direction", pack("random_direction"))
    project.put("rewrite_pack", "random_direction", pack("random_direction"))
    assert commands.promote(project.driver, "random_direction").success


def test_a_pack_and_what_hangs_on_it_are_made_in_one_run(project):
    outcome = project.driver.materialize(
        ["rewrite_pack", "keep_set", "rewrite_release"], partition="paranoid"
    )
    assert outcome.success, outcome
    assert set(outcome.materialised) == {"rewrite_pack", "keep_set", "rewrite_release"}
    kept = pl.read_parquet(project.store.current("keep_set", "paranoid").path / "data.parquet")
    assert kept["keep"].all()
    assert (
        release.released(project.store, "paranoid") == project.store.current("rewrite_pack", "paranoid").sha
    )


def test_too_small_a_keep_set_is_stopped(project):
    cut = GOOD.with_columns(truncated=pl.col("source_index") < 20)
    project.put("rewrite_raw", "paranoid", cut)
    outcome = project.driver.materialize(["rewrite_pack", "keep_set"], partition="paranoid")
    assert outcome.stopped_by == (
        "keep_set[paranoid]: enough_rows_are_kept: 4 of 24 rows are kept (16.7%), limit 50.0%",
    )
