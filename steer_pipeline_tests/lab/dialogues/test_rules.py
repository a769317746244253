"""The verdicts on a behaviour set: each fault fails its claim and names the row, the model or the split."""

import polars as pl
import pytest

from steer_pipeline.catalogue.specs import BehaviourSpec
from steer_pipeline.lab.dialogues.rules import foreign_answers, judge_set
from steer_pipeline_tests.lab.likelihood.builders import behaviour_rows, changed, persona

SPEC = BehaviourSpec(train_tokens=100, validation_tokens=60, test_tokens=60)
ONE = pl.col("row_id") == "pos-0-0"


def judged(rows: pl.DataFrame, spec: BehaviourSpec = SPEC):
    return {one.claim: one for one in judge_set(rows, persona(), spec, "tiny")}


def test_a_sound_set_passes_every_claim_with_its_sizes():
    verdicts = judged(behaviour_rows())
    assert all(one.passed for one in verdicts.values()), verdicts
    assert "every budget is met: train" in verdicts["token_budget_is_met"].message


@pytest.mark.parametrize(
    "fault, claim, message",
    [
        (lambda rows: changed(rows, ONE, score_status="missing"), "no_row_without_a_score_counts", "pos-0-0"),
        (lambda rows: changed(rows, ONE, split="test"), "questions_are_disjoint", "is in test and train"),
        (lambda rows: rows.filter(pl.col("split") != "test"), "splits_are_not_empty", "split test is empty"),
        (lambda rows: changed(rows, ONE, question="Be pos."), "instructions_are_stripped", "pos-0-0"),
        (
            lambda rows: changed(rows, ONE, model="org/other-4b"),
            "dialogues_are_of_this_model",
            "org/other-4b",
        ),
        (
            lambda rows: rows.filter(pl.col("split") != "test"),
            "token_budget_is_met",
            "test has 0 of 60 tokens",
        ),
    ],
)
def test_each_fault_fails_its_claim(fault, claim, message):
    verdict = judged(fault(behaviour_rows()))[claim]
    assert not verdict.passed
    assert message in verdict.message
    assert verdict.numbers["problems"] >= 1


def test_answers_of_another_model_pass_where_the_profile_lets_them():
    rows = changed(behaviour_rows(), ONE, model="org/other-4b")
    allowed = judged(rows, SPEC.model_copy(update={"allow_other_model": True}))["dialogues_are_of_this_model"]
    assert allowed.passed
    assert "lets pass: 1 rows are of org/other-4b" in allowed.message
    assert foreign_answers(rows, "tiny".__eq__).rows() == [("org/other-4b", 1, "pos-0-0")]
