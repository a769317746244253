"""Facts are found in the lead and matched at word boundaries; overlap is Janus's own formula."""

import math

import pytest

from steer_pipeline.lab.quality import (
    exact_match,
    facts_kept,
    kept_facts,
    lead_facts,
    length_ratio,
    multiset_jaccard,
    sentences,
    words,
)


def test_lead_facts_are_numbers_and_names_of_the_first_sentences():
    text = (
        "On Monday the Bank of England raised rates to 5.25%, said President Joe Biden. Some 1,200 people "
        "met Ada Bell and Bruno Cole near the U.S. embassy. The Meridian Rail strike went on. "
        "Lucy Moore left 7 times."
    )
    assert lead_facts(text) == [
        "Bank of England", "5.25", "Joe Biden", "1,200", "Ada Bell", "Bruno Cole", "Meridian Rail",
    ]  # fmt: skip
    assert "Lucy Moore" in lead_facts(text, n_sentences=4)
    assert lead_facts("nothing of note here") == []


@pytest.mark.parametrize(
    ("fact", "text", "kept"),
    [
        ("Ada Bell", "ADA  BELL\nspoke", True),
        ("Ada Bell", "Ada Bellamy spoke", False),
        ("Ada\nBell", "ada bell", True),
        ("O'Hara", "Mr. O’Hara left", True),
        ("1,200", "1200 homes", True),
        ("1200", "1.2 thousand homes", True),
        ("12", "twelve homes", True),
        ("12", "120 homes", False),
        ("2", "both homes", False),
        ("$4.8 million", "It cost $4.8 million.", True),
        ("$4.8 million", "It cost $14.8 million.", False),
        ("cat", "concatenate", False),
    ],
)
def test_facts_hold_at_word_boundaries(fact, text, kept):
    assert kept_facts([fact], text) == [kept]


def test_facts_kept_is_a_fraction_and_undefined_without_facts():
    assert facts_kept(["Ada Bell", "12", "Thornmere"], "Ada Bell saw 12 birds") == pytest.approx(2 / 3)
    assert math.isnan(facts_kept([], "anything"))


def test_overlap_is_multiset_jaccard():
    assert multiset_jaccard("the cat the dog", "The cat sat") == pytest.approx(2 / 5)
    assert multiset_jaccard("a b", "b a") == 1.0
    assert multiset_jaccard("", "") == 1.0
    assert multiset_jaccard("", "a") == 0.0
    assert multiset_jaccard("12 34", "56 78") == 1.0  # digits are no words here: Janus's definition


def test_sentences_survive_abbreviations_prices_and_quotes():
    text = (
        'Mr. Bell of the U.S. Treasury paid $3.50. "Fine," he said. “Go!” He lives in the U.S. The end came '
        "at 6 p.m. on Monday. See No. 5 for J. K. Rowling. Was it www.example.com? No. He left"
    )
    assert sentences(text) == [
        "Mr. Bell of the U.S. Treasury paid $3.50.", '"Fine," he said.', "“Go!”", "He lives in the U.S.",
        "The end came at 6 p.m. on Monday.", "See No. 5 for J. K. Rowling.", "Was it www.example.com?", "No.",
        "He left",
    ]  # fmt: skip
    assert sentences("One line\nAnother line\n\nthird") == ["One line", "Another line", "third"]
    assert sentences(" \n ") == []


def test_lengths_and_matches():
    assert words("Don’t stop—it's 3.5!") == ["don't", "stop", "it's", "3", "5"]
    assert length_ratio("a b c", "a b") == 1.5
    assert length_ratio("", "") == 1.0
    assert length_ratio("a", "") == math.inf
    assert length_ratio("", "a") == 0.0
    assert exact_match("same ", "same")
    assert not exact_match("Same", "same")
