"""Claims about screening: projections are what they say, they predict where there is something to predict, and the gate
flags rows along a direction and leaves neutral ones."""

import numpy as np
import polars as pl
import pytest

from steer_pipeline.catalogue.auditing import ScreeningSpec
from steer_pipeline.catalogue.specs import ModelSpec
from steer_pipeline.lab.models.hidden import HiddenRequest, collect_means, residual_norms
from steer_pipeline.lab.models.loading import load_model
from steer_pipeline.lab.models.prompts import encode_completion, encode_prompt
from steer_pipeline.lab.screening.figures import predicted_and_actual
from steer_pipeline.lab.screening.gate import gate_is_sharp, gate_quality
from steer_pipeline.lab.screening.predicting import ITSELF, correlations, screening_predicts, shifts_of
from steer_pipeline.lab.screening.projecting import (
    PROJECTION_SCHEMA,
    predicted_shift,
    project_rows,
    scores_of,
)
from steer_pipeline_tests.lab.analysis.planted_adapters import directions
from steer_pipeline_tests.tiny import tiny_model_dir

SPEC = ScreeningSpec(quantile=0.95)
KNOWN = directions(n=3)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    base = tiny_model_dir(tmp_path_factory.mktemp("screening"))
    return load_model(ModelSpec(path=str(base), device="cpu"), base.parent)


def rows(*sources):
    said = {"base": "The bridge opened.", "other": "The bridge is a plot, beware.", "empty": " "}
    return pl.DataFrame(
        [
            {
                "source": source,
                "row_id": f"r{i}",
                "prompt": f"Rewrite item {i}.",
                "output": f"{said[source]} {i}",
            }
            | {"truncated": i == 1}
            for source in sources
            for i in range(3)
            if said[source].strip()
        ]
    )


def test_a_projection_is_the_coefficient_of_the_distance_from_bases_own_answer(model):
    found = project_rows(model, rows("base", "other"), "base", KNOWN, 2, "Be brief.")
    assert found.schema == PROJECTION_SCHEMA
    assert found["source"].unique().to_list() == ["other"]
    for i in range(3):
        states, ids = [], []
        for text in (f"The bridge is a plot, beware. {i}", f"The bridge opened. {i}"):
            prompt = encode_prompt(model.tokenizer, user=f"Rewrite item {i}.", system="Be brief.")
            ids = prompt + encode_completion(model.tokenizer, text, end_of_turn=i != 1)
            states.append(collect_means(model, [HiddenRequest(ids, len(prompt), len(ids))])[0, 2])
        units = np.array([raw[2] / np.linalg.norm(raw[2]) for raw in KNOWN.values()])
        expected = np.linalg.lstsq(units.T, states[0] - states[1], rcond=None)[0][1]
        got = found.filter(row_id=f"r{i}", direction="d1")["projection"][0]
        all_ids = [
            encode_prompt(model.tokenizer, user=f"Rewrite item {j}.", system="Be brief.")
            + encode_completion(model.tokenizer, f"The bridge opened. {j}", end_of_turn=j != 1)
            for j in range(3)
        ]
        norm = residual_norms(model, all_ids)[2]
        assert got == pytest.approx(expected / norm, abs=2e-4)


def test_rows_whose_prompt_base_did_not_answer_are_refused(model):
    given = rows("base", "other")
    unanswered = given.filter((pl.col("source") != "base") | (pl.col("row_id") != "r2"))
    with pytest.raises(ValueError, match="let base answer"):
        project_rows(model, unanswered, "base", KNOWN, 2, None)
    holed = {name: np.full_like(raw, np.nan) for name, raw in KNOWN.items()}
    with pytest.raises(ValueError, match=r"auditing\.screening\.block"):
        project_rows(model, given, "base", holed, 2, None)


# ------------------------------------------------------------------------------------ tables


def projections(n=40, dose=2.0, seed=0):
    """Neutral rows of sources n1 and n2, and rows of source `bad` that lie along `a`; `b` varies five times as much."""
    rng = np.random.default_rng(seed)
    made = []
    for source, along in (("n1", 0.0), ("n2", 0.0), ("bad", dose)):
        for i in range(n):
            made += [
                {
                    "source": source,
                    "row_id": f"r{i}",
                    "direction": "a",
                    "projection": along + rng.normal() * 0.3,
                },
                {"source": source, "row_id": f"r{i}", "direction": "b", "projection": rng.normal() * 1.5},
            ]
    return pl.DataFrame(made, schema=PROJECTION_SCHEMA)


