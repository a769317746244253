"""Claims about resume: nothing lost, nothing twice, nothing of another configuration."""

import errno
import os

import pytest

from steer_pipeline.catalogue.specs import SamplingSpec
from steer_pipeline.lab.generation import journal as journal_module
from steer_pipeline.lab.generation import torch_engine
from steer_pipeline.lab.generation.engine import generate
from steer_pipeline.lab.generation.jobs import FinishedRow, PromptRow
from steer_pipeline.lab.generation.journal import Journal, JournalError
from steer_pipeline_tests.lab.generation.reference import loaded, plans, prompts, with_budget

SPEC = SamplingSpec(temperature=0.8, max_new_tokens=8)


def row(i, text="Straße 🙂"):
    return FinishedRow(f"r{i}", "base", text, [1, 2], 3, 3, "eos", False, 20)


def engine_rows(model):
    return [PromptRow(f"row{i}", {"*": ids}) for i, ids in enumerate(prompts(model, 6))]


def by_key(results):
    keyed = {(one.row_id, one.variant): one for one in results}
    assert len(keyed) == len(results)
    return keyed


def test_rows_come_back_as_they_were_and_only_under_their_own_fingerprint(tmp_path):
    with Journal(tmp_path / "j.jsonl") as book:
        book.record([row(0), row(1, "\ud800")], ["f", "f"])
        book.record([row(0)], ["f"])
    assert (tmp_path / "j.jsonl").read_bytes().count(b"\n") == 2
    with Journal(tmp_path / "j.jsonl") as book:
        assert book.take("r0", "base", "f") == row(0)
        assert book.take("r1", "base", "f") == row(1, "\ud800")
        assert book.take("r0", "base", "g") is None


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_torn_last_record_is_cut_off_and_the_rest_stays(tmp_path, cut, caplog, monkeypatch):
    monkeypatch.setattr(journal_module.time, "time", lambda: 1.0)
    path = tmp_path / "j.jsonl"
    with Journal(path) as book:
        book.record([row(0), row(1)], ["f", "f"])
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    with Journal(path) as book:
        assert book.take("r0", "base", "f") == row(0)
        assert book.take("r1", "base", "f") is None
        book.record([row(1)], ["f"])
    assert path.read_bytes() == whole
    assert "torn" in caplog.text


def test_a_damaged_record_in_the_middle_is_not_believed(tmp_path, caplog):
    path = tmp_path / "j.jsonl"
    with Journal(path) as book:
        book.record([row(0), row(1)], ["f", "f"])
    path.write_bytes(path.read_bytes().replace(b'"r0"', b'"r7"'))
    with Journal(path) as book:
        assert book.take("r7", "base", "f") is None
        assert book.take("r1", "base", "f") == row(1)
    assert "checksum" in caplog.text


def test_two_runs_cannot_write_one_journal(tmp_path):
    said = r"j\.jsonl: another run is writing this journal of finished rows; wait for that run or stop it"
    with Journal(tmp_path / "j.jsonl"), pytest.raises(JournalError, match=said):
        Journal(tmp_path / "j.jsonl").__enter__()


def used(book, *fingerprints):
    """A finished run that took or made row 0 under each of these."""
    for fingerprint in fingerprints:
        if book.take("r0", "base", fingerprint) is None:
            book.record([row(0)], [fingerprint])
    book.finished()


def test_compaction_keeps_what_the_last_finished_run_used_and_what_is_young(tmp_path):
    path = tmp_path / "j.jsonl"
    with Journal(path) as book:
        used(book, "first", "both")
    with Journal(path) as book:
        used(book, "both", "second")
        book.record([row(1)], ["unfinished"])
    path.write_bytes(path.read_bytes() + b"00000000 damaged\n")
    whole = path.read_bytes()
    with Journal(path) as book:
        young = book.compact(0.0, write=False)
        old = book.compact(float("inf"), write=False)
    assert path.read_bytes() == whole  # told, not done
    assert young.lines == 2  # the damaged line, and the first run's note
    assert old.lines == 4  # and the rows "first" and "unfinished"
    with Journal(path) as book:
        assert book.compact(float("inf"), write=True) == old
    assert len(path.read_bytes()) == len(whole) - old.bytes
    with Journal(path) as book:
        assert book.take("r0", "base", "both") == book.take("r0", "base", "second") == row(0)
        assert book.take("r0", "base", "first") is None
        assert book.take("r1", "base", "unfinished") is None
        assert book.compact(float("inf"), write=False).lines == 0


@pytest.mark.parametrize("second", [1.0, 0.5])
def test_of_two_runs_in_one_moment_the_later_counts_and_so_it_does_when_the_clock_goes_back(
    tmp_path, monkeypatch, second
):
    path = tmp_path / "j.jsonl"
    for now, fingerprint in ((1.0, "first"), (second, "second")):
        monkeypatch.setattr(journal_module.time, "time", lambda now=now: now)
        with Journal(path) as book:
            used(book, fingerprint)
    with Journal(path) as book:
        book.compact(float("inf"), write=True)
    with Journal(path) as book:
        assert book.take("r0", "base", "first") is None
        assert book.take("r0", "base", "second") == row(0)


