"""Attribution on the newsroom's model: every method ranks, arms learn and play, and all saw the same token ids."""

import polars as pl
import pytest

from steer_pipeline.campaigns.attribution import (
    ADAPTER,
    EVAL,
    LOSSES,
    PREDICTOR,
    QUALITY,
    RANKING,
    ROWS,
    SANITY,
    SUBSETS,
    TABLE,
    Attribution,
    chosen,
)
from steer_pipeline.campaigns.errors import NoSuchName
from steer_pipeline.catalogue.attribution import compared
from steer_pipeline.lab.attribution.scoring import bergson
from steer_pipeline.lab.attribution.soundness import SOUND, TESTS
from steer_pipeline.lab.attribution.stage import Rows
from steer_pipeline.lab.attribution.table import read_results
from steer_pipeline.partitions import ATTRIBUTION
from steer_pipeline_tests.stages.heal.project import opened

ARMS = ("top_gradient", "top_predicted", "matched", "continued_top")
RANKED = ("gradient", "loss", "length", "random")
PROFILE = """
name: newsroom
summary: A small attribution for tests.
model: {path: assets_data/newsroom/model, dtype: float32, device: cpu}
word_games: {n_games: 2, max_turns: 1, guessers: [{max_tokens: 3}]}
attribution:
  sources: [{kind: cards, informative: 14, useless: 12, misled: 8, mislabelled: 4, duplicates: 4, held_out_words: 16,
    games_per_word: 1}]
  splits: {failures: keep}
  learn: {learning_rate: 0.003, max_steps: 3, batch_rows: 8, rows_at_once: 8, rank: 2}
  k: 10
  scoring:
    methods:
      gradient: {kind: gradient, projection: 4}
      loss: {kind: loss}
      length: {kind: length}
      random: {kind: random}
    replay: {rank: 2, epochs: 1}
    quality: {n_subsets: 8, halves: false}
  arms:
    top_gradient: {pick: top, ranking: gradient}
    top_predicted: {pick: top, ranking: predicted}
    matched: {pick: matched, like: top_gradient}
    continued_top: {pick: top, ranking: gradient, mode: continued}
  seeds: [1, 2]
  sanity: {share: 0.2}
sae:
  training: {tokens: 600, epochs: 1, expansion: 1, l0: 8}
  fidelity_rows: 2
  predictor: {k: 5, shuffles: 2, projection: 8, folds: 3}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(where it lies, project, campaign, numbers) of one pass."""
    where = tmp_path_factory.mktemp("attribution")
    (where / "small.yaml").write_text(PROFILE)
    with opened(where / "store") as project, pytest.MonkeyPatch.context() as patch:
        _enter(patch, where)
        campaign = Attribution(project.driver, ARMS, say=lambda line: None)
        patch.setattr(campaign, "methods", RANKED)
        undirected = ATTRIBUTION.model_copy(update={"direction": None})
        patch.setattr("steer_pipeline.campaigns.attribution.ATTRIBUTION", undirected)
        yield where, project, campaign, campaign.run()


def _enter(patch, where):
    patch.setenv("STEER_PROFILE", str(where / "small.yaml"))
    patch.setenv("STEER_STORE", str(where / "store"))


@pytest.mark.slow
def test_methods_arms_and_games_stand_in_one_table(made, monkeypatch):
    where, project, campaign, numbers = made
    _enter(monkeypatch, where)
    assert campaign.problems == []
    assert set(numbers["arms"]) == {"base", "base_adapter", *ARMS}
    assert set(numbers["methods"]) == set(RANKED)
    assert -1 <= numbers["predictor"]["spearman"] <= 1
    results = read_results(project.folder(TABLE))
    assert results.methods.filter(method="gradient")["rival"].to_list() == ["matched"]
    assert (project.folder(TABLE) / "attribution.html").stat().st_size > 10_000

    rows = Rows(project.folder("sft_manifest"))
    assert {row["split"] for row in rows.manifest.rows.iter_rows(named=True)} == {
        "train",
        "query",
        "selection",
        "eval",
    }
    subsets = pl.read_parquet(project.folder(SUBSETS) / "subsets.parquet")
    assert set(subsets.filter(arm="top_predicted")["row_id"]) <= set(rows.manifest.split("train")["row_id"])
    adapters = {arm: pl.read_parquet(project.folder(ADAPTER, arm) / "adapters.parquet") for arm in ARMS}
    assert adapters["top_gradient"]["model"][0] != adapters["continued_top"]["model"][0]
    guesses = pl.read_parquet(project.folder(EVAL, "matched") / "guesses.parquet")
    assert guesses.height == 2 * rows.manifest.split("eval").height

    checks = project.checks(TABLE)
    assert checks["ids_are_seen_alike"][0]
    compared = int(checks["ids_are_seen_alike"][1].split(" ")[0])
    assert compared > 200
    for asset in ("sft_manifest", SUBSETS):
        assert all(passed for passed, _ in project.checks(asset).values()), project.checks(asset)


