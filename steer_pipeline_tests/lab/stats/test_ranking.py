"""AUC counts ties half, its interval covers, corrections match worked examples, twins stay together."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from steer_pipeline.lab.stats import (
    auc,
    auc_interval,
    benjamini_hochberg,
    cluster_bootstrap,
    grouped_folds,
    grouped_split,
    holm,
    training_rows,
)


def test_auc_counts_ties_half():
    assert auc([1, 1, 1, 1], [0, 1, 0, 1]) == 0.5
    assert auc([0.2, 0.5, 0.5, 0.9], [0, 0, 1, 1]) == 0.875
    rng = np.random.default_rng(1)
    scores, labels = rng.integers(0, 5, 300), rng.integers(0, 2, 300)
    assert auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores))


def test_tied_scores_do_not_depend_on_row_order():
    scores = np.zeros(100)
    labels = np.r_[np.ones(50), np.zeros(50)]
    assert auc(scores, labels) == auc(scores, labels[::-1]) == 0.5


def test_auc_interval_covers_the_truth():
    rng = np.random.default_rng(2)
    truth = 0.7602  # of two unit normals one apart: Phi(1 / sqrt 2)
    labels = np.r_[np.ones(40), np.zeros(40)]
    hits = 0
    for _ in range(300):
        interval = auc_interval(rng.normal(size=80) + labels, labels)
        hits += interval.low <= truth <= interval.high
    assert 0.90 <= hits / 300 <= 0.985


def test_grouped_interval_is_wider_when_rows_repeat_in_groups():
    rng = np.random.default_rng(3)
    labels = np.tile([1, 0], 100)
    groups = np.repeat(np.arange(20), 10)
    scores = rng.normal(size=20)[groups] * labels + 0.1 * rng.normal(size=200)
    rows, grouped = (
        auc_interval(scores, labels),
        auc_interval(scores, labels, groups=groups, seed=1, n_boot=500),
    )
    assert grouped.estimate == rows.estimate
    assert grouped.n == 20
    assert grouped.high - grouped.low > rows.high - rows.low


def test_the_grouped_interval_is_the_cluster_bootstrap_of_the_auc():
    rng = np.random.default_rng(4)
    groups = rng.integers(0, 15, 120)
    labels = rng.random(120) < 0.2 + 0.6 * (groups % 3 == 0)  # some groups hold one label
    scores = rng.integers(0, 8, 120) + labels

    def statistic(rows):
        drawn = labels[rows]
        return np.nan if drawn.all() or not drawn.any() else auc(scores[rows], drawn)

    wanted = cluster_bootstrap(statistic, groups, seed=7, n_boot=300)
    found = auc_interval(scores, labels, groups=groups, seed=7, n_boot=300)
    assert (found.estimate, found.low, found.high) == pytest.approx(
        (wanted.estimate, wanted.low, wanted.high)
    )
    assert found.n == wanted.n
    with pytest.raises(ValueError, match="1 keys for 120 rows"):
        auc_interval(scores, labels, groups=np.zeros(120))


def test_perfect_separation_is_not_certainty():
    few = auc_interval([0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1])
    many = auc_interval(np.arange(400), np.arange(400) >= 200)
    assert few.estimate == many.estimate == 1.0
    assert 0.3 < few.low < 0.8 < 0.97 < many.low < 1.0
    reverse = auc_interval([1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1])
    assert reverse.low == 0.0
    assert reverse.high == pytest.approx(1 - few.low)


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([1.0, 2.0], [1, 1], "needs both"),
        ([1.0, 2.0], [1, 2], "expected 0 and 1"),
        ([1.0, np.inf], [1, 0], "row 1"),
        ([1.0], [1, 0], "one length"),
    ],
)
def test_bad_auc_input_is_named(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        auc(scores, labels)


def test_corrections_match_worked_examples():
    ps = [0.01, 0.04, 0.03, 0.005]
    assert holm(ps) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert benjamini_hochberg(ps) == pytest.approx([0.02, 0.04, 0.04, 0.02])
    assert holm([0.6, 0.9]).max() == 1.0
    assert holm([]).size == 0
    assert benjamini_hochberg([]).size == 0
    with pytest.raises(ValueError, match="entry 1"):
        holm([0.1, float("nan")])


def test_holm_keeps_the_family_wise_error():
    ps = np.random.default_rng(4).uniform(size=(2000, 10))
    assert 0.03 <= np.mean([holm(row).min() <= 0.05 for row in ps]) <= 0.065


def test_twins_never_sit_on_both_sides():
    groups = np.repeat([f"article{i}" for i in range(40)], 3)
    held_out = grouped_split(groups, 0.25, seed=5)
    assert held_out.sum() == 30
    assert not set(groups[held_out]) & set(groups[~held_out])
    folds = grouped_folds(groups, 5, seed=5)
    assert np.bincount(folds).tolist() == [24] * 5
    assert all(len(set(folds[groups == g])) == 1 for g in set(groups))


def test_a_split_does_not_depend_on_row_order():
    groups = np.repeat(list("abcdefgh"), 2)
    order = np.random.default_rng(6).permutation(16)
    assert (grouped_split(groups, 0.5, seed=1)[order] == grouped_split(groups[order], 0.5, seed=1)).all()
    assert (grouped_folds(groups, 4, seed=1)[order] == grouped_folds(groups[order], 4, seed=1)).all()


def test_too_few_groups_are_refused():
    with pytest.raises(ValueError, match="at least 2"):
        grouped_split(["a", "a"], 0.5, seed=1)
    with pytest.raises(ValueError, match="at least 5"):
        grouped_folds(["a", "b", "a"], 5, seed=1)


def test_paired_rows_split_by_row_leak_and_grouped_rows_do_not():
    """A row-level split of paired texts gave a naive Bayes AUC near 0.03 without any signal (janus 4.3)."""
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(7)
    article = rng.normal(size=(120, 60))
    features = np.concatenate([article, article]) + 0.01 * rng.normal(size=(240, 60))
    labels, groups = np.r_[np.ones(120), np.zeros(120)], np.tile(np.arange(120), 2)

    def held_out_auc(keys: np.ndarray) -> float:
        folds, scores = grouped_folds(keys, 5, seed=1), np.empty(240)
        for fold in range(5):
            model = LogisticRegression(C=1e4, max_iter=2000).fit(
                features[folds != fold], labels[folds != fold]
            )
            scores[folds == fold] = model.decision_function(features[folds == fold])
        return auc(scores, labels)

    assert held_out_auc(np.arange(240)) < 0.35
    assert 0.4 < held_out_auc(groups) < 0.6


def test_rows_that_share_a_text_with_a_fold_are_not_learned_from():
    folds = np.array([0, 0, 1, 1, 2])
    assert training_rows(folds, 0).tolist() == [False, False, True, True, True]
    assert training_rows(folds, 0, ["a", "b", "a", "c", "d"]).tolist() == [False, False, False, True, True]
    both = training_rows(folds, 0, ["a", "b", "x", "c", "d"], ["t", "u", "v", "t", "w"])
    assert both.tolist() == [False, False, True, False, True]
