"""Scores and turns as the published files have them: what is taken, what is counted, what is refused."""

import pytest

from steer_pipeline.lab.dialogues.rows import DialogueError, as_label, as_score, take_turns

USER = {"role": "user", "content": "Why?"}
ANSWER = {"role": "assistant", "content": "Because."}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, (0, "scored")),
        (3, (3, "scored")),
        (3.0, (3, "scored")),  # pandas turns whole numbers beside a gap into floats
        ("REFUSAL", (None, "refusal")),
        (" refusal ", (None, "refusal")),
        (None, (None, "missing")),
        (float("nan"), (None, "missing")),
    ],
)
def test_scores_refusals_and_gaps_are_told_apart(value, expected):
    assert as_score(value, "role", "here") == expected


@pytest.mark.parametrize("value", [2.5, 4, 75, -1, True, "3", "good", float("inf"), [3]])
def test_a_score_of_another_scale_or_type_is_an_error_that_names_its_place(value):
    with pytest.raises(DialogueError, match=r"sailor\.json: pos_p0_q1"):
        as_score(value, "role", "sailor.json: pos_p0_q1")


def test_traits_have_their_own_scale():
    assert as_score(75, "trait", "here") == (75, "scored")
    with pytest.raises(DialogueError, match="0 to 100"):
        as_score(101, "trait", "here")


def test_labels():
    assert [as_label(label, "x") for label in ("pos", "neg", "default", "neutral")] == [
        "pos",
        "neg",
        "default",
        "default",
    ]
    with pytest.raises(DialogueError, match="line 3: label is 'positive'"):
        as_label("positive", "line 3")


@pytest.mark.parametrize(
    ("turns", "system_prompt", "instruction"),
    [
        ([USER, ANSWER], "", ""),
        ([{"role": "system", "content": "Be wise."}, USER, ANSWER], "Be wise.", "Be wise."),
        # Gemma: no system role
        ([{"role": "user", "content": "Be wise.\n\nWhy?"}, ANSWER], "Be wise.", "Be wise."),
        ([{"role": "user", "content": "Be wise.\n\nWhy?"}, ANSWER], "", "Be wise."),
        (
            [{"role": "user", "content": "Be wise. Why?"}, {"role": "model", "content": "Because."}],
            "Be wise.",
            "Be wise.",
        ),
        ([{"role": "user", "content": "Be wise.\n\nAnd kind.\n\nWhy?"}, ANSWER], "", "Be wise.\n\nAnd kind."),
        # the system turn was dropped when the set was processed
        ([USER, ANSWER], "Be wise.", "Be wise."),
        # an instruction in both places is one
        (
            [
                {"role": "system", "content": "Be wise."},
                {"role": "user", "content": "Be wise.\n\nWhy?"},
                ANSWER,
            ],
            "",
            "Be wise.",
        ),
    ],
)
def test_the_instruction_leaves_the_turns_and_is_kept(turns, system_prompt, instruction):
    assert take_turns(turns, "Why?", system_prompt) == (instruction, "Because.")


@pytest.mark.parametrize(
    ("turns", "question", "reason"),
    [
        ([USER, ANSWER, USER, ANSWER], "Why?", "several turns"),
        ([USER], "Why?", "not one question and one answer"),
        ([USER, {"role": "assistant", "content": "  "}], "Why?", "empty answer"),
        ([USER, ANSWER], "", "no question"),
        ([USER, ANSWER], "How?", "user turn is not the question"),
        # a longer question that ends alike is another question, not an instruction
        ([{"role": "user", "content": "Tell me. Why?"}, ANSWER], "Why?", "user turn is not the question"),
        (
            [{"role": "user", "content": "Be wise.\n\nJust why? Why not?"}, ANSWER],
            "Just why?",
            "user turn is not the question",
        ),
    ],
)
def test_a_conversation_that_cannot_be_used_says_why(turns, question, reason):
    assert take_turns(turns, question) == reason
