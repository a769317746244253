"""A bad pack is stopped by the check that is named for its fault; the release stays; a rollback is one command."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from steer_pipeline.campaigns import release as commands
from steer_pipeline.campaigns.driver import Driver
from steer_pipeline.cli import status
from steer_pipeline.io.store import ArtifactStore
from steer_pipeline.lab.rewrites import release, verdicts
from steer_pipeline.stages.rewrites.history import history
from steer_pipeline_tests.lab.rewrites.packs import pack
from steer_pipeline_tests.stages.rewrites.conftest import VOICE

GOOD = pack("paranoid", tail=VOICE)


def log_of(project, variant="paranoid"):
    """(action, version) of each release, newest first."""
    entries = history(project.driver.instance, project.store, variant)
    return [(entry.action, entry.version) for entry in entries]


def promoted(project, *spaces):
    """Promotes a pack for each number of spaces before its voice; returns their versions."""
    made = []
    for number in spaces:
        made.append(project.put("rewrite_pack", "paranoid", pack("paranoid", tail=" " * number + VOICE)).sha)
        assert commands.promote(project.driver, "paranoid").success
    return made


def spoil(version):
    """Overwrites bytes of the stored pack; its size stays."""
    path = Path(version.url) / "data.parquet"
    data = bytearray(path.read_bytes())
    data[100:108] = b"\0" * 8
    path.write_bytes(data)


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
    "steering forgotten": (lambda: pack("paranoid"), "something_changed: distance to base 0.000"),
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
    assert all("To go on: " in reason for reason in outcome.stopped_by), outcome
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


def test_a_pack_that_its_gates_stop_is_released_by_a_decision_that_is_recorded(project):
    good = project.put("rewrite_pack", "paranoid", GOOD)
    assert commands.promote(project.driver, "paranoid").success
    bad = project.put("rewrite_pack", "paranoid", with_suspects())
    assert not commands.promote(project.driver, "paranoid").success
    assert commands.promote(project.driver, "paranoid", "the students shall see it").success
    assert release.released(project.store, "paranoid") == bad.sha
    entry, before = history(project.driver.instance, project.store, "paranoid")
    assert (entry.version, entry.previous, before.overruled) == (bad.sha, good.sha, None)
    assert entry.overruled.despite == "the students shall see it"
    (failed,) = entry.overruled.failed
    assert failed.startswith("suspect_rate_is_low: 12.50% of 24 rows are suspect")
    assert "To go on" not in failed
    assert "because: the students shall see it" in commands.shown([entry])
    assert release.overruled_of(project.store, "paranoid", bad.sha) == entry.overruled
    assert not project.store.annotation("rewrite_pack", "paranoid", bad.sha, "gates")["passed"]
    assert status.released_despite_gates(["paranoid"]) == {"paranoid": str(entry.overruled)}
    assert commands.rollback(project.driver, "paranoid").success
    assert status.released_despite_gates(["paranoid"]) == {}


@pytest.mark.parametrize(
    "fault", ["a row dropped", "a row duplicated", "a JSON broken", "another row instead"]
)
def test_no_reason_releases_a_pack_that_is_not_what_it_claims_to_be(project, fault):
    make, expected = FAULTS[fault]
    project.put("rewrite_pack", "paranoid", make())
    outcome = commands.promote(project.driver, "paranoid", "I insist")
    assert not outcome.success
    assert "may not be released whatever the reason" in outcome.errors[0]
    assert expected in outcome.errors[0]
    assert release.released(project.store, "paranoid") is None


def test_a_decision_needs_a_reason_and_a_verdict(project):
    project.put("rewrite_pack", "paranoid", with_suspects())
    config = {"rewrite_release": {"despite": "unseen"}}
    outcome = project.driver.materialize(["rewrite_release"], partition="paranoid", config=config)
    assert "its gates have not run" in outcome.errors[0]
    assert "say why" in commands.promote(project.driver, "paranoid", " ").errors[0]
    assert log_of(project) == []


def test_a_good_pack_needs_no_decision(project):
    version = project.put("rewrite_pack", "paranoid", GOOD)
    assert commands.promote(project.driver, "paranoid", "to be sure").success
    assert release.overruled_of(project.store, "paranoid", version.sha) is None
    assert history(project.driver.instance, project.store, "paranoid")[0].overruled is None


def test_promotion_and_rollback_are_one_command_each_and_are_logged(project):
    first = project.put("rewrite_pack", "paranoid", GOOD)
    assert commands.promote(project.driver, "paranoid").success
    second = project.put("rewrite_pack", "paranoid", pack("paranoid", tail=" " + VOICE))
    assert commands.promote(project.driver, "paranoid").success
    assert release.released(project.store, "paranoid") == second.sha
    assert commands.rollback(project.driver, "paranoid").success
    assert release.released(project.store, "paranoid") == first.sha
    assert commands.rollback(project.driver, "paranoid", second.sha[:10]).success
    assert log_of(project) == [
        ("rollback", second.sha),
        ("rollback", first.sha),
        ("promote", second.sha),
        ("promote", first.sha),
    ]
    log = history(project.driver.instance, project.store, "paranoid")
    assert [entry.previous for entry in log] == [first.sha, second.sha, first.sha, "none"]
    assert all(entry.carried_out for entry in log)
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
    outcome = commands.rollback(project.driver, "paranoid")
    assert "paranoid has no earlier release to go back to" in outcome.errors[0]


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
    assert log_of(project)[0] == ("keep", full.sha)


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


def test_numbers_of_a_gate_have_four_digits_and_no_line_joins_those_of_different_variants(project):
    project.put("rewrite_pack", "paranoid", GOOD)
    commands.promote(project.driver, "paranoid")
    gate = dg.AssetCheckKey(dg.AssetKey("rewrite_pack"), "something_changed")
    storage = project.driver.instance.event_log_storage
    shown = storage.get_latest_asset_check_execution_by_key([gate])[gate].evaluation.metadata
    assert all(
        isinstance(entry.value, str) for entry in shown.values()
    )  # numbers would be plotted as one series
    assert len(shown["p_value"].value) <= len("9.999e-05")


def test_the_pack_s_columns_say_what_they_hold(project):
    project.driver.materialize(["rewrite_pack"], partition="paranoid")
    event = project.driver.instance.get_latest_materialization_event(dg.AssetKey("rewrite_pack"))
    schema = event.asset_materialization.metadata["dagster/column_schema"].value
    columns = {column.name: column for column in schema.columns}
    assert columns["personas"].type == "list of records"
    assert all(column.description for column in columns.values())


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
    (told,) = outcome.stopped_by
    assert told.startswith(
        "keep_set[paranoid]: enough_rows_are_kept: 4 of 24 rows are kept (16.7%), limit 50.0%. To go on: `reasons`"
    )


def test_rollback_goes_back_in_the_history_again_and_again(project):
    v1, v2, v3 = promoted(project, 0, 1, 2)
    for expected in (v2, v1):
        assert commands.rollback(project.driver, "paranoid").success
        assert release.released(project.store, "paranoid") == expected
    assert "no earlier release" in commands.rollback(project.driver, "paranoid").errors[0]
    assert promoted(project, 2) == [v3]
    assert log_of(project)[0] == ("promote", v3)  # released before, and yet a promotion: so it was asked
    commands.rollback(project.driver, "paranoid")
    assert release.released(project.store, "paranoid") == v1  # v2 was taken off the stack


def test_a_promotion_of_what_is_released_is_called_keep(project):
    promoted(project, 0, 0)
    assert [action for action, _ in log_of(project)] == ["keep", "promote"]


def test_a_released_version_whose_gates_fail_now_is_not_kept_in_silence(project):
    (version,) = promoted(project, 0)
    gates = project.store.annotation("rewrite_pack", "paranoid", version, "gates")
    verdict = gates["gates"]["suspect_rate_is_low"] | {"passed": False, "message": "12% suspect, limit 1%"}
    failed = gates | {"passed": False, "gates": gates["gates"] | {"suspect_rate_is_low": verdict}}
    project.store.annotate("rewrite_pack", "paranoid", version, "gates", failed)
    outcome = project.driver.materialize(["rewrite_release"], partition="paranoid")  # as by the UI's button
    assert not outcome.success
    assert outcome.materialised == ()
    assert (
        f"version {version} of paranoid is released and stays so, but its gates fail now" in outcome.errors[0]
    )
    assert "suspect_rate_is_low: 12% suspect, limit 1%. Roll back" in outcome.errors[0]
    assert release.released(project.store, "paranoid") == version
    assert len(log_of(project)) == 1


def test_a_damaged_version_is_not_released_and_nothing_moves(project):
    (first,) = promoted(project, 0)
    second = project.put("rewrite_pack", "paranoid", pack("paranoid", tail=" " + VOICE))
    assert commands.promote(project.driver, "paranoid").success
    assert commands.rollback(project.driver, "paranoid").success
    spoil(second)
    outcome = commands.rollback(project.driver, "paranoid", second.sha)
    assert f"damaged file of rewrite_pack[paranoid], version {second.sha}" in outcome.errors[0]
    assert "make rewrite_pack[paranoid] again" in outcome.errors[0]
    assert outcome.materialised == ()
    assert release.released(project.store, "paranoid") == first
    assert len(log_of(project)) == 3


def test_a_damaged_former_version_stands_in_no_one_s_way(project):
    first = project.put("rewrite_pack", "paranoid", GOOD)
    assert commands.promote(project.driver, "paranoid").success
    spoil(first)
    (second,) = promoted(project, 1)
    assert log_of(project) == [("promote", second), ("promote", first.sha)]
    wanted = dg.AssetRecordsFilter(asset_key=dg.AssetKey("rewrite_release"))
    told = project.driver.instance.fetch_materializations(wanted, limit=1).records[0].asset_materialization
    assert "the former version is damaged" in told.metadata["not_compared"].value
    back = commands.rollback(project.driver, "paranoid")
    assert f"damaged file of rewrite_pack[paranoid], version {first.sha}" in back.errors[0]
    project.put("rewrite_pack", "paranoid", GOOD)  # made again
    assert commands.rollback(project.driver, "paranoid").success


@pytest.mark.parametrize("loss", ["pointer", "manifest", "version"])
def test_a_damaged_pointer_is_replaced_by_the_next_promotion(project, loss):
    (first,) = promoted(project, 0)
    pointer = project.store.current("rewrite_release", "paranoid")
    if loss == "pointer":
        (pointer.path / "release.json").write_text("{")
    elif loss == "manifest":
        (pointer.path / "MANIFEST.json").write_text("{")
    else:
        for path in pointer.path.iterdir():
            path.unlink()
    (second,) = promoted(project, 1)
    assert release.released(project.store, "paranoid") == second
    assert commands.rollback(project.driver, "paranoid", first[:8]).success
    assert json.loads(
        (project.store.current("rewrite_release", "paranoid").path / "release.json").read_text()
    )


def test_a_pointer_that_cannot_be_moved_is_told_and_does_not_count(project, monkeypatch):
    first, second = promoted(project, 0, 1)
    third = project.put("rewrite_pack", "paranoid", pack("paranoid", tail="  " + VOICE)).sha

    def full(self, asset, partition, sha):
        assert log_of(project)[0] == ("promote", third)  # the log is written before the pointer moves
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(type(project.store), "point", full)
        assert not commands.promote(project.driver, "paranoid").success
    assert release.released(project.store, "paranoid") == second
    entries = history(project.driver.instance, project.store, "paranoid")
    assert [entry.carried_out for entry in entries] == [False, True, True]
    assert "NOT CARRIED OUT" in commands.shown(entries[:1])
    assert commands.rollback(project.driver, "paranoid").success
    assert release.released(project.store, "paranoid") == first


def test_two_stores_of_one_instance_have_histories_of_their_own(project, tmp_path, monkeypatch):
    promoted(project, 0, 1)
    shutil.copytree(tmp_path / "store", tmp_path / "other")
    other = ArtifactStore(str(tmp_path / "other"))
    monkeypatch.setenv("STEER_STORE", str(tmp_path / "other"))
    assert history(project.driver.instance, other) == []
    assert "no earlier release" in commands.rollback(project.driver, "paranoid").errors[0]
    third = other.write(
        "rewrite_pack",
        "paranoid",
        lambda folder: pack("paranoid", tail="  " + VOICE).write_parquet(folder / "data.parquet"),
        metadata={},
        inputs={},
        code_version="1",
        run_id=None,
    )
    assert commands.promote(project.driver, "paranoid").success
    assert [entry.version for entry in history(project.driver.instance, other)] == [third.sha]
    assert len(log_of(project)) == 2


KILLED = """
import os, signal, sys
from pathlib import Path
import dagster as dg
from steer_pipeline.io.store import ArtifactStore
from steer_pipeline.campaigns import release
from steer_pipeline.campaigns.driver import Driver
from steer_pipeline_tests.stages.rewrites.conftest import stage_definitions
moment = sys.argv[1]
real = ArtifactStore.point
def point(self, *place):
    if moment == "after": real(self, *place)
    os.kill(os.getpid(), signal.SIGKILL)
