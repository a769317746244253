"""Claims about gradients and what is made of them: each row's own, by the formulas, and failures that are counted."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from steer_pipeline.catalogue.attribution_scoring import GradientMethod
from steer_pipeline.lab.attribution.scoring import passes
from steer_pipeline.lab.attribution.scoring.gradients import Gradients, row_loss, row_projection
from steer_pipeline.lab.attribution.scoring.methods import Direction, score
from steer_pipeline.lab.attribution.scoring.projection import projection
from steer_pipeline.lab.attribution.scoring.ranking import ScoringError
from steer_pipeline.lab.attribution.scoring.similarity import Task, powers, second_moment
from steer_pipeline.lab.finetune.data import collate
from steer_pipeline.lab.models.loading import load_model
from steer_pipeline_tests.lab.finetune.rows import spec_of

PLAIN = {"projection": 4, "preconditioning": "none"}


@pytest.fixture
def model(tuned, base):
    return load_model(tuned, base.parent)


def alone(model, modules, example, objective):
    """A row's gradient by autograd on the weights themselves: module -> [out, in]."""
    weights = [one.weight.requires_grad_() for one in modules.values()]
    try:
        found = torch.autograd.grad(objective(model.module, collate([example], 0)).sum(), weights)
    finally:
        for weight in weights:
            weight.requires_grad_(False)
    return dict(zip(modules, found, strict=True))


@pytest.mark.parametrize("adapted", [True, False])
def test_each_row_of_a_batch_has_the_gradient_that_it_has_alone(tuned, base, pool, adapted):
    model = load_model(tuned if adapted else spec_of(base), base.parent)
    reader = Gradients(model, side=0)
    assert len(reader.modules) == (16 if adapted else 28)
    assert all(name.endswith(".default") for name in reader.modules) == adapted
    rows = reader.of(pool[:3], row_loss("mean"))
    for example, row in zip(pool, rows, strict=False):
        parts = alone(model, reader.modules, example, row_loss("mean"))
        torch.testing.assert_close(
            row, torch.cat([one.flatten() for one in parts.values()]), rtol=1e-3, atol=2e-5
        )


def test_a_projection_is_on_both_sides_and_is_the_same_every_time(model, pool):
    plain, small = (Gradients(model, side=side, seed=5) for side in (0, 4))
    full, projected = (one.of(pool[:2], row_loss("sum")) for one in (plain, small))
    name, module = next(iter(plain.modules.items()))
    gradient = full[1, : plain.sizes[name]].view(module.out_features, module.in_features)
    left = projection(name, "left", 5, 4, module.out_features)
    right = projection(name, "right", 5, 4, module.in_features)
    torch.testing.assert_close(projected[1, :16].view(4, 4), left @ gradient @ right.T, rtol=1e-3, atol=1e-4)
    assert set(np.unique(left * 2)) == {-1.0, 1.0}
    assert not torch.equal(left, projection(name, "left", 6, 4, module.out_features))
    # known outputs: what Bergson 2.5.1 draws for the same name
    signs = projection("model.x.lora_A.default", "left", 3, 2, 8) * 2**0.5
    assert signs.round().int().tolist() == SIGNS


SIGNS = [[1, 1, 1, 1, 1, -1, 1, 1], [-1, 1, 1, 1, 1, 1, 1, -1]]


def by_formula(rows, aims, moment, method):
    """The module's docstring in plain NumPy, one module at a time: rows and aims [n, modules, d], moment by module."""

    def unit(x):
        return x / np.linalg.norm(x.reshape(len(x), -1), axis=1)[:, None, None] if method.unit_norm else x

    def times(x, power):
        return np.stack(
            [x[:, m] @ powers({"m": h}, method.damping, power)["m"].numpy() for m, h in enumerate(moment)], 1
        )

    if method.preconditioning == "none":
        rows, aims = unit(rows), unit(aims)
    elif method.sides == "two":
        rows, aims = unit(times(rows, -0.5)), unit(times(aims, -0.5))
    else:
        rows, aims = unit(rows), times(unit(aims), -1.0)
    if method.query == "mean":
        aims = aims.mean(0, keepdims=True)
    if method.sides == "one" and method.preconditioning != "none":
        aims = unit(aims)
    return np.einsum("nmd,qmd->nq", rows, aims).max(1)


