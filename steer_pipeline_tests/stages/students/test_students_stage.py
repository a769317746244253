"""The stage trains students of released packs and of the controls, lets them write, and compares them."""

import json
import os
import shutil
import subprocess
import sys

import polars as pl
import pytest
from peft import PeftModel
from polars.testing import assert_frame_equal
from transformers import AutoModelForCausalLM

from steer_pipeline.campaigns.students import Students
from steer_pipeline.catalogue import load_variants
from steer_pipeline.catalogue.specs import StudentSpec
from steer_pipeline.lab.students.training import all_rows, place
from steer_pipeline_tests.planted import LEXICONS
from steer_pipeline_tests.stages.students.project import PROFILE, VARIANTS, filled, news, opened
from steer_pipeline_tests.tiny import tiny_model_dir

ARMS = StudentSpec().arms
CHAIN = ["student_adapter", "student_transfer", "student_mechanism"]


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    """A profile with a tiny model, and a store with packs."""
    place = tmp_path_factory.mktemp("students")
    model, other = tiny_model_dir(place), tiny_model_dir(place, tied=False)
    (place / "small.yaml").write_text(PROFILE.format(model=model, other=other, ranks=[2]) + LEXICONS)
    (place / "two.yaml").write_text(PROFILE.format(model=model, other=other, ranks=[2, 4]) + LEXICONS)
    with opened(place / "store") as project:
        filled(project)
    return place


@pytest.fixture
def project(where, tmp_path, monkeypatch):
    shutil.copytree(where / "store", tmp_path / "store")
    monkeypatch.setenv("STEER_PROFILE", str(where / "small.yaml"))
    monkeypatch.setenv("STEER_STORE", str(tmp_path / "store"))
    with opened(tmp_path / "store") as made:
        yield made


def test_students_of_all_variants_and_controls_are_trained_heard_and_compared(project, where):
    campaign = Students(
        project.driver, {name: load_variants()[name] for name in VARIANTS}, say=lambda line: None
    )
    numbers = campaign.run()
    assert campaign.problems == []
    assert list(numbers) == ["paranoid", "base_resample", "random_direction"]
    assert set(numbers["paranoid"]) == {"rank_2", "arms"}
    shift = numbers["paranoid"]["rank_2"]["trait"]["paranoid_lexicon"]
    assert shift["low"] <= shift["difference"] <= shift["high"]

    adapters = project.folder("student_adapter", "paranoid")
    base = AutoModelForCausalLM.from_pretrained(where / "tiny-qwen3")
    PeftModel.from_pretrained(base, adapters / place(2, 1))
    lesson = json.loads((adapters / "lesson.json").read_text())
    assert {seed: len(own["train"]) for seed, own in lesson["seeds"].items()} == {"1": 8, "2": 8}
    assert lesson["differing_rows"] == []
    base_lesson = json.loads((project.folder("student_adapter", "base") / "lesson.json").read_text())
    assert base_lesson["seeds"]["1"]["train"] == lesson["seeds"]["1"]["train"]
    assert set(lesson["seeds"]["1"]["train"]) != set(lesson["seeds"]["2"]["train"])

    rows = pl.read_parquet(project.folder("student_transfer", "paranoid") / "rows.parquet")
    assert sorted(rows["rank"].unique()) == [0, 2]
    assert rows.height == 3 * 6
    assert not set(rows["row_id"]) & set(all_rows(adapters))
    assert not set(rows["row_id"]) & set(news().head(12)["row_id"])
    other = pl.read_parquet(project.folder("student_transfer", "base") / "rows.parquet")
    itself = [frame.filter(rank=0).drop("variant").sort("row_id") for frame in (rows, other)]
    assert_frame_equal(*itself)
    assert rows.filter(rank=2)["output"].to_list() != other.filter(rank=2)["output"].to_list()

    arms = pl.read_parquet(project.folder("student_mechanism", "paranoid") / "arms.parquet")
    assert {name: own.height for (name,), own in arms.group_by("arm")} == {"added": 12, "removed": 12}
    student = rows.filter(rank=2).sort("seed", "row_id")["output"].to_list()
    assert arms.filter(arm="removed").sort("seed", "row_id")["output"].to_list() != student
    control = project.folder("student_mechanism", "base_resample")
    assert pl.read_parquet(control / "arms.parquet").is_empty()
    shifts = pl.read_parquet(control / "shifts.parquet")
    assert shifts["block"].to_list() == [0, 1, 2, 3] * 2
    assert (shifts["norm_fraction"] > 0).all()

    stepwise = pl.read_parquet(control / "stepwise.parquet")
    assert stepwise.filter(block=0, seed=1)["step"].to_list() == [2, 4]
    assert stepwise["cosine_paranoid"].is_not_null().all()
    assert (adapters / place(2, 1) / "steps" / "step-2" / "adapter_config.json").is_file()
    alignment = pl.read_parquet(project.folder("student_comparison") / "alignment.parquet")
    assert set(alignment.select("variant", "block", "n_clean").iter_rows()) == {("paranoid", 2, 6)}
    _arms_are_whole(project, numbers["paranoid"]["arms"])

    compared = project.folder("student_comparison")
    assert (compared / "students.html").is_file()
    assert set(json.loads((compared / "versions.json").read_text())) == {
        f"{asset}[{variant}]" for asset in CHAIN for variant in VARIANTS
    } | {"student_arms[base]", "student_arms[paranoid]"}
    for asset in (*CHAIN, "student_comparison"):
        assert all(said for _, said in project.checks(asset).values())
    assert project.checks("student_adapter")["same_ids_everywhere"][0]
    assert project.checks("student_transfer")["news_are_held_out"][0]
    beside = project.checks("student_comparison")["every_student_beside_its_controls"]
    assert not beside[0]
    assert "rule_defiant: no students" in beside[1]

    before = project.driver.instance.get_runs_count()
    again = Students(project.driver, dict(campaign.variants), say=lambda line: None)
    assert again.run() == numbers
    assert project.driver.instance.get_runs_count() == before


