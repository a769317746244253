"""The stage sweeps rates and trains a vector a persona; its checks stop what is broken and warn of the rest."""

import json
import shutil

import dagster as dg
import numpy as np
import polars as pl
import pytest

from steer_pipeline.campaigns.driver import Driver
from steer_pipeline.io.bundle import BundleIO
from steer_pipeline.io.parquet import ParquetIO
from steer_pipeline.io.store import ArtifactStore
from steer_pipeline.lab.models import loading
from steer_pipeline.lab.vectors.learned.claims import settled
from steer_pipeline.lab.vectors.vector import load_vector
from steer_pipeline.partitions import TRAIT_OR_ROLE
from steer_pipeline.resources import ArtifactStoreResource, LanguageModelResource
from steer_pipeline.stages.vectors import assets, checks
from steer_pipeline_tests.lab.vectors.learned.rows import behaviour_rows
from steer_pipeline_tests.stages.origins import READER, STUDIED
from steer_pipeline_tests.tiny import tiny_model_dir

PROFILE = """
name: newsroom
summary: A small project for tests.
model: {{path: {model}, dtype: float32, device: cpu}}
training: {{block: 1, learning_rates: [1.0e-7, 0.05, 0.1], epochs: 2, batch_rows: 4, seeds: [1, 2, 3]}}
"""
STORED = {"dagster/io_manager_key": "parquet_io"}
CHAIN = ["lr_sweep", "trained_vector"]


CHECKS = [checks.lr_sweep_checks, checks.trained_vector_checks]


class Project:
    """A store with behaviour sets, and a driver on the stage."""

    def __init__(self, store: ArtifactStore, instance: dg.DagsterInstance, model: str) -> None:
        self.store, self.instance, self.model = store, instance, model
        shelf = ArtifactStoreResource()
        behaviour = dg.AssetSpec("behaviour_set", metadata=STORED, partitions_def=TRAIT_OR_ROLE)
        self.driver = Driver(
            dg.Definitions(
                assets=[*STUDIED, assets.lr_sweep, assets.trained_vector, behaviour],
                asset_checks=CHECKS,
                resources={
                    "store": shelf,
                    "language_model": LanguageModelResource(),
                    "parquet_io": ParquetIO(store=shelf),
                    "bundle_io": BundleIO(store=shelf),
                    **READER,
                },
                executor=dg.in_process_executor,
            ),
            instance,
        )

    def put(self, asset, writer, persona="analytical"):
        self.store.write(asset, persona, writer, metadata={}, inputs={}, code_version="1", run_id=None)

    def put_rows(self, persona="analytical", **changes):
        rows = behaviour_rows(self.model, persona=persona).with_columns(**changes)
        self.put("behaviour_set", lambda folder: rows.write_parquet(folder / "data.parquet"), persona)

    def folder(self, asset, persona="analytical"):
        return self.store.current(asset, persona).path

    def checks(self):
        """Check name -> (passed, severity) of the last evaluations."""
        found = {}
        for spec in (spec for check in CHECKS for spec in check.check_specs):
            record = self.instance.event_log_storage.get_asset_check_execution_history(spec.key, limit=1)
            if record:
                evaluation = record[0].event.dagster_event.event_specific_data
                found[spec.name] = (evaluation.passed, evaluation.severity.value)
        return found

    def metadata(self, asset):
        key = dg.AssetKey(asset)
        return self.instance.get_latest_materialization_event(key).asset_materialization.metadata


@pytest.fixture
def project(tmp_path, monkeypatch):
    model = tiny_model_dir(tmp_path)
    (tmp_path / "small.yaml").write_text(PROFILE.format(model=model))
    monkeypatch.setenv("STEER_PROFILE", str(tmp_path / "small.yaml"))
    monkeypatch.setenv("STEER_STORE", str(tmp_path / "store"))
    with dg.DagsterInstance.ephemeral() as instance:
        yield Project(ArtifactStore(str(tmp_path / "store")), instance, str(model))


