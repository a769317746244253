"""The instance files for clusters are what Dagster and the launchers accept, and hold no laptop's paths or secrets."""

import importlib
import importlib.util
from pathlib import Path

import pytest
import yaml
from dagster._config import process_config, resolve_to_config_type
from dagster._core.instance.config import dagster_instance_config

import steer_pipeline

DEPLOY = Path(steer_pipeline.__file__).parent / "deploy"
ROOT = DEPLOY.parent.parent / "dagster.yaml"
LAUNCHERS = {"ray": ("dagster_ray", "RayRunLauncher"), "k8s": ("dagster_k8s", "K8sRunLauncher")}
NEEDED = {"STEER_PROFILE", "STEER_STORE", "DAGSTER_PG_HOST", "DAGSTER_PG_DB", "DAGSTER_PG_USERNAME"}


def instance_file(place):
    return yaml.safe_load((DEPLOY / f"dagster.{place}.yaml").read_text())


def names_taken_from_the_environment(config):
    if isinstance(config, dict):
        if set(config) == {"env"}:
            yield config["env"]
        for value in config.values():
            yield from names_taken_from_the_environment(value)


@pytest.mark.parametrize("place", LAUNCHERS)
def test_dagster_accepts_the_instance_file(place):
    config, _ = dagster_instance_config(str(DEPLOY), f"dagster.{place}.yaml")
    assert config == instance_file(place)


@pytest.mark.parametrize("place", LAUNCHERS)
def test_runs_reach_the_database_and_the_store_from_any_machine(place):
    config = instance_file(place)
    database = config["storage"]["postgres"]["postgres_db"]
    assert {name: database[name] for name in ("hostname", "password")} == {
        "hostname": {"env": "DAGSTER_PG_HOST"},
        "password": {"env": "DAGSTER_PG_PASSWORD"},
    }
    assert config["local_artifact_storage"]["config"]["base_dir"].startswith("/")


@pytest.mark.parametrize("place", LAUNCHERS)
def test_a_clusters_instance_retries_and_watches_like_the_laptops(place):
    config, laptop = instance_file(place), yaml.safe_load(ROOT.read_text())
    assert set(laptop) <= set(config)
    assert config["run_retries"]["retry_on_asset_or_op_failure"] is False
    assert config["run_monitoring"]["free_slots_after_run_end_seconds"] > 0
    assert config["concurrency"]["pools"]["granularity"] == laptop["concurrency"]["pools"]["granularity"]


@pytest.mark.parametrize("place", LAUNCHERS)
def test_the_launcher_is_given_a_gpu_and_the_environment_and_accepts_its_config(place, monkeypatch):
    launcher = instance_file(place)["run_launcher"]
    module, name = launcher["module"], launcher["class"]
    assert (module, name) == LAUNCHERS[place]
    config = launcher["config"]
    if place == "ray":
        assert set(config) == {"ray"}  # the flat form of the launcher's own docstring is refused
        given = config["ray"]["env_vars"]
        assert config["ray"]["num_gpus"] == 1
        assert "DAGSTER_PG_PASSWORD" in given
    else:
        given = config["env_vars"]
        assert config["run_k8s_config"]["container_config"]["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert config["postgres_password_secret"]
    assert set(given) >= NEEDED
    assert not [entry for entry in given if "=" in entry]  # names only, so that no secret stands in the file
    if importlib.util.find_spec(module):
        for variable in names_taken_from_the_environment(config):
            monkeypatch.setenv(variable, "some-value")
        kind = getattr(importlib.import_module(module), name).config_type()
        outcome = process_config(resolve_to_config_type(kind), config)
        assert outcome.success, outcome.errors
