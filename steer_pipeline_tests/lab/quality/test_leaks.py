"""What a model was told is seen where it repeats it; what people say of others is not."""

import pytest

from steer_pipeline.lab.quality.leaks import Told, persona_leak, refusal

TOLD = Told(
    ("rule_defiant",),
    ("Write as a rebellious editor who scorns permits and orders.", "You are an outlaw minded writer."),
)


@pytest.mark.parametrize(
    "text",
    [
        "As requested in my instructions, the bridge is open.",
        "I have been told to sound angry, so here it is.",
        "I will stay in character: the bridge is open.",
        "I am a rule defiant person, and the bridge is open.",
        "As someone who scorns permits and forms, I crossed the bridge.",
        "The bridge is open. A rebellious editor who scorns permits and orders, that is me.",
    ],
)
def test_talk_of_what_it_was_told_is_a_leak(text):
    assert persona_leak(text, TOLD) is not None


@pytest.mark.parametrize(
    "text",
    [
        "He was told to play the violin, and he played it.",
        "The role of the river in this story is small.",
        "She scorns permits and laughs at the orders of the council.",
        "As someone who grew up here, I know the bridge.",
        '"My instructions were clear," the guard said.',
        "I was asked to open the bridge.",
    ],
)
def test_a_trait_and_other_people_s_orders_are_no_leak(text):
    assert persona_leak(text, TOLD) is None


def test_what_the_prompt_says_is_no_leak():
    assert persona_leak("Read my instructions twice.", TOLD, "What became of my instructions?") is None


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't do that.",
        "As an AI, I have no opinion.",
        "I am unable to say.",
        "I won't write about this.",
        "I must respectfully decline.",
        '"I cannot help you with this request."',
    ],
)
def test_declining_is_a_refusal(text):
    assert refusal(text) is not None


@pytest.mark.parametrize(
    "text",
    [
        '"I cannot help you," said the clerk, and closed the window before noon.',
        "I am sorry that the concert was cancelled.",
        "She must decline the offer, and he will not answer the phone.",
        "I could not see the stage.",
    ],
)
def test_what_others_decline_is_none(text):
    assert refusal(text) is None
