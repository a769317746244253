"""The README's first command, as a user types it, on the news and the model that come with the checkout.

One pilot is run in a process of its own, with a store, a Dagster home and copies of catalogue and model that may
be edited; every test reads what it left behind, or runs the next command on it.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from steer_pipeline.catalogue import load_variants
from steer_pipeline.environment import PACKAGE
from steer_pipeline.io.store import ArtifactStore, label
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

    @property
    def catalogue(self) -> Path:
        return self.folder / "catalogue"

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {
            "STEER_CATALOGUE": str(self.catalogue),
            "STEER_STORE": str(self.folder / "store"),
            "STEER_NEWS_INBOX": str(self.folder / "inbox"),
            "DAGSTER_HOME": str(self.folder / "dagster"),
            "PYTHONWARNINGS": "ignore",
            "PYTHONPATH": str(PACKAGE.parent),
        }
        environment = {k: v for k, v in environment.items() if k not in ("STEER_PROFILE", "STEER_HOME")}
        return subprocess.run(
            [sys.executable, "-m", "steer_pipeline", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=1500,
            check=False,
        )

    def stale(self) -> dict[str, str]:
        """What was made and is stale now, with the reason."""
        answer = self.run("status", "--json", "--stale-only")
        assert answer.returncode == 0, answer.stderr
        found = json.loads(answer.stdout)
        return {label(each["asset"], each["partition"]): each["why"] for each in found}

    @contextmanager
    def edited(self, path: Path, change: Callable[[Any], None]) -> Iterator[None]:
        """A YAML file as `change` leaves it, for a while."""
        before = path.read_text()
        content = yaml.safe_load(before)
        change(content)
        path.write_text(yaml.safe_dump(content, allow_unicode=True))
        try:
            yield
        finally:
            path.write_text(before)

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
    made = Place(folder)
    shutil.copytree(
        PACKAGE / "catalogue", made.catalogue, ignore=shutil.ignore_patterns("*.py", "__pycache__")
    )
    shutil.copytree(settings().resolve(settings().profile.model.path), folder / "model")
    profile = made.catalogue / "profiles" / "newsroom.yaml"
    content = yaml.safe_load(profile.read_text())
    content["model"]["path"] = str(folder / "model")
    profile.write_text(yaml.safe_dump(content))
    return made


@pytest.fixture(scope="module")
def pilot(place) -> subprocess.CompletedProcess[str]:
    return place.run("make", "pilot")


@pytest.fixture(scope="module")
def last_line(pilot) -> dict:
    """The last line of the pilot's output."""
    assert pilot.returncode == 0, f"{pilot.stdout[-3000:]}\n{pilot.stderr[-3000:]}"
    return json.loads(pilot.stdout.strip().splitlines()[-1])


def test_the_last_line_has_every_variant_and_control_with_clean_rows(last_line):
    assert set(last_line) == {"seconds", "variants"}
    assert list(last_line["variants"]) == list(VARIANTS)
    for name, numbers in last_line["variants"].items():
        assert numbers["rows"] == settings().profile.rewrites.pilot_rows, name
        assert numbers["suspect_rate"] <= 0.01, name
        assert 0.8 <= numbers["facts_kept"] <= 1, name
        assert set(numbers["trait"]) == set(TRAITS), name


def test_steering_moves_each_trait_as_the_catalogue_says(last_line):
    for name, variant in VARIANTS.items():
        for persona, direction in variant.targets.items():
            moved = last_line["variants"][name]["trait"][persona]
            assert moved["low"] <= moved["shift"] <= moved["high"]
            assert moved["low"] > 0 if direction == "up" else moved["high"] < 0, (name, persona, moved)


def test_every_variant_says_what_it_costs_and_each_target_lies_beyond_the_random_band(last_line):
    for name, variant in VARIANTS.items():
        numbers = last_line["variants"][name]
        if name != "base":
            assert numbers["coherence"]["extra_nll"]["difference"] is not None, name
            assert numbers["coherence"]["extra_suspects"]["within"], name
        for persona in variant.targets:
            assert 0 <= numbers["combined"]["score"] <= 2
            assert numbers["trait"][persona]["random_rank_p"] == pytest.approx(1 / 11, abs=1e-3), (
                name,
                persona,
            )


def test_no_control_moves_on_any_scale(last_line):
    for name in SILENT:
        states = last_line["variants"][name]["control"]
        assert set(states) >= {f"{persona}_{scale}" for persona in TRAITS for scale in ("lexicon", "minilm")}
        assert "moved" not in states.values(), (name, states)


def test_what_moved_beside_the_aim_stands_beside_the_headline(last_line):
    beside = last_line["variants"]["paranoid"]["off_target"]
    assert (beside["persona"], beside["scale"]) == ("rule_defiant", "minilm")
    assert beside["low"] > 0, "MiniLM sees the planted remark as rule-defiant too"


def test_ten_random_directions_share_the_control_s_rows(place, last_line):
    rows = place.rows("rewrite_pack", "random_direction")
    versions = rows["personas"].explode().struct.field("version")
    assert versions.n_unique() == 10
    assert versions.value_counts()["count"].max() == rows.height // 10


