"""News that arrives starts a refresh, once; a failed run leaves a note in the store."""

import json
import os
import time
from pathlib import Path

import dagster as dg
import pytest

from steer_pipeline.automation.sensors import failure_notes, inbox_files, news_inbox
from steer_pipeline.settings import settings

LONG_AGO = time.time() - 3600


@pytest.fixture
def inbox(monkeypatch, tmp_path) -> Path:
    """An inbox that the profile names as its source."""
    folder = tmp_path / "inbox"
    folder.mkdir()
    profile = tmp_path / "watching.yaml"
    source = {"kind": "directory", "path": str(folder)}
    profile.write_text(
        "name: watching\nsummary: Reads an inbox.\nmodel: {path: nowhere}\n"
        f"corpus: {{source: {json.dumps(source)}}}\n"
    )
    monkeypatch.setenv("STEER_PROFILE", str(profile))
    monkeypatch.setenv("STEER_NEWS_INBOX", str(folder))
    return folder


def arrive(folder: Path, name: str, text: str = "{}\n", at: float = LONG_AGO) -> Path:
    path = folder / name
    path.write_text(text)
    os.utime(path, (at, at))
    return path


def tick(cursor: str | None = None) -> dg.SensorResult | dg.SkipReason:
    return news_inbox(dg.build_sensor_context(cursor=cursor))


def test_new_files_start_one_refresh_and_the_same_files_none(inbox):
    arrive(inbox, "monday.jsonl")
    first = tick()
    assert len(first.run_requests) == 1
    assert first.run_requests[0].run_key == first.cursor
    again = tick(first.cursor)
    assert isinstance(again, dg.SkipReason)
    assert "have not changed" in again.skip_message


@pytest.mark.parametrize("change", ["add", "grow", "touch", "remove", "rename"])
def test_any_change_of_the_files_starts_another_refresh(inbox, change):
    monday, _ = arrive(inbox, "monday.jsonl"), arrive(inbox, "tuesday.jsonl")
    before = tick().cursor
    if change == "add":
        arrive(inbox, "wednesday.jsonl")
    elif change == "grow":
        arrive(inbox, "monday.jsonl", "{}\n{}\n")
    elif change == "touch":
        os.utime(monday, (LONG_AGO + 1, LONG_AGO + 1))
    elif change == "remove":
        monday.unlink()
    else:
        monday.rename(inbox / "sunday.jsonl")
    after = tick(before)
    assert after.run_requests
    assert after.cursor != before


def test_a_file_that_is_still_being_written_is_left_alone(inbox):
    arrive(inbox, "monday.jsonl", at=time.time())
    assert "may still be being written" in tick().skip_message


def test_partial_and_hidden_files_are_no_news(inbox):
    for name in ("a.jsonl.part", ".b.jsonl", "c.tmp"):
        arrive(inbox, name)
    assert inbox_files(inbox) == []
    assert f"no files in {inbox}" in tick().skip_message
    assert inbox_files(inbox / "missing") == []


def test_an_inbox_that_the_profile_does_not_read_is_said_so_with_the_cure():
    settings().inbox.mkdir(parents=True)
    arrive(settings().inbox, "monday.jsonl")
    assert f"kind: directory, path: {settings().inbox}" in tick().skip_message


def test_a_failed_run_leaves_a_note_with_the_reason():
    @dg.asset
    def broken():
        try:
            raise ValueError("row 7 of news.jsonl has no text")
        except ValueError as error:
            raise RuntimeError("reading failed") from error

    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize([broken], instance=instance, raise_on_error=False)
        context = dg.build_run_status_sensor_context(
            sensor_name="failure_notes",
            dagster_instance=instance,
            dagster_run=result.dagster_run,
            dagster_event=result.get_run_failure_event(),
        ).for_run_failure()
        failure_notes(context)
    note = json.loads((Path(settings().store) / "_failures" / f"{result.run_id}.json").read_text())
    assert note["run_id"] == result.run_id
    assert "row 7 of news.jsonl has no text" in note["steps"]["broken"]
    assert note["message"]
