"""A clue that says the word in any form is caught, a sound one passes, and replies are read as they are meant."""

import random
import re
import string
from pathlib import Path

import pytest
import snowballstemmer

from steer_pipeline.catalogue.word_games import WordGamesSpec
from steer_pipeline.lab.word_games import read_clue, read_guess, violations, word_list
from steer_pipeline.lab.word_games.rules import STOPWORDS


def rules(clue: str, target: str, related: tuple[str, ...] = (), **how) -> list[str]:
    return [one.rule for one in violations(clue, target, related, **how)]


@pytest.mark.parametrize(
    "clue, target",
    [
        ("You drink tea.", "tea"),
        ("Teas of all kinds", "tea"),  # stems under four letters were let through by a prefix rule
        ("People RUN", "running"),
        ("The teapot’s lid", "teapot"),
        ("It's a rain-coat", "coat"),
        ("lanterns, many", "lantern"),
        ("ﬁre burns", "fire"),  # a ligature
    ],
)
def test_forms_of_the_word_are_said(clue, target):
    assert rules(clue, target) == ["stem"]


@pytest.mark.parametrize("clue", ["a tea pot", "a tea-pot", "it is a t e a p o t !", "t-e-a-p-o-t"])
def test_a_word_in_pieces_is_said(clue):
    assert rules(clue, "teapot") == ["spelled"]


def test_related_words_are_forbidden_too_and_named():
    found = violations("It boils and whistles", "kettle", ["boil", "tea", "steam"])
    assert [str(one) for one in found] == ["'boils' (stem of 'boil')"]


def test_words_that_only_begin_alike_pass_unless_the_prefix_rule_is_on():
    assert rules("an organic farm", "organ") == []
    assert rules("an organic farm", "organ", prefix_rule=True) == ["prefix"]
    assert rules("tear it up", "tea", prefix_rule=True) == []  # three letters are no prefix


def test_function_words_are_never_said_but_the_word_itself_is():
    assert rules("it helps us at work", "clinic", ("us", "it")) == []  # clembench has such related words
    assert rules("what you will do", "will") == ["stem"]
    assert rules("it will fly", "willing") == []  # though their stems are one


@pytest.mark.parametrize("clue", ["", "   ", "...", "a warm drink", "part of a ship"])
def test_sound_clues_pass(clue):
    assert rules(clue, "anchor", ("heavy", "drop")) == []


def test_on_plain_sentences_the_rule_is_clembench_s():
    """Lower case, punctuation removed, split on spaces, function words dropped, stems compared for equality."""
    stem = snowballstemmer.stemmer("english").stemWord

    def reference(clue: str, target: str, related: list[str]) -> bool:
        bare = clue.lower().translate(str.maketrans("", "", string.punctuation))
        said = {stem(word) for word in bare.split(" ") if word and word not in STOPWORDS}
        return bool(said & {stem(word) for word in (target, *related)})

    words = word_list(WordGamesSpec(), Path())
    pool = [w for one in words for w in (one.target, *one.related, *one.hints)] + sorted(STOPWORDS)
    rng = random.Random(1)
    broken = 0
    for word in words:
        for _ in range(4):
            said = [rng.choice(pool) for _ in range(4)]
            if rng.random() < 0.4:
                said.insert(1, rng.choice([word.target, *word.related]) + rng.choice(["", "s", "ing", "er"]))
            clue = " and ".join(said) + "."
            found = [one for one in violations(clue, word.target, word.related) if one.rule == "stem"]
            expected = reference(re.sub(r"'", "", clue), word.target, list(word.related))
            assert bool(found) == expected, (clue, word, found)
            broken += expected
    assert 200 < broken < 1000


@pytest.mark.parametrize(
    "reply, guess",
    [
        ("GUESS: lantern", "lantern"),
        ("**Guess :**  The Lantern!", "lantern"),
        ("I think so.\nGUESS: oak-tree\nGUESS: other", "oak-tree"),
        ("lantern", "lantern"),
        ("an anchor, maybe", "anchor"),
        ("**GUESS:** lantern", "lantern"),
        ("I'm not sure, it is a lantern", ""),  # SmolLM2 says such things
        ("Guess the word that goes with it.", ""),
        ("GUESS: a", "a"),
        ("GUESS: ...", ""),
        ("", ""),
        ("\n\n  \n", ""),
        ("GUESS: Jürgen", "jürgen"),
    ],
)
def test_guesses_are_read(reply, guess):
    assert read_guess(reply) == guess


@pytest.mark.parametrize(
    "reply, clue",
    [
        ("CLUE: It  shines at\tnight.", "It shines at night."),
        ("Sure!\nclue: It shines.\nCLUE: other", "It shines."),
        ("\nIt shines.\nAnd more.", "It shines."),
        ("CLUE:", ""),
        ("", ""),
    ],
)
def test_clues_are_read_on_one_line(reply, clue):
    assert read_clue(reply) == clue
