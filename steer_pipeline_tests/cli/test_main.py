"""What every verb has in common: help at once, the same options, one paragraph for an error, and its exit status."""

import subprocess
import sys
import time

import click
import pytest

from steer_pipeline.cli.main import VERBS, steer
from steer_pipeline_tests.cli.running import printed, refused, run

HEAVY = ("dagster", "polars", "duckdb", "torch", "transformers", "pydantic")


def leaves(command: click.Command, *path: str) -> dict[tuple[str, ...], click.Command]:
    """Every verb, by the words that call it."""
    if not isinstance(command, click.Group):
        return {path: command}
    context = click.Context(command)
    names = command.list_commands(context)
    return {
        words: leaf
        for name in names
        for words, leaf in leaves(command.get_command(context, name), *path, name).items()
    }


LEAVES = leaves(steer)


def test_the_verbs_are_those_that_there_are():
    ours = {"make", "status", "report", "query", "release", "ui", "backfill", "prune"}
    assert ours <= set(steer.list_commands(click.Context(steer))) <= set(VERBS)


def test_help_is_there_at_once_and_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from steer_pipeline.cli.main import steer\n"
        "try: steer.main(['--help'], prog_name='steer')\n"
        f"finally: print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)\n"
    )
    started = time.process_time()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr == "[]\n"
    assert time.process_time() - started < 0.5
    assert "make      Make what is missing or stale, nothing else." in done.stdout


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_every_verb_says_what_it_does_and_gives_an_example(words):
    text = printed(*words, "--help")
    assert LEAVES[words].help
    assert "--profile NAME|FILE" in text
    assert "--store DIR|URL" in text


OURS = [
    words
    for words in LEAVES
    if LEAVES[words].callback.__module__.rpartition(".")[2] not in ("doctor", "exchange", "check")
]


@pytest.mark.parametrize("words", OURS, ids=" ".join)
def test_help_ends_with_examples(words):
    text = printed(*words, "--help")
    assert f"Examples:\n    steer {' '.join(words)}" in text


@pytest.mark.parametrize("arguments", [("--store", "{}", "prune"), ("prune", "--store", "{}")])
def test_profile_and_store_stand_before_or_behind_the_verb(tmp_path, arguments):
    (tmp_path / "mine").mkdir()
    text = refused(
        *(each.format(tmp_path / "mine") for each in arguments if each != "prune"), "query", "--list"
    )
    assert f"no tables in the store {tmp_path / 'mine'}" in text


def test_a_store_is_where_the_caller_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert f"store {tmp_path / 'here'}:" in refused("query", "--list", "--store", "here")


def test_an_unknown_profile_is_one_paragraph():
    assert "nobody.yaml: no such profile; known: " in refused("query", "--list", "--profile", "nobody")


@pytest.mark.parametrize(
    "arguments",
    [
        ("fly",),
        ("make", "coffee"),
        ("make", "pilot", "--variants", "nobody", "--dry-run"),
        ("make", "behaviour", "--personas", "nobody", "--dry-run"),
        ("make", "all", "--personas", "nobody"),
        ("status", "--variants", "nobody"),
        ("release", "promote", "nobody"),
        ("release", "promote"),
        ("release", "history", "nobody"),
        ("backfill",),
        ("backfill", "nothing", "--dry-run"),
        ("query",),
    ],
    ids=" ".join,
)
def test_wrong_use_ends_with_two_and_a_sentence(arguments):
    assert "Error: " in refused(*arguments, status=2)


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("steer_pipeline.resources.open_store", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("prune")