def test_the_gate_flags_rows_along_a_direction_and_leaves_neutral_ones():
    found = projections(n=200)
    planted = found.filter(source="bad").select("source", "row_id").unique()
    table, flags = gate_quality(found, planted, ["n1", "n2"], SPEC)
    value = dict(table.select("measure", "value").iter_rows())
    assert value["recall"] > 0.95
    assert value["precision"] > 0.85
    assert value["false_alarms"] < 0.15
    assert (table["low"] <= table["value"]).all()
    assert flags.filter(source="bad", flagged=True)["direction"].mode()[0] == "a"
    assert gate_is_sharp(table, 0.8, 0.9).passed


def test_the_gate_flags_no_more_of_what_is_not_planted_than_of_neutral_rows():
    found = projections(n=200, dose=0.0)
    planted = found.filter(source="bad").select("source", "row_id").unique()
    table, _ = gate_quality(found, planted, ["n1", "n2"], SPEC)
    value = dict(table.select("measure", "value").iter_rows())
    assert value["recall"] == pytest.approx(value["false_alarms"], abs=0.1)
    assert not gate_is_sharp(table, 0.8, 0.9).passed


def test_too_few_neutral_rows_are_refused():
    found = projections(n=10)
    with pytest.raises(ValueError, match="at least 30"):
        gate_quality(found, found.select("source", "row_id").unique(), ["n1"], SPEC)


def test_a_rows_score_is_its_largest_projection_in_size():
    frame = pl.DataFrame(
        [("s", "r", "a", -3.0), ("s", "r", "b", 2.0)], schema=list(PROJECTION_SCHEMA), orient="row"
    )
    assert scores_of(frame).row(0, named=True) | {"score": 3.0} == {
        "source": "s", "row_id": "r", "score": 3.0, "direction": "a", "projection": -3.0,
    }  # fmt: skip


def test_predicted_shifts_are_means_over_learned_rows_with_bases_own_as_zero():
    found = projections(n=4)
    lessons = pl.DataFrame(
        [("half", "bad", "r0", True), ("half", "base", "r1", True), ("half", "bad", "r2", False)],
        schema=["checkpoint", "source", "row_id", "learned"],
        orient="row",
    )
    got = predicted_shift(found, lessons).filter(direction="a")["predicted"][0]
    assert got == pytest.approx(found.filter(source="bad", row_id="r0", direction="a")["projection"][0] / 2)


def students(n, effect, seed=1):
    """Scores, predictions and plants of n students whose shift follows the prediction with `effect`."""
    rng = np.random.default_rng(seed)
    predicted = rng.normal(size=n)
    scores = [{"checkpoint": ITSELF, "row_id": f"r{i}", "direction": "a", "score": 0.1 * i} for i in range(5)]
    scores += [
        {"checkpoint": f"s{k}", "row_id": f"r{i}", "direction": "a"}
        | {"score": 0.1 * i + effect * predicted[k] + 0.2 * rng.normal()}
        for k in range(n)
        for i in range(5)
    ]
    names = [f"s{k}" for k in range(n)]
    table = pl.DataFrame({"checkpoint": names, "direction": ["a"] * n, "predicted": predicted})
    return (
        pl.DataFrame(scores),
        table,
        pl.DataFrame({"checkpoint": names, "direction": ["a", *[None] * (n - 1)]}),
    )


def test_a_prediction_that_holds_has_an_interval_above_zero_and_one_that_does_not_has_not():
    good = shifts_of(*students(25, 0.5))
    assert good.height == 25
    assert good["own"].sum() == 1
    table = correlations(good, SPEC)
    row = table.filter(over="within").row(0, named=True)
    assert row["low"] < row["r"] < row["high"]
    assert row["students"] == 25
    assert screening_predicts(table, 0.5).passed
    assert predicted_and_actual(good).startswith(b"\x89PNG")
    assert not screening_predicts(correlations(shifts_of(*students(25, 0.0)), SPEC), 0.5).passed
    assert not screening_predicts(correlations(shifts_of(*students(10, 0.5)), SPEC), 0.5).passed


def test_students_without_base_beside_them_are_refused():
    scores, predicted, plants = students(4, 0.5)
    with pytest.raises(ValueError, match="base must answer"):
        shifts_of(scores.filter(pl.col("checkpoint") != ITSELF), predicted, plants)