@pytest.mark.parametrize(
    "fields",
    [
        {"preconditioning": "none"},
        {"preconditioning": "none", "unit_norm": False},
        {"preconditioning": "none", "query": "nearest"},
        {"sides": "two"},
        {"sides": "one"},
        {"sides": "one", "unit_norm": False},
        {"sides": "one", "query": "nearest"},
        {"preconditioning": "mixed", "mixing": 0.6},
    ],
    ids=str,
)
def test_scores_are_the_formulas_and_nothing_is_applied_twice(
    scoring, model, pool, queries, tmp_path, fields
):
    method = GradientMethod(projection=4, **fields)
    made = score("it", scoring({"it": method}), tmp_path)
    reader = Gradients(model, side=4)
    rows, aims = (reader.of(examples, row_loss("mean")) for examples in (pool, queries))
    shaped = [one.view(len(one), -1, 16).numpy() for one in (rows, aims)]
    task = Task(reader, pool, queries, row_loss("mean"), 96)
    of_queries, of_pool = (second_moment(task, examples, task.objective) for examples in (queries, pool))
    share = method.mixing if method.preconditioning == "mixed" else 1.0
    moment = [share * of_queries[name] + (1 - share) * of_pool[name] for name in of_queries]
    expected = by_formula(*shaped, moment, method)
    np.testing.assert_allclose(made.table["score"], expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_two_sides_without_unit_norm_are_refused():
    with pytest.raises(ValueError, match="sides: one"):
        GradientMethod(unit_norm=False)


def test_a_row_that_cannot_be_scored_is_counted_and_the_others_are_scored_as_without_it(
    scoring, pool, tmp_path
):
    masked = replace(pool[0], row_id="masked", masked=tuple(range(pool[0].start, len(pool[0].ids))))
    one_token = replace(pool[0], row_id="one_token", ids=pool[0].ids[:1], start=0)
    long = replace(pool[0], row_id="long", ids=pool[0].ids * 200)
    method = {"it": GradientMethod(**PLAIN)}
    made = score("it", scoring(method, pool=(masked, *pool, one_token, long)), tmp_path / "a")
    assert made.coverage == pytest.approx(10 / 13)
    assert made.numbers["coverage"] == made.coverage
    failed = dict(
        made.table.filter(made.table["failed"].is_not_null()).select("row_id", "failed").iter_rows()
    )
    assert set(failed) == {"masked", "one_token", "long"}
    assert "no supervised token" in failed["masked"]
    assert "more than the 1024" in failed["long"]
    assert made.scores == pytest.approx(score("it", scoring(method), tmp_path / "b").scores, abs=1e-6)
    with pytest.raises(ScoringError, match="query 'masked': no supervised token.*leave it out"):
        score("it", scoring(method, queries=(masked,)), tmp_path / "c")


def test_a_score_that_is_not_a_number_is_an_error_that_names_its_row(scoring, tmp_path, monkeypatch):
    of = Gradients.of

    def damaged(self, examples, objective):
        found = of(self, examples, objective)
        found[[one.row_id == "row4" for one in examples]] *= float("nan")
        return found

    monkeypatch.setattr(Gradients, "of", damaged)
    with pytest.raises(ScoringError, match="row 'row4': its score is nan; .* float32"):
        score("it", scoring({"it": GradientMethod(**PLAIN)}), tmp_path)
    queries = tuple(replace(one, row_id=f"row{at + 3}") for at, one in enumerate(scoring({}).queries))
    with pytest.raises(ScoringError, match="query 'row4': its gradient has the norm nan"):
        score("it", scoring({"it": GradientMethod(**PLAIN)}, queries=queries), tmp_path)


def test_a_killed_scoring_goes_on_to_the_same_result_and_a_finished_one_is_read(
    scoring, tmp_path, monkeypatch
):
    made = scoring({"it": GradientMethod(projection=4)}, batch_tokens=40)
    whole = score("it", made, tmp_path / "whole")
    batches, alive = [], [2]  # batches of rows before the kill
    of = Gradients.of

    def counted(self, examples, objective):
        if examples[0].row_id.startswith("row"):
            alive[0] -= 1
            if alive[0] < 0:
                raise KeyboardInterrupt
            batches.append(len(examples))
        return of(self, examples, objective)

    monkeypatch.setattr(Gradients, "of", counted)
    with pytest.raises(KeyboardInterrupt):
        score("it", made, tmp_path / "killed")
    record = tmp_path / "killed" / "it" / "scores.txt"
    with record.open("ab") as file:
        file.write(b'00000000 ["9", [0.')  # what a kill leaves of a line
    alive[0] = 100
    assert score("it", made, tmp_path / "killed").table.equals(whole.table)
    assert len(batches) == len(passes.batches_of(made.pool, 40)) > 2  # none twice
    alive[0] = 0
    assert score("it", made, tmp_path / "killed").table.equals(whole.table)
    assert not record.exists()


def test_other_rows_or_settings_are_scored_anew(scoring, pool, tmp_path):
    method = {"it": GradientMethod(**PLAIN)}
    first = score("it", scoring(method), tmp_path)
    assert score("it", scoring(method, pool=pool[:5]), tmp_path).table.height == 5
    other = score("it", scoring({"it": GradientMethod(**PLAIN, seed=1)}), tmp_path)
    assert other.scores != first.scores
    with pytest.raises(ScoringError, match="no method 'that'; the settings have it"):
        score("that", scoring(method), tmp_path)


def test_a_row_that_moves_the_model_along_the_direction_scores_above_one_that_does_not(
    scoring, model, pool, tmp_path
):
    unit = np.random.default_rng(0).standard_normal(model.hidden_size).astype(np.float32)
    direction = Direction(2, unit)
    made = score(
        "it",
        scoring({"it": {"kind": "direction", "projection": 0, "unit_norm": False}}, direction=direction),
        tmp_path,
    )
    reader = Gradients(model, side=0)
    aim = row_projection(2, torch.from_numpy(unit / np.linalg.norm(unit)))
    queries = scoring({}).queries

    def projected():
        with torch.no_grad():
            return float(-aim(model.module, collate(queries, 0)).mean())

    best = next(one for one in pool if one.row_id == made.ordered[0])
    parts = alone(model, reader.modules, best, row_loss("mean"))
    before = projected()
    for name, gradient in parts.items():
        reader.modules[name].weight.data -= 1e-4 * gradient
    moved = (projected() - before) / 1e-4
    for name, gradient in parts.items():
        reader.modules[name].weight.data += 1e-4 * gradient
    assert moved == pytest.approx(made.scores[best.row_id], rel=0.05)
    with pytest.raises(ScoringError, match="there is none; give a persona vector"):
        score("it", scoring({"it": {"kind": "direction"}}), tmp_path)
