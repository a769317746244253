"""A lane learns the same alone and among others, keeps its best vector and its last, and stops when it should."""

import itertools
import math

import numpy as np
import pytest
import torch

from steer_pipeline.lab.models.hidden import sequence_nll
from steer_pipeline.lab.models.sites import Site, SteeringPlan, SteeringTerm
from steer_pipeline.lab.vectors.learned.data import Dialogues, TrainingError
from steer_pipeline.lab.vectors.learned.loop import (
    HISTORY_SCHEMA,
    Lane,
    Trainer,
    batches,
    clearly_behind,
    evaluation_steps,
    halvings,
    history,
    schedule,
)
from steer_pipeline_tests.lab.generation.reference import loaded
from steer_pipeline_tests.lab.vectors.learned.rows import dialogues, profile, trainer


def nll_under(model, vector, data, site=1):
    length = float(np.linalg.norm(vector))
    plan = SteeringPlan("x", (SteeringTerm("x", vector / length, Site(site), length),))
    sums, tokens = sequence_nll(model, list(data.ids), list(data.starts), plan)
    return float(sums.sum() / tokens.sum())


# ------------------------------------------------------------------------------------ steps and schedules


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_a_schedule_warms_up_to_one_never_stands_still_and_ends_low(kind):
    factors = [schedule(kind, step, 100, 0.1) for step in range(100)]
    assert factors[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert factors[10] == 1.0
    assert min(factors) > 0
    assert all(a >= b for a, b in itertools.pairwise(factors[10:]))
    assert factors[-1] == 1.0 if kind == "constant" else factors[-1] < 0.02


def test_evaluation_can_always_end_a_run():
    """235 steps with one evaluation at step 200 could never use a patience of 2."""
    for total, epochs, patience in ((235, 5, 2), (40, 1, 2), (60, 3, 0), (1000, 2, 7)):
        steps = evaluation_steps(total, epochs, patience)
        assert len(steps) >= patience + 2
        assert {total * (e + 1) // epochs for e in range(epochs)} <= set(steps)
        assert steps[-1] == total
    assert evaluation_steps(2, 1, 5) == [1, 2]


@pytest.mark.parametrize("questions", [list(range(11)), [0] * 11, [0, 1, 2, 3, 0, 4, 5, 2, 0, 6, 0]])
def test_the_order_of_rows_is_a_permutation_of_seed_and_epoch(questions):
    def order(seed, epoch):
        return np.concatenate(list(batches(np.array(questions), 4, seed, epoch))).tolist()

    assert sorted(order(1, 0)) == list(range(11))
    assert order(1, 0) == order(1, 0)
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4
    assert [len(rows) for rows in batches(np.array(questions), 4, 1, 0)] == [4, 4, 3]


def test_rows_of_a_question_come_two_by_two_and_the_others_keep_the_drawn_order():
    questions = np.array(
        [0, 1, 2, 3, 0, 4, 5, 2, 0, 6, 0, 0]
    )  # question 0 five times, 2 twice, the others once
    first = set()
    for epoch in range(200):
        steps = [questions[rows].tolist() for rows in batches(questions, 4, 1, epoch)]
        pairs = [tuple(one[i : i + 2]) for one in steps for i in range(0, len(one), 2)]
        assert pairs.count((0, 0)) == 2
        assert pairs.count((2, 2)) == 1
        first |= set(pairs[0])
    assert first == set(range(7))  # questions of one row are not left for the end


def test_a_learning_rate_in_residual_units_is_the_length_of_a_step(tmp_path):
    one = trainer(loaded(tmp_path), epochs=1, batch_rows=12, schedule="constant", warmup=0)
    (found,) = one.run([Lane(0.03, 1)])
    assert found.steps == 1
    assert np.linalg.norm(found.last) == pytest.approx(0.03 * one.residual_norm, rel=1e-3)
    absolute = trainer(
        loaded(tmp_path), epochs=1, batch_rows=12, schedule="constant", warmup=0, units="absolute"
    )
    assert np.abs(absolute.run([Lane(0.5, 1)])[0].last) == pytest.approx(np.full(64, 0.5), rel=1e-3)


def test_steps_are_those_of_torch_adamw_on_the_mean_nll_of_response_tokens(tmp_path):
    model, data = loaded(tmp_path), dialogues(8)
    spec = profile(model, epochs=3, batch_rows=4, schedule="linear", warmup=0.2, weight_decay=0.1).training
    one = Trainer(model, 1, data, dialogues(4, seed=1), spec)
    (found,) = one.run([Lane(0.05, 3)])
    vector = torch.nn.Parameter(torch.zeros(64))
    rate = 0.05 * one.residual_norm / math.sqrt(64)
    optimizer = torch.optim.AdamW([vector], lr=rate, weight_decay=0.1)
    handle = model.module.model.layers[1].register_forward_hook(lambda _m, _i, out: out + vector)
    step = 0
    for epoch in range(3):
        for rows in batches(data.questions, 4, 3, epoch):
            total, count = 0.0, 0
            for row in rows:
                labels = torch.tensor(data.ids[row])
                labels[: max(data.starts[row], 1)] = -100
                logits = model.module(torch.tensor([data.ids[row]])).logits[0]
                total = total + torch.nn.functional.cross_entropy(logits[:-1], labels[1:], reduction="sum")
                count += int((labels[1:] != -100).sum())
            optimizer.zero_grad()
            (total / count).backward()
            optimizer.param_groups[0]["lr"] = rate * schedule("linear", step, 6, 0.2)
            optimizer.step()
            step += 1
    handle.remove()
    assert np.allclose(found.last, vector.detach().numpy(), atol=2e-3 * float(vector.detach().norm()))


# -------------------------------------------------------------------------------------------- lanes


def test_the_same_run_gives_the_same_bytes(tmp_path):
    first, second = (trainer(loaded(tmp_path)).run([Lane(0.05, 1), Lane(0.02, 2)]) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert a.best.tobytes() == b.best.tobytes()
        assert a.last.tobytes() == b.last.tobytes()
        assert a.curve == b.curve


def test_a_lane_learns_among_others_what_it_learns_alone(tmp_path):
    one = trainer(loaded(tmp_path), epochs=2, init=0.1)
    lanes = [Lane(0.05, 1), Lane(0.01, 1), Lane(0.05, 2)]
    together = one.run(lanes)
    for lane, among in zip(lanes, together, strict=True):
        (alone,) = one.run([lane])
        assert np.allclose(alone.last, among.last, atol=2e-3 * np.linalg.norm(alone.last))
        assert alone.best_nll == pytest.approx(among.best_nll, rel=1e-3)
    assert not np.allclose(together[0].last, together[2].last, atol=0.05)  # another seed, another vector


def test_the_vector_stays_fp32_whatever_the_model(tmp_path):
    """Steps far below the resolution of bf16 at the vector's size add up."""
    one = trainer(
        loaded(tmp_path, dtype="bfloat16"), init=1.0, epochs=2, schedule="constant", warmup=0, clip=1.0
    )
    start = one._start(Lane(1e-4, 1)).parameter.detach().numpy().copy()
    (found,) = one.run([Lane(1e-4, 1)])
    assert found.last.dtype == np.float32
    moved = np.linalg.norm(found.last - start) / (1e-4 * one.residual_norm)
    assert 0.5 < moved <= found.steps + 0.01
    in_bf16 = torch.from_numpy(found.last).bfloat16() - torch.from_numpy(start).bfloat16()
    assert int((in_bf16 != 0).sum()) < 64 // 2  # most coordinates could not have moved


def test_the_clip_bounds_the_gradient_in_units_of_the_residual_norm(tmp_path, monkeypatch):
    seen = []
    original = torch.nn.utils.clip_grad_norm_

    def spy(parameters, limit):
        before = original(parameters, limit)
        seen.append((float(parameters[0].grad.norm()), limit))
        return before

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", spy)
    one = trainer(loaded(tmp_path), clip=1e-3)
    one.run([Lane(0.05, 1)])
    assert seen
    assert all(norm <= 1e-3 / one.residual_norm * 1.001 for norm, _ in seen)


def test_checkpointing_learns_the_same(tmp_path):
    plain, saved = (
        trainer(loaded(tmp_path, "gemma"), gradient_checkpointing=flag).run([Lane(0.05, 1)])[0]
        for flag in (False, True)
    )
    assert np.allclose(plain.last, saved.last, atol=1e-4)


# ------------------------------------------------------------------------------- best, last, patience


@pytest.mark.parametrize("patience", [0, 4])
def test_the_best_by_validation_is_restored_and_the_last_is_kept(tmp_path, patience):
    """Validation rows that contradict the training rows: the first steps help least, the last hurt most."""
    model = loaded(tmp_path)
    one = trainer(model, epochs=4, patience=patience, schedule="constant")
    (found,) = one.run([Lane(0.3, 1)])
    curve = {point["step"]: point["validation_nll"] for point in found.curve if point["step"]}
    assert found.best_nll == min(curve.values())
    assert curve[found.best_step] == found.best_nll
    assert found.best_nll < curve[found.steps]  # otherwise nothing was restored
    assert nll_under(model, found.best, one.validation) == pytest.approx(found.best_nll, rel=1e-4)
    assert nll_under(model, found.last, one.validation) == pytest.approx(curve[found.steps], rel=1e-4)
    assert found.row_nll.sum() == pytest.approx(found.best_nll * one.validation.n_tokens.sum())


def test_patience_ends_a_run_and_every_evaluation_runs_once(tmp_path, monkeypatch):
    one = trainer(loaded(tmp_path), epochs=4, patience=2, min_delta=1e9)
    one.vanilla()
    calls = []
    original = one._evaluate
    monkeypatch.setattr(one, "_evaluate", lambda vectors: calls.append(1) or original(vectors))
    (found,) = one.run([Lane(0.05, 1)])
    assert found.stopped == "patience"
    assert found.steps < one.total_steps
    assert len(calls) == 3  # one that counts as progress, two that do not
    assert [point["step"] for point in found.curve][1:] == evaluation_steps(one.total_steps, 4, 2)[:3]
    (patient,) = trainer(loaded(tmp_path), epochs=4, patience=0, min_delta=1e9).run([Lane(0.05, 1)])
    assert (patient.stopped, patient.steps) == ("finished", one.total_steps)


def test_vanilla_is_the_model_without_a_vector(tmp_path):
    model = loaded(tmp_path)
    one = trainer(model)
    sums, _ = sequence_nll(model, list(one.validation.ids), list(one.validation.starts))
    assert np.allclose(one.vanilla(), sums, rtol=1e-4)
    (found,) = one.run([Lane(0.05, 1)])
    assert found.curve[0]["validation_nll"] == found.vanilla_nll


def test_a_history_has_a_row_an_evaluation_and_lane(tmp_path):
    results = trainer(loaded(tmp_path)).run([Lane(0.05, 1), Lane(0.02, 1)])
    table = history(results)
    assert table.schema == HISTORY_SCHEMA
    assert table["lane"].unique().sort().to_list() == [0, 1]
    assert table.filter(lane=1)["epoch"].to_list() == pytest.approx([0, 2 / 3, 1, 5 / 3, 2])
    assert table.filter(step=0)["norm"].to_list() == [0, 0]


# ---------------------------------------------------------------------------------------- pruning


def test_halvings_leave_two_lanes_an_eighth_of_the_way():
    assert halvings(80, 5) == {5: 3, 10: 2}
    assert halvings(160, 8) == {10: 4, 20: 2}
    assert halvings(80, 2) == halvings(80, 1) == {}
    assert halvings(3, 5) == {2: 2}


def test_behind_means_by_more_than_the_noise_between_questions():
    noise = np.random.default_rng(0).standard_normal(40)
    questions = np.arange(40) // 2
    assert not clearly_behind(1 + noise, np.ones(40), questions)
    assert clearly_behind(2 + noise, np.ones(40), questions)
    assert not clearly_behind(np.array([5.0]), np.array([1.0]), np.array([0]))


def test_rates_that_fall_behind_leave_and_the_choice_is_the_same(tmp_path):
    model, data = loaded(tmp_path), dialogues(32)
    one = Trainer(model, 1, data, data, profile(model, epochs=4, patience=0).training)
    lanes = [Lane(rate, 1) for rate in (1e-6, 1e-5, 1e-4, 0.02, 0.05)]
    full, pruned = one.run(lanes), one.run(lanes, prune=True)
    assert [found.stopped for found in full] == ["finished"] * 5
    assert [found.stopped for found in pruned[:3]] == ["outpaced"] * 3
    assert all(found.curve[-1]["step"] == found.steps for found in pruned)
    assert sum(found.steps for found in pruned) < 0.5 * sum(found.steps for found in full)
    chosen = [min(found, key=lambda lane: lane.best_nll) for found in (full, pruned)]
    assert chosen[0].lane == chosen[1].lane
    assert np.allclose(chosen[0].best, chosen[1].best, atol=2e-3 * np.linalg.norm(chosen[0].best))


# ----------------------------------------------------------------------------------------- errors


def test_a_loss_that_is_not_finite_names_lane_step_and_cure_and_touches_no_other_lane(tmp_path):
    half = loaded(tmp_path, dtype="float16")
    one = trainer(half, units="absolute", schedule="constant", warmup=0)
    good, bad = Lane(0.01, 7), Lane(1e5, 7)  # more than fp16 holds
    with pytest.raises(
        TrainingError, match=r"learning rate 100000, seed 7: the loss is not finite at step 1; lower"
    ):
        one.run([bad])
    with pytest.raises(TrainingError, match="not finite"):
        one.run([good, bad])
    survivor, left = one.run([good, bad], prune=True)
    assert (survivor.stopped, left.stopped) == ("finished", "not finite")
    assert math.isinf(left.best_nll)
    (alone,) = one.run([good])
    assert np.allclose(survivor.last, alone.last, atol=0.02 * np.linalg.norm(alone.last))


def test_a_vector_that_never_left_zero_is_an_error(tmp_path):
    model = loaded(tmp_path, "llama")  # its head is not its embedding
    head = model.module.get_output_embeddings().weight
    kept = head.detach().clone()
    with torch.no_grad():
        head.zero_()
    try:
        with pytest.raises(TrainingError, match=r"never left zero in \d+ steps"):
            trainer(model).run([Lane(0.05, 1)])
    finally:
        with torch.no_grad():
            head.copy_(kept)


def test_a_site_outside_the_model_and_rows_without_responses_are_refused(tmp_path):
    model = loaded(tmp_path)
    spec = profile(model).training
    with pytest.raises(TrainingError, match="4 is outside a model of 4 blocks"):
        Trainer(model, 4, dialogues(), dialogues(), spec)
    empty = Dialogues([], [], [], np.empty(0))
    with pytest.raises(TrainingError, match="validation: rows have no response token"):
        Trainer(model, 1, dialogues(), empty, spec)
