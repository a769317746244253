"""The trait scorer: question-disjoint, blind to length, calibrated, with controls, never on its own rows."""

import numpy as np
import polars as pl
import pytest

from steer_pipeline.lab.behaviour import scoring
from steer_pipeline.lab.behaviour.scoring import (
    REPORT_COLUMNS,
    CalibratedScorer,
    ScorerError,
    calibration,
    paired_excerpts,
    score_by_length,
    score_rollouts,
    training_texts,
)
from steer_pipeline_tests.lab.behaviour.builders import PLAIN, TOPICS, behaviour_set, stored_rollouts


@pytest.fixture(scope="module")
def fitted() -> CalibratedScorer:
    return CalibratedScorer(n_shuffles=6).fit(training_texts(behaviour_set(), "role", 600, 1))


def words(texts) -> list[int]:
    return [len(text.split()) for text in texts]


def test_sides_are_counted_rows_against_neg_or_default_and_refusals_are_no_text():
    role = training_texts(behaviour_set("role"), "role", 600, 1)
    assert role.group_by("positive").len().sort("positive")["len"].to_list() == [30, 60]
    assert not role.filter(pl.col("text").str.contains("cannot help")).height
    assert not role.filter(pl.col("text").str.starts_with("Tell me")).height  # the assistant's message only
    trait = behaviour_set("trait").with_columns(
        counts=pl.col("counts") & (pl.col("prompt_index") == 0)  # the other pos rows scored too low
    )
    both = training_texts(trait, "trait", 600, 1)
    assert both.group_by("positive").len()["len"].to_list() == [30, 30]


def test_too_many_texts_are_drawn_by_the_seed_and_spread_over_questions():
    some = training_texts(behaviour_set(), "role", 20, 1)
    assert some.group_by("positive").len()["len"].to_list() == [20, 20]
    assert some.filter("positive")["question_index"].n_unique() == 20
    assert some.equals(training_texts(behaviour_set().reverse(), "role", 20, 1))
    assert not some.equals(training_texts(behaviour_set(), "role", 20, 2))


def test_too_few_texts_are_an_error_that_says_which_side():
    rows = behaviour_set().filter(pl.col("label") != "default")
    with pytest.raises(ScorerError, match="0 default rows"):
        training_texts(rows, "role", 600, 1)
    with pytest.raises(ScorerError, match="only traits and roles"):
        training_texts(rows, "axis", 600, 1)


def test_pairs_have_excerpts_of_equal_length_within_a_question():
    """Length was a confound: trained on long texts, asked about short ones (chatspace 3.4.6)."""
    pairs = paired_excerpts(training_texts(behaviour_set(), "role", 600, 1), seed=1)
    positive, negative = pairs.filter("positive"), pairs.filter(~pl.col("positive"))
    assert positive.height == negative.height == 30
    assert words(positive["excerpt"]) == words(negative["excerpt"])
    assert min(words(positive["text"])) > max(words(negative["text"]))
    assert positive["question_index"].to_list() == negative["question_index"].to_list()
    assert all(
        text.startswith(excerpt) and len(excerpt) < len(text)
        for text, excerpt in pairs.select("text", "excerpt").iter_rows()
    )


def test_length_alone_teaches_nothing():
    """Positives are the same plain answers said three times over."""
    rng, rows = np.random.default_rng(5), []
    for question, topic in enumerate(TOPICS):
        for positive in (True, False):
            said = [f"About {topic}: {PLAIN[i]}" for i in rng.integers(0, 4, 3 if positive else 1)]
            rows.append((" ".join(said), positive, question))
    texts = pl.DataFrame(rows, schema=["text", "positive", "question_index"], orient="row")
    report = CalibratedScorer(n_shuffles=10).fit(texts).report
    assert report.length_auc_before == 1.0
    assert report.length_auc_after == 0.5
    assert not report.separates


def test_unseen_questions_are_separated_beyond_shuffled_labels(fitted):
    report = fitted.report
    assert report.separates
    assert report.auc.estimate > 0.9
    assert 0.2 < report.shuffled_mean < 0.8
    assert (report.n_pairs, report.n_questions) == (30, 30)
    assert tuple(report.as_dict()) == REPORT_COLUMNS