ArtifactStore.point = point
with dg.DagsterInstance.get() as instance:
    release.promote(Driver(stage_definitions(), instance), "paranoid")
"""


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_process_killed_at_the_pointer_leaves_no_moved_pointer_without_a_log(project, moment):
    first = project.put("rewrite_pack", "paranoid", GOOD).sha
    second = pack("paranoid", tail=" " + VOICE)
    with dg.DagsterInstance.get() as instance:
        kept = replace(project, driver=Driver(project.driver.defs, instance))
        assert commands.promote(kept.driver, "paranoid").success
        second = kept.put("rewrite_pack", "paranoid", second).sha
        child = subprocess.run([sys.executable, "-W", "ignore", "-c", KILLED, moment], env=dict(os.environ))
        assert child.returncode == -signal.SIGKILL
        assert release.released(kept.store, "paranoid") == (second if moment == "after" else first)
        log = history(instance, kept.store, "paranoid")
        assert [(entry.version, entry.carried_out) for entry in log] == [
            (second, moment == "after"),
            (first, True),
        ]


def test_the_history_may_be_read_by_a_head_that_leaves():
    script = (
        "import sys\n"
        "from steer_pipeline.cli.console import readers_may_leave\n"
        "with readers_may_leave():\n"
        "    for _ in range(50_000): print('a line of the history')\n"
    )
    command = f"set -o pipefail; '{sys.executable}' -c \"$SCRIPT\" | head -n 1"
    done = subprocess.run(
        ["bash", "-c", command], env=os.environ | {"SCRIPT": script}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "a line of the history\n", "")
