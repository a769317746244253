"""Claims about stored pairs, their steps and their report: found again by identity, judged, and told from rows."""

import json
import shutil

import numpy as np
import polars as pl
import pytest

from steer_pipeline.catalogue import load_profile
from steer_pipeline.catalogue.analysis import AnalysisSpec, CheckpointSpec, PairSpec
from steer_pipeline.catalogue.specs import ModelSpec
from steer_pipeline.lab.analysis.claims import clean_verdicts, report_verdicts, susceptibility_verdicts
from steer_pipeline.lab.analysis.directions import save_directions
from steer_pipeline.lab.analysis.neutral import save_neutral
from steer_pipeline.lab.analysis.pairs import PairError
from steer_pipeline.lab.analysis.report import FINDINGS, headline, read_pair_tables, write_report
from steer_pipeline.lab.analysis.sides import read_pair, store_pair, student_of
from steer_pipeline.lab.analysis.steps import (
    STATISTICS,
    read_basis,
    write_attention,
    write_clean,
    write_mlp,
    write_susceptibility,
)
from steer_pipeline_tests.lab.analysis.conftest import directions, neutral
from steer_pipeline_tests.tiny import lora

SPEC = AnalysisSpec(n_null=200, clean_pairs=1, top=2, distances=[1])


@pytest.fixture(scope="module")
def stored(qwen, tmp_path_factory):
    """Folders of all assets of one pair on a tiny model."""
    home = tmp_path_factory.mktemp("analysis")
    folders = {
        name: home / name for name in ("basis", "pair", "weights", "mlp", "attention", "clean", "report")
    }
    for folder in folders.values():
        folder.mkdir()
    save_directions(directions(2), folders["basis"])
    save_neutral(neutral(), folders["basis"])
    store_pair(
        PairSpec(student="paranoid"), ModelSpec(path=str(qwen.folder)), qwen.adapter, home, folders["pair"]
    )
    pair = read_pair(folders["pair"], home)
    write_susceptibility(pair, folders["basis"], SPEC, folders["weights"])
    write_mlp(pair, folders["basis"], SPEC, folders["mlp"])
    write_attention(pair, folders["basis"], SPEC, folders["attention"])
    others = {f"base {k}": [lora(qwen.folder, home / f"clean-{k}", seed=k)] for k in (1, 2)}
    write_clean(pair.base, others, folders["basis"], SPEC, folders["clean"])
    return folders


@pytest.fixture(scope="module")
def report(stored):
    folders = [stored[name] for name in ("weights", "mlp", "attention", "clean")]
    tables = read_pair_tables("paranoid", *folders, None, 0.05)
    return tables, write_report(tables, {"model_pair[paranoid]": "abc"}, stored["report"])


def test_a_stored_pair_is_found_again_and_a_changed_one_is_refused(qwen, stored, tmp_path):
    told = json.loads((stored["pair"] / "pair.json").read_text())
    assert told["identities"]["base"] != told["identities"]["tuned"]
    assert read_pair(stored["pair"], tmp_path).tuned.adapters == (stored["pair"] / "adapter",)
    changed = shutil.copytree(stored["pair"], tmp_path / "pair")
    shutil.rmtree(changed / "adapter")
    lora(qwen.folder, changed / "adapter", seed=9)
    with pytest.raises(PairError, match="materialise model_pair again"):
        read_pair(changed, tmp_path)


def test_any_checkpoint_of_base_s_shape_is_a_pair_and_base_itself_is_none(qwen, tmp_path):
    model = ModelSpec(path=str(qwen.folder))
    qwen.merged.save_pretrained(tmp_path / "merged")
    merged = PairSpec(checkpoint=CheckpointSpec(path=str(tmp_path / "merged")))
    (tmp_path / "one").mkdir()
    store_pair(merged, model, None, tmp_path, tmp_path / "one")
    assert read_pair(tmp_path / "one", tmp_path).tuned.folder == tmp_path / "merged"
    itself = PairSpec(checkpoint=CheckpointSpec(path=str(qwen.folder)))
    with pytest.raises(PairError, match="one model"):
        store_pair(itself, model, None, tmp_path, tmp_path / "one")


def test_students_of_pairs_are_those_that_the_profile_trains():
    profile = load_profile("newsroom")
    assert student_of(PairSpec(student="paranoid"), profile).place == "rank-8/seed-61"
    assert student_of(PairSpec(heal="nll"), profile).asset == "heal_adapter"
    with pytest.raises(PairError, match="rank 7"):
        student_of(PairSpec(student="paranoid", rank=7), profile)
    with pytest.raises(ValueError, match="name one of student, heal and checkpoint"):
        PairSpec(student="paranoid", heal="nll")


def test_the_basis_draws_the_null_that_the_profile_says(stored):
    _, states = read_basis(stored["basis"], SPEC)
    drawn = states.matched(1)
    assert drawn.shape == (200, 64)
    assert np.array_equal(drawn, read_basis(stored["basis"], SPEC)[1].matched(1))


def test_the_report_holds_all_sections_plots_and_versions(stored, report):
    _, plots = report
    page = (stored["report"] / "analysis.html").read_text()
    for section in ("Findings", "Weights on directions", "MLPs", "Attention", "Made of"):
        assert f">{section}</h2>" in page
    assert page.count("<img") == len(plots) == 6
    assert "model_pair[paranoid]" in page
    assert "random directions alone decide" in page  # two clean students are few
    assert all(path.stat().st_size > 5_000 for path in plots.values())


def test_the_last_line_says_what_is_found_with_z_and_p(stored, report):
    line = headline(report[0].findings)
    assert set(line["directions"]) == {"persona:p0", "persona:p1"}
    assert set(line["directions"]["persona:p0"]["written"]) == {
        "value",
        "null_p",
        "clean_t",
        "clean_p_holm",
        "found",
    }
    assert line["found"] == sorted(line["found"])


def test_verdicts_of_a_pair(stored, report):
    verdicts = {one.claim: one for one in susceptibility_verdicts(stored["weights"], SPEC)}
    assert verdicts["matched_null"].passed
    findings = report[0].findings.with_columns(
        found=pl.col("direction") == "persona:p0",
        value=pl.when(pl.col("statistic") == "pushed").then(-2.0).otherwise(3.0),
    )
    findings.write_parquet(stored["report"] / FINDINGS)

    def passed(targets, control):
        return {one.claim: one.passed for one in report_verdicts(stored["report"], targets, control)}

    assert passed({"p0": "down"}, False) == {"what_was_taught_is_found": True, "controls_show_nothing": True}
    assert not passed({"p0": "up"}, False)["what_was_taught_is_found"]  # found, but the other way
    assert not passed({"p1": "up"}, False)["what_was_taught_is_found"]
    assert not passed({}, True)["controls_show_nothing"]


def test_verdicts_of_clean_students(stored):
    told = {one.claim: one for one in clean_verdicts(stored["clean"])}
    assert not told["enough_clean_students"].passed
    assert told["clean_pairs_show_nothing"].numbers["high"] <= 1
    statistics = pl.read_parquet(stored["clean"] / STATISTICS)
    assert statistics["pair"].n_unique() == 3  # two on the model, one of both