def test_one_run_sweeps_and_trains_with_evaluated_checks_and_numbers_to_plot(project):
    project.put_rows()
    outcome = project.driver.materialize(CHAIN, partition="analytical")
    assert outcome.success, outcome
    sweep, trained = project.folder("lr_sweep"), project.folder("trained_vector")
    assert {path.name for path in sweep.iterdir()} >= {
        "history.parquet",
        "sweep.parquet",
        "choice.json",
        "sweep.png",
    }
    assert {path.name for path in (trained / "seeds").iterdir()} == {"1", "2", "3"}
    assert load_vector(trained).present_blocks == (1,)
    found = project.checks()
    assert found.keys() == {spec.name for check in CHECKS for spec in check.check_specs}
    assert found["vector_is_sound"] == (True, "ERROR")
    assert found["validation_improves"][1] == "WARN"
    assert found["no_rate_diverges"] == (True, "WARN")
    numbers = project.metadata("trained_vector")
    for name in ("validation_nll", "vanilla_nll", "norm_fraction", "learning_rate", "seed_cosine"):
        assert isinstance(numbers[name].value, float), name
    assert "data:image/svg+xml" in numbers["curves"].value
    assert "data:image/svg+xml" in project.metadata("lr_sweep")["curves"].value
    assert project.metadata("lr_sweep")["outpaced_rates"].value >= 1


def test_the_same_inputs_give_the_same_versions(project):
    project.put_rows()
    assert project.driver.materialize(CHAIN, partition="analytical").success
    before = {asset: project.store.current(asset, "analytical").sha for asset in CHAIN}
    assert project.driver.materialize(CHAIN, partition="analytical").success
    assert {asset: project.store.current(asset, "analytical").sha for asset in CHAIN} == before


def test_a_bad_persona_fails_alone_and_is_named_and_the_model_is_loaded_once(project, monkeypatch):
    loads = []
    original = loading._load_torch
    monkeypatch.setattr(loading, "_load_torch", lambda *args: loads.append(1) or original(*args))
    for persona in ("analytical", "sailor"):
        project.put_rows(persona)
    project.put_rows("coach", counts=pl.lit(False))
    outcomes = {
        persona: project.driver.materialize(CHAIN, partition=persona)
        for persona in ("analytical", "coach", "sailor")
    }
    assert {persona for persona, outcome in outcomes.items() if not outcome.success} == {"coach"}
    assert "coach: no row of split 'train' counts" in outcomes["coach"].errors[0]
    assert load_vector(project.folder("trained_vector", "sailor")).persona == "sailor"
    assert len(loads) <= 1


def tampered(project, change):
    """Evaluates the checks of a trained vector that `change(folder)` has been at."""
    made = project.folder("trained_vector")

    def write(folder):
        shutil.copytree(made, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("MANIFEST.json"))
        change(folder)

    project.put("trained_vector", write)
    gates = [("trained_vector", spec.name) for spec in checks.trained_vector_checks.check_specs]
    project.driver.materialize([], checks=gates, partition="analytical")
    return project.checks()


def rewrite(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_checks_fail_on_what_they_are_for(project):
    project.put_rows()
    assert project.driver.materialize(CHAIN, partition="analytical").success

    def mixed_up(folder):
        shutil.copy(folder / "last" / "1" / "vector.safetensors", folder / "vector.safetensors")

    assert tampered(project, mixed_up)["vector_is_sound"] == (False, "ERROR")

    def useless(folder):
        path = folder / "validation.parquet"
        rows = pl.read_parquet(path)
        noise = np.random.default_rng(0).standard_normal(rows.height)
        rows.with_columns(trained_nll=pl.col("vanilla_nll") + noise).write_parquet(path)
        rewrite(folder / "training.json", seeds=1, seed_cosine=None, norm_fraction=3.0)

    found = tampered(project, useless)
    for name in ("validation_improves", "seeds_agree", "norm_is_moderate"):
        assert found[name] == (False, "WARN"), name


def test_a_curve_that_still_falls_at_the_end_is_told(project):
    history = pl.DataFrame(
        {"seed": [1] * 5, "step": [0, 25, 50, 75, 100], "validation_nll": [3.0, 2.5, 2.2, 2.0, 1.5]}
    )
    report = {"seed": 1, "total_steps": 100, "steps": 100, "best_step": 100, "vanilla_nll": 3.0}
    late = settled(history, {**report, "validation_nll": 1.5})
    assert not late.passed
    assert "33.3% of the gain, less than 10% is wanted" in late.message
    assert settled(history.head(4), {**report, "validation_nll": 2.0}).passed
