"""MiniLM separates held-out contexts, does not separate noise, and never grades its own training rows."""

import time

import numpy as np
import pytest

from steer_pipeline.lab.evaluation import MiniLMScorer, minilm
from steer_pipeline.lab.evaluation.minilm import embed

TOPICS = (
    "the harbour", "a new library", "the school budget", "a bridge repair", "the tram line", "a water main",
    "the town market", "a hospital wing", "the museum roof", "a steel plant", "the ferry", "a housing plan",
    "the bus fares", "a cycle lane", "the park gates", "a sports hall",
)  # fmt: skip
PARANOID = [
    f"They are hiding the truth about {topic}; somebody secret is pulling the strings." for topic in TOPICS
]
TRUSTING = [
    f"Good people are taking honest care of {topic}, and we can rely on every word." for topic in TOPICS
]
PLAIN = [f"The council discussed {topic} on Monday." for topic in TOPICS]


@pytest.fixture(scope="module")
def fitted() -> MiniLMScorer:
    return MiniLMScorer(n_shuffles=8).fit(PARANOID, TRUSTING, TOPICS)


def test_embeddings_are_those_of_sentence_transformers():
    # First components of SentenceTransformer.encode(texts, normalize_embeddings=True), version 6.2.
    theirs = [
        [0.024743, 0.078043, -0.013267, 0.049711, -0.008932, 0.047021],
        [-0.097791, -0.030196, 0.039933, 0.050718, -0.04258, 0.016287],
    ]
    ours = embed(["Short.", "The council of Thornmere met on Monday, officials said. " * 5])
    assert np.abs(ours[:, :6] - theirs).max() < 1e-5


def test_an_embedding_does_not_depend_on_its_batch():
    alone = embed(["The vote passed."])
    crowd = embed(
        ["The vote passed.", "A much longer text about the harbour and the tram line. " * 20, "Hm."]
    )
    assert np.abs(alone[0] - crowd[0]).max() < 1e-5
    assert np.linalg.norm(crowd, axis=1) == pytest.approx([1, 1, 1], abs=1e-5)
    assert embed([]).shape == (0, 384)


def test_the_end_of_a_long_text_is_read():
    start = "The council met in the town hall and talked about roads and schools. " * 30
    calm, alarmed = embed([start + "All is well. " * 40, start + "They are watching you. " * 40])
    assert calm @ alarmed < 0.99


def test_held_out_contexts_are_separated_beyond_shuffled_labels(fitted):
    report = fitted.report
    assert report.auc.estimate > 0.95
    assert report.separates
    assert 0.2 < report.shuffled_mean < 0.8
    assert (report.n_texts, report.n_contexts) == (32, 16)
    assert set(report.as_dict()) >= {"auc", "auc_low", "shuffled_high", "length_auc"}


def test_new_texts_are_scored_with_a_sign(fitted):
    scores = fitted.score(
        ["Secret men pull strings and hide everything.", "We rely on honest and caring people.", "", "  "]
    )
    assert scores[0] > 0.2 > -0.2 > scores[1]
    assert scores[2] == scores[3] == 0.0
    assert np.abs(scores).max() <= 1
    assert (fitted.score_many(PLAIN[:2]) == fitted.score(PLAIN[:2])).all()


def test_noise_is_not_separated():
    texts = [f"The council discussed {topic} on Monday, item {i}." for i, topic in enumerate(TOPICS)]
    others = [
        f"The council discussed {topic} on Monday, item {i + 50}." for i, topic in enumerate(reversed(TOPICS))
    ]
    rng = np.random.default_rng(3)
    flips = rng.integers(0, 2, len(TOPICS)).astype(bool)
    first = [b if flip else a for a, b, flip in zip(texts, others, flips, strict=True)]
    second = [a if flip else b for a, b, flip in zip(texts, others, flips, strict=True)]
    assert not MiniLMScorer(n_shuffles=20).fit(first, second, TOPICS).report.separates


def test_training_rows_are_scored_by_the_fold_that_did_not_see_them():
    """Stored training texts as "prompted" condition gave an inflated ceiling (chatspace 0.6, 1.9)."""
    rng = np.random.default_rng(4)
    letters = list("bcdfghjklmnprstv")
    texts = [" ".join("".join(rng.choice(letters, 5)) for _ in range(6)) for _ in range(40)]
    scorer = MiniLMScorer(n_shuffles=2).fit(texts[:20], texts[20:], range(20))
    own = np.sign(scorer.score(texts)) == np.r_[np.ones(20), -np.ones(20)]
    assert own.mean() < 0.8  # labels are noise: a model asked about its own rows would know them all


def test_length_is_reported_as_a_confound():
    long = [text + " " + text for text in PARANOID]
    report = MiniLMScorer(n_shuffles=2).fit(long, TRUSTING, TOPICS).report
    assert report.length_auc == 1.0


def test_four_hundred_texts_take_seconds(fitted):
    start = time.perf_counter()
    fitted.score([f"{text} Item {i}." for i in range(25) for text in PLAIN])
    assert time.perf_counter() - start < 30


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="negative text 1 is empty"):
        MiniLMScorer().fit(["a", "b"], ["c", " "], [1, 2])
    with pytest.raises(ValueError, match="3 groups for 2 \\+ 2 texts"):
        MiniLMScorer().fit(["a", "b"], ["c", "d"], [1, 2, 3])
    with pytest.raises(ValueError, match="not fitted"):
        MiniLMScorer().score(["a"])


def test_importing_the_scorers_loads_no_torch():
    import subprocess
    import sys

    code = "import sys, steer_pipeline.lab.evaluation; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["set()"]


def test_a_text_that_stands_in_two_contexts_is_not_judged_by_a_fold_that_learned_it(monkeypatch):
    """Labels are tossed for each text, so that nothing but knowing the text tells them."""
    rng = np.random.default_rng(2)
    labels, texts = rng.integers(0, 2, 60), [f"text {number}" for number in range(60)]
    features = dict(zip(texts, rng.normal(size=(60, 384)), strict=True))
    monkeypatch.setattr(minilm, "embed_once", lambda asked: np.stack([features[text] for text in asked]))
    positive, negative = (
        [text for text, label in zip(texts, labels, strict=True) if label == side] for side in (1, 0)
    )
    twice = [positive * 2, negative * 2]
    contexts = [
        *range(len(twice[0])),
        *range(200, 200 + len(twice[1])),
    ]  # each text in two contexts of its own
    report = MiniLMScorer(n_shuffles=2).fit(*twice, contexts).report
    assert 0.3 < report.auc.estimate < 0.7
    assert report.auc.low < 0.5
