"""What moved most beside the aim: looked for on every scale, and told beside the headline."""

import polars as pl
import pytest

from steer_pipeline.lab.rewrites.aims import Aim
from steer_pipeline.lab.rewrites.comparison import SUMMARY_SCHEMA
from steer_pipeline.lab.rewrites.headline import pilot_numbers
from steer_pipeline.lab.rewrites.off_target import OFF_TARGET_SCHEMA, off_target_table, told_off_target

AIMS = {
    "paranoid": [Aim("paranoid", "up", "lexicon")],
    "both": [Aim("paranoid", "up", "lexicon"), Aim("rule_defiant", "up", "lexicon")],
}
SHIFTS = {
    ("paranoid", "trait_paranoid_lexicon"): 0.57,
    ("paranoid", "trait_rule_defiant_lexicon"): 0.0,
    ("paranoid", "trait_rule_defiant_minilm"): -0.24,
    ("both", "trait_paranoid_lexicon"): 0.49,
    ("both", "trait_rule_defiant_lexicon"): 0.08,
}


def summary() -> pl.DataFrame:
    rows = [
        {"variant": variant, "role": "steered", "metric": metric, "n": 50, "reference": "base"}
        | {"difference": shift, "low": shift - 0.05, "high": shift + 0.05}
        for (variant, metric), shift in SHIFTS.items()
    ]
    return pl.DataFrame(rows, schema=SUMMARY_SCHEMA)


def rows() -> pl.DataFrame:
    """Of the rewrites of `both`, three of ten show both markers."""
    hits = {"hits_paranoid_positive": [1] * 9 + [0], "hits_rule_defiant_positive": [0] * 6 + [2] * 4}
    both = pl.DataFrame({"variant": ["both"] * 10, **hits})
    return pl.concat([both, both.with_columns(variant=pl.lit("paranoid"))])


@pytest.fixture
def table() -> pl.DataFrame:
    return off_target_table(rows(), summary(), AIMS)


def test_a_scale_that_is_blind_does_not_hide_what_another_sees(table):
    """The lexicon showed 0.0 for the other persona, and the report said that it was left alone."""
    assert table.schema == OFF_TARGET_SCHEMA
    row = table.filter(variant="paranoid").row(0, named=True)
    assert (row["persona"], row["scale"], row["shift"]) == ("rule_defiant", "minilm", -0.24)
    assert row["traits"] == 2
    assert told_off_target(row) == "beside its aim most: rule_defiant (minilm) -0.240 [-0.290, -0.190]"


def test_a_combination_says_how_many_rewrites_show_all_of_its_aims(table):
    row = table.filter(variant="both").row(0, named=True)
    assert row["persona"] is None
    assert told_off_target(row) == "markers of every aim stand in 3 of 10 rewrites"


def test_the_last_line_has_it_beside_the_trait(table):
    told = pilot_numbers(summary(), off_target=table)
    assert told["paranoid"]["off_target"]["shift"] == -0.24
    assert told["both"]["off_target"]["all_shown"] == 3


def test_without_markers_nothing_is_said_of_them():
    plain = off_target_table(rows().select("variant"), summary(), AIMS)
    assert plain.filter(variant="both")["all_shown"][0] is None
    assert told_off_target(plain.filter(variant="both").row(0, named=True)) == ""
