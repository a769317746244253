"""Comparison and report are made from stored packs alone, name their versions, and judge their own controls."""

import json
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from steer_pipeline_tests.lab.rewrites.packs import made_with, pack, resample
from steer_pipeline_tests.planted import PLANTED
from steer_pipeline_tests.stages.rewrites.conftest import small_profile, stage_project

MARKER = PLANTED["paranoid"].positive.lexicon[0]
VOICE = f" They say that {MARKER} are at work."


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("STEER_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("STEER_PROFILE", str(small_profile(tmp_path)))
    with stage_project(tmp_path / "store") as made:
        made.put("rewrite_pack", "base", pack("base"))
        made.put("rewrite_pack", "base_resample", resample())
        made.put("rewrite_pack", "random_direction", pack("random_direction"))
        made.put("rewrite_pack", "paranoid", pack("paranoid", tail=VOICE))
        yield made


def checks_of(project) -> dict[str, dg.AssetCheckEvaluation]:
    keys = [
        dg.AssetCheckKey(dg.AssetKey("rewrite_comparison"), name)
        for name in ("controls_show_nothing", "targets_are_met", "every_pack_is_compared")
    ]
    latest = project.driver.instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
    return {key.name: record.evaluation for key, record in latest.items()}


def evaluations(project) -> dict[str, bool]:
    return {name: evaluation.passed for name, evaluation in checks_of(project).items()}


def test_the_comparison_and_the_report_name_the_packs_they_were_made_from(project):
    outcome = project.driver.materialize(["rewrite_comparison", "vector_eval_report"])
    assert outcome.success, outcome
    comparison = project.store.current("rewrite_comparison", None)
    versions = json.loads((comparison.path / "versions.json").read_text())
    assert versions == {
        name: project.store.current("rewrite_pack", name).sha
        for name in ("base", "paranoid", "base_resample", "random_direction")
    }
    assert comparison.manifest["inputs"].items() >= {
        (f"rewrite_pack[{name}]", sha) for name, sha in versions.items()
    }
    report = project.store.current("vector_eval_report", None)
    text = (report.path / "report.md").read_text()
    assert all(sha in text for sha in versions.values())
    assert evaluations(project) == {
        "controls_show_nothing": True,
        "targets_are_met": True,
        "every_pack_is_compared": True,
    }


def test_the_ui_is_shown_plots_a_whole_summary_and_where_the_report_lies(project):
    project.driver.materialize(["rewrite_comparison", "vector_eval_report"])
    event = project.driver.instance.get_latest_materialization_event(dg.AssetKey("vector_eval_report"))
    metadata = event.asset_materialization.metadata
    plots = [name for name in metadata if name.startswith("plot_")]
    assert plots
    summary = metadata["summary"].value
    assert "`paranoid` moves paranoid up" in summary
    assert summary.splitlines()[-1].startswith("The whole report is `report.html`")  # whole, not cut
    page = metadata["report.html"].value
    assert Path(page).read_text().endswith("</html>\n")
    assert metadata["open_report.html"].value == f"file://{page}"
    first = [*plots, "summary", "plots", "report.html", "open_report.html"]
    assert list(metadata)[: len(first)] == first
    assert metadata[plots[0]].value.startswith("![")
    event = project.driver.instance.get_latest_materialization_event(dg.AssetKey("rewrite_comparison"))
    metadata = event.asset_materialization.metadata
    assert metadata["trait_paranoid_lexicon_shift_paranoid"].value == pytest.approx(0.5)
    assert "svg" in metadata["shifts_paranoid_lexicon"].value


def test_a_control_that_moves_and_a_variant_that_does_not_are_called_out(project):
    project.put("rewrite_pack", "random_direction", pack("random_direction", tail=VOICE))
    project.put("rewrite_pack", "paranoid", pack("paranoid"))
    assert project.driver.materialize(["rewrite_comparison"]).success  # warnings, so that it can be looked at
    assert evaluations(project) == {
        "controls_show_nothing": False,
        "targets_are_met": False,
        "every_pack_is_compared": True,
    }
    moved, missed = (
        checks_of(project)[name].description for name in ("controls_show_nothing", "targets_are_met")
    )
    assert "random_direction moves trait_paranoid_lexicon by +0.500 [" in moved
    assert "the interval must lie above zero. To go on: raise the variant's dose" in missed


def test_a_lexicon_that_no_text_has_a_word_of_is_an_error_of_the_comparison_and_no_zero(project):
    project.put("rewrite_pack", "paranoid", pack("paranoid"))
    outcome = project.driver.materialize(["rewrite_comparison"])
    assert not outcome.success
    assert (
        "persona paranoid: its lexicon scores all 96 texts of this run 0, none has a marker"
        in outcome.errors[0]
    )


def test_without_its_controls_there_is_no_comparison(project, tmp_path, monkeypatch):
    monkeypatch.setenv("STEER_STORE", str(tmp_path / "other"))
    with stage_project(tmp_path / "other") as other:
        other.put("rewrite_pack", "base", pack("base"))
        outcome = other.driver.materialize(["rewrite_comparison"])
    assert "pack base_resample is missing" in outcome.errors[0]


def test_rows_of_the_comparison_are_one_a_variant_and_news_item(project):
    project.driver.materialize(["rewrite_comparison"])
    rows = pl.read_parquet(project.store.current("rewrite_comparison", None).path / "rows.parquet")
    assert rows.height == 4 * 24
    assert rows.select("variant", "row_id").is_unique().all()


def test_a_pack_made_otherwise_than_base_is_left_out_and_named(project):
    hotter = pack("trusting", tail=VOICE).with_columns(
        made_with=pl.lit(made_with(**{"sampling.temperature": 0.7})), size=pl.lit("full")
    )
    project.put("rewrite_pack", "trusting", hotter)
    assert project.driver.materialize(["rewrite_comparison"]).success
    folder = project.store.current("rewrite_comparison", None).path
    assert json.loads((folder / "left_out.json").read_text()) == {
        "trusting": "sampling.temperature is 0.7, in base 0.6"
    }
    assert "trusting" not in json.loads((folder / "versions.json").read_text())
    assert evaluations(project)["every_pack_is_compared"] is False


def test_packs_of_several_sizes_are_compared_on_their_common_rows_and_not_called_one_size(project):
    """`--size full --only base` gave a report titled "full, 1000 rows" whose other variants had 50."""
    project.put("rewrite_pack", "base", pack("base", n=32, size="full"))
    outcome = project.driver.materialize(["rewrite_comparison", "vector_eval_report"])
    assert outcome.success, outcome
    rows = pl.read_parquet(project.store.current("rewrite_comparison", None).path / "rows.parquet")
    assert rows.group_by("variant").len()["len"].to_list() == [24] * 4
    text = (project.store.current("vector_eval_report", None).path / "report.md").read_text()
    assert "size: **mixed: compared on the 24 rows that all packs have**" in text
    assert "| `base` | base | full, 32 | 24 |" in text
    assert "| `paranoid` | steered | pilot, 24 | 24 |" in text
    (told,) = [one for name, one in checks_of(project).items() if name == "every_pack_is_compared"]
    assert told.passed
    assert told.description.startswith("packs of several sizes, compared on the 24 news items that all have")


def test_a_control_made_otherwise_than_base_is_no_control(project):
    other = pack("random_direction").with_columns(made_with=pl.lit(made_with(model="another")))
    project.put("rewrite_pack", "random_direction", other)
    outcome = project.driver.materialize(["rewrite_comparison"])
    assert "random_direction: model is 'another', in base 'tiny'" in outcome.errors[0]
