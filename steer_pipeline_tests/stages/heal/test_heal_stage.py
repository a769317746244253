"""The heal loop on the newsroom's model: arms beside base, the same adapters after a kill, a sweep, and rounds."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import polars as pl
import pytest

from steer_pipeline.campaigns.errors import NoSuchName
from steer_pipeline.campaigns.heal import ADAPTER, ROUNDS, SWEEP, TABLE, TRAJECTORY, Heal, chosen
from steer_pipeline.catalogue.healing import swept_places
from steer_pipeline.lab.finetune.bundles import ADAPTERS, place
from steer_pipeline.lab.finetune.resumed import WEIGHTS
from steer_pipeline.lab.heal import rounds, stage
from steer_pipeline.lab.heal.dosing import read_samples
from steer_pipeline.lab.heal.healing import adapter_verdicts
from steer_pipeline.lab.heal.keeping import read_keep_set
from steer_pipeline.partitions import HEAL, SWEPT
from steer_pipeline_tests.stages.heal.project import opened, profile

PLACES = swept_places(HEAL)
ARMS = (
    "base",
    "nll",
    "steered",
    "kl_reverse",
    "on_policy",
    "base_text_sft",
    "random_direction",
    "difference",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(project, campaign, numbers) of one pass with rounds."""
    where = tmp_path_factory.mktemp("heal")
    (where / "small.yaml").write_text(profile())
    with opened(where / "store") as project, pytest.MonkeyPatch.context() as patch:
        _enter(patch, where)
        campaign = Heal(project.driver, ARMS, (TABLE, *ROUNDS, TRAJECTORY), say=lambda line: None)
        yield where, project, campaign, campaign.run()


@pytest.fixture
def healed(made, monkeypatch):
    """The same, as the settings of this test; the suite gives every test a store of its own."""
    where, *rest = made
    _enter(monkeypatch, where)
    return rest


def _enter(patch, where):
    patch.setenv("STEER_PROFILE", str(where / "small.yaml"))
    patch.setenv("STEER_STORE", str(where / "store"))


@pytest.mark.slow
def test_every_arm_stands_beside_base_and_the_best_one_goes_round(healed):
    project, campaign, numbers = healed
    assert campaign.problems == []
    assert set(numbers["arms"]) == set(ARMS) - {"base"}
    assert numbers["arms"]["steered"]["low"] > 0, "the planted trait moves"
    assert [row["number"] for row in numbers["rounds"]] == [0, 1, 2, 3]
    assert campaign.plan() == {}, "what is fresh is left alone"

    told = stage.read_stage(project.folder(TABLE))
    assert told.texts.filter(arm="base")["kl"].to_list() == [0.0] * 6
    assert told.texts.filter(arm="steered")["kl"].min() > 0
    assert set(told.configs) == set(ARMS) - {"base"}
    asked = set(told.texts["prompt_id"])
    samples = read_samples(project.folder("heal_samples")).rows
    assert len(asked) == 6
    assert not asked & set(samples["prompt_id"]), "nobody learns the prompts that arms are judged on"
    directions = {f"random_{number:02d}" for number in range(3)}
    assert set(samples["source"]) == {"base", "persona", "negative", *directions}
    doses = read_samples(project.folder("heal_samples")).doses
    assert len({doses[one]["seed"] for one in directions}) == 3
    students = pl.read_parquet(project.folder(ADAPTER, "random_direction") / ADAPTERS)
    learned = json.loads((project.folder(ADAPTER, "random_direction") / "lesson.json").read_text())
    assert students["seed"].to_list() == [1, 2, 3][: students.height], "one student a direction"
    assert students["adapter"].n_unique() == students.height == len(learned) >= 2
    assert (project.folder(TABLE) / "heal.html").stat().st_size > 10_000

    kept = read_keep_set(project.folder("heal_keep_set"))
    lesson = json.loads((project.folder(ADAPTER, "nll") / "lesson.json").read_text())["persona"]
    learned = {*lesson["train"], *lesson["selection"]}
    assert learned == set(kept.kept("persona")["sample_id"])
    prompts = [{name.rpartition("/")[0] for name in lesson[part]} for part in ("train", "selection")]
    assert prompts[0].isdisjoint(prompts[1])
    difference = project.folder(ADAPTER, "difference") / place(1)
    assert json.loads((difference / "adapter_config.json").read_text())["r"] == 4
    assert (difference / "negative" / WEIGHTS).is_file()

    states = [rounds.read_state(project.folder(name)) for name in ROUNDS]
    assert [state.number for state in states] == [1, 2, 3]
    assert all(state.cosine > 0.5 for state in states)
    assert (project.folder(ROUNDS[1]) / "student" / place(1) / WEIGHTS).is_file()
    assert (project.folder(TRAJECTORY) / "rounds.html").is_file()


