"""Claims about fan-out over Ray: the same pack as one process, also after a kill; plain words where it cannot be."""

import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest

from steer_pipeline.catalogue.specs import SamplingSpec
from steer_pipeline.lab.generation import fanout as fanout_module
from steer_pipeline.lab.generation.engine import generate
from steer_pipeline.lab.generation.fanout import Fanout, FanoutError, Replica
from steer_pipeline.lab.generation.jobs import Job, PromptRow, decoding_hash
from steer_pipeline.lab.models.loading import forget_models
from steer_pipeline_tests.lab.generation.reference import loaded, plans, prompts, with_budget

SPEC = SamplingSpec(temperature=0.8, max_new_tokens=10)


def rows_of(model, n=10):
    return [PromptRow(f"row{i}", {"*": ids}) for i, ids in enumerate(prompts(model, n))]


def both_scopes():
    steered = [replace(plan, variant=f"{plan.variant}_generated") for plan in plans("generated")[2:]]
    return [*plans("all"), *steered]


def by_key(results):
    keyed = {(one.row_id, one.variant): one for one in results}
    assert len(keyed) == len(results)
    return keyed


def whole_pack(model, n=10):
    return by_key(list(generate(model, rows_of(model, n), both_scopes(), SPEC)))


# ------------------------------------------------------------------------------ without Ray


def test_without_ray_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    model = loaded(tmp_path)
    with pytest.raises(FanoutError, match=r"pip install 'steer-pipeline\[ray\]'"):
        list(generate(model, rows_of(model), plans(), SPEC, fanout=Fanout(2, tmp_path)))


def test_jobs_arrive_as_they_were_sent():
    jobs = [Job("a\ud800", (0, 2, 5), ([1, 2], [3], [1, 2])), Job("Straße", (1,), ([7] * 50,))]
    packed = fanout_module._packed(jobs)
    assert list(fanout_module._jobs(packed)) == jobs
    assert [len(prompts) for prompts in packed["prompts"].to_pylist()] == [2, 1]  # equal ones travel once


@pytest.mark.parametrize("budget", [1, 7, 64])
def test_a_pack_is_the_same_for_every_batch_budget(tmp_path, budget):
    model = loaded(tmp_path)
    small = with_budget(model, budget)
    assert by_key(list(generate(small, rows_of(model)[::-1], both_scopes(), SPEC))) == whole_pack(model)


def answer_of(spec, tmp_path, model, chosen):
    jobs = [
        Job(row.row_id, tuple(range(len(chosen))), (row.ids["*"],) * len(chosen)) for row in rows_of(model, 3)
    ]
    identity = (model.identity, decoding_hash(SPEC, model))
    answer = Replica(spec, tmp_path, chosen, SPEC, *identity)(fanout_module._packed(jobs))
    return Fanout(1, tmp_path)._unpacked(answer)


def test_a_replica_answers_what_one_process_says(tmp_path):
    model = loaded(tmp_path)
    expected = by_key(list(generate(model, rows_of(model, 3), plans(), SPEC)))
    said = answer_of(model.spec, tmp_path, model, plans())
    found = {(one.row_id, plans()[one.plan].variant): one.tokens for one in said}
    assert found == {key: row.token_ids for key, row in expected.items()}


def test_what_goes_wrong_in_a_replica_is_told_as_in_one_process(tmp_path):
    model = loaded(tmp_path)
    driver = replace(model, identity=replace(model.identity, base="another"))
    with pytest.raises(FanoutError, match=f"weights differ: another against {model.identity.base[:12]}"):
        answer_of(model.spec, tmp_path, driver, plans())
    with pytest.raises(FanoutError, match="another dtype"):
        answer_of(model.spec, tmp_path, replace(model, dtype="bfloat16"), plans())
    with pytest.raises(fanout_module.ModelLoadError, match="no such directory"):
        answer_of(model.spec.model_copy(update={"path": "/nowhere/at/all"}), tmp_path, model, plans())
    broken = _with_nan(tmp_path)
    with pytest.raises(fanout_module.BrokenLogits, match=r"row 'row\d', variant 'base'"):
        answer_of(broken.spec, tmp_path, broken, plans())
    forget_models()


def _with_nan(tmp_path):
    """A model directory whose weights are damaged."""
    import torch
    from safetensors.torch import load_file, save_file

    from steer_pipeline_tests.tiny import tiny_model_dir

    (tmp_path / "broken").mkdir()
    folder = tiny_model_dir(tmp_path / "broken")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][0, 0] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return loaded(tmp_path / "broken")


