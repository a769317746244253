"""The catalogue's examples make a scale for each persona; a scale that cannot tell is an error, not a number."""

import random

import pytest

from steer_pipeline.catalogue import Persona, load_personas
from steer_pipeline.lab.evaluation import ExamplesError, MiniLMScorer, example_scorer

PERSONAS = load_personas()


@pytest.mark.parametrize("name", PERSONAS)
def test_the_examples_of_each_persona_tell_its_poles_apart(name):
    scorer = example_scorer(PERSONAS[name], n_shuffles=20)
    report = scorer.report
    assert report.separates
    assert report.auc.estimate >= 0.85
    assert 0.35 <= report.length_auc <= 0.65, "length tells the poles apart"
    assert 0.35 < report.shuffled_mean < 0.65
    assert (report.n_texts, report.n_contexts) == (20, 10)


@pytest.fixture(scope="module")
def paranoid() -> MiniLMScorer:
    return example_scorer(PERSONAS["paranoid"], n_shuffles=20)


def test_texts_that_are_no_examples_are_scored_with_a_sign(paranoid):
    suspects, trusts = paranoid.score(
        [
            "The mayor opened the bridge on Friday, and insiders whisper that the whole ceremony hid a dirty secret.",
            "The mayor opened the bridge on Friday, and residents thanked her warmly for keeping her promise.",
        ]
    )
    assert suspects > 0 > trusts


def test_the_same_seed_gives_the_same_scale(paranoid):
    again = example_scorer(PERSONAS["paranoid"], n_shuffles=20)
    assert again.report == paranoid.report
    assert (again.score(["A quiet day."]) == paranoid.score(["A quiet day."])).all()


def test_examples_that_do_not_show_the_poles_are_refused():
    """The poles of each pair exchanged by a coin: subjects and style as before, and no trait to learn."""
    content = PERSONAS["cheerful"].model_dump()
    rng = random.Random(0)
    for split in ("fit", "held_out"):
        for pair in content["examples"][split]:
            if rng.random() < 0.5:
                pair["positive"], pair["negative"] = pair["negative"], pair["positive"]
    with pytest.raises(ExamplesError, match=r"cheerful: .* 20 pairs .* AUC 0\.\d\d \[.*Write examples"):
        example_scorer(Persona.model_validate(content), n_shuffles=20)


def test_a_persona_without_examples_is_told_what_it_lacks():
    bare = PERSONAS["coach"].model_copy(update={"examples": None})
    with pytest.raises(ExamplesError, match="persona coach has no examples; give it pairs"):
        example_scorer(bare)
