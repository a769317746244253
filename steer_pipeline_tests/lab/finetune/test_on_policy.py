"""Claims about on-policy distillation: it learns the steered model from its own samples, and repeats to the byte."""

import json
import subprocess
import sys

import polars as pl
import pytest

from steer_pipeline.lab.finetune.data import Example, FinetuneError
from steer_pipeline.lab.finetune.on_policy import SAMPLE_SCHEMA, SAMPLES
from steer_pipeline.lab.finetune.recipe import Recipe
from steer_pipeline.lab.finetune.references import Reference
from steer_pipeline.lab.finetune.training import HISTORY, RECORD, finetune
from steer_pipeline_tests.lab.finetune.rows import FAST, examples, spec_of
from steer_pipeline_tests.lab.finetune.test_references import plan
from steer_pipeline_tests.tiny import tiny_model_dir

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_model_dir(tmp_path_factory.mktemp("on_policy"))


def recipe(steps=12, more=None, **settings):
    on_policy = {"max_new_tokens": 6, "fresh_every": 3} | settings
    return Recipe(
        **(FAST.model_dump() | {"nll": 0.0, "max_steps": steps, "on_policy": on_policy} | (more or {}))
    )


def run(base, folder, how, train=None, **more):
    return finetune(
        spec_of(base),
        base.parent,
        train or examples(base, n=6),
        examples(base, first=100, n=4),
        how,
        folder,
        work=folder.with_name(folder.name + ".work"),
        **{"teacher": Reference(None, plan(alpha=3.0))} | more,
    )


def weights(done):
    return (done.folder / WEIGHTS).read_bytes()


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    return run(base, tmp_path_factory.mktemp("whole") / "adapter", recipe())


def test_it_comes_nearer_to_the_steered_model_on_rows_that_it_did_not_see(whole):
    curve = whole.history.filter(split="selection")["distill"]
    assert curve[-1] < curve[0] * 0.8
    train = whole.history.filter(split="train")
    assert train["step"].to_list() == list(range(1, 13))
    assert train["distill"].is_not_null().all()
    assert train["loss"].to_list() == pytest.approx(train["distill"].to_list())


def test_samples_lie_beside_the_adapter_and_are_drawn_anew(whole):
    said = pl.read_parquet(whole.folder / SAMPLES)
    assert said.schema == SAMPLE_SCHEMA
    assert said.group_by("step").len().sort("step")["len"].to_list() == [4] * 12
    assert said["row_id"].unique().sort().to_list() == [f"r{i}" for i in range(6)]
    assert said["token_ids"].list.len().max() <= 6
    of_one = said.filter(row_id="r0")["token_ids"].to_list()
    assert len({tuple(ids) for ids in of_one}) > 1
    assert json.loads((whole.folder / RECORD).read_text())["teacher"]


def test_same_recipe_same_bytes_and_prompts_alone_are_enough(base, whole, tmp_path):
    prompts = [Example(e.row_id, e.ids[: e.start], e.start) for e in examples(base, n=6)]
    again = run(base, tmp_path / "again", recipe(), train=prompts)
    assert weights(again) == weights(whole)
    assert (again.folder / SAMPLES).read_bytes() == (whole.folder / SAMPLES).read_bytes()


def test_a_killed_run_goes_on_from_the_samples_that_it_had_drawn(base, whole, tmp_path):
    code = f"""
import os, signal
from pathlib import Path
from steer_pipeline_tests.lab.finetune import test_on_policy as t
def stop(line):
    if line.startswith("step 8 "):
        os.kill(os.getpid(), signal.SIGKILL)
t.run(Path({str(base)!r}), Path({str(tmp_path / "killed")!r}), t.recipe(), progress=stop)
"""
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    steps = []
    resumed = run(base, tmp_path / "killed", recipe(), progress=steps.append)
    assert steps[0].startswith("step 8 ")  # from the checkpoint of step 4, amid the samples of steps 3 to 5
    assert weights(resumed) == weights(whole)
    assert (resumed.folder / SAMPLES).read_bytes() == (whole.folder / SAMPLES).read_bytes()
    assert (resumed.folder / HISTORY).read_bytes() == (whole.folder / HISTORY).read_bytes()


def test_samples_that_are_gone_are_not_drawn_from_a_later_student(base, tmp_path):
    def stop(line):
        if line.startswith("step 8 "):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(base, tmp_path / "a", recipe(), progress=stop)
    (tmp_path / "a.work" / "samples-1.json").unlink()
    with pytest.raises(FinetuneError, match=r"samples-1.json: gone"):
        run(base, tmp_path / "a", recipe())


def test_another_teacher_is_another_run(base, tmp_path):
    def stop(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(base, tmp_path / "a", recipe(4), progress=stop)
    other = {"teacher": Reference(None, plan(alpha=-3.0))}
    resumed = run(base, tmp_path / "a", recipe(4), **other)
    assert weights(resumed) == weights(run(base, tmp_path / "clean", recipe(4), **other))


@pytest.mark.parametrize("changed", [{"beta": 0.0}, {"beta": 0.5}, {"fresh_every": 1}])
def test_the_share_of_forward_kl_and_the_age_of_samples_change_the_student(base, tmp_path, changed):
    plain = run(base, tmp_path / "plain", recipe(4))
    assert weights(run(base, tmp_path / "other", recipe(4, **changed))) != weights(plain)


def test_early_stopping_looks_at_the_divergence_from_the_teacher(base, tmp_path):
    how = recipe(12, {"learning_rate": 0.3, "evaluations": 12, "patience": 1, "schedule": "constant"})
    done = run(base, tmp_path / "a", how)
    curve = done.history.filter(split="selection")["distill"]
    assert done.numbers["steps"] < 12
    assert curve[-1] >= curve.min()
    assert curve.arg_min() == len(curve) - 2


def test_a_barrier_beside_it_has_its_own_reference(base, tmp_path):
    held = recipe(6, {"kl": {"weight": 5.0, "ratio_every": 2}})
    done = run(base, tmp_path / "held", held)
    free = run(base, tmp_path / "free", recipe(6, {"kl": {"weight": 1e-6}}))
    kl = [one.history.filter(split="selection")["kl"][-1] for one in (done, free)]
    assert 0 < kl[0] < kl[1]
    train = done.history.filter(split="train")
    assert train.filter(pl.col("gradient_ratio").is_not_null())["step"].to_list() == [1, 3, 5]


def test_how_many_rows_fit_at_once_changes_rounding_alone(base, tmp_path):
    one = run(base, tmp_path / "a", recipe(3, {"rows_at_once": 1}))
    four = run(base, tmp_path / "b", recipe(3))
    curves = [done.history.filter(split="train")["distill"].to_list() for done in (one, four)]
    assert curves[0] == pytest.approx(curves[1], abs=2e-3)


def test_a_teacher_and_its_settings_go_together(base, tmp_path):
    with pytest.raises(FinetuneError, match="both recipe.on_policy and a teacher"):
        run(base, tmp_path / "a", recipe(), teacher=None)
    with pytest.raises(FinetuneError, match="both recipe.on_policy and a teacher"):
        run(base, tmp_path / "a", FAST)
    with pytest.raises(ValueError, match="set nll: 0"):
        recipe(more={"nll": 1.0})
