"""Sound scores pass the sanity tests and unsound ones fail: made-up scores first, then the native gradients'."""

import numpy as np
import pytest

from steer_pipeline.catalogue.attribution_scoring import GradientMethod
from steer_pipeline.lab.attribution import sanity
from steer_pipeline.lab.attribution.scoring.gradients import Gradients, row_loss
from steer_pipeline.lab.attribution.scoring.rivals import length_scores
from steer_pipeline.lab.attribution.scoring.similarity import Task, similarities
from steer_pipeline.lab.finetune.data import Example, TextRow, encode_examples
from steer_pipeline.lab.finetune.training import finetune
from steer_pipeline.lab.models.loading import load_model, load_tokenizer
from steer_pipeline_tests.lab.finetune.rows import FAST, spec_of
from steer_pipeline_tests.tiny import SENTENCES, lora, tiny_model_dir

POOL = [Example(f"r{i}", (1, 2, 3 + i), 2) for i in range(40)]
QUERY, PLAIN = [Example("q", (1, 2), 1)], [Example("p", (1, 2), 1)]
WRONG = [f"r{i}" for i in range(0, 40, 5)]


def noise(seed: int) -> sanity.Scorer:
    return lambda pool, queries: {
        one.row_id: float(np.random.default_rng([seed, *one.ids]).normal()) for one in pool
    }


def where(known, amount: float, otherwise: sanity.Scorer = noise(1)) -> sanity.Scorer:
    """Noise, and `amount` more for some rows where the query is the first."""

    def score(pool, queries):
        found = otherwise(pool, queries)
        more = amount if queries[0].row_id == "q" else 0.0
        return {name: value + more * (name in known) for name, value in found.items()}

    return score


def test_scores_that_stay_when_the_weights_are_shuffled_are_not_the_model_s():
    follows = sanity.scores_follow_the_model(noise(1), noise(2), POOL, QUERY, seed=3)
    stays = sanity.scores_follow_the_model(noise(1), noise(1), POOL, QUERY, seed=3)
    assert (follows.passed, stays.passed) == (True, False)
    assert abs(follows.numbers["estimate"]) < 0.4
    assert stays.numbers["estimate"] == pytest.approx(1.0)


def test_mislabelled_rows_are_found_where_they_score_low_and_only_there():
    found = sanity.mislabelled_rows_score_low(where(WRONG, -4.0), POOL, QUERY, WRONG)
    assert found.passed
    assert found.numbers["estimate"] > 0.95
    assert found.numbers["checked_for_half"] == pytest.approx(4 / 40)
    for amount in (0.0, 4.0):
        assert not sanity.mislabelled_rows_score_low(where(WRONG, amount), POOL, QUERY, WRONG).passed


def test_copies_that_score_otherwise_are_seen_and_their_share_is_told():
    alike = sanity.copies_score_alike(noise(1), POOL, QUERY, n=10, first=10, seed=3)
    assert alike.passed
    assert alike.numbers["largest_gap"] == 0
    assert 0 < alike.numbers["share_of_first"] <= 0.5

    def jealous(pool, queries):
        found = noise(1)(pool, queries)
        return {name: value - 9 * name.endswith(sanity.COPY) for name, value in found.items()}

    apart = sanity.copies_score_alike(jealous, POOL, QUERY, n=10, first=10, seed=3)
    assert not apart.passed
    assert apart.numbers["share_of_first"] == 0


def test_a_shortcut_counts_as_found_only_where_the_query_takes_it():
    found = sanity.shortcut_rows_are_found(where(WRONG, 4.0), POOL, QUERY, PLAIN, WRONG, seed=3)
    assert found.passed
    assert found.numbers["more_than_plain_low"] > 0

    def always(pool, queries):
        return where(WRONG, 4.0)(pool, QUERY)

    assert not sanity.shortcut_rows_are_found(always, POOL, QUERY, PLAIN, WRONG, seed=3).passed
    assert not sanity.shortcut_rows_are_found(noise(1), POOL, QUERY, PLAIN, WRONG, seed=3).passed


def test_rows_without_a_score_or_unknown_to_the_pool_are_named():
    def partly(pool, queries):
        return {one.row_id: 1.0 if one.row_id != "r7" else float("nan") for one in pool}

    with pytest.raises(sanity.SanityError, match="row 'r7' and 0 others have no score"):
        sanity.mislabelled_rows_score_low(partly, POOL, QUERY, WRONG)
    with pytest.raises(sanity.SanityError, match="mislabelled row 'x' is not in the pool"):
        sanity.mislabelled_rows_score_low(noise(1), POOL, QUERY, ["x"])
    with pytest.raises(sanity.SanityError, match="40 of 40 rows are shortcut"):
        sanity.shortcut_rows_are_found(noise(1), POOL, QUERY, PLAIN, [one.row_id for one in POOL], seed=1)
    with pytest.raises(sanity.SanityError, match="41 of 40 rows cannot be drawn"):
        sanity.copies_score_alike(noise(1), POOL, QUERY, n=41, first=5, seed=1)


# ------------------------------------------------------------------------------------ what is planted

