"""Contrast pairs that a teacher should not learn from are found, in our catalogue too."""

import pytest

from steer_pipeline.catalogue import load_personas
from steer_pipeline.lab.personas.opposites import contrast_notes, weak_pairs
from steer_pipeline_tests.lab.personas.builders import persona


def pair(positive, negative):
    one = persona()
    poles = {"positive": one.positive, "negative": one.negative}
    texts = {"positive": positive, "negative": negative}
    return one.model_copy(
        update={
            side: pole.model_copy(
                update={"instructions": [texts[side]] if isinstance(texts[side], str) else texts[side]}
            )
            for side, pole in poles.items()
        }
    )


GOOD = (
    "You look after others even when it means defying authority.",
    "You look after rules even when others suffer.",
)


@pytest.mark.parametrize(
    ("positive", "negative", "match"),
    [
        ("You are kind to everyone.", "You are not kind to everyone.", "negative one says 'not'"),
        ("You never trust a soul.", "You always trust a soul.", "positive one says 'never'"),
        ("You are open with people.", "You aren’t open with people.", 'says "aren\'t"'),
        ("You write warmly.", "You refuse to write warmly.", "says 'refuse'"),
        (
            "You are a warm helper of people.",
            "You are a helpful assistant.",
            "is a plain speaker and no opposite",
        ),
        ("You are warm to all people, at any time and in any place.", "You are cold.", "3 words against 13"),
        ("Write as a merry poet would.", "You speak like some grave clerk.", "they share 0% of their words"),
        ("You are warm.", "You are warm!", "both say the same"),
    ],
)
def test_each_fault_of_a_pair_is_named(positive, negative, match):
    (weak,) = weak_pairs(pair(positive, negative))
    assert match in str(weak)
    assert str(weak).startswith("instructions.0: ")


def test_direct_opposites_pass_and_unpaired_poles_do_not():
    assert weak_pairs(pair(*GOOD)) == []
    assert weak_pairs(pair("You know it and note it now.", "You forget it and burn it now.")) == [], (
        "whole words"
    )
    (weak,) = weak_pairs(pair([GOOD[0]] * 3, [GOOD[1]] * 2))
    assert "3 positive and 2 negative" in str(weak)


def test_our_catalogue_s_axes_are_opposites_but_for_the_pairs_named_here():
    personas = load_personas()
    found = {
        name: [one.index for one in weak_pairs(one)] for name, one in personas.items() if one.kind == "axis"
    }
    assert found == {"cheerful": [1, 2], "formal": [0], "paranoid": [3], "rule_defiant": []}
    *faulty, plain = contrast_notes(personas.values())
    assert [note.partition(":")[0] for note in faulty] == ["cheerful", "formal", "paranoid"]
    others = sorted(name for name, one in personas.items() if one.kind != "axis")
    assert plain.startswith(f"{', '.join(others)}: the negative pole is a plain speaker")
