"""The README's first command, as a user types it, on the news and the model that come with the checkout.

One pilot is run in a process of its own, with a store and a Dagster home of its own; every test reads what it
left behind, or runs the next command on it.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest

from steer_pipeline.catalogue import load_variants
from steer_pipeline.io.store import ArtifactStore
from steer_pipeline.settings import settings

VARIANTS = load_variants()
TRAITS = ("paranoid", "rule_defiant")
SILENT = ("base_resample", "random_direction")


@dataclass
class Place:
    """Where the commands of this module work."""

    folder: Path

    @property
    def store(self) -> ArtifactStore:
        return ArtifactStore(str(self.folder / "store"))

    def run(self, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {
            "STEER_STORE": str(self.folder / "store"),
            "STEER_NEWS_INBOX": str(self.folder / "inbox"),
            "DAGSTER_HOME": str(self.folder / "dagster"),
            "PYTHONWARNINGS": "ignore",
        }
        environment = {k: v for k, v in environment.items() if k not in ("STEER_PROFILE", "STEER_HOME")}
        return subprocess.run(
            [sys.executable, "-m", f"steer_pipeline.tools.{module}", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=1500,
            check=False,
        )

    def replace_pack(self, rows: pl.DataFrame) -> None:
        """Makes `rows` the current paranoid pack, as a careless hand would."""
        self.store.write(
            "rewrite_pack",
            "paranoid",
            lambda folder: rows.write_parquet(folder / "data.parquet"),
            metadata={},
            inputs={},
            code_version="1",
            run_id=None,
        )

    def rows(self, asset: str, partition: str) -> pl.DataFrame:
        return pl.read_parquet(self.store.current(asset, partition).path / "data.parquet")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    folder = tmp_path_factory.mktemp("pilot")
    (folder / "dagster").mkdir()
    (folder / "dagster" / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    return Place(folder)


@pytest.fixture(scope="module")
def pilot(place) -> subprocess.CompletedProcess[str]:
    return place.run("pilot")


@pytest.fixture(scope="module")
def said(pilot) -> dict:
    """The last line of the pilot's output."""
    assert pilot.returncode == 0, f"{pilot.stdout[-3000:]}\n{pilot.stderr[-3000:]}"
    return json.loads(pilot.stdout.strip().splitlines()[-1])


def test_the_last_line_has_every_variant_and_control_with_clean_rows(said):
    assert set(said) == {"seconds", "variants"}
    assert list(said["variants"]) == list(VARIANTS)
    for name, numbers in said["variants"].items():
        assert numbers["rows"] == settings().profile.rewrites.pilot_rows, name
        assert numbers["suspect_rate"] <= 0.01, name
        assert 0.8 <= numbers["facts_kept"] <= 1, name
        assert set(numbers["trait"]) == set(TRAITS), name


def test_steering_moves_each_trait_as_the_catalogue_says(said):
    for name, variant in VARIANTS.items():
        for persona, direction in variant.targets.items():
            moved = said["variants"][name]["trait"][persona]
            assert moved["low"] <= moved["shift"] <= moved["high"]
            assert moved["low"] > 0 if direction == "up" else moved["high"] < 0, (name, persona, moved)


def test_controls_include_zero(said):
    for name in SILENT:
        for persona in TRAITS:
            moved = said["variants"][name]["trait"][persona]
            assert moved["low"] <= 0 <= moved["high"], (name, persona, moved)


def test_every_variant_is_released_with_its_gates_passed(place, said):
    for name in VARIANTS:
        pack = place.store.current("rewrite_pack", name)
        pointer = place.store.current("rewrite_release", name)
        assert json.loads((pointer.path / "release.json").read_text())["version"] == pack.sha
        assert place.store.annotation("rewrite_pack", name, pack.sha, "gates")["passed"]
        assert place.rows("rewrite_pack", name)["source_index"].is_sorted()


def test_the_report_names_every_variant_and_holds_its_plots(place, said):
    folder = place.store.current("vector_eval_report", None).path
    text = (folder / "report.md").read_text()
    assert all(f"`{name}`" in text for name in VARIANTS)
    assert list((folder / "plots").glob("*.png"))
    assert "data:image/png;base64" in (folder / "report.html").read_text()


def test_a_second_pilot_makes_nothing_twice(place, said):
    def made() -> dict[str, list[str]]:
        store = place.store
        keys = [(asset, part) for asset in store.assets() for part in store.partitions(asset) or [None]]
        return {f"{asset}/{part}": [v.sha for v in store.versions(asset, part)] for asset, part in keys}

    before = made()
    again = place.run("pilot")
    assert again.returncode == 0, again.stderr
    lines = again.stdout.strip().splitlines()
    assert len(lines) == 1, "steps were run again"
    second = json.loads(lines[-1])
    assert second["variants"] == said["variants"]
    assert second["seconds"] < 90
    assert made() == before


def test_a_bad_pack_stays_out_and_a_rollback_is_one_command(place, said):
    good = place.store.current("rewrite_pack", "paranoid").sha
    spoiled = place.rows("rewrite_pack", "paranoid").with_columns(
        pl.when(pl.int_range(pl.len()) < 5).then(pl.lit("<|im_end|>")).otherwise("output").alias("output")
    )
    place.replace_pack(spoiled)
    refused = place.run("release", "promote", "paranoid")
    assert refused.returncode == 1
    assert "rewrite_pack[paranoid]: suspect_rate_is_low: 10.00% of 50 rows are suspect" in refused.stderr
    reworded = place.rows("rewrite_raw", "paranoid").with_columns(pl.col("output") + " ")
    place.replace_pack(reworded)
    assert place.run("release", "promote", "paranoid").returncode == 0
    back = place.run("release", "rollback", "paranoid")
    assert back.returncode == 0, back.stderr
    assert f"rollback  {good}" in back.stdout
    log = place.run("release", "history", "paranoid").stdout.splitlines()
    assert [line.split()[3] for line in log] == ["rollback", "promote", "promote"]