@pytest.mark.slow
def test_methods_are_put_to_the_tests_of_any_sound_one(made, monkeypatch):
    where, project, _, numbers = made
    _enter(monkeypatch, where)
    found = pl.read_parquet(project.folder(SANITY) / SOUND)
    assert found.select("method", "test").rows() == [(m, t) for m in ("gradient", "random") for t in TESTS]
    by = {(row["method"], row["test"]): row for row in found.iter_rows(named=True)}
    assert by["gradient", "copies_score_alike"]["passed"], "a copy has its original's gradient"
    assert not by["random", "copies_score_alike"]["passed"]
    assert by["gradient", "scores_follow_the_model"]["estimate"] < 1
    assert set(numbers["sanity"]["gradient"]) == set(TESTS)
    assert project.checks(SANITY)["an_empty_ranking_fails"][0]


@pytest.mark.slow
def test_what_is_fresh_is_left_alone(made, monkeypatch):
    where, _, campaign, _ = made
    _enter(monkeypatch, where)
    assert campaign.plan() == {}


def test_the_plan_knows_every_step_in_order(monkeypatch):
    campaign = Attribution(None, ["top_gradient"], say=lambda line: None)
    monkeypatch.setattr(campaign, "methods", ["gradient"], raising=False)
    places = campaign.places()
    assert [place for place in places if place[0] in (*ROWS, SUBSETS, LOSSES, QUALITY, TABLE)] == [
        *((asset, None) for asset in ROWS),
        (SUBSETS, None),
        (LOSSES, None),
        (QUALITY, None),
        (TABLE, None),
    ]
    assert (RANKING, "gradient") in places
    assert [place for place in places if place[0] == ADAPTER] == [(ADAPTER, "top_gradient")]
    assert [place[1] for place in places if place[0] == EVAL] == ["base", "base_adapter", "top_gradient"]
    assert {asset for asset, _ in places} >= set(PREDICTOR)


def test_a_profile_without_arms_ranks_rows_and_trains_nothing_on_the_ranks(monkeypatch):
    bare = ATTRIBUTION.model_copy(update={"arms": {}, "direction": None})
    monkeypatch.setattr("steer_pipeline.campaigns.attribution.ATTRIBUTION", bare)
    campaign = Attribution(None, [], say=lambda line: None)
    monkeypatch.setattr(campaign, "methods", ["gradient"], raising=False)
    assert campaign.places() == [
        *((asset, None) for asset in ROWS),
        (RANKING, "gradient"),
        (SANITY, None),
        *((asset, None) for asset in PREDICTOR),
    ]


def test_arms_of_comparison_are_always_among_those_that_are_asked_for():
    assert set(chosen(["top_magic"])) == {"top_magic", *compared(ATTRIBUTION)} - {"base", "base_adapter"}
    assert chosen([]) == list(ATTRIBUTION.arms)
    with pytest.raises(NoSuchName, match="nobody: no arm"):
        chosen(["nobody"])


def test_methods_of_a_tool_that_is_not_installed_are_named_and_left_out(monkeypatch):
    told = []
    monkeypatch.setattr(bergson, "installed", lambda: False)
    campaign = Attribution(None, [], say=told.append)
    assert {"gradient", "magic", "rds", "length"} <= set(campaign.methods)
    assert not any("bergson" in name for name in campaign.methods)
    assert len(told) == ("bergson" in " ".join(ATTRIBUTION.scoring.methods))
