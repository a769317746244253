"""The chaos campaign finds nothing in the product, would find what it looks for, and every bad input is named."""

import os
import random
import signal
from collections import Counter
from dataclasses import replace

import pytest
import torch

from benchmarks import bad_inputs, chaos
from steer_pipeline.catalogue.specs import ModelSpec
from steer_pipeline.io import store as store_module
from steer_pipeline.io.store import ArtifactStore, _LocalFiles
from steer_pipeline.lab.generation.jobs import FinishedRow
from steer_pipeline.lab.generation.journal import Journal
from steer_pipeline.lab.models.loading import load_model
from steer_pipeline.lab.rewrites import release
from steer_pipeline.stages.rewrites import history
from steer_pipeline_tests.tiny import tiny_model_dir


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return load_model(ModelSpec(path=str(tiny_model_dir(folder)), device="cpu", batch_tokens=900), folder)


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def finished(n: int) -> list[FinishedRow]:
    return [
        FinishedRow(
            row_id=f"row{i}",
            variant="base",
            text=f"text {i} 🙂",
            token_ids=[i, i + 1],
            n_prompt_tokens=3,
            n_new_tokens=2,
            finish_reason="eos",
            truncated=False,
            seed=20,
        )
        for i in range(n)
    ]


def test_every_bad_input_is_named(model, tmp_path):
    cases = bad_inputs.bad_inputs(model, chaos.rows_for(model), chaos.PLANS, chaos.SAMPLING, tmp_path / "bad")
    answers = [(expected, bad_inputs.said(action)) for expected, action in cases]
    assert [(expected, answer) for expected, answer in answers if expected not in answer] == []
    assert len(answers) >= 50


def test_silence_and_foreign_errors_do_not_count_as_naming():
    assert bad_inputs.said(lambda: 7) == "nothing"
    assert "KeyError" in bad_inputs.said(lambda: {}["row0"])
    assert "row0" not in bad_inputs.said(lambda: {}["row0"])


def test_the_count_sees_rows_that_are_lost_doubled_or_other():
    expected = {"a": 1, "b": 2, "c": 3}
    assert chaos.compare(expected, [("a", 1), ("b", 2), ("c", 3)]).total() == 0
    found = chaos.compare(expected, [("a", 1), ("a", 1), ("b", 9), ("d", 4)])
    assert found == Counter(lost=1, duplicated=1, differing=2)


def test_a_moment_is_the_end_of_a_process_in_the_middle_of_its_call(tmp_path):
    def work() -> None:
        file = os.open(tmp_path / "file", os.O_CREAT | os.O_WRONLY)
        for _ in range(3):
            os.write(file, b"0123456789")

    assert chaos.in_child(work) == 0
    assert (tmp_path / "file").read_bytes() == b"0123456789" * 3
    (tmp_path / "file").unlink()
    assert chaos.in_child(work, chaos.Moment(call=2, part=0.5)) == -signal.SIGKILL
    assert (tmp_path / "file").read_bytes() == b"012345678901234"


def test_a_short_campaign_loses_nothing(tmp_path, one_thread):
    result = chaos.campaign(6, seed=1, folder=tmp_path / "chaos")
    assert {name: result[name] for name in ("trials", "lost", "duplicated", "differing")} == {
        "trials": 6,
        "lost": 0,
        "duplicated": 0,
        "differing": 0,
    }
    assert result["trials_by_kind"] == {"engine": 4, "store": 2}


def deaths(trials: chaos.StoreTrials, folder) -> Counter[str]:
    """What is wrong in the store after a death before and after every single durable call."""
    counts: Counter[str] = Counter()
    for call in range(1, trials.calls + 1):
        for part in (0.0, 1.0):
            store = ArtifactStore(str(folder / f"{call}-{part}"))
            trials.put(store, "former")
            status = chaos.in_child(
                lambda store=store: trials.put(store, "new") and None, chaos.Moment(0, call, part)
            )
            assert status == -signal.SIGKILL
            counts += trials.state(store)
            trials.put(store, "new")
            counts += trials.state(store, "new")
    return counts


def test_a_death_at_any_call_of_a_store_s_write_leaves_a_whole_version(tmp_path):
    trials = chaos.StoreTrials(finished(9), tmp_path)
    assert trials.calls >= 8
    assert deaths(trials, tmp_path / "deaths").total() == 0


def test_a_careless_store_would_be_found_out(tmp_path, monkeypatch):
    def in_place(self, key: str, data: bytes) -> None:
        target = self.local_root / key
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            os.fsync(file.fileno())
            file.write(data)

    monkeypatch.setattr(_LocalFiles, "put", in_place)
    trials = chaos.StoreTrials(finished(9), tmp_path)
    assert deaths(trials, tmp_path / "deaths")["lost"] > 0


def test_a_death_at_any_call_of_a_compaction_loses_no_row(tmp_path):
    path, rows = tmp_path / "journal.jsonl", finished(9)
    with Journal(path) as book:
        book.record(rows, ["f"] * 9)
    path.write_bytes(path.read_bytes() * 2)  # so that there is something to drop

    def compact() -> None:
        with Journal(path) as book:
            book.compact(0.0, write=True)

    with chaos.counted_calls() as calls:
        compact()
    assert calls[0] >= 2
    for call in range(1, calls[0] + 1):
        for part in (0.0, 1.0):
            path.write_bytes(path.read_bytes() * 2)
            assert chaos.in_child(compact, chaos.Moment(0, call, part)) == -signal.SIGKILL
            with Journal(path) as book:
                assert [book.take(row.row_id, "base", "f") for row in rows] == rows


def test_a_journal_that_hands_out_other_rows_would_be_found_out(model, tmp_path, monkeypatch, one_thread):
    trials = chaos.EngineTrials(model, tmp_path)
    path = tmp_path / "journal.jsonl"
    list(trials._generate(path))
    real = Journal.take

    def careless(self, *keys: str) -> FinishedRow | None:
        row = real(self, *keys)
        return row and replace(row, text="another row's text")

    monkeypatch.setattr(Journal, "take", careless)
    found = chaos.compare(trials.whole, ((chaos.key(row), row) for row in trials._generate(path)))
    assert found == Counter(differing=len(trials.whole))


@pytest.mark.parametrize("seed", [0, 1, 5])  # each of the three releases is hit
def test_a_damaged_release_is_refused_by_name_and_heals(tmp_path, seed):
    assert chaos.ReleaseTrials(tmp_path).trial(random.Random(seed), "trial").total() == 0


def test_a_store_that_believes_its_files_would_be_found_out(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "_check", lambda folder, files: None)
    found = chaos.ReleaseTrials(tmp_path).trial(random.Random(0), "trial")
    assert found["differing"] >= 2


def test_a_release_without_its_log_would_be_found_out(tmp_path, monkeypatch):
    monkeypatch.setattr(history, "history", lambda *_: [release.Entry(None, "", "", "", "", 0, "", False)])
    assert chaos.ReleaseTrials(tmp_path).trial(random.Random(0), "trial")["lost"] >= 2


def test_no_row_of_the_old_weights_is_taken_for_one_of_the_new(tmp_path, one_thread):
    assert chaos.WeightTrials(tmp_path).trial(random.Random(0), "trial").total() == 0


@pytest.mark.slow
def test_the_whole_campaign(tmp_path, one_thread):
    result = chaos.campaign(90, seed=2, folder=tmp_path / "chaos")
    assert [result[name] for name in ("lost", "duplicated", "differing")] == [0, 0, 0]
    assert result["bad_inputs_named"][0] == result["bad_inputs_named"][1]
    assert result["children"]["killed"] > 40
