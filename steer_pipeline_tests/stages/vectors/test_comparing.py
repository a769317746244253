"""The asset compares a persona's vectors in one run; its checks judge the stored files."""

import dagster as dg
import polars as pl
import pytest

from steer_pipeline.campaigns.driver import Driver
from steer_pipeline.catalogue.specs import ModelSpec
from steer_pipeline.io.bundle import BundleIO
from steer_pipeline.io.parquet import ParquetIO
from steer_pipeline.io.store import ArtifactStore
from steer_pipeline.lab.likelihood.tables import headline
from steer_pipeline.lab.models.loading import load_model
from steer_pipeline.lab.vectors.vector import save_vector
from steer_pipeline.partitions import TRAIT_OR_ROLE
from steer_pipeline.resources import ArtifactStoreResource, LanguageModelResource
from steer_pipeline.stages.vectors import assets, checks
from steer_pipeline_tests.lab.likelihood.builders import behaviour_rows, trained
from steer_pipeline_tests.stages.origins import READER, STUDIED
from steer_pipeline_tests.tiny import tiny_model_dir

PERSONA = "analytical"
PROFILE = """
name: newsroom
summary: A small project for tests.
model: {{path: {model}, dtype: float32, device: cpu}}
behaviour: {{min_count: 4}}
"""


class Project:
    """A store with a behaviour set and trained vectors, and a driver on the stage."""

    def __init__(self, store: ArtifactStore, instance: dg.DagsterInstance) -> None:
        self.store, self.instance, shelf = store, instance, ArtifactStoreResource()
        self.driver = Driver(
            dg.Definitions(
                assets=[
                    *STUDIED,
                    assets.vector_comparison,
                    dg.AssetSpec(
                        "behaviour_set",
                        partitions_def=TRAIT_OR_ROLE,
                        metadata={"dagster/io_manager_key": "parquet_io"},
                    ),
                    dg.AssetSpec(
                        "trained_vector",
                        partitions_def=TRAIT_OR_ROLE,
                        metadata={"dagster/io_manager_key": "bundle_io"},
                    ),
                ],
                asset_checks=[checks.vector_comparison_checks],
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

    def put(self, asset, writer):
        return self.store.write(asset, PERSONA, writer, metadata={}, inputs={}, code_version="1", run_id=None)

    def checks(self):
        """Check name -> (passed, severity, description)."""
        found = {}
        for spec in checks.vector_comparison_checks.check_specs:
            key = dg.AssetCheckKey(dg.AssetKey("vector_comparison"), spec.name)
            for record in self.instance.event_log_storage.get_asset_check_execution_history(key, limit=1):
                evaluation = record.event.dagster_event.event_specific_data
                assert evaluation.partition == PERSONA
                found[spec.name] = (evaluation.passed, evaluation.severity.value, evaluation.description)
        return found


@pytest.fixture
def project(tmp_path, monkeypatch):
    folder = tiny_model_dir(tmp_path)
    (tmp_path / "small.yaml").write_text(PROFILE.format(model=folder))
    monkeypatch.setenv("STEER_PROFILE", str(tmp_path / "small.yaml"))
    monkeypatch.setenv("STEER_STORE", str(tmp_path / "store"))
    model = load_model(ModelSpec(path=str(folder), dtype="float32", device="cpu"), tmp_path)

    def put_vectors(place):
        for seed, vector in trained(model).items():
            save_vector(vector, place / "seeds" / str(seed))

    with dg.DagsterInstance.ephemeral() as instance:
        made = Project(ArtifactStore(str(tmp_path / "store")), instance)
        made.put("behaviour_set", lambda place: behaviour_rows().write_parquet(place / "data.parquet"))
        made.put("trained_vector", put_vectors)
        yield made


def test_one_run_compares_and_judges(project):
    outcome = project.driver.materialize(["vector_comparison"], partition=PERSONA)
    assert outcome.success, outcome
    folder = project.store.current("vector_comparison", PERSONA).path
    assert {"rows.parquet", "table.parquet", "scales.json", "averaged"} <= {
        one.name for one in folder.iterdir()
    }
    event = project.instance.get_latest_materialization_event(dg.AssetKey("vector_comparison"))
    metadata = event.asset_materialization.metadata
    table = {row["arm"]: row for row in pl.read_parquet(folder / "table.parquet").iter_rows(named=True)}
    for name, arm, column in (
        ("vanilla_nll", "vanilla", "nll"),
        ("prompted_nll", "prompted", "nll"),
        ("nll_gap_closed", "trained", "nll_gap_closed"),
        ("random_gap_high", "random", "nll_gap_high"),
    ):
        if table[arm][column] is not None:
            assert metadata[name].value == pytest.approx(table[arm][column], rel=1e-3)
    assert {
        "comparison",
        "by_seed",
        "vector_as_classifier",
        "cosines",
        "plot_nll_gap_closed",
        "plot_cosines",
    } <= set(metadata)
    assert headline(folder)["nll_gap_closed"] == table["trained"]["nll_gap_closed"]

    checks = project.checks()
    assert {name: severity for name, (_, severity, _) in checks.items()} == {
        "same_tokens_in_every_arm": "ERROR",
        "prompting_has_an_effect": "WARN",
        "trained_closes_half_of_the_gap": "WARN",
        "random_closes_none": "WARN",
        "averaged_exists": "WARN",
        "at_least_three_seeds": "WARN",
    }
    for name in ("same_tokens_in_every_arm", "averaged_exists", "at_least_three_seeds"):
        assert checks[name][0], checks[name]
    assert not checks["trained_closes_half_of_the_gap"][0]  # directions drawn at random, called trained


def test_what_the_user_must_mend_is_said_and_not_tried_again(project):
    rows = behaviour_rows().with_columns(instruction=pl.lit(""))
    project.put("behaviour_set", lambda place: rows.write_parquet(place / "data.parquet"))
    outcome = project.driver.materialize(["vector_comparison"], partition=PERSONA)
    assert not outcome.success
    assert any("so the prompted arm would be unprompted" in error for error in outcome.errors)
    assert project.store.current("vector_comparison", PERSONA) is None