def test_a_row_is_as_old_as_its_last_use(tmp_path, monkeypatch):
    path, day = tmp_path / "j.jsonl", 24 * 3600.0
    for now, fingerprint in ((1, "a"), (3, "a"), (3.1, "a"), (4, "b")):
        monkeypatch.setattr(journal_module.time, "time", lambda now=now: now * day)
        with Journal(path) as book:
            used(book, fingerprint)
    assert path.read_bytes().count(b"used") == 3  # the same again on the same day says nothing new
    with Journal(path) as book:
        book.compact(2 * day, write=True)
    with Journal(path) as book:
        assert book.take("r0", "base", "a") == row(0)
        assert book.compact(3.5 * day, write=False).lines == 1


def test_rows_that_stand_twice_are_dropped_once(tmp_path):
    path = tmp_path / "j.jsonl"
    with Journal(path) as book:
        book.record([row(0)], ["f"])
    path.write_bytes(path.read_bytes() * 3)
    with Journal(path) as book:
        assert book.compact(0.0, write=True).lines == 2
    assert path.read_bytes().count(b"\n") == 1


def test_who_waited_for_the_lock_during_compaction_writes_into_the_new_file(tmp_path, monkeypatch):
    path = tmp_path / "j.jsonl"
    with Journal(path) as book:
        book.record([row(0)], ["f"])
    path.write_bytes(path.read_bytes() * 2)
    real, once = journal_module.fcntl.flock, []

    def compacted_meanwhile(file, how):
        if not once:
            once.append(1)
            with Journal(path) as book:
                book.compact(0.0, write=True)
        real(file, how)

    monkeypatch.setattr(journal_module.fcntl, "flock", compacted_meanwhile)
    with Journal(path) as book:
        book.record([row(1)], ["f"])
    assert path.read_bytes().count(b"\n") == 2


def test_a_full_disk_is_named_and_leaves_no_half_record(tmp_path, monkeypatch):
    path = tmp_path / "j.jsonl"
    real = os.write

    def full(descriptor, data):
        real(descriptor, data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    with Journal(path) as book:
        book.record([row(0)], ["f"])
        monkeypatch.setattr(journal_module.os, "write", full)
        with pytest.raises(JournalError, match=r"j\.jsonl: cannot be written \(No space"):
            book.record([row(1)], ["f"])
    monkeypatch.undo()
    with Journal(path) as book:
        assert book.take("r0", "base", "f") == row(0)
    assert path.read_bytes().count(b"\n") == 1


def test_killed_run_resumes_to_the_same_pack(tmp_path, monkeypatch):
    model = with_budget(loaded(tmp_path), 1500)
    rows, chosen = engine_rows(model), plans()
    whole = by_key(list(generate(model, rows, chosen, SPEC)))
    path = tmp_path / "j.jsonl"
    run = generate(model, rows, chosen, SPEC, journal=path, config_hash="c")
    for _ in range(9):
        next(run)
    run.close()
    with path.open("ab") as file:
        file.write(b'12345678 {"row": {"row_id"')
    forward = []
    step = torch_engine._Batch.enter
    monkeypatch.setattr(
        torch_engine._Batch, "enter", lambda self, jobs: (forward.extend(jobs), step(self, jobs))[1]
    )
    again = list(generate(model, rows, chosen, SPEC, journal=path, config_hash="c"))
    assert by_key(again) == whole
    done_again = sum(len(job.plans) for job in forward)
    assert 0 < done_again <= len(whole) - 9
    forward.clear()
    assert by_key(list(generate(model, rows, chosen, SPEC, journal=path, config_hash="c"))) == whole
    assert not forward


@pytest.mark.parametrize("changed", ["config", "sampling", "prompt", "dose"])
def test_a_changed_run_never_takes_old_rows(tmp_path, changed):
    model = loaded(tmp_path)
    rows, chosen, path = engine_rows(model)[:2], plans()[2:3], tmp_path / "j.jsonl"
    list(generate(model, rows, chosen, SPEC, journal=path, config_hash="c"))
    before = path.read_bytes()
    spec, name = SPEC, "c"
    if changed == "config":
        name = "d"
    elif changed == "sampling":
        spec = SPEC.model_copy(update={"temperature": 0.5})
    elif changed == "prompt":
        rows = [PromptRow(one.row_id, {"*": one.ids["*"][:-1]}) for one in rows]
    else:
        dose = chosen[0].terms[0]
        chosen = [type(chosen[0])("up", (type(dose)(dose.name, dose.unit, dose.site, 2.5),))]
    fresh = list(generate(model, rows, chosen, spec))
    assert by_key(list(generate(model, rows, chosen, spec, journal=path, config_hash=name))) == by_key(fresh)
    assert path.read_bytes().startswith(before)
    assert len(path.read_bytes()) > len(before)


def test_only_steps_that_end_a_sequence_wait_for_the_disk(tmp_path, monkeypatch):
    model, synced = loaded(tmp_path), []
    sync = os.fsync
    monkeypatch.setattr(journal_module.os, "fsync", lambda file: (synced.append(file), sync(file)))
    list(generate(model, engine_rows(model)[:1], plans()[:1], SPEC, journal=tmp_path / "j.jsonl"))
    assert len(synced) == 2  # and the note that the run is finished