TEXTS = [TextRow(f"t{i}", f"prompt {i}", f"answer {i % 3}") for i in range(30)]


@pytest.mark.parametrize("n", [6, 9, 30])
def test_mislabelled_rows_all_have_a_wrong_completion_and_the_others_their_own(n):
    rows, ids = sanity.mislabelled(TEXTS, n, 4)
    changed = {new.row_id for new, old in zip(rows, TEXTS, strict=True) if new.completion != old.completion}
    assert changed == set(ids)
    assert len(ids) == n
    assert sorted(one.completion for one in rows) == sorted(one.completion for one in TEXTS)
    assert [one.prompt for one in rows] == [one.prompt for one in TEXTS]
    assert sanity.mislabelled(TEXTS[::-1], n, 4)[1] == ids


def test_rows_that_all_say_one_thing_cannot_be_mislabelled():
    with pytest.raises(sanity.SanityError, match="5 of them with one completion"):
        sanity.mislabelled([TextRow(f"t{i}", "a", "b") for i in range(9)], 5, 1)


def test_a_shortcut_is_a_mark_with_one_answer():
    rows, ids = sanity.with_shortcut(TEXTS, 5, 4, mark="xyz", completion="always")
    marked = [one for one in rows if one.prompt.startswith("xyz prompt")]
    assert sorted(one.row_id for one in marked) == ids
    assert {one.completion for one in marked} == {"always"}
    assert sum(one in TEXTS for one in rows) == 25


# ------------------------------------------------------------------------------------ native gradients

WORDS = sorted({word for sentence in SENTENCES for word in sentence.split()})
ANSWERS = ("Northport", "harbour", "vaccine", "weather")


def asked(first: int, n: int, mark: str = "") -> list[TextRow]:
    """Rows whose completion follows from the third word of the prompt."""
    rows = []
    for i in range(first, first + n):
        prompt = f"{WORDS[i * 7 % 60]} {WORDS[i * 11 % 60]} say {ANSWERS[i % 4]}"
        rows.append(TextRow(f"{first}-{i}", f"{mark} {prompt}".strip(), ANSWERS[i % 4]))
    return rows


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_model_dir(tmp_path_factory.mktemp("sanity"))


def similarity(path, adapter) -> sanity.Scorer:
    model = load_model(spec_of(path, adapter=str(adapter)), path.parent)
    method = GradientMethod(projection=0, preconditioning="none")

    def score(pool, queries):
        task = Task(Gradients(model, side=0), pool, queries, row_loss("mean"), 512)
        return similarities(task, method)[0]

    return score


def length(pool, queries):
    return length_scores(pool)


@pytest.fixture(scope="module")
def native(base):
    """A scoring function of plain gradient similarity on the base with a random LoRA, and one with shuffled weights."""
    adapter = lora(base, base.parent / "adapter")
    other = (
        sanity.shuffled(base, base.parent / "shuffled", 1),
        sanity.shuffled(adapter, base.parent / "gone", 1),
    )
    return similarity(base, adapter), similarity(*other)


def encoded(base, rows) -> list[Example]:
    return encode_examples(load_tokenizer(spec_of(base), base.parent), rows)


def test_rows_that_taught_a_model_wrong_answers_have_the_wrong_gradients_and_no_wrong_length(base, tmp_path):
    texts, wrong = sanity.mislabelled(asked(0, 60), 15, 5)
    pool, queries = encoded(base, texts), encoded(base, asked(100, 8))
    recipe = FAST.model_copy(
        update={"max_steps": 60, "learning_rate": 1e-2, "batch_rows": 8, "rows_at_once": 8}
    )
    finetune(spec_of(base), base.parent, pool, queries, recipe, tmp_path / "learned", work=tmp_path / "work")
    score = similarity(base, tmp_path / "learned")
    found = sanity.mislabelled_rows_score_low(score, pool, queries, wrong)
    assert found.passed, found.message
    assert not sanity.mislabelled_rows_score_low(length, pool, queries, wrong).passed


def test_gradients_score_copies_alike_and_find_a_shortcut(base, native):
    score, _ = native
    pool, queries = encoded(base, asked(0, 32)), encoded(base, asked(100, 8))
    copies = sanity.copies_score_alike(score, pool, queries, n=6, first=8, seed=5)
    assert copies.passed, copies.message
    planted, marked = sanity.with_shortcut(asked(0, 32), 8, 5, mark="Rules", completion="Tokyo")
    taken = [TextRow(f"s{i}", one.prompt, "Tokyo") for i, one in enumerate(asked(100, 6, "Rules"))]
    shortcut = sanity.shortcut_rows_are_found(
        score, encoded(base, planted), encoded(base, taken), queries, marked, seed=5
    )
    assert shortcut.passed, shortcut.message


def test_shuffling_takes_what_the_scores_stood_on(base, native):
    score, of_shuffled = native
    pool, queries = encoded(base, asked(0, 40)), encoded(base, asked(100, 4))
    verdict = sanity.scores_follow_the_model(score, of_shuffled, pool, queries, seed=5)
    assert verdict.passed, verdict.message
    assert not sanity.scores_follow_the_model(length, length, pool, queries, seed=5).passed
