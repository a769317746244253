"""A project of its own for each test: an empty store, a Dagster instance in memory, hand-made packs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from steer_pipeline.campaigns.driver import Driver
from steer_pipeline.io.store import ArtifactStore, Version
from steer_pipeline_tests.lab.rewrites.packs import news, pack, resample
from steer_pipeline_tests.planted import LEXICONS

VOICE = " Somebody surely hides the real story."


@dataclass
class Project:
    """A store with news and raw rows, and a driver on the stage."""

    store: ArtifactStore
    driver: Driver

    def put(self, asset: str, partition: str | None, rows: pl.DataFrame) -> Version:
        """Makes `rows` the current version, as if the asset had been materialised."""
        return self.store.write(
            asset,
            partition,
            lambda folder: rows.write_parquet(folder / "data.parquet"),
            metadata={},
            inputs={},
            code_version="1",
            run_id=None,
        )


@contextmanager
def stage_project(store: Path | str) -> Iterator[Project]:
    """A project whose store holds the news and nothing else."""
    with dg.DagsterInstance.ephemeral() as instance:
        made = Project(ArtifactStore(str(store)), Driver(stage_definitions(), instance))
        made.put("truncated_news", None, news(40))
        yield made


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """News, the raw rows of base, its resample and `paranoid`; the pilot size is the 24 rows of the packs."""
    monkeypatch.setenv("STEER_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("STEER_PROFILE", str(small_profile(tmp_path)))
    with stage_project(tmp_path / "store") as made:
        made.put("rewrite_raw", "base", pack("base"))
        made.put("rewrite_raw", "base_resample", resample())
        made.put("rewrite_raw", "paranoid", pack("paranoid", tail=VOICE))
        yield made


def stage_definitions() -> dg.Definitions:
    """The stages of rewrites and reports by themselves; what they read from other stages is only named."""
    from steer_pipeline.io.bundle import BundleIO
    from steer_pipeline.io.catalogue import CatalogueIO
    from steer_pipeline.io.parquet import ParquetIO
    from steer_pipeline.partitions import PERSONA
    from steer_pipeline.resources import ArtifactStoreResource, LanguageModelResource
    from steer_pipeline.stages.catalogue import assets as catalogue
    from steer_pipeline.stages.reports import assets as reports
    from steer_pipeline.stages.reports import checks as report_checks
    from steer_pipeline.stages.rewrites import assets, checks

    store = ArtifactStoreResource()
    made_elsewhere = [
        dg.AssetSpec("truncated_news", metadata={"dagster/io_manager_key": "parquet_io"}),
        *(
            dg.AssetSpec(name, partitions_def=PERSONA)
            for name in ("contrast_set", "persona_vector", "dose_curve")
        ),
    ]
    return dg.Definitions(
        assets=[*catalogue.ASSETS, *assets.ASSETS, *reports.ASSETS, *made_elsewhere],
        asset_checks=[*checks.CHECKS, *report_checks.CHECKS],
        resources={
            "store": store,
            "language_model": LanguageModelResource(),
            "parquet_io": ParquetIO(store=store),
            "bundle_io": BundleIO(store=store),
            "catalogue_io": CatalogueIO(),
        },
        executor=dg.in_process_executor,
    )


def small_profile(folder: Path, model: str = "no_model", **changes: str) -> Path:
    """A profile of 24 pilot rows; `changes` replace whole sections."""
    sections = {
        "model": f"{{path: {model}, dtype: float32, device: cpu, batch_tokens: 2048}}",
        "rewrites": "{pilot_rows: 24, full_rows: 32, sampling: {max_new_tokens: 12, seed: 20}}",
        "gates": "{max_suspect_rate: 0.01, alpha: 0.05, min_kept_fraction: 0.5}",
        "scales": "{minilm: contrast_set}",
        **changes,
    }
    path = folder / "small.yaml"
    lines = ["name: newsroom", "summary: A small project for tests."]
    path.write_text(
        "\n".join([*lines, *(f"{name}: {value}" for name, value in sections.items())]) + "\n" + LEXICONS
    )
    return path