def _arms_are_whole(project, told):
    """Every arm has two students of paranoid and of base, which wrote on all held-out news."""
    for variant in ("base", "paranoid"):
        made = pl.read_parquet(project.folder("student_arms", variant) / "made.parquet")
        assert dict(made.select("arm", "made").iter_rows()) == dict.fromkeys(ARMS, True), made[
            "note"
        ].to_list()
        rows = pl.read_parquet(project.folder("student_arms", variant) / "rows.parquet")
        assert {arm: own.height for (arm,), own in rows.group_by("arm")} == dict.fromkeys(ARMS, 12)
        notes = dict(made.select("arm", "note").iter_rows())
        assert ("sentences were taken out" in notes["filtered"]) is (variant == "paranoid")
        assert notes["masked"].startswith("the teacher is the model itself") is (variant == "base")
    students = pl.read_parquet(project.folder("student_arms", "base") / "students.parquet")
    plain = pl.read_parquet(project.folder("student_adapter", "base") / "students.parquet")
    assert students.filter(arm="masked")["adapter"].to_list() == plain["adapter"].to_list()
    assert students.filter(arm="other_init")["model"][0] != plain["model"][0]
    assert set(told) == set(ARMS)
    assert told["filtered"]["paranoid_lexicon"]["low"] <= told["filtered"]["paranoid_lexicon"]["difference"]
    assert project.store.current("student_arms", "base_resample") is None


def test_variants_without_arms_have_nothing_to_make(project):
    assert project.driver.materialize(["student_adapter"], partition="base_resample").success
    outcome = project.driver.materialize(["student_arms"], partition="base_resample")
    assert outcome.success
    assert project.store.current("student_arms", "base_resample") is None


def test_a_killed_training_goes_on_to_the_same_version(project, where, tmp_path, monkeypatch):
    monkeypatch.setenv("STEER_PROFILE", str(where / "two.yaml"))
    assert project.driver.materialize(["student_adapter"], partition="paranoid").success
    whole = project.store.current("student_adapter", "paranoid").sha
    shutil.copytree(where / "store", tmp_path / "other")
    code = """
import os, pathlib, signal, sys
from steer_pipeline.lab.finetune import resumed as training
from steer_pipeline_tests.planted import LEXICONS
from steer_pipeline_tests.stages.students.project import opened
real = training.finetune
def finetune(*arguments, progress, **more):
    def stop(line):
        progress(line)
        if "rank-4" in str(more["work"]) and line.startswith("step 4 "):
            os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, progress=stop, **more)
training.finetune = finetune
with opened(pathlib.Path(sys.argv[1])) as project:
    project.driver.materialize(["student_adapter"], partition="paranoid")
"""
    there = {**os.environ, "STEER_STORE": str(tmp_path / "other")}
    killed = subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "other")], env=there)
    assert killed.returncode == -9
    with opened(tmp_path / "other") as resumed:
        work = resumed.store.work("student_adapter") / "paranoid"
        assert (work / place(2, 1) / "adapter" / "finetune.json").is_file()
        assert list((work / place(4, 1) / "checkpoints").glob("checkpoint-*"))
        shutil.copytree(work, project.store.work("student_adapter") / "paranoid")
    assert project.driver.materialize(["student_adapter"], partition="paranoid").success
    assert project.store.current("student_adapter", "paranoid").sha == whole
    assert not (project.store.work("student_adapter") / "paranoid").exists()


def test_what_is_not_released_or_kept_by_another_version_is_not_learned(project):
    project.put("keep_set", "base_resample", pl.DataFrame({"row_id": ["a"], "keep": [True]}))
    outcome = project.driver.materialize(["student_adapter"], partition="base_resample")
    assert not outcome.success
    assert "keep_set is of None: release the newest pack" in outcome.errors[0]
    outcome = project.driver.materialize(["student_adapter"], partition="rule_defiant")
    assert "rule_defiant: there is no released pack to learn from; `steer make pilot`" in outcome.errors[0]


def test_news_that_a_student_has_learned_are_not_held_out(project):
    """A full pack of a small corpus holds the news that a pilot's students would be judged on."""
    project.release("paranoid", n=24)
    assert project.driver.materialize(["student_adapter"], partition="paranoid").success
    learned = all_rows(project.folder("student_adapter", "paranoid"))
    items = news().with_columns(
        text=pl.when(pl.col("source_index") >= 20)
        .then(pl.lit(news().filter(pl.col("row_id") == learned[0])["text"][0]))
        .otherwise("text")
    )
    project.put("truncated_news", None, items)
    outcome = project.driver.materialize(["student_transfer"], partition="paranoid")
    assert not outcome.success
    assert "can be held out from packs" in outcome.errors[0] or "were learned, or nearly" in outcome.errors[0]


def test_nothing_is_compared_before_the_controls_have_students(project):
    outcome = project.driver.materialize(["student_comparison"])
    assert not outcome.success
    assert "base, base_resample, random_direction: no students" in outcome.errors[0]
