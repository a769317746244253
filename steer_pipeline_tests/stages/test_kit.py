"""What a person is told: numbers with their limits, the cure where a claim fails, the persona where an asset does."""

import dagster as dg
import polars as pl
import pytest

from steer_pipeline.lab.columns import described
from steer_pipeline.lab.verdict import Verdict
from steer_pipeline.stages.kit import Claims, columns, must, should, user_errors

CLAIMS = Claims("news", must("whole", "Nothing is missing.", "read it again"), should("fresh", "Of today."))


def test_a_cure_follows_only_where_the_claim_does_not_hold():
    good, bad = (CLAIMS.result("whole", passed, "3 of 4 rows, limit 4") for passed in (True, False))
    assert good.description == "3 of 4 rows, limit 4"
    assert bad.description == "3 of 4 rows, limit 4. To go on: read it again"
    assert CLAIMS.result("fresh", False, "old").severity == dg.AssetCheckSeverity.WARN


def test_what_cannot_be_judged_says_why_and_offers_no_cure():
    result = CLAIMS.unjudged("whole", "the file cannot be read")
    assert (result.passed, result.description) == (False, "not judged: the file cannot be read")


def test_a_verdict_becomes_a_result_with_sensible_digits_and_its_examples():
    verdict = Verdict("whole", False, "broken", {"p": 0.00009999000099990002}, [{"row": 1}])
    result = CLAIMS.judged(verdict)
    assert result.metadata["p"].value == 0.00009999
    assert result.metadata["examples"].value == [{"row": 1}]
    informs = Verdict("whole", False, "broken", blocking=False)
    assert CLAIMS.judged(informs).severity == dg.AssetCheckSeverity.WARN


@pytest.mark.parametrize("message", ["no rows", "sailor: no rows"])
def test_a_failure_names_its_persona_once_and_is_not_tried_again(message):
    with pytest.raises(dg.Failure) as failed, user_errors(who="sailor"):
        raise ValueError(message)
    assert failed.value.description == "sailor: no rows"
    assert not failed.value.allow_retries


def test_columns_of_an_asset_say_what_they_hold():
    schema, texts = described(
        row_id=(pl.String(), "of the row"), tags=(pl.List(pl.Struct({"a": pl.String})), "")
    )
    (table,) = columns(schema, texts).values()
    assert [(one.name, one.type, one.description) for one in table.columns] == [
        ("row_id", "string", "of the row"),
        ("tags", "list of records", None),
    ]
