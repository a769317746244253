"""Every test has its own store, inbox and Dagster home, and one thread."""

import os
import warnings

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import dagster as dg
import pytest

from steer_pipeline.lab.models import identity

for category in (dg.PreviewWarning, dg.BetaWarning, dg.SupersessionWarning):
    warnings.filterwarnings("ignore", category=category)


@pytest.fixture(autouse=True)
def isolated_environment(tmp_path_factory, monkeypatch):
    """No test reads or writes the checkout's store, instance or cache of hashes, whatever the shell has set."""
    place = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("STEER_STORE", str(place / "store"))
    monkeypatch.setenv("STEER_NEWS_INBOX", str(place / "inbox"))
    monkeypatch.setattr(identity, "cache_file", lambda: place / "hashes.json")
    monkeypatch.delenv("STEER_PROFILE", raising=False)
    monkeypatch.delenv("STEER_HOME", raising=False)
    (place / "dagster").mkdir()
    (place / "dagster" / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    monkeypatch.setenv("DAGSTER_HOME", str(place / "dagster"))


# Files that take a minute or more go first, so that no worker waits for the other at the end.
LONG = (
    "test_declarations.py",
    "test_end_to_end.py",
    "test_students_stage.py",
    "test_heal_stage.py",
    "test_transport_stage.py",
    "test_lineage.py",
    "test_raw.py",
    "test_training.py",
    "test_on_policy.py",
    "test_student_arms.py",
    "test_chaos.py",
    "test_architectures.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))
