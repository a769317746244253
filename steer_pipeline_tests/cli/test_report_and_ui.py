"""`steer report` finds the pages that there are; `steer ui` starts Dagster on this project and keeps quiet."""

import os
import sys

import click
import polars as pl
import pytest

from steer_pipeline.environment import project_home
from steer_pipeline.resources import open_store
from steer_pipeline_tests.cli.running import printed, refused


def put(asset: str, page: str):
    """A version of a report with one page; where that lies."""

    def write(folder):
        (folder / page).write_text("<html></html>")

    version = open_store().write(asset, None, write, metadata={}, inputs={}, code_version="1", run_id=None)
    return version.path / page


def test_without_a_report_the_command_says_how_to_make_one():
    assert "run `steer make pilot` first" in refused("report")


def test_the_reports_that_there_are_are_printed_and_opened(monkeypatch):
    opened = []
    monkeypatch.setattr(click, "launch", opened.append)
    first = put("vector_eval_report", "report.html")
    assert printed("report") == f"{first}\n"
    second = put("behaviour_table", "behaviour.html")
    assert printed("report", "--open") == f"{first}\n{second}\n"
    assert opened == [first.as_uri(), second.as_uri()]


def test_texts_are_drawn_by_seed_and_stand_side_by_side():
    assert "nothing is compared" in refused("report", "--texts", "2")
    rows = [
        {"row_id": f"r{i}", "variant": name, "source": f"News {i}.", "output": f"{name} says\na|b {i}"}
        for name in ("base", "paranoid", "trusting")
        for i in range(9)
    ]

    def write(folder):
        pl.DataFrame(rows).write_parquet(folder / "rows.parquet")

    store = open_store()
    store.write("rewrite_comparison", None, write, metadata={}, inputs={}, code_version="1", run_id=None)
    said = printed("report", "--texts", "3", "--seed", "5", "--variants", "base,trusting")
    assert said == printed("report", "--texts", "3", "--seed", "5", "--variants", "base,trusting")
    assert said != printed("report", "--texts", "3", "--seed", "6", "--variants", "base,trusting")
    assert said.count("**News") == 3
    assert said.count("| trusting | trusting says a\\|b ") == 3
    assert "paranoid" not in said
    assert "no variant" in refused("report", "--texts", "1", "--variants", "bose", status=2)


@pytest.mark.parametrize("verbose", [True, False])
def test_the_ui_is_dagster_of_this_environment_in_the_project_s_root(monkeypatch, verbose):
    started = []
    monkeypatch.setattr(os, "execv", lambda path, command: started.append((path, command, os.getcwd())))
    monkeypatch.chdir("/")
    printed("ui", "--port", "4000", *(["--verbose"] if verbose else []))
    ((path, command, folder),) = started
    assert (path, folder) == (sys.executable, str(project_home()))
    assert command[1:8] == ["-m", "dagster", "dev", "--host", "127.0.0.1", "--port", "4000"]
    assert ("warning" in command) != verbose
