"""What machines share of unfinished work beside a remote store, and what goes of it when it is finished."""

import logging
import uuid

import pytest

from steer_pipeline.io import journals as journals_module
from steer_pipeline.io.journals import journals, mirror_of, open_journal
from steer_pipeline.io.store import ArtifactStore
from steer_pipeline.lab.endpoints import AnswerCache
from steer_pipeline.lab.generation.jobs import FinishedRow


@pytest.fixture
def machine(tmp_path):
    """Makes machines: each has a cache of its own and the same remote store."""
    url = f"memory://{uuid.uuid4().hex}/store"
    return lambda name: ArtifactStore(url, cache=tmp_path / name)


def row(i, text="Straße 🙂\u2028"):
    return FinishedRow(f"r{i}", "base", text, [1, 2], 3, 3, "eos", False, 20)


def lines_of(store):
    return open_journal(store, "raw").path.read_bytes().splitlines()


def segments(store):
    return store.segments("raw", "journal.jsonl").names()


def test_another_machine_takes_what_is_finished(machine):
    with open_journal(machine("a"), "raw") as book:
        book.record([row(0), row(1)], ["f", "f"])
    with open_journal(machine("b"), "raw") as book:
        assert book.take("r0", "base", "f") == row(0)
        assert book.take("r1", "base", "other") is None
        book.record([row(2)], ["f"])
    with open_journal(machine("a"), "raw") as book:
        assert book.take("r2", "base", "f") == row(2)
    assert len(lines_of(machine("a"))) == 3
    assert journals(machine("c")) == [("raw", "journal")]


def test_two_machines_that_did_the_same_rows_merge_to_each_row_once(machine):
    with open_journal(machine("a"), "raw") as one, open_journal(machine("b"), "raw") as two:
        one.record([row(0)], ["f"])
        two.record([row(0), row(1)], ["f", "f"])
    for name in "abc":
        with open_journal(machine(name), "raw") as book:
            assert book.take("r0", "base", "f") == row(0)
            assert book.take("r1", "base", "f") == row(1)
    assert [len(lines_of(machine(name))) for name in "abc"] == [2, 2, 2]


def test_a_killed_machine_loses_at_most_the_rows_of_one_interval(machine, monkeypatch):
    monkeypatch.setattr(journals_module, "EVERY_LINES", 4)
    killed = open_journal(machine("a"), "raw")
    killed.__enter__()
    for i in range(10):
        killed.record([row(i)], ["f"])
    with open_journal(machine("b"), "raw") as book:  # machine a never closed it
        assert [book.take(f"r{i}", "base", "f") is not None for i in range(10)] == [True] * 8 + [False] * 2
    killed._close()
    with open_journal(machine("a"), "raw"):  # started again, it sends the rest
        pass
    with open_journal(machine("b"), "raw") as book:
        assert book.take("r9", "base", "f") == row(9)


def test_rows_are_sent_when_the_last_segment_is_old(machine, monkeypatch):
    monkeypatch.setattr(journals_module, "EVERY_SECONDS", 0.0)
    with open_journal(machine("a"), "raw") as book:
        book.record([row(0)], ["f"])
        assert len(segments(machine("b"))) == 1


def test_a_segment_that_cannot_be_sent_does_not_stop_the_work(machine, monkeypatch, caplog):
    store = machine("a")
    with monkeypatch.context() as broken, caplog.at_level(logging.WARNING):
        broken.setattr(type(store._files), "put", lambda *_: (_ for _ in ()).throw(OSError("no network")))
        with open_journal(store, "raw") as book:
            book.record([row(0)], ["f"])
    assert "could not be sent (no network)" in caplog.text
    assert "1 finished lines could not be sent and lie on this machine alone" in caplog.text
    with open_journal(machine("a"), "raw"):
        pass
    with open_journal(machine("b"), "raw") as book:
        assert book.take("r0", "base", "f") == row(0)


def test_a_damaged_segment_costs_its_rows_and_nothing_else(machine):
    with open_journal(machine("a"), "raw") as book:
        book.record([row(0), row(1)], ["f", "f"])
    place = machine("a").segments("raw", "journal.jsonl")
    (name,) = place.names()
    place.put(name, place.read(name).replace(b'"r0"', b'"r7"'))
    with open_journal(machine("b"), "raw") as book:
        assert book.take("r7", "base", "f") is None
        assert book.take("r0", "base", "f") is None
        assert book.take("r1", "base", "f") == row(1)


def test_many_segments_become_one_and_no_row_is_lost(machine, monkeypatch):
    monkeypatch.setattr(journals_module, "EVERY_LINES", 1)
    monkeypatch.setattr(journals_module, "MANY_SEGMENTS", 5)
    with open_journal(machine("a"), "raw") as book:
        for i in range(9):
            book.record([row(i)], ["f"])
    assert len(segments(machine("a"))) == 1
    with open_journal(machine("b"), "raw") as book:
        assert all(book.take(f"r{i}", "base", "f") for i in range(9))


def test_compaction_of_a_remote_journal_reaches_every_machine(machine):
    with open_journal(machine("a"), "raw") as book:
        book.record([row(0)], ["old"])
    with open_journal(machine("b"), "raw") as book:
        book.record([row(0)], ["new"])
        book.finished()
    with open_journal(machine("c"), "raw") as book:
        assert book.compact(float("inf"), write=True).lines == 1
    with open_journal(machine("d"), "raw") as book:
        assert book.take("r0", "base", "old") is None
        assert book.take("r0", "base", "new") == row(0)
    assert len(segments(machine("c"))) == 1


def test_a_store_in_a_directory_holds_its_journals_itself(tmp_path):
    store = ArtifactStore(str(tmp_path / "store"))
    assert mirror_of(store, "raw", "journal.jsonl") is None
    with open_journal(store, "raw", "sailor") as book:
        book.record([row(0)], ["f"])
    assert book.path == tmp_path / "store" / ".work" / "raw" / "sailor.jsonl"
    assert journals(store) == [("raw", "sailor")]


def test_the_judge_s_answers_are_shared_too(machine):
    def cache(name):
        store = machine(name)
        return AnswerCache(store.work("judge"), mirror_of(store, "judge", "answers"))

    with cache("a") as ours:
        ours.put("k1", "judge", "85")
    with cache("b") as theirs:
        assert theirs.get("k1") == "85"
        theirs.put("k2", "judge", "REFUSAL")
    with cache("a") as ours:
        assert (ours.get("k1"), ours.get("k2")) == ("85", "REFUSAL")
    assert len(machine("a").segments("judge", "answers").names()) == 2  # nothing is sent twice
    assert journals(machine("a")) == []
