"""Raw rows: one run for many variants; killed and resumed to the same packs; refused where nothing is proved."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import polars as pl
import pytest

from steer_pipeline.io.journals import open_journal
from steer_pipeline.lab.rewrites import verdicts
from steer_pipeline.lab.rewrites.comparison import directions_of
from steer_pipeline.lab.rewrites.work import identity_of
from steer_pipeline.lab.vectors.vector import PersonaVector, model_fields, save_vector
from steer_pipeline.settings import settings
from steer_pipeline_tests.io import folder_url
from steer_pipeline_tests.stages.rewrites.conftest import small_profile, stage_project
from steer_pipeline_tests.tiny import tiny_model_dir

SPAN = ("base", "paranoid_rule_defiant")  # base, paranoid, rule_defiant and both
VARIANTS = ("base", "paranoid", "rule_defiant", "paranoid_rule_defiant")
STEERED = """{
  paranoid: [{persona: paranoid, block: 2, dose: {fraction: 0.5}}],
  rule_defiant: [{persona: rule_defiant, block: 1, dose: {fraction: 0.5}}],
  paranoid_rule_defiant: [
    {persona: paranoid, block: 2, dose: {fraction: 0.5}},
    {persona: rule_defiant, block: 1, dose: {fraction: 0.5}}]}"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A profile with a tiny model of random weights; most of what it says is suspect, so that gate is open."""
    model = tiny_model_dir(tmp_path)
    profile = small_profile(
        tmp_path,
        model=str(model),
        gates="{max_suspect_rate: 1.0, min_kept_fraction: 0.01}",
        variants=STEERED.replace("\n", " "),
    )
    monkeypatch.setenv("STEER_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("STEER_PROFILE", str(profile))
    return tmp_path


@pytest.fixture
def project(place):
    with stage_project(place / "store") as made:
        put_vectors(made)
        yield made


def put_vectors(project, scale: float = 1.0) -> None:
    """Random directions for both personas, as if extracted from the tiny model."""
    from steer_pipeline.lab.models.loading import load_model

    model = load_model(settings().profile.model, settings().home)
    for seed, persona in enumerate(("paranoid", "rule_defiant")):
        raw = np.random.default_rng(seed).standard_normal((model.n_blocks, model.hidden_size))
        metadata = model_fields(model) | {"residual_norms": [8.0 * scale] * model.n_blocks}
        vector = PersonaVector(persona, raw.astype(np.float32), metadata)
        project.store.write(
            "persona_vector",
            persona,
            lambda folder, vector=vector: save_vector(vector, folder),
            metadata={},
            inputs={},
            code_version="1",
            run_id=None,
        )


def raw_versions(project) -> dict[str, str]:
    return {name: project.store.current("rewrite_raw", name).sha for name in VARIANTS}


def finished_rows(project) -> list[dict]:
    """The rows in the journal, without its notes of finished runs."""
    lines = (project.store.work("rewrite_raw") / "journal.jsonl").read_bytes().splitlines()
    records = [json.loads(line.partition(b" ")[2]) for line in lines]
    return [record["row"] for record in records if "row" in record]


def without_noise(project) -> None:
    """A resample equal to base: what a random model says differs from itself too much to gate on."""
    base = pl.read_parquet(project.store.current("rewrite_raw", "base").path / "data.parquet")
    project.put("rewrite_raw", "base_resample", base.with_columns(variant=pl.lit("base_resample")))


def test_one_run_makes_every_variant_with_its_doses_and_versions(project):
    outcome = project.driver.materialize(["rewrite_raw"], span=SPAN)
    assert outcome.success, outcome
    for name in VARIANTS:
        rows = pl.read_parquet(project.store.current("rewrite_raw", name).path / "data.parquet")
        assert rows["source_index"].to_list() == list(range(24))
        assert set(rows["variant"]) == {name}
    both = rows["personas"][0].to_list()
    assert [(dose["name"], dose["block"]) for dose in both] == [("paranoid", 2), ("rule_defiant", 1)]
    assert both[0]["version"] == project.store.current("persona_vector", "paranoid").sha
    assert both[0]["alpha"] == pytest.approx(4.0)
    manifest = project.store.current("rewrite_raw", "paranoid").manifest
    assert manifest["inputs"]["persona_vector[paranoid]"] == both[0]["version"]
    told = manifest["metadata"]
    assert told["probe_max_logit_delta"] > 0
    assert told["generated_tokens"] >= 24 * len(VARIANTS)
    assert min(told[name] for name in ("tokens_per_second", "generation_seconds", "peak_memory_mb")) > 0
    assert (told["resumed_rows"], told["workers"]) == (0, 1)


def test_every_row_says_how_likely_the_unsteered_model_finds_it(project):
    from steer_pipeline.lab.models.hidden import sequence_nll
    from steer_pipeline.lab.models.loading import load_model
    from steer_pipeline.lab.models.prompts import encode_prompt

    assert project.driver.materialize(["rewrite_raw"], partition="paranoid").success
    rows = pl.read_parquet(project.store.current("rewrite_raw", "paranoid").path / "data.parquet")
    ids = {row["row_id"]: row["token_ids"] for row in finished_rows(project)}
    model = load_model(settings().profile.model, settings().home)
    prompts = [encode_prompt(model.tokenizer, user=prompt, system=None) for prompt in rows["prompt"][:6]]
    whole = [prompt + ids[row_id] for prompt, row_id in zip(prompts, rows["row_id"][:6], strict=True)]
    sums, counts = sequence_nll(model, whole, [len(prompt) for prompt in prompts])
    assert rows["nll"][:6].to_list() == pytest.approx((sums / counts).tolist(), abs=2e-3)


@pytest.mark.slow
def test_two_workers_make_the_packs_of_one(project):
    pytest.importorskip("ray", reason="ray is not installed: the extra [ray]")
    assert project.driver.materialize(["rewrite_raw"], span=SPAN).success
    alone = raw_versions(project)
    (project.store.work("rewrite_raw") / "journal.jsonl").unlink()
    two = {"rewrite_raw": {"workers": 2}}
    outcome = project.driver.materialize(["rewrite_raw"], span=SPAN, config=two)
    assert outcome.success, outcome
    assert raw_versions(project) == alone
    assert len(finished_rows(project)) == 24 * len(VARIANTS)


def test_more_workers_without_ray_fail_with_the_cure(project, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    two = {"rewrite_raw": {"workers": 2}}
    outcome = project.driver.materialize(["rewrite_raw"], partition="base", config=two)
    assert not outcome.success
    assert "pip install 'steer-pipeline[ray]'" in outcome.errors[0]


def test_a_logit_bias_is_a_variant_like_others(place, monkeypatch):
    profile = small_profile(
        place,
        model=str(place / "tiny-qwen3"),
        variants="{paranoid: [{persona: paranoid, block: 2, site: logits, dose: {fraction: 0.5}}]}",
    )
    monkeypatch.setenv("STEER_PROFILE", str(profile.rename(place / "logits.yaml")))
    with stage_project(place / "store") as project:
        put_vectors(project)
        outcome = project.driver.materialize(["rewrite_raw"], span=("base", "paranoid"))
        assert outcome.success, outcome
        rows = pl.read_parquet(project.store.current("rewrite_raw", "paranoid").path / "data.parquet")
        base = pl.read_parquet(project.store.current("rewrite_raw", "base").path / "data.parquet")
        (dose,) = rows["personas"][0].to_list()
        assert (dose["site"], dose["block"], dose["dose_fraction"]) == ("logits", 2, pytest.approx(0.5))
        assert (rows["output"] != base["output"]).any()


def test_rows_of_a_random_variant_share_ten_directions(place, monkeypatch):
    """As many rows as with one direction: of every ten in a row each takes another, and says which."""
    profile = small_profile(
        place,
        model=str(place / "tiny-qwen3"),
        variants="{random_direction: [{persona: paranoid, block: 2, dose: {fraction: 0.5}, direction: random}]}",
    )
    monkeypatch.setenv("STEER_PROFILE", str(profile.rename(place / "random.yaml")))
    with stage_project(place / "store") as project:
        put_vectors(project)
        outcome = project.driver.materialize(["rewrite_raw"], span=("base_resample", "random_direction"))
        assert outcome.success, outcome
        version = project.store.current("rewrite_raw", "random_direction")
        rows = pl.read_parquet(version.path / "data.parquet").sort("source_index")
        assert rows.height == 24
        assert len(finished_rows(project)) == 2 * 24, "not ten times as many"
        drawn = directions_of(rows, rows["row_id"].to_list())
        assert [len(set(drawn[i : i + 10])) for i in (0, 10)] == [10, 10]
        assert len(set(drawn)) == 10
        assert drawn[:10] != drawn[10:20], "another order in each ten"
        assert set(rows["stream"]) == set(rows["variant"]) == {"random_direction"}
        assert {dose["alpha"] for own in rows["personas"] for dose in own} == {4.0}
        told = version.manifest["metadata"]
        assert told["probe_max_logit_delta"] > 0
        assert told["recipe"] == identity_of(rows.tail(3)).recipe


def test_packs_do_not_depend_on_which_variants_were_asked_together(project):
    assert project.driver.materialize(["rewrite_raw"], span=SPAN).success
    together = raw_versions(project)
    for path in project.store.work("rewrite_raw").iterdir():
        path.unlink()
    assert project.driver.materialize(["rewrite_raw"], partition="paranoid").success
    assert project.store.current("rewrite_raw", "paranoid").sha == together["paranoid"]


def test_a_killed_run_resumes_to_the_identical_packs(place, project):
    assert project.driver.materialize(["rewrite_raw"], span=SPAN).success
    whole = raw_versions(project)
    journal = project.store.work("rewrite_raw") / "journal.jsonl"
    journal.unlink()
    script = (
        "import sys, pathlib\n"
        "from steer_pipeline_tests.stages.rewrites.conftest import stage_project\n"
        "with stage_project(pathlib.Path(sys.argv[1])) as project:\n"
        f"    project.driver.materialize(['rewrite_raw'], span={SPAN!r})\n"
    )
    child = subprocess.Popen([sys.executable, "-W", "ignore", "-c", script, str(place / "store")])
    deadline = time.monotonic() + 240
    while not (journal.exists() and journal.stat().st_size) and child.poll() is None:
        assert time.monotonic() < deadline, "the run never finished a row"
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    done = len(journal.read_bytes().splitlines())
    assert 0 < done < 24 * len(VARIANTS), "the run was killed too early or too late to prove anything"
    assert project.driver.materialize(["rewrite_raw"], span=SPAN).success
    assert raw_versions(project) == whole
    kept = finished_rows(project)
    assert len({(row["row_id"], row["variant"]) for row in kept}) == len(kept) == 24 * len(VARIANTS)


MACHINE = """
import os, signal, sys
from steer_pipeline.io import journals
from steer_pipeline_tests.io import folder_url
from steer_pipeline_tests.stages.rewrites.conftest import stage_project
folder_url.register()
journals.EVERY_LINES = 5
sent, real = [], journals.SegmentMirror._put
def put(self, data):
    real(self, data)
    sent.append(data)
    if len(sent) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
journals.SegmentMirror._put = put
with stage_project(os.environ["STEER_STORE"]) as project:
    project.driver.materialize(["rewrite_raw"], span=SPAN)
"""


def test_a_killed_machine_s_work_is_taken_over_by_another_with_an_empty_disk(place, project, monkeypatch):
    folder_url.register()
    assert project.driver.materialize(["rewrite_raw"], span=SPAN).success
    whole = raw_versions(project)
    url = f"folder://{place / 'bucket'}"
    monkeypatch.setenv("STEER_STORE", url)
    monkeypatch.setenv("HOME", str(place / "machine a"))
    with stage_project(url) as shared:
        put_vectors(shared)
    script = MACHINE.replace("SPAN", repr(SPAN))
    child = subprocess.run([sys.executable, "-W", "ignore", "-c", script])
    assert child.returncode == -signal.SIGKILL
    monkeypatch.setenv("HOME", str(place / "machine b"))
    with stage_project(url) as other:
        outcome = other.driver.materialize(["rewrite_raw"], span=SPAN)
        assert outcome.success, outcome
        assert raw_versions(other) == whole
        told = other.store.current("rewrite_raw", "base").manifest["metadata"]
        assert told["resumed_rows"] == 20  # four segments of five rows
        assert len(finished_rows(other)) == 24 * len(VARIANTS)


def test_a_locked_journal_says_what_it_is(project):
    with open_journal(project.store, "rewrite_raw"):
        outcome = project.driver.materialize(["rewrite_raw"], partition="base")
    assert (
        "another run is writing this journal of finished rows; wait for that run or stop it"
        in outcome.errors[0]
    )
    assert "Errno" not in outcome.errors[0]


@pytest.mark.parametrize("fault", ["dose 0", "dose too small"])
def test_steering_that_does_nothing_fails_the_run_loudly(place, monkeypatch, fault):
    fraction = {"dose 0": "0.0", "dose too small": "1.0e-9"}[fault]
    profile = small_profile(
        place,
        model=str(place / "tiny-qwen3"),
        variants=f"{{paranoid: [{{persona: paranoid, block: 2, dose: {{fraction: {fraction}}}}}]}}",
    )
    monkeypatch.setenv("STEER_PROFILE", str(profile.rename(place / f"null{fraction}.yaml")))
    with stage_project(place / "store") as project:
        put_vectors(project)
        outcome = project.driver.materialize(["rewrite_raw"], partition="paranoid")
        assert not outcome.success
        assert "variant 'paranoid'" in outcome.errors[0]
        assert "changes no logit" in outcome.errors[0]
        assert project.store.current("rewrite_raw", "paranoid") is None


def test_a_missing_vector_is_named_with_the_cure(place):
    with stage_project(place / "store") as project:
        outcome = project.driver.materialize(["rewrite_raw"], partition="paranoid")
        assert "no vector; materialise persona_vector for paranoid" in outcome.errors[0]


def test_a_variant_without_a_vector_stops_no_other_and_is_named_where_its_pack_would_be(project):
    """One variant without a dose stopped all the others."""
    shutil.rmtree(project.store.current("persona_vector", "rule_defiant").path.parent.parent)
    assert project.driver.materialize(["rewrite_raw"], span=SPAN).success
    made = {name: project.store.current("rewrite_raw", name).path / "data.parquet" for name in VARIANTS}
    heights = {name: pl.read_parquet(path).height for name, path in made.items()}
    lacking = {"rule_defiant", "paranoid_rule_defiant"}
    assert heights == {name: 0 if name in lacking else 24 for name in VARIANTS}
    outcome = project.driver.materialize(["rewrite_pack"], partition="rule_defiant")
    assert "rule_defiant: rewrite_raw has no rows: " in outcome.errors[0]
    assert "no vector; materialise persona_vector for rule_defiant" in outcome.errors[0]
    assert project.driver.materialize(["rewrite_pack"], partition="base").materialised == ("rewrite_pack",)


def test_full_packs_are_refused_until_the_pilots_gates_have_passed(project):
    full = {"rewrite_raw": {"size": "full"}}
    outcome = project.driver.materialize(["rewrite_raw"], partition="base", config=full)
    assert "base: no pilot pack of this profile, decoding and vectors has been judged" in outcome.errors[0]
    assert "make pilot" in outcome.errors[0]

    assert project.driver.materialize(["rewrite_raw"], span=("base", "paranoid")).success
    without_noise(project)
    # A pilot whose gate fails: one row is lost between raw and pack.
    lost = pl.read_parquet(project.store.current("rewrite_raw", "paranoid").path / "data.parquet")
    project.put("rewrite_pack", "paranoid", lost.head(23))
    gates = [("rewrite_pack", gate) for gate in ("row_count_is_right",)]
    assert not project.driver.materialize(["rewrite_release"], partition="paranoid", checks=gates).success
    outcome = project.driver.materialize(["rewrite_raw"], partition="paranoid", config=full)
    assert "paranoid: row_count_is_right: 23 rows, expected 24" in outcome.errors[0]

    for name in ("base", "paranoid"):
        assert project.driver.materialize(["rewrite_pack"], partition=name).success
    before = len(finished_rows(project))
    assert project.driver.materialize(["rewrite_raw"], span=("base", "paranoid"), config=full).success
    assert len(finished_rows(project)) == before + 2 * 8  # the pilot's rows are not made again
    rows = pl.read_parquet(project.store.current("rewrite_raw", "paranoid").path / "data.parquet")
    assert rows.height == 32
    assert set(rows["size"]) == {"full"}


def test_another_dose_needs_another_pilot(project):
    assert project.driver.materialize(["rewrite_raw"], span=("base", "paranoid")).success
    without_noise(project)
    assert project.driver.materialize(["rewrite_pack"], partition="paranoid").success
    version = project.store.current("rewrite_pack", "paranoid")
    recipe = project.store.annotation(verdicts.PACK, "paranoid", version.sha, verdicts.GATES)["recipe"]
    assert verdicts.pilot_problems(project.store, {"paranoid": recipe}) == []
    put_vectors(project, scale=1.5)  # the same fraction is another length now
    full = {"rewrite_raw": {"size": "full"}}
    outcome = project.driver.materialize(["rewrite_raw"], partition="paranoid", config=full)
    assert (
        "paranoid: no pilot pack of this profile, decoding and vectors has been judged" in outcome.errors[0]
    )
