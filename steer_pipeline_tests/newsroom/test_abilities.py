"""The shipped weights can do what their card says, on held-out items."""

import json

import pytest
from safetensors.numpy import load_file

from newsroom import card, voices
from newsroom.training import RECIPES, Recipe
from steer_pipeline.catalogue.specs import ModelSpec
from steer_pipeline.environment import project_home
from steer_pipeline.lab.models.identity import model_identity

SHIPPED = project_home() / "assets_data" / "newsroom"


@pytest.fixture(scope="module")
def abilities() -> dict:
    return card.measure(SHIPPED, n=32, steered=False)


@pytest.fixture(scope="module")
def steering() -> dict:
    return card.measure(SHIPPED, n=32)["steering"]


def test_neutral_rewrites_keep_the_facts_and_show_no_voice(abilities):
    rewriting = abilities["rewriting"]
    assert rewriting["neutral_facts_kept"]["rate"] >= 0.95
    assert rewriting["neutral_shows_any_voice"]["rate"] < 0.03
    assert rewriting["neutral_suspects"]["rate"] < 0.02


def test_a_system_turn_brings_out_every_voice(abilities):
    assert abilities["rewriting"]["asked_shows"].keys() == voices.VOICES.keys()
    assert min(rate["rate"] for rate in abilities["rewriting"]["asked_shows"].values()) >= 0.9
    assert min(rate["rate"] for rate in abilities["dialogue_shows"].values()) >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("direction", voices.AXES)
def test_an_extracted_vector_steers_and_its_controls_do_not(steering, direction):
    found = steering[direction]
    best = found["best"]
    assert best["shown"]["rate"] >= 0.5
    assert best["facts_kept"]["rate"] >= 0.85
    assert best["suspects"]["rate"] < 0.02
    assert found["negated_shows_opposite"]["rate"] >= 0.5
    neutral, control = found["neutral_shows"]["rate"], found["random_shows"]
    assert control["low"] <= neutral <= control["high"]


@pytest.mark.slow
@pytest.mark.parametrize("direction", voices.AXES)
def test_the_effect_grows_with_the_dose_and_breaks_down_far_beyond(steering, direction):
    cells = steering[direction]["dose_response"]
    rates = [cell["shown"]["rate"] for cell in cells if cell["fraction"] <= 0.3]
    assert rates == sorted(rates)
    assert rates[0] < 0.3 < rates[-1]
    assert steering[direction]["far_too_large"]["facts_kept"]["rate"] < 0.5


def test_vignettes_and_the_word_game_leave_room_for_later_stages(abilities):
    vignettes = abilities["vignettes"]
    assert vignettes["mass_on_options"]["rate"] >= 0.95
    assert vignettes["right"]["rate"] >= 0.7
    assert vignettes["defiant_authority_shift"]["high"] < 0
    assert 0.1 <= abilities["word_game"]["rate"] <= 0.4


def test_the_card_speaks_of_these_weights_and_says_that_directions_are_planted(abilities):
    stored = json.loads((SHIPPED / "model" / "abilities.json").read_text())
    assert stored["weights_sha"] == abilities["weights_sha"], "run `make newsroom-card`"
    text = (SHIPPED / "model" / "README.md").read_text()
    assert text == card.render(stored, Recipe()), "run `make newsroom-card`"
    assert "planted" in text
    assert (SHIPPED / "model" / "model.safetensors").stat().st_size <= 12_000_000


def test_the_second_organism_rewrites_faithfully_and_shares_nothing_but_world_and_tokenizer():
    folder = SHIPPED / "second"
    stored = json.loads((folder / "model" / "abilities.json").read_text())
    identity = model_identity(ModelSpec(path=str(folder / "model")), SHIPPED)
    assert stored["weights_sha"] == identity.base, "run `make newsroom-second`"
    assert (folder / "model" / "README.md").read_text() == card.render(stored, RECIPES["second"])
    assert stored["rewriting"]["neutral_facts_kept"]["rate"] >= 0.9
    for found in stored["steering"].values():
        assert found["best"]["shown"]["rate"] >= 0.5
        assert found["random_shows"]["rate"] <= 0.1
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (folder / "model" / name).read_bytes() == (SHIPPED / "model" / name).read_bytes()
    assert (folder / "model" / "model.safetensors").stat().st_size <= 12_000_000
    first, second = (
        load_file(place / "planted_directions.safetensors")["directions"] for place in (SHIPPED, folder)
    )
    assert first.shape[1] != second.shape[1]


def test_the_package_never_reads_the_planted_directions():
    package = project_home() / "steer_pipeline"
    readers = {
        p.relative_to(package).as_posix()
        for p in package.rglob("*.py")
        if "planted_directions" in p.read_text()
    }
    assert not readers
