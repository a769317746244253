"""What features tell of ranks, on rows whose ranks are known to depend on features, on groups, or on nothing."""

import numpy as np
import polars as pl
import pytest

from steer_pipeline.catalogue.sae import RankPredictorSpec
from steer_pipeline.lab.sae import predictor
from steer_pipeline.lab.sae.claims import beats_what_costs_nothing, groups_stay_whole
from steer_pipeline.lab.sae.dictionary import SaeError
from steer_pipeline.lab.sae.features import FEATURE_SCHEMA, STATISTICS
from steer_pipeline.lab.sae.predictor import correlation_ratio, predict_ranks

N, GROUPS, FEATURES = 240, 60, 40
SPEC = RankPredictorSpec(group_by=["game", "task_id"], alphas=[1.0, 100.0], folds=4, k=40, shuffles=6)


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(predictor, "N_BOOT", 100)


def feature_rows(strengths, lengths):
    """Rows in the layout of features, from dense strengths [n, FEATURES] and lengths [n]."""
    rows = []
    for i, (own, length) in enumerate(zip(strengths, lengths, strict=True)):
        seen = np.flatnonzero(own)
        statistics = dict.fromkeys(STATISTICS, 1.0) | {"n_tokens": int(length)}
        lists = {"feature": seen.tolist(), "mean": own[seen].tolist(), "max": own[seen].tolist()}
        rows.append(
            {
                "row_id": f"r{i}",
                "ids": "0",
                "content": str(i),
                "length": int(length) + 20,
                **statistics,
                **lists,
                "tokens": [1] * len(seen),
            }
        )
    return pl.DataFrame(rows, schema=FEATURE_SCHEMA)


def world(seed=0, **more):
    """(rows, features): four rows a group; scores are one feature plus noise, lengths and losses know nothing."""
    rng = np.random.default_rng(seed)
    strengths = rng.random((N, FEATURES)) * (rng.random((N, FEATURES)) < 0.3)
    columns = {
        "row_id": [f"r{i}" for i in range(N)],
        "score": 3 * strengths[:, 7] + 0.1 * rng.standard_normal(N),
        "loss": rng.random(N),
        "game": ["taboo"] * N,
        "task_id": [str(i % GROUPS) for i in range(N)],
    }
    return pl.DataFrame(columns | more), feature_rows(strengths, rng.integers(20, 60, N))


@pytest.fixture(scope="module")
def found():
    rows, features = world()
    rng = np.random.default_rng(4)
    score = rows["score"].to_numpy()
    rows = rows.with_columns(
        reward_model_score=pl.Series(
            np.where(np.arange(N) % 9 == 0, float("nan"), score + rng.standard_normal(N))
        ),
        difficulty=pl.Series(np.where(score > np.median(score), "hard", "very easy")),
        category=pl.Series([["math", "coding", "advice"][i % 3] for i in range(N)]),
    )
    return predict_ranks(rows, features.sample(fraction=1.0, shuffle=True, seed=1), FEATURES, SPEC)


def quality(found, name):
    return found.quality.row(by_predicate=pl.col("predictor") == name, named=True)


def test_a_planted_feature_is_found_on_held_out_groups_and_beats_what_costs_nothing(found):
    own = quality(found, "sae")
    assert own["spearman"] > 0.45
    assert own["low"] > 0.3
    assert own["overlap"] > 2 * own["overlap_by_chance"]
    for name in ("length", "loss", "length_and_loss"):
        assert abs(quality(found, name)["spearman"]) < 0.3
    assert abs(quality(found, "shuffled")["spearman"]) < 0.1
    verdict = beats_what_costs_nothing(found)
    assert "over loss" in verdict.message
    gains = dict(found.gains.select("over", "low").iter_rows())
    assert min(gains["length"], gains["loss"], gains["metadata"]) > 0
    assert verdict.passed == all(low > 0 for low in gains.values())


def test_predictions_are_of_every_row_once_and_their_top_is_a_subset(found):
    table = found.predictions
    assert table["row_id"].to_list() == [f"r{i}" for i in range(N)]
    assert sorted(table["rank"]) == list(range(1, N + 1))
    best = found.top(10)
    floor = table.filter(pl.col("row_id").is_in(best))["predicted"].min()
    assert len(set(best)) == 10
    assert (table["predicted"] > floor).sum() == 9
    assert table["target"].min() == 0
    assert table["target"].max() == 1
    with pytest.raises(SaeError, match="give 1 to 240"):
        found.top(N + 1)


def test_metadata_are_compared_with_scores_and_with_predictions(found):
    rows = {row["column"]: row for row in found.metadata.iter_rows(named=True)}
    assert set(rows) == {"reward_model_score", "difficulty", "category"}
    assert rows["reward_model_score"]["measure"] == "spearman"
    assert rows["reward_model_score"]["n_rows"] == N - 27  # NaN is no value
    assert rows["reward_model_score"]["with_score"] > 0.3
    assert rows["difficulty"]["measure"] == "spearman"  # by the order of its levels
    assert rows["difficulty"]["with_score"] > 0.8
    assert (
        rows["difficulty"]["score_low"] < rows["difficulty"]["with_score"] <= rows["difficulty"]["score_high"]
    )
    category = rows["category"]
    assert category["measure"] == "eta"
    assert category["with_score"] < 3 * category["by_chance"]


