"""What the table says of methods and arms: gains over the best rival, ties published as ties, limits in verdicts."""

import polars as pl
import pytest

from steer_pipeline.catalogue.attribution import AttributionSpec, SubsetSpec
from steer_pipeline.catalogue.attribution_scoring import AttributionScoringSpec, GradientMethod
from steer_pipeline.lab.attribution.report import PAGE, write_report
from steer_pipeline.lab.attribution.scoring.ranking import ranking
from steer_pipeline.lab.attribution.stage import agreements, ranking_verdict
from steer_pipeline.lab.attribution.subsets import BUDGET_SCHEMA
from steer_pipeline.lab.attribution.table import (
    headline,
    make_results,
    quality_verdicts,
    read_results,
    results_verdicts,
    write_results,
)
from steer_pipeline_tests.lab.attribution.test_word_eval import guesses

SPEC = AttributionSpec(
    arms={
        "top_gradient": SubsetSpec(pick="top", ranking="gradient"),
        "top_rds": SubsetSpec(pick="top", ranking="rds"),
        "matched": SubsetSpec(pick="matched", like="top_gradient"),
        "continued": SubsetSpec(pick="top", ranking="gradient", mode="continued"),
    },
    seeds=[1, 2, 3],
)
SEEDS = (1, 2, 3)


def quality(**changes):
    rows = [
        {"method": method, "seconds": 1.5, "peak_memory_bytes": 10, "coverage": 1.0}
        | {
            f"{name}{end}": value + shift
            for name, value in (("lds_small_drop", lds), ("recall", lds), ("auc", lds), ("effect", lds))
            for end, shift in (("", 0.0), ("_low", -0.05), ("_high", 0.05))
        }
        for method, lds in ({"gradient": 0.6, "magic": 0.95, "rds": 0.3} | changes).items()
    ]
    return pl.DataFrame(rows)


def results(chances):
    told = pl.concat(
        [guesses(arm, (0,) if arm == "base" else SEEDS, chance) for arm, chance in chances.items()]
    )
    return make_results(told, quality(), pl.DataFrame(schema=BUDGET_SCHEMA), SPEC)


@pytest.fixture(scope="module")
def won():
    return results({"base": 0.0, "top_gradient": 0.9, "top_rds": 0.4, "matched": 0.1, "continued": 0.9})


def test_a_method_gains_over_the_best_rival_and_not_over_the_weakest(won):
    row = won.methods.row(by_predicate=pl.col("method") == "gradient", named=True)
    assert (row["arm"], row["rival"], row["verdict"]) == ("top_gradient", "top_rds", "beats")
    assert 0 < row["gain_low"] < row["gain"] < row["gain_high"]
    rds = won.methods.row(by_predicate=pl.col("method") == "rds", named=True)
    assert (rds["arm"], rds["rival"]) == ("top_rds", "matched"), "a rival is compared with the others"
    assert won.methods.row(by_predicate=pl.col("method") == "magic", named=True)["arm"] is None
    assert set(won.effects["reference"]) == {"base", "matched", "top_rds"}
    assert results_verdicts(won, SPEC)[0].passed
    assert not results_verdicts(won, SPEC.model_copy(update={"seeds": [1]}))[1].passed
    told = headline(won)
    assert told["methods"]["gradient"]["rival"] == "top_rds"
    assert told["arms"]["base"]["accuracy"] == 0.0


def test_a_tie_is_published_as_a_tie():
    tied = results({"base": 0.0, "top_gradient": 0.9, "top_rds": 0.9, "matched": 0.1, "continued": 0.9})
    verdict = results_verdicts(tied, SPEC)[0]
    assert "top_gradient ties top_rds" in verdict.message
    assert tied.methods.filter(method="gradient")["verdict"].to_list() == ["ties"]


def test_results_and_report_are_written_and_read_again(won, tmp_path):
    write_results(won, tmp_path)
    again = read_results(tmp_path)
    assert again.methods.equals(won.methods)
    assert again.arms.equals(won.arms)
    manifest = {
        "splits": {"train": {"rows": 2, "groups": 1, "tokens": 9, "truth": {"useless": 1}}},
        "left_out": {"aborted": 3},
    }
    page = write_report(won, {"subsets": 64}, manifest, {"word_eval[base]": "abc"}, tmp_path).read_text()
    assert (tmp_path / PAGE).is_file()
    for said in (
        "top_gradient",
        "subsets: 64",
        "3 rows left out: aborted",
        "1 useless",
        "word_eval[base]",
        "beats",
    ):
        assert said in page


def test_limits_judge_the_exact_method_the_cheap_ones_and_recall():
    def passed(table):
        return [one.passed for one in quality_verdicts(table, SPEC)]

    assert passed(quality()) == [True, True, True]
    assert passed(quality(magic=0.8)) == [False, True, False]
    assert passed(quality(gradient=0.4)) == [True, False, True]
    assert passed(quality().filter(pl.col("method") != "magic").drop("recall")) == [True, True, True]


def test_rows_without_a_score_are_counted_and_named():
    made = ranking("loss", ["a", "b", "c"], {"a": 1.0, "c": 0.0}, {"b": "no token"})
    verdict = ranking_verdict(made)
    assert not verdict.passed
    assert verdict.message == "2 of 3 rows have a score; no token"
    assert verdict.examples == [{"row": "b", "why": "no token"}]
    assert ranking_verdict(ranking("loss", ["a"], {"a": 1.0})).passed


def test_back_ends_are_compared_where_nothing_else_differs():
    methods = {
        "native": GradientMethod(),
        "bergson": GradientMethod(back_end="bergson"),
        "other": GradientMethod(preconditioning="none"),
    }
    spec = AttributionScoringSpec(methods=methods)
    shifts = {"native": 0.0, "bergson": 1e-6, "other": 0.1}
    read = {name: ranking(name, ["a", "b"], {"a": 1.0, "b": 0.5 + by}) for name, by in shifts.items()}
    found = agreements(read, spec)
    assert list(found) == ["native = bergson"]
    assert found["native = bergson"]["largest_difference"] == pytest.approx(1e-6)
    assert agreements({"native": read["native"]}, spec) == {}