# ------------------------------------------------------------------------- two actors on this machine


@pytest.fixture(scope="module")
def ray():
    """One Ray for the module; calls use the Ray that is there and leave it running."""
    module = pytest.importorskip("ray", reason="ray is not installed: the extra [ray]")
    module.init(num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="WARNING")
    yield module
    module.shutdown()


def workers(driver=None):
    """Processes of a driver's actors; this one's by default."""
    mine = psutil.Process(driver).children(recursive=True)
    return [one for one in mine if one.is_running() and "MapWorker" in " ".join(one.cmdline())]


@pytest.mark.slow
def test_two_workers_make_the_pack_of_one_although_one_dies(ray, tmp_path):
    model = loaded(tmp_path)
    states, spread = [], Fanout(2, tmp_path, rows_a_task=1)
    small = with_budget(model, 1)
    run = generate(small, iter(rows_of(model)), both_scopes(), SPEC, fanout=spread, progress=states.append)
    found = [next(run)]
    before = {one.pid for one in workers()}
    assert len(before) == 2
    psutil.Process(min(before)).kill()
    found += run
    assert by_key(found) == whole_pack(model)
    assert states[-1].sequences_done == len(found)
    assert states[-1].memory_bytes == spread.memory_bytes > 1e6
    assert ray.is_initialized()


@pytest.mark.slow
def test_done_rows_are_not_sent_out(ray, tmp_path, monkeypatch):
    model, chosen = with_budget(loaded(tmp_path), 7), both_scopes()
    rows, whole, journal = rows_of(model), whole_pack(model), tmp_path / "j.jsonl"
    list(generate(model, rows[:4], chosen[:3], SPEC, journal=journal))
    sent, packed = [], fanout_module._packed
    monkeypatch.setattr(fanout_module, "_packed", lambda jobs: (sent.extend(jobs), packed(jobs))[1])
    settings = {"journal": journal, "fanout": Fanout(2, tmp_path, rows_a_task=2)}
    run = generate(model, rows, chosen, SPEC, **settings)
    found = [next(run) for _ in range(30)]
    run.close()
    assert all(whole[one.row_id, one.variant] == one for one in found)
    assert sum(len(job.plans) for job in sent) == len(whole) - 12
    sent.clear()
    kept = journal.read_bytes().count(b"\n")
    assert 30 <= kept < len(whole)
    assert by_key(list(generate(model, rows, chosen, SPEC, **settings))) == whole
    assert sum(len(job.plans) for job in sent) == len(whole) - kept
    assert journal.read_bytes().count(b"\n") == len(whole)
    sent.clear()
    assert by_key(list(generate(model, rows, chosen, SPEC, **settings))) == whole
    assert not sent


@pytest.mark.slow
def test_a_killed_driver_resumes_to_the_pack_of_one_process(ray, tmp_path):
    model, journal = loaded(tmp_path), tmp_path / "j.jsonl"
    script = (
        "import pathlib, sys\n"
        "from steer_pipeline_tests.lab.generation.test_fanout import *\n"
        "place = pathlib.Path(sys.argv[1])\n"
        "model = with_budget(loaded(place), 64)\n"
        "spread = Fanout(2, place, rows_a_task=1)\n"
        "journal = place / 'j.jsonl'\n"
        "for _ in generate(model, rows_of(model, 40), both_scopes(), SPEC, journal=journal, fanout=spread): ...\n"
    )
    # with a Ray of its own, which dies with its driver
    child = subprocess.Popen([sys.executable, "-W", "ignore", "-c", script, str(tmp_path)])
    deadline = time.monotonic() + 240
    while not (journal.exists() and journal.stat().st_size) and child.poll() is None:
        assert time.monotonic() < deadline, "the run never finished a row"
        time.sleep(0.005)
    replicas = workers(child.pid)
    assert len(replicas) == 2
    child.kill()
    child.wait()
    assert not psutil.wait_procs(replicas, timeout=60)[1], "the killed driver left its replicas behind"
    whole = whole_pack(model, 40)
    assert 0 < len(journal.read_bytes().splitlines()) < len(whole), (
        "killed too early or too late to prove anything"
    )
    settings = {"journal": journal, "fanout": Fanout(2, tmp_path)}
    assert by_key(list(generate(model, rows_of(model, 40), both_scopes(), SPEC, **settings))) == whole
    assert journal.read_bytes().count(b"\n") == len(whole)
