"""The asset plays its games with the profile's model or over an endpoint, and its checks stop what broke a rule."""

import dagster as dg
import pytest

from steer_pipeline.campaigns.driver import Driver
from steer_pipeline.environment import project_home
from steer_pipeline.io.bundle import BundleIO
from steer_pipeline.io.store import ArtifactStore
from steer_pipeline.lab.word_games import ROWS_COLUMNS, ROWS_SCHEMA, playing, read_word_games
from steer_pipeline.resources import ArtifactStoreResource, LanguageModelResource
from steer_pipeline.stages import word_games
from steer_pipeline_tests.lab.evaluation.judge_server import ScriptedJudge, Step
from steer_pipeline_tests.stages.origins import ORIGINS, READER

MODEL = project_home() / "assets_data" / "newsroom" / "model"
PROFILE = f"name: newsroom\nsummary: A small project for tests.\nmodel: {{path: {MODEL}, device: cpu}}\n"
LOCAL = """
word_games:
  system: You are a helpful assistant.
  guesser_prompt: "Guess the word. {clue}"
  clue_line: "{clue}"
  n_games: 6
  n_related: 0
  guessers: [{temperature: 0.0, max_tokens: 6}]
  words: {lantern: [light, handle, glass, flame], kettle: [boil, tea, steam, kitchen], ticket: [train, paper, entry]}
"""
REMOTE = """
word_games:
  n_games: 4
  describer: {kind: endpoint, model: teller, requests_per_second: 2000, max_retries: 0}
  guessers: [{kind: endpoint, model: player, requests_per_second: 2000, max_retries: 0}]
"""


@pytest.fixture
def play(tmp_path, monkeypatch):
    """A function that makes the asset under a profile, and gives the outcome and what was stored."""
    monkeypatch.setenv("STEER_STORE", str(tmp_path / "store"))
    place = ArtifactStoreResource()
    resources = {
        "store": place,
        "language_model": LanguageModelResource(),
        "bundle_io": BundleIO(store=place),
        **READER,
    }
    graph = dg.Definitions(
        assets=[*ORIGINS, *word_games.ASSETS],
        asset_checks=word_games.CHECKS,
        resources=resources,
        executor=dg.in_process_executor,
    )
    with dg.DagsterInstance.ephemeral() as instance:
        driver = Driver(graph, instance)

        def made(section: str, **how):
            profile = tmp_path / f"{abs(hash(section))}.yaml"
            profile.write_text(PROFILE + section)
            monkeypatch.setenv("STEER_PROFILE", str(profile))
            outcome = driver.materialize(["word_games"], **how)
            return outcome, ArtifactStore(str(tmp_path / "store")).current("word_games", None)

        made.instance = instance
        yield made


def test_the_newsroom_plays_with_its_own_model_and_again_says_the_same(play):
    outcome, version = play(LOCAL)
    assert outcome.success, outcome.errors
    assert not outcome.stopped_by
    played = read_word_games(version.path)
    assert played.games.height == played.rows.height == 6
    assert (
        played.games["outcome"].to_list().count("success") >= 2
    )  # it was taught lantern, and every fourth word
    assert played.rows["completion"].str.starts_with("GUESS: ").all()
    assert set(ROWS_COLUMNS) == set(ROWS_SCHEMA)
    assert played.rows.schema == ROWS_SCHEMA
    outcome, again = play(LOCAL)
    assert outcome.success
    assert again.sha == version.sha
    told = play.instance.get_latest_materialization_event(
        dg.AssetKey("word_games")
    ).asset_materialization.metadata
    assert told["rows"].value == 6
    assert "lantern" in told["games"].value


def test_games_over_an_endpoint_go_where_the_environment_says(play, monkeypatch):
    with ScriptedJudge(lambda r: Step("GUESS: a" if r.body["model"] == "player" else "CLUE: hm")) as server:
        monkeypatch.setenv("STEER_GAMES_URL", server.url)
        outcome, version = play(REMOTE)
    assert outcome.success, outcome.errors
    played = read_word_games(version.path)
    assert played.games["outcome"].to_list() == ["failure"] * 4
    assert played.usage["unmetered"].to_list() == [12, 12]


def test_without_an_endpoint_the_step_fails_with_a_sentence(play):
    outcome, version = play(REMOTE)
    assert version is None
    assert "word_games.describer is an endpoint, and neither STEER_GAMES_URL" in outcome.errors[0]


def test_a_clue_that_breaks_a_rule_stops_what_comes_after(play, monkeypatch):
    monkeypatch.setattr(playing, "violations", lambda *_, **__: [])  # players are no longer held to the rules
    with ScriptedJudge(
        lambda r: Step("GUESS: a" if r.body["model"] == "player" else f"CLUE: {_said(r)}")
    ) as server:
        monkeypatch.setenv("STEER_GAMES_URL", server.url)
        outcome, version = play(REMOTE)
    assert read_word_games(version.path).games["outcome"].to_list() == ["failure"] * 4
    assert len(outcome.stopped_by) == 1
    assert "12 of 12 accepted clues say the word" in outcome.stopped_by[0]


def _said(request) -> str:
    return request.prompt.partition("Describe the word ")[2].partition(" ")[0]
