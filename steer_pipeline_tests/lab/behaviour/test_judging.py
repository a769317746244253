"""A judge's answers as rows: what is off the persona's scale is found, and long replies are cut."""

import json

import polars as pl
import pytest

from steer_pipeline.catalogue import load_personas
from steer_pipeline.lab.behaviour.judging import ANSWER_CHARS, judged_rows, scale_problems
from steer_pipeline.lab.behaviour.schema import JUDGE_SCHEMA
from steer_pipeline.lab.evaluation.judgement import Judgement

CREATIVE = load_personas()["creative"]
GOOD = judged_rows(
    CREATIVE,
    ["a", "b", "c"],
    [Judgement(0, "scored", "0"), Judgement(100, "scored", "100"), Judgement(None, "refusal")],
    "j",
)


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"score": [101, 1, None]}, "a has a score outside 0 to 100"),
        ({"score": [0, -1, None]}, "b has a score outside"),
        ({"score": [None, 1, None]}, "a is scored without a score"),
        ({"score": [0, 1, 5]}, "c has a score and is not scored"),
        ({"status": ["scored", "scored", "fine"]}, "c has an unknown status"),
        ({"status": ["scored", "scored", None]}, "c has an unknown status"),
        ({"row_id": ["a", "b", "a"]}, "a comes twice"),
        ({"scale_max": [100, 3, 100]}, "b has another scale"),
        ({"persona": ["creative", "creative", "sailor"]}, "c is not of creative"),
    ],
)
def test_tables_that_are_off_the_scale_are_found(change, problem):
    assert scale_problems(GOOD, CREATIVE) == []
    broken = GOOD.with_columns(
        pl.Series(name, values, dtype=JUDGE_SCHEMA[name]) for name, values in change.items()
    )
    assert any(problem in told for told in scale_problems(broken, CREATIVE))


def test_long_replies_are_cut_in_the_table():
    (row,) = judged_rows(CREATIVE, ["a"], [Judgement(None, "invalid", "word " * 500)], "j").to_dicts()
    assert len(row["answer"]) == ANSWER_CHARS
    assert json.loads(json.dumps(row)) == row