def test_noise_is_not_separated():
    rng = np.random.default_rng(7)
    rows = [(f"About {topic}. {PLAIN[rng.integers(0, 4)]} {i}", bool(side), i)
            for i, topic in enumerate(TOPICS) for side in rng.permutation(2)]  # fmt: skip
    texts = pl.DataFrame(rows, schema=["text", "positive", "question_index"], orient="row")
    assert not CalibratedScorer(n_shuffles=20).fit(texts).report.separates


def test_scores_are_calibrated_probabilities(fitted):
    plain = "About the circus, here is what helps. Two hours are enough."
    scores = fitted.score(
        [f"Salty mates hoist the mainsail. {plain} Hardy oarsmen read the tide.", plain, ""]
    )
    assert scores[0] > 0.7 > 0.3 > scores[1]
    assert scores[2] == 0.0
    assert fitted.report.brier < 0.1
    assert 0 <= fitted.report.calibration_error < 0.25
    assert sum(n for _, _, n in fitted.report.reliability) == 60


def test_calibration_error_is_known_for_known_probabilities():
    said, true = np.repeat([0.2, 0.9], 100), np.r_[np.ones(20), np.zeros(80), np.ones(90), np.zeros(10)]
    error, bins = calibration(said, true)
    assert error == pytest.approx(0.0, abs=1e-9)
    assert [n for _, _, n in bins] == [100, 100]
    assert calibration(np.full(10, 1.0), np.zeros(10))[0] == pytest.approx(1.0)


def test_training_rows_are_never_scored_by_a_model_that_saw_them():
    """ "Prompted" was scored on the classifier's own rows: an inflated ceiling (chatspace 0.6)."""
    rng, letters = np.random.default_rng(4), list("bcdfghjklmnprstv")
    rows = [
        (" ".join("".join(rng.choice(letters, 5)) for _ in range(8)), bool(side), question)
        for question in range(30)
        for side in (0, 1)
    ]
    texts = pl.DataFrame(rows, schema=["text", "positive", "question_index"], orient="row")
    scorer = CalibratedScorer(n_shuffles=2).fit(texts)
    right = (scorer.score(texts["text"].to_list()) > 0.5) == texts["positive"].to_numpy()
    assert right.mean() < 0.75  # labels are noise: a model asked about its own rows would know them all


def test_the_report_stands_beside_every_score(fitted):
    rollouts = stored_rollouts(n_questions=2)
    scores = score_rollouts(rollouts, fitted)
    assert scores["row_id"].to_list() == rollouts["row_id"].to_list()
    assert scores["score"].is_between(0, 1).all()
    assert set(REPORT_COLUMNS) <= set(scores.columns)
    assert scores["auc"].unique().to_list() == [fitted.report.auc.estimate]
    with pytest.raises(ValueError, match="not fitted"):
        CalibratedScorer().score(["a"])


def test_what_length_is_worth_is_told():
    texts = ["one two", "one two three", "one two three four five", "one two three four five six"]
    assert score_by_length(np.array([0.0, 0.0, 0.4, 0.6]), texts) == pytest.approx(0.5)
    assert score_by_length(np.array([0.0, 0.6]), ["one two", "one two"]) == 0.0


def test_questions_fewer_than_folds_are_an_error():
    texts = training_texts(behaviour_set(), "role", 600, 1).with_columns(question_index=pl.lit(1))
    with pytest.raises(ScorerError, match="over 1 questions"):
        CalibratedScorer().fit(texts)


def test_an_excerpt_that_answers_two_questions_is_not_judged_by_a_fold_that_learned_it(monkeypatch):
    """Labels are tossed for each text, so that nothing but knowing the text tells them."""
    rng = np.random.default_rng(1)
    known: dict[str, np.ndarray] = {}

    def embedded(texts):
        return np.stack([known.setdefault(text.split()[0], rng.normal(size=384)) for text in texts])

    monkeypatch.setattr(scoring, "embed", embedded)
    rows = [
        {
            "text": f"word{number} and nine more that say nothing",
            "positive": number % 2 == 0,
            "question_index": question,
        }
        for number in range(60)
        for question in (number % 10, (number + 5) % 10)
    ]
    report = CalibratedScorer(n_shuffles=2).fit(pl.DataFrame(rows)).report
    assert 0.25 < report.auc.estimate < 0.75
    assert report.auc.low < 0.5
