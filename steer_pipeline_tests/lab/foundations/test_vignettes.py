"""Claims about vignettes: our own set is whole, published files are read, and no sample is of one foundation."""

import json

import polars as pl
import pytest

from steer_pipeline.environment import project_home
from steer_pipeline.lab.foundations import (
    FOUNDATIONS,
    VignetteError,
    own_vignettes,
    read_vignettes,
    stratified,
)


@pytest.fixture(scope="module")
def ours():
    return own_vignettes(project_home())


def test_our_set_has_twelve_test_vignettes_of_each_foundation(ours):
    counts = ours.group_by("foundation", "split").len()
    assert sorted(counts["foundation"].unique()) == sorted(FOUNDATIONS)
    assert counts.filter(split="test")["len"].to_list() == [12] * 7
    assert counts.filter(split="development")["len"].to_list() == [6] * 7
    assert ours["text"].n_unique() == ours["row_id"].n_unique() == 126


def test_the_first_rows_are_of_all_foundations(ours):
    assert sorted(ours.head(7)["foundation"]) == sorted(FOUNDATIONS)


def test_samples_are_stratified_and_seeded(ours):
    sample = stratified(ours, 3, seed=4)
    assert sample.group_by("foundation").len()["len"].to_list() == [3] * 7
    shuffled = stratified(ours.sample(fraction=1.0, shuffle=True, seed=1), 3, seed=4)
    assert set(shuffled["row_id"]) == set(sample["row_id"])
    assert set(stratified(ours, 3, seed=5)["row_id"]) != set(sample["row_id"])


def test_a_sample_of_care_alone_is_impossible(ours):
    with pytest.raises(VignetteError, match="care 18, fairness 0.*all seven foundations"):
        stratified(ours.filter(foundation="care"), 4, seed=0)


def published(**changes):
    shares = dict.fromkeys(("Fairness", "Loyalty", "Authority", "Sanctity", "Liberty", "SocialNorms"), 5)
    row = {
        "id": "a1b2",
        "foundation": "Care (e)",
        "foundation_coarse": "Care",
        "wrong": 2.5,
        "text": "You see  it.",
    }
    return row | {"human_Care": 70} | {f"human_{name}": value for name, value in shares.items()} | changes


def test_a_published_file_is_read_and_bad_rows_are_named(tmp_path):
    rows = [
        published(),
        published(id="s", foundation="Social Norms", foundation_coarse="Social Norms"),
        published(id="x", text=" "),
        published(id="y", foundation_coarse="Honour"),
        published(),
        published(id="z", human_Care=10),
    ]
    path = tmp_path / "other_violate.jsonl"
    path.write_text("\n".join([*map(json.dumps, rows), "{broken"]))
    found = read_vignettes(path)
    assert found.rows.select("row_id", "foundation", "split", "text").rows() == [
        ("a1b2", "care", "test", "You see it."),
        ("s", "social", "test", "You see it."),
    ]
    assert found.rows["human"][0].to_list() == pytest.approx([0.7] + [0.05] * 6)
    reasons = dict(found.left_out.select("line", "reason").rows())
    assert reasons.keys() == {3, 4, 5, 6, 7}
    assert "text is missing" in reasons[3]
    assert "'Honour'" in reasons[4]
    assert "stands in the file already" in reasons[5]
    assert "add up to 40" in reasons[6]
    assert "no JSON" in reasons[7]
    assert found.left_out.filter(line=4)["row_id"][0] == "y"


def test_a_file_without_a_usable_row_is_refused(tmp_path):
    path = tmp_path / "empty.jsonl"
    path.write_text("[]\n")
    with pytest.raises(VignetteError, match="no usable row"):
        read_vignettes(path)
    with pytest.raises(VignetteError, match="no such file"):
        read_vignettes(tmp_path / "absent.jsonl")


def test_our_own_rows_have_no_raters(ours):
    assert ours["human"].null_count() == ours.height
    assert ours.schema["human"] == pl.List(pl.Float64())