def test_every_variant_is_released_with_its_gates_passed(place, last_line):
    for name in VARIANTS:
        pack = place.store.current("rewrite_pack", name)
        pointer = place.store.current("rewrite_release", name)
        assert json.loads((pointer.path / "release.json").read_text())["version"] == pack.sha
        assert place.store.annotation("rewrite_pack", name, pack.sha, "gates")["passed"]
        assert place.rows("rewrite_pack", name)["source_index"].is_sorted()


def test_the_report_names_every_variant_and_holds_its_plots(place, last_line):
    folder = place.store.current("vector_eval_report", None).path
    text = (folder / "report.md").read_text()
    assert all(f"`{name}`" in text for name in VARIANTS)
    assert list((folder / "plots").glob("*.png"))
    assert "data:image/png;base64" in (folder / "report.html").read_text()


def test_what_was_made_can_be_asked_for_and_opened(place, last_line):
    answer = place.run("query", "select count(*) as n from rewrite_pack", "--json")
    rows = settings().profile.rewrites.pilot_rows
    assert json.loads(answer.stdout) == [{"n": rows * len(VARIANTS)}]
    (page,) = place.run("report").stdout.split()
    assert Path(page).name == "report.html"
    assert place.run("make", "pilot", "--dry-run").stdout == "everything is fresh\n"


def test_a_second_pilot_makes_nothing_twice(place, last_line):
    def made() -> dict[str, list[str]]:
        store = place.store
        keys = [(asset, part) for asset in store.assets() for part in store.partitions(asset) or [None]]
        return {f"{asset}/{part}": [v.sha for v in store.versions(asset, part)] for asset, part in keys}

    before = made()
    again = place.run("make", "pilot")
    assert again.returncode == 0, again.stderr
    lines = again.stdout.strip().splitlines()
    assert len(lines) == 1, "steps were run again"
    second = json.loads(lines[-1])
    assert second["variants"] == last_line["variants"]
    assert second["seconds"] < 90
    assert made() == before


STEERED = ("paranoid", "rule_defiant")


def of(asset: str, *partitions: str) -> set[str]:
    return {label(asset, partition) for partition in partitions}


def test_an_edit_makes_stale_exactly_what_was_made_of_it(place, last_line):
    assert place.stale() == {}
    personas, profile = place.catalogue / "personas", place.catalogue / "profiles" / "newsroom.yaml"
    with place.edited(
        personas / "paranoid.yaml", lambda p: p["positive"]["instructions"].append("Trust nobody.")
    ):
        found = place.stale()
        assert set(found) == (
            of("contrast_set", "paranoid")
            | of("persona_vector", "paranoid")
            | of("rewrite_raw", "prompted_paranoid")
        )
        assert set(found.values()) == {"persona_spec[paranoid] has changed"}
    with place.edited(profile, lambda content: content["rewrites"]["sampling"].update(temperature=0.55)):
        found = place.stale()
        assert set(found) == of("dose_curve", *STEERED) | of("rewrite_raw", *VARIANTS) | {
            "random_band",
            "model_diagnosis",
            "vector_eval_report",
        }
        assert found["dose_curve[paranoid]"] == "profile section rewrites.sampling has changed"
    with place.edited(profile, lambda content: content.update(judge={"model": "another"})):
        assert place.stale() == {}, "nothing of the pilot is made of it"
    assert place.stale() == {}, "an edit that is taken back leaves no trace"


def test_another_chat_template_and_other_weights_are_seen(place, last_line):
    """Two checkpoints of one shape were one to the pipeline, and a changed template was none of its business."""
    template, weights = (
        place.folder / "model" / "chat_template.jinja",
        place.folder / "model" / "model.safetensors",
    )
    before = template.read_text()
    template.write_text(before.replace("<|im_start|>", "<|im_start|> ", 1))
    prompts = of("contrast_set", *STEERED) | of("dose_curve", *STEERED) | of("rewrite_raw", *VARIANTS)
    prompts |= {"random_band", "model_diagnosis"} | of("persona_vector", *STEERED)
    assert set(place.stale()) == prompts
    template.write_text(before)
    kept = weights.read_bytes()
    data = bytearray(kept)
    data[len(data) // 2] ^= 0x40
    weights.write_bytes(data)
    found = place.stale()
    weights.write_bytes(kept)
    assert set(found) == prompts
    assert set(found.values()) == {"model_weights has changed"}
    assert place.stale() == {}


def test_make_does_what_status_says_and_nothing_else(place, last_line):
    def weaker(entries: list[dict]) -> None:
        (trusting,) = (entry for entry in entries if entry["name"] == "trusting")
        trusting["terms"][0]["dose"] = {"recommended": -0.9}

    with place.edited(place.catalogue / "variants.yaml", weaker):
        assert set(place.stale()) == {
            *(f"{asset}[trusting]" for asset in ("rewrite_raw", "rewrite_pack", "keep_set")),
            "random_band",  # which variant is the strongest may have changed
            "rewrite_comparison",
            "vector_eval_report",
        }
        again = place.run("make", "pilot")
        assert again.returncode == 0, again.stderr
        steps = [
            line.split("s  ", 1)[1].rpartition(" (")[0] for line in again.stdout.strip().splitlines()[:-1]
        ]
        assert steps == [
            "rewrite_raw [trusting]",
            "rewrite_pack [trusting]",
            "keep_set + rewrite_release [trusting]",
            "random_band",
            "rewrite_comparison + vector_eval_report",
        ]
        assert place.stale() == {}


def test_a_bad_pack_stays_out_and_a_rollback_is_one_command(place, last_line):
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
