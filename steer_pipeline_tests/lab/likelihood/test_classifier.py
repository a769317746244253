"""Claims about vectors as classifiers: pooled response states, no instruction, whole questions, a null beside it."""

import numpy as np
import polars as pl
import pytest

from steer_pipeline.lab.arms import Arm
from steer_pipeline.lab.dialogues.requests import encode_rows, response_requests
from steer_pipeline.lab.likelihood.classifier import LabelledStates, labelled_states, vector_as_classifier
from steer_pipeline.lab.models.hidden import collect_means
from steer_pipeline.lab.models.sites import Site, SteeringTerm
from steer_pipeline.lab.stats import auc
from steer_pipeline_tests.lab.generation.reference import loaded
from steer_pipeline_tests.lab.likelihood.builders import behaviour_rows, changed, profile

HIDDEN = 32


def states(seed=0, n_questions=20, gap=3.0):
    """Two answers of either side a question; they differ along axis 0 at block 1 and nowhere else."""
    rng = np.random.default_rng(seed)
    positive = np.tile([True, True, False, False], n_questions)
    read = rng.standard_normal((4 * n_questions, 2, HIDDEN)).astype(np.float32)
    read[:, 1, 0] += gap * positive
    return LabelledStates(read, positive, np.repeat(np.arange(n_questions), 4))


def arm(axis, block=1, name="averaged", seed=None, sign=1.0):
    term = SteeringTerm(name, sign * np.eye(HIDDEN, dtype=np.float32)[axis], Site(block), 2.0)
    return Arm(name, term, 1.0, seed)


def test_the_planted_direction_separates_at_its_own_block_only():
    table = vector_as_classifier(
        states(), [arm(0), arm(0, block=0), arm(1, name="random", seed=51), arm(0, sign=-1.0)], seed=0
    )
    found, other_block, random, turned = table.iter_rows(named=True)
    read = states()
    assert found["auc"] == pytest.approx(auc(read.states[:, 1, 0], read.positive))
    assert found["auc"] > 0.95
    assert found["low"] > 0.9
    assert found["p"] == pytest.approx(1 / 501)
    assert turned["auc"] == pytest.approx(1 - found["auc"])
    for row in (other_block, random):
        assert row["low"] < 0.5 < row["high"]
        assert row["p"] > 0.05
    assert table["null_mean"].to_numpy() == pytest.approx(0.5, abs=0.02)
    assert (table["null_95th"] < 0.72).all()
    assert (found["n_positive"], found["n_negative"], found["n_questions"]) == (40, 40, 20)
    assert random["seed"] == 51


def test_twins_of_a_question_do_not_narrow_the_interval():
    read = states(gap=0.8)
    twice = LabelledStates(
        np.repeat(read.states, 4, 0), np.repeat(read.positive, 4), np.repeat(read.questions, 4)
    )
    one, two = (vector_as_classifier(each, [arm(0)], seed=0).row(0, named=True) for each in (read, twice))
    assert two["auc"] == pytest.approx(one["auc"])
    assert two["high"] - two["low"] == pytest.approx(one["high"] - one["low"], rel=0.05)


def test_shuffled_labels_keep_what_belongs_to_the_question():
    """A direction that only tells questions apart has its AUC under the null too, and no small p."""
    n = 20
    positive = np.array([True, True, True, False] * (n // 2) + [True, False, False, False] * (n // 2))
    questions = np.repeat(np.arange(n), 4)
    read = np.zeros((4 * n, 1, HIDDEN), dtype=np.float32)
    read[:, 0, 0] = questions < n // 2
    found = vector_as_classifier(LabelledStates(read, positive, questions), [arm(0, 0)], seed=0).row(
        0, named=True
    )
    assert found["auc"] == pytest.approx(0.75)
    assert found["null_mean"] == pytest.approx(0.75)
    assert found["p"] == 1.0


def test_without_both_labels_there_is_a_reason_and_no_number():
    read = states()
    alone = LabelledStates(read.states[:4], np.ones(4, dtype=bool), read.questions[:4])
    row = vector_as_classifier(alone, [arm(0)], seed=0).row(0, named=True)
    assert row["auc"] is None
    assert row["p"] is None
    assert "4 answers of the persona and 0 others to 1 test questions" in row["reason"]


@pytest.mark.parametrize("kind", ["trait", "role"])
def test_test_rows_are_read_after_the_bare_question(tmp_path, kind):
    model, rows = loaded(tmp_path), behaviour_rows(kind)
    first = pl.col("row_id") == ("neg-0-3" if kind == "trait" else "pos-0-3")
    refused = changed(rows, first, score=None, score_status="refusal", counts=False)
    read = labelled_states(model, refused, kind, profile(model))
    used = rows.filter(~first, pl.col("split") == "test")
    assert read.positive.tolist() == (used["label"] == "pos").to_list()
    assert read.questions.tolist() == used["question_index"].to_list()
    bare = response_requests(model.tokenizer, encode_rows(model, used, profile(model), instructed=False))
    assert np.allclose(read.states, collect_means(model, bare), atol=1e-4)
    silent = labelled_states(
        model, changed(refused, pl.lit(True), instruction="Shout!"), kind, profile(model)
    )
    assert np.array_equal(read.states, silent.states)