def test_groups_are_not_learned_and_predicted_at_once():
    """Features that name the group alone tell nothing of other groups; split by rows they would seem to tell all."""
    rng = np.random.default_rng(0)
    rows, _ = world()
    group = np.arange(N) % GROUPS
    rows = rows.with_columns(score=pl.Series(rng.standard_normal(GROUPS)[group]), single=pl.col("row_id"))
    names = np.eye(GROUPS)[group]
    features = feature_rows(names, np.full(N, 30) + rng.integers(0, 2, N))
    grouped = predict_ranks(rows, features, GROUPS, SPEC)
    assert abs(np.nan_to_num(quality(grouped, "sae")["spearman"])) < 0.3
    assert groups_stay_whole(grouped).passed
    assert not beats_what_costs_nothing(grouped).passed
    single = predict_ranks(rows, features, GROUPS, SPEC.model_copy(update={"group_by": ["single"]}))
    assert quality(single, "sae")["spearman"] > 0.8
    torn = predictor.RankPrediction(
        single.predictions.with_columns(group=grouped.predictions["group"]),
        *(single.quality, single.gains, single.metadata),
    )
    assert not groups_stay_whole(torn).passed


def test_what_knows_nothing_is_not_held_to_err():
    """Predicting each part by the mean of the others orders parts the wrong way round; that is taken out."""
    rows, _ = world()
    same = feature_rows(np.ones((N, FEATURES)), np.full(N, 30))
    found = predict_ranks(rows.drop("loss"), same, FEATURES, SPEC)
    assert np.isnan(quality(found, "sae")["spearman"])
    assert found.predictions["predicted"].abs().max() < 1e-9
    assert quality(found, "sae")["overlap"] == pytest.approx(SPEC.k / N, abs=0.15)


def test_rows_that_say_the_same_stay_together_whatever_their_groups():
    rows, features = world()
    twins = features.with_columns(
        content=pl.when(pl.col("row_id") == "r61").then(pl.lit("0")).otherwise("content")
    )  # row 61 is of task 1, row 0 of task 0
    table = predict_ranks(rows, twins, FEATURES, SPEC).predictions
    group = dict(table.select("row_id", "group").iter_rows())
    assert group["r0"] == group["r61"] == group["r60"] == group["r1"] == "taboo||0"
    assert table["group"].n_unique() == GROUPS - 1
    assert table.filter(group="taboo||0")["fold"].n_unique() == 1


def test_shuffles_deal_out_whole_groups():
    groups = np.repeat(["a", "b", "c", "d"], 5)[np.random.default_rng(1).permutation(20)]
    dealt = predictor._dealt(groups, np.random.default_rng(2))
    assert sorted(dealt) == list(range(20))
    assert not np.array_equal(dealt, np.arange(20))
    for name in "abcd":
        assert len(np.unique(groups[dealt[groups == name]])) == 1


def test_more_features_than_columns_are_projected_and_still_tell():
    rows, features = world(1)
    spec = SPEC.model_copy(update={"projection": 24, "pooling": "max", "target": "score"})
    found = predict_ranks(rows, features, FEATURES, spec)
    assert quality(found, "sae")["columns"] == 24 + len(STATISTICS)
    assert quality(found, "sae")["spearman"] > 0.3
    assert found.predictions["target"].to_list() == rows["score"].to_list()


def test_the_order_of_rows_does_not_matter():
    rows, features = world(2)
    one = predict_ranks(rows, features, FEATURES, SPEC)
    other = predict_ranks(rows.sample(fraction=1.0, shuffle=True, seed=5), features, FEATURES, SPEC)
    joined = one.predictions.join(other.predictions, on="row_id")
    assert joined["fold"].to_list() == joined["fold_right"].to_list()
    np.testing.assert_allclose(joined["predicted"], joined["predicted_right"], atol=1e-8)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_a_score_that_is_no_number_is_an_error_that_names_the_row(value):
    rows, features = world()
    scores = rows["score"].to_list()
    scores[17] = value
    with pytest.raises(SaeError, match="'r17'"):
        predict_ranks(rows.with_columns(score=pl.Series(scores)), features, FEATURES, SPEC)


def test_rows_columns_and_groups_that_are_missing_are_told():
    rows, features = world()
    with pytest.raises(ValueError, match="sae_features lacks r239"):
        predict_ranks(rows, features.head(N - 1), FEATURES, SPEC)
    with pytest.raises(SaeError, match="no column task_id"):
        predict_ranks(rows.drop("task_id"), features, FEATURES, SPEC)
    with pytest.raises(SaeError, match="1 groups.*finer column"):
        predict_ranks(rows.with_columns(task_id=pl.lit(None)), features, FEATURES, SPEC)


def test_eta_is_the_share_of_variance_between_names():
    values = np.arange(12.0)
    assert correlation_ratio(np.repeat([0, 1, 2], 4), values) == pytest.approx(np.sqrt(1 - 15 / 143))
    assert correlation_ratio(np.arange(12) % 1, values) == 0
    assert np.isnan(correlation_ratio(np.repeat([0, 1], 6), np.ones(12)))
