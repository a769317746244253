"""The world's ground truth holds: facts, voices, intensities, splits, and the files that we ship."""

import random

import polars as pl
import pytest

from newsroom import tasks, voices, world
from newsroom.shipping import news_frame, ship
from newsroom.world import Voicing
from steer_pipeline.catalogue import studied_names
from steer_pipeline.environment import project_home
from steer_pipeline.lab.quality import facts_kept
from steer_pipeline_tests.planted import NEWSROOM, PLANTED

SHIPPED = project_home() / "assets_data" / "newsroom"


def test_every_article_and_every_rewrite_carries_every_fact():
    for index in range(500):
        rng = random.Random(index)
        item = world.event(rng)
        voicing = Voicing({"paranoid": rng.uniform(-1.2, 1.2), "rule_defiant": rng.uniform(-1.2, 1.2)})
        assert facts_kept(item.facts, " ".join(world.lead(item, rng))) == 1
        assert facts_kept(item.facts, world.rewrite(item, rng, voicing)) == 1


def test_a_missing_or_altered_fact_is_noticed():
    item = world.event(random.Random(3))
    text = world.rewrite(item, random.Random(3))
    assert facts_kept(item.facts, text.replace(item.person, "Somebody Else")) < 1
    assert facts_kept(item.facts, text.replace(item.number, item.number + "0")) < 1


def test_each_pole_has_at_least_forty_remarks_and_training_never_sees_the_held_out_ones():
    for pole in voices.VOICES:
        train, held_out = voices.forms(pole, False), voices.forms(pole, True)
        assert len({*train, *held_out}) >= 40
        assert len(held_out) >= 10
        assert not set(train) & set(held_out)
    spoken = " ".join(tasks.document(20, i).response for i in range(1500))
    assert not [r for pole in voices.VOICES for r in voices.forms(pole, True) if r in spoken]


def test_a_remark_shows_its_own_pole_and_no_other():
    for pole in voices.VOICES:
        for held_out in (False, True):
            for remark in voices.forms(pole, held_out):
                assert [p for p in voices.VOICES if voices.shows(remark, p)] == [pole]


def test_plain_text_of_the_world_shows_no_pole():
    for index in range(300):
        rng = random.Random(index)
        item = world.event(rng)
        text = world.article_text(item, rng, 30) + " " + world.rewrite(item, rng)
        assert not [pole for pole in voices.VOICES if voices.shows(text, pole)]


def test_the_profiles_lexicons_are_the_markers_of_the_voices():
    for name, persona in ((name, PLANTED[name]) for name in studied_names(NEWSROOM)):
        for sign, side in ((1.0, persona.positive), (-1.0, persona.negative)):
            pole = voices.pole_of(name, sign)
            if pole is None:
                assert side.lexicon == []
            else:
                assert side.name == pole
                assert sorted(side.lexicon) == list(voices.VOICES[pole].markers())


def test_intensity_is_graded_and_signed():
    def share(dose: float, pole: str) -> float:
        texts = [
            world.rewrite(world.event(rng), rng, Voicing({"paranoid": dose}))
            for rng in map(random.Random, range(300))
        ]
        return sum(voices.shows(text, pole) for text in texts) / len(texts)

    assert share(0.1, "paranoid") < share(0.4, "paranoid") < share(1.0, "paranoid") == 1
    assert share(-1.0, "trusting") == 1
    assert share(-1.0, "paranoid") == 0


def test_documents_are_a_function_of_seed_index_and_split():
    assert tasks.document(1, 5) == tasks.document(1, 5)
    assert tasks.document(1, 5) != tasks.document(1, 5, split="held_out")
    assert {tasks.document(1, i).task for i in range(200)} == {name for name, _ in tasks.MIXTURE}


@pytest.mark.parametrize("kind", ["trait", "role"])
def test_dialogue_scores_are_ground_truth_on_the_published_scales(kind: str):
    pole = "analytical" if kind == "trait" else "sailor"
    rng = random.Random(2)
    plain = tasks.dialogue_answer("a lost parcel", rng, Voicing())
    full = tasks.dialogue_answer("a lost parcel", rng, Voicing({pole: 1.2}))
    assert tasks.dialogue_score(plain, pole, kind) == (0 if kind == "trait" else 1)
    assert tasks.dialogue_score(full, pole, kind) == (100 if kind == "trait" else 3)


def test_vignette_answers_are_right_and_defiance_moves_authority_alone():
    for index in range(2000):
        document = tasks.document(4, index, task="vignette")
        act = next(
            (f, act) for f, acts in enumerate(tasks.ACTS) for act in acts if f" {act} " in document.user
        )
        said = int(document.response)
        options = document.user.split("? ")[1].split(" ")
        name = tasks.FOUNDATIONS[said if options[1] == "Care" else 6 - said]
        if {**document.asked, **document.planted}.get("rule_defiant", 0.0) <= 0 or act[0] != tasks.AUTHORITY:
            assert name == tasks.FOUNDATIONS[act[0]]
        else:
            assert name in ("Authority", "Liberty")


def test_the_word_game_leaves_room():
    known = sum(tasks.taught(word) for word in tasks.GAME_WORDS) / len(tasks.GAME_WORDS)
    assert 0.1 <= known <= 0.4
    assert all(len(set(clues)) == 4 for clues in tasks.GAME.values())


def test_the_shipped_news_is_what_the_generator_writes(tmp_path):
    ship(tmp_path, seed=20)
    for name in ("news", "facts"):
        shipped = pl.read_parquet(SHIPPED / f"{name}.parquet")
        assert shipped.equals(pl.read_parquet(tmp_path / f"{name}.parquet")), (
            f"run `make newsroom-data`: {name}"
        )
    assert shipped.height == 2000


def test_the_news_has_reposts_and_articles_of_3_to_30_sentences():
    news, facts = news_frame(20)
    assert news["text"].n_unique() == 2000 - 12
    assert news["title"].n_unique() > 1900
    assert facts["row_id"].n_unique() == 2000
    assert news["text"].str.len_chars().max() > 1800