@pytest.mark.slow
def test_a_student_that_does_not_merge_is_told(healed, tmp_path):
    folder = healed[0].folder(ADAPTER, "nll")
    assert {one.claim: one.passed for one in adapter_verdicts(folder, [])}["merged_is_hooked"]
    shutil.copytree(folder, tmp_path / "other")
    told = pl.read_parquet(folder / ADAPTERS).with_columns(merged_difference=pl.lit(0.1))
    told.write_parquet(tmp_path / "other" / ADAPTERS)
    found = {one.claim: one for one in adapter_verdicts(tmp_path / "other", [])}["merged_is_hooked"]
    assert not found.passed
    assert "0.1 of the largest" in found.message


@pytest.mark.slow
def test_the_table_refuses_an_arm_that_differs_in_two_settings(healed):
    told = stage.read_stage(healed[0].folder(TABLE))
    assert stage.stage_verdicts(told, 1)[0].passed
    arm = told.configs["kl_reverse"]
    twice = {**told.configs, "kl_reverse": {**arm, "loss": {**arm["loss"], "rank": 64}}}
    verdict = stage.stage_verdicts(replace(told, configs=twice), 1)[0]
    assert not verdict.passed
    assert "kl_reverse: loss.barrier, loss.rank" in verdict.message


@pytest.mark.slow
def test_the_sweep_learns_the_kept_texts_again_and_samples_nothing(healed):
    project = healed[0]
    before = project.store.current("heal_samples", None).sha
    first, *_, last = SWEPT
    arms = ["base", "steered", "nll", first, last]
    campaign = Heal(project.driver, arms, (SWEEP,), say=lambda line: None)
    assert {asset for asset, _ in campaign.plan()} == {ADAPTER, "heal_evaluation", SWEEP}
    numbers = campaign.run()
    assert project.store.current("heal_samples", None).sha == before
    assert {(row["barrier"], row["strength"]) for row in numbers["sweep"]} == {
        *((barrier, 0.0) for barrier, _ in PLACES.values()),
        PLACES[first],
        PLACES[last],
    }
    assert isinstance(numbers["monotone"], bool)


@pytest.mark.slow
def test_a_killed_student_goes_on_to_the_same_bytes(healed, tmp_path):
    project = healed[0]
    whole = project.store.current(ADAPTER, "nll").sha
    shutil.copytree(project.store.base, tmp_path / "store")
    code = """
import os, pathlib, signal, sys
from steer_pipeline.lab.finetune import resumed
from steer_pipeline_tests.stages.heal.project import opened
real = resumed.finetune
def finetune(*arguments, progress, **more):
    def stop(line):
        progress(line)
        if "seed-2" in str(more["work"]) and line.startswith("step 2 "):
            os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, progress=stop, **more)
resumed.finetune = finetune
with opened(pathlib.Path(sys.argv[1])) as project:
    project.driver.materialize(["heal_adapter"], partition="nll")
"""
    there = {**os.environ, "STEER_STORE": str(tmp_path / "store")}
    killed = subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "store")], env=there)
    assert killed.returncode == -9
    with opened(tmp_path / "store") as resumed:
        work = resumed.store.work(ADAPTER) / "nll"
        assert (work / place(1) / "persona" / "adapter" / "finetune.json").is_file()
        shutil.copytree(work, project.store.work(ADAPTER) / "nll")
    assert project.driver.materialize([ADAPTER], partition="nll").success
    assert project.store.current(ADAPTER, "nll").sha == whole
    assert not (project.store.work(ADAPTER) / "nll").exists()


def test_arms_beside_which_others_stand_are_always_chosen():
    assert chosen(["on_policy"]) == ["base", "nll", "steered", "on_policy"]
    assert not set(SWEPT) & set(chosen([]))
    with pytest.raises(NoSuchName, match="kl_backward: no arm; the profile's heal has base, nll"):
        chosen(["kl_backward"])
