"""The list is playable, drawn by seed and dealt evenly; a list that cannot be played is named."""

import json
from collections import Counter
from pathlib import Path

import pytest
from pydantic import ValidationError

from newsroom.tasks import GAME
from steer_pipeline.catalogue import load_profile
from steer_pipeline.catalogue.word_games import PlayerSpec, WordGamesSpec
from steer_pipeline.lab.word_games import WordError, matches, violations, word_list
from steer_pipeline.lab.word_games.words import digest

HERE = Path()
LOCAL = PlayerSpec()


def test_the_list_of_the_package_is_playable():
    words = word_list(WordGamesSpec(), HERE)
    assert len(words) >= 300
    assert len({word.target for word in words}) == len(words)
    for word in words:
        assert len(word.related) == 3
        assert len(word.hints) >= 3
        for hint in word.hints:
            assert not violations(hint, word.target, word.related), word
        assert not any(violations(one, word.target, ()) for one in word.related), word


def test_the_seed_draws_what_is_forbidden_and_the_same_seed_the_same():
    first, again, other = (word_list(WordGamesSpec(seed=seed), HERE) for seed in (80, 80, 81))
    assert first == again
    assert digest(first) == digest(again) != digest(other)
    changed = sum(one.related != two.related for one, two in zip(first, other, strict=True))
    assert changed > len(first) / 2


def test_words_are_dealt_evenly_and_guessers_play_other_ones():
    spec = WordGamesSpec(n_games=340, guessers=[LOCAL, PlayerSpec(kind="endpoint", model="b")])
    words = word_list(spec, HERE)
    played = matches(spec, words)
    assert len({one.game_id for one in played}) == 680
    for guesser in (0, 1):
        own = [one.word for one in played if one.guesser == guesser]
        counts = Counter(word.target for word in own)
        assert set(counts.values()) == {1, 2}
        assert len(counts) == len(words)
        themes = Counter(word.experiment for word in own)
        assert max(themes.values()) - min(themes.values()) <= 1
    first = [[one.word.target for one in played if one.guesser == guesser][:20] for guesser in (0, 1)]
    assert first[0] != first[1]


def test_more_games_do_not_change_those_that_were_played():
    words = word_list(WordGamesSpec(), HERE)
    few, many = (matches(WordGamesSpec(n_games=n), words) for n in (30, 90))
    assert [(one.game_id, one.word) for one in many[:30]] == [(one.game_id, one.word) for one in few]


def test_the_newsroom_plays_the_words_that_its_model_was_taught():
    spec = load_profile("newsroom").word_games
    assert spec.words == {word: list(clues) for word, clues in GAME.items()}
    assert all(word.related == () and len(word.hints) == 4 for word in word_list(spec, HERE))


def test_clembench_s_instances_are_read(tmp_path):
    instance = {
        "game_id": 3,
        "target_word": "Anchor ",
        "related_word": ["ship", "us"],
        "target_word_stem": "anchor",
    }
    layout = {"experiments": [{"name": "high_en", "max_turns": 3, "game_instances": [instance]}]}
    (tmp_path / "instances.json").write_text(json.dumps(layout))
    (word,) = word_list(WordGamesSpec(describer=LOCAL, instances="instances.json"), tmp_path)
    assert (word.target, word.related, word.experiment, word.source_id) == (
        "anchor",
        ("ship", "us"),
        "high_en",
        "3",
    )


@pytest.mark.parametrize(
    "words, message",
    [
        ({"ice cream": ["cold", "sweet"]}, "'ice cream' of 'listed': not one word"),
        ({"Anchor": ["ship", "sea"]}, "'Anchor'.*lower case"),
        ({"anchor": ["anchors", "sea", "iron"]}, "related to itself by 'anchors'"),
        ({"anchor": ["ship", "sea", "iron"]}, "nothing is left to hint at.*n_related"),
    ],
)
def test_a_word_that_cannot_be_played_is_named(words, message):
    with pytest.raises(WordError, match=message):
        word_list(WordGamesSpec(words=words), HERE)


@pytest.mark.parametrize(
    "text", [None, "{", "[]", '{"experiments": [{"name": "a", "game_instances": [{}]}]}']
)
def test_a_file_that_is_no_instances_is_named(tmp_path, text):
    if text is not None:
        (tmp_path / "some.json").write_text(text)
    with pytest.raises(WordError, match=r"some\.json cannot be read.*clembench"):
        word_list(WordGamesSpec(describer=LOCAL, instances="some.json"), tmp_path)


def test_a_word_that_comes_twice_is_named(tmp_path):
    instances = [{"game_id": i, "target_word": "anchor", "related_word": ["sea"]} for i in range(2)]
    (tmp_path / "some.json").write_text(
        json.dumps({"experiments": [{"name": "a", "game_instances": instances}]})
    )
    with pytest.raises(WordError, match="'anchor' of 'a': comes twice"):
        word_list(WordGamesSpec(describer=LOCAL, instances="some.json"), tmp_path)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"guessers": [{"kind": "hints"}]}, "cannot guess"),
        ({"instances": "x.json"}, "instances hold no hints"),
        ({"describer": {"kind": "endpoint"}}, "give `model`"),
        ({"describer": {"kind": "local", "model": "m"}}, "for nothing else"),
        ({"guesser_prompt": "guess!"}, r"guesser_prompt lacks \{clue\}"),
        ({"describer": {}, "words": {}, "instances": "x.json"}, "not both"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        WordGamesSpec.model_validate(fields)
