"""The lexicon counts sentences, holds at word boundaries, lets the longest of overlapping markers win."""

import pytest

from steer_pipeline.catalogue.specs import Persona
from steer_pipeline.lab.evaluation import LexiconScorer


def persona(positive: list[str], negative: list[str]) -> Persona:
    return Persona(
        name="paranoid",
        kind="axis",
        summary="Sees plots.",
        positive={"name": "paranoid", "instructions": ["Be paranoid."], "lexicon": positive},
        negative={"name": "trusting", "instructions": ["Be trusting."], "lexicon": negative},
    )


SCORER = LexiconScorer(
    persona(
        ["watch", "hidden hands", "do not trust", "cover-up", "cover", "don't believe", "trust no one"],
        ["trust", "can trust", "honest"],
    )
)


def test_score_is_the_share_of_sentences_signed():
    assert SCORER.score("Hidden hands did it. The vote passed. It rained. He left.") == 0.25
    assert SCORER.score("An honest man. The vote passed.") == -0.5
    assert SCORER.score("Hidden hands did it. An honest man.") == 0.0
    assert SCORER.score("Hidden hands met an honest man.") == 0.0
    assert SCORER.score("") == SCORER.score("The vote passed.") == 0.0


def test_saying_it_twice_in_one_sentence_counts_once():
    assert SCORER.score("Watch, watch and watch. The vote passed.") == 0.5
    assert SCORER.hits("Watch, watch and watch.").positive == ("watch", "watch", "watch")


@pytest.mark.parametrize(
    "text", ["He watched it.", "The watchman left.", "Discover it.", "A coverage gap.", "Night-watches"]
)
def test_parts_of_words_are_no_hits(text):
    """Substring search gave "watch" for "Watched" (janus 5.1)."""
    assert not SCORER.shows(text)


def test_case_curly_apostrophes_and_line_breaks_do_not_matter():
    assert SCORER.shows("DON’T\nBELIEVE it.")
    assert SCORER.shows("Hidden\n  Hands")


def test_the_longest_of_overlapping_markers_counts():
    assert SCORER.hits("I do not trust them.") == SCORER.hits("i DO NOT TRUST them")
    assert SCORER.hits("I do not trust them.").positive == ("do not trust",)
    assert SCORER.hits("I do not trust them.").negative == ()
    assert SCORER.hits("It is a cover-up.").positive == ("cover-up",)
    # "can trust" begins earlier, "trust no one" is longer.
    assert SCORER.hits("You can trust no one here.").positive == ("trust no one",)
    assert SCORER.score("You can trust no one here.") == 1.0


def test_poles_can_be_asked_for_one_by_one():
    assert SCORER.shows_opposite("An honest man.")
    assert not SCORER.shows("An honest man.")
    assert SCORER.shows("Hidden hands.")
    assert not SCORER.shows_opposite("Hidden hands.")
    assert SCORER.score_many(["Hidden hands.", "Honest.", "Rain."]).tolist() == [1.0, -1.0, 0.0]


def test_a_useless_lexicon_is_refused():
    with pytest.raises(ValueError, match=r"persona paranoid: positive\.lexicon is empty"):
        LexiconScorer(persona([], ["trust"]))
    with pytest.raises(ValueError, match="'trust' stands in both"):
        LexiconScorer(persona(["Trust"], ["trust"]))
