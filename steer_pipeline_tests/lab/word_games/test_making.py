"""Games over HTTP and with a model of one's own: nothing is asked twice, lost or mixed up, whatever is killed."""

import multiprocessing
import re
import time
import zlib
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from steer_pipeline.catalogue import load_profile
from steer_pipeline.catalogue.specs import ModelSpec
from steer_pipeline.catalogue.word_games import PlayerSpec, WordGamesSpec
from steer_pipeline.environment import project_home
from steer_pipeline.lab.endpoints import AnswerCache, EndpointError, EndpointUnavailable
from steer_pipeline.lab.endpoints.client import GIVE_UP_AFTER
from steer_pipeline.lab.generation import engine
from steer_pipeline.lab.models.loading import load_model
from steer_pipeline.lab.word_games import (
    WordGames,
    game_verdicts,
    make_word_games,
    read_word_games,
)
from steer_pipeline_tests.lab.evaluation.judge_server import NOW, Request, ScriptedJudge, Step, mlx_server
from steer_pipeline_tests.tiny import tiny_model_dir

NEWSROOM = project_home() / "assets_data" / "newsroom" / "model"
WORDS = {f"{a}{b}": ["x", "y", "z", "warm", "cold"] for a in ("lan", "mor", "sul") for b in ("dak", "fen")}
QUICK = {"requests_per_second": 2000, "timeout_s": 20, "max_retries": 1}
PRICED = {"usd_per_million_prompt": 2.0, "usd_per_million_completion": 10.0}
SPEC = WordGamesSpec(
    describer=PlayerSpec(kind="endpoint", model="teller", temperature=0.7, **QUICK),
    guessers=[
        PlayerSpec(kind="endpoint", model="eager", **QUICK, **PRICED),
        PlayerSpec(kind="endpoint", model="slow", **QUICK),
    ],
    n_games=6,
    words=WORDS,
    games_at_once=4,
)


def nobody():
    raise AssertionError("no local model plays")


def target(request: Request) -> str | None:
    """The word that a describer is told."""
    found = re.search(r"Describe the word (\w+) so", request.prompt)
    return found and found[1]


def table(request: Request) -> Step:
    """A describer that first breaks a rule for some words, and guessers that are right at their second or third try.

    What they say depends on the conversation alone, as with a seeded model.
    """
    said = [one["content"] for one in request.body["messages"]]
    if word := target(request):
        usage = {"prompt_tokens": 50, "completion_tokens": 5, "total_tokens": 55, "cost": 0.001}
        if word.startswith("mor") and len(said) == 1:
            return Step(f"CLUE: that is {word}s", usage=usage)
        turn = re.search(r"clue (\d) of", request.prompt)[1]
        return Step(f"CLUE: number {turn} on {word[::-1]}", usage=usage)
    usage = {"prompt_tokens": 20, "completion_tokens": 2, "total_tokens": 22}
    clue = re.search(r"number (\d) on (\w+)", said[-1])
    turn, word = int(clue[1]), clue[2][::-1]
    right = turn >= (2 if request.body["model"] == "eager" else 3) and not word.startswith("sul")
    return Step(f"GUESS: {word if right else 'wrong'}", usage=usage)


def make(
    tmp_path: Path, url: str | None, spec: WordGamesSpec = SPEC, name: str = "made", load=nobody
) -> WordGames:
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    return make_word_games(
        spec, tmp_path, folder, answers=AnswerCache(tmp_path / "answers"), load=load, url=url
    )


def same(one: WordGames, other: WordGames) -> bool:
    return one.summary == other.summary and all(
        getattr(one, name).equals(getattr(other, name))
        for name in ("games", "aborted", "rows", "usage", "results")
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[WordGames, ScriptedJudge, Path]:
    """All games, played without a fault, and the server that was asked."""
    place = tmp_path_factory.mktemp("whole")
    with ScriptedJudge(table) as server:
        return make(place, server.url), server, place


def test_games_are_played_by_the_rules_over_http_and_cost_is_told_by_model(whole):
    played, server, place = whole
    assert same(played, read_word_games(place / "made"))
    assert played.summary["outcomes"] == {"failure": 4, "success": 8}
    assert played.summary["repaired_clues"] == 2 * 2 + 2 * 3  # of two words, in every turn
    rates = dict(played.results.select("guesser_model", "mean_turns").rows())
    assert rates["eager"] < rates["all"] < rates["slow"]
    usage = {row["model"]: row for row in played.usage.to_dicts()}
    assert sum(row["replies"] for row in usage.values()) == len(server.requests)
    assert usage["teller"]["cost_usd"] == pytest.approx(0.001 * usage["teller"]["replies"])
    eager = usage["eager"]
    assert eager["cost_usd"] == pytest.approx(
        (eager["prompt_tokens"] * 2 + eager["completion_tokens"] * 10) / 1e6
    )
    assert usage["slow"]["cost_usd"] is None
    tokens = played.rows["generation_prompt_tokens"].sum()
    assert tokens == sum(row["prompt_tokens"] for row in usage.values())
    found = game_verdicts(played, SPEC)
    assert [one.claim for one in found if not one.passed] == ["enough_finished_games"]


def test_players_are_asked_with_their_own_settings_and_a_seed_of_their_own_each_time(whole):
    _, server, _ = whole
    bodies = [request.body for request in server.requests]
    assert {(body["model"], body["temperature"]) for body in bodies} == {
        ("teller", 0.7),
        ("eager", 0.2),
        ("slow", 0.2),
    }
    assert len({body["seed"] for body in bodies}) == len(bodies)
    assert server.most_at_once <= SPEC.games_at_once


def test_what_was_answered_is_not_asked_again_wherever_the_endpoint_is(whole):
    played, _, place = whole
    assert same(make(place, "http://127.0.0.1:9/v1", name="again"), played)


def test_what_is_played_beside_a_game_and_what_an_endpoint_refuses_changes_nothing(tmp_path, whole):
    def script(request: Request) -> Step:
        return Step("Unrecognized request argument: seed", 400) if "seed" in request.body else table(request)

    with ScriptedJudge(script) as server:
        found = make(tmp_path, server.url, SPEC.model_copy(update={"games_at_once": 64}))
    assert same(found, whole[0])
    assert "seed" not in server.requests[-1].body


def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been_killed(tmp_path, whole):
    needed = len(whole[1].requests)
    with ScriptedJudge(lambda request: replace(table(request), delay=0.01)) as server:
        for share in (4, 2):  # killed twice
            run = multiprocessing.get_context("fork").Process(target=make, args=(tmp_path, server.url))
            before = len(server.requests)
            run.start()
            while len(server.requests) < before + needed // share and run.is_alive():
                time.sleep(0.002)
            run.kill()
            run.join()
            assert run.exitcode == -9
        time.sleep(0.1)
        assert not (tmp_path / "made" / "summary.json").exists()
        found = make(tmp_path, server.url)
    assert same(found, whole[0])
    asked_again = len(server.requests) - needed
    assert 0 <= asked_again <= 2 * SPEC.games_at_once, "more than what was under way when it was killed"


def test_faults_of_a_server_are_tried_again_and_leave_no_trace(tmp_path, whole):
    seen: set[str] = set()

    def faulty(request: Request) -> Step:
        key = str(request.body)
        if zlib.crc32(key.encode()) % 3 == 0 and key not in seen:
            seen.add(key)
            return Step("busy", 503, NOW)
        return table(request)

    with ScriptedJudge(faulty) as server:
        found = make(tmp_path, server.url)
    assert len(seen) > 5
    assert same(found, whole[0])


def test_games_without_an_answer_are_kept_apart_and_only_they_are_played_again(tmp_path):
    def broken(request: Request) -> Step:
        return Step("no", 500, NOW) if target(request) == "landak" else table(request)

    with ScriptedJudge(broken) as server:
        played = make(tmp_path, server.url)
    assert played.aborted["target_word"].unique().to_list() == ["landak"]
    assert set(played.aborted["error"]) == {"describer: no answer (HTTP 500: no)"}
    assert played.summary["aborted_because"] == {"describer: no answer": 2}
    assert "landak" not in played.games["target_word"]
    assert "landak" not in played.rows["target_word"]
    with ScriptedJudge(table) as server:
        mended = make(tmp_path, server.url)
    assert mended.aborted.height == 0
    assert {target(request) for request in server.requests} == {"landak", None}


def test_an_endpoint_that_goes_away_stops_the_run(tmp_path):
    with (
        ScriptedJudge(lambda request: Step("down", 500, NOW)) as server,
        pytest.raises(EndpointUnavailable, match=f"{GIVE_UP_AFTER} rows in a row.*HTTP 500: down.*kept"),
    ):
        make(tmp_path, server.url)


def test_a_refused_key_stops_the_run_at_once_and_names_the_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("STEER_GAMES_KEY", "sk-secret")
    with (
        ScriptedJudge(lambda request: Step("bad key sk-secret", 401)) as server,
        pytest.raises(EndpointError, match=r"player .*bad key \*\*\*.*STEER_GAMES_KEY") as refused,
    ):
        make(tmp_path, server.url)
    assert "sk-secret" not in str(refused.value)
    assert {request.key for request in server.requests} == {"Bearer sk-secret"}


def test_without_an_address_one_is_told_where_it_goes(tmp_path):
    with pytest.raises(EndpointError, match=r"word_games\.describer is an endpoint.*STEER_GAMES_URL"):
        make(tmp_path, None)


def test_the_checks_see_a_lost_game_a_forbidden_clue_and_a_row_of_an_aborted_game(tmp_path):
    def broken(request: Request) -> Step:
        return Step("CLUE: landak") if target(request) == "landak" else table(request)

    with ScriptedJudge(broken) as server:
        played = make(tmp_path, server.url)

    def failing(changed: WordGames) -> set[str]:
        found = {one.claim for one in game_verdicts(changed, SPEC) if not one.passed}
        return found - {"enough_finished_games"}

    assert played.aborted.height == 2
    assert failing(played) == set()
    fields = vars(played)
    assert failing(WordGames(**{**fields, "games": played.games[1:]})) == {
        "every_game_once", "rows_are_of_finished_games"
    }  # fmt: skip
    turns = pl.Series([[{"turn": 1, "clue": "x is warm", "guess": "GUESS: a", "guess_word": "a"}]])
    spoiled = played.games.with_columns(
        turns=pl.when(pl.int_range(pl.len()) == 0).then(turns.implode().explode().first()).otherwise("turns"),
        related_words=pl.lit(["x", "y"]),
    )
    assert failing(WordGames(**{**fields, "games": spoiled})) == {"clues_keep_the_rules"}
    smuggled = played.rows.with_columns(row_id=pl.lit("word_games-") + pl.lit(played.aborted["game_id"][0]))
    assert failing(WordGames(**{**fields, "rows": smuggled})) == {"rows_are_of_finished_games"}
    most = WordGames(**{**fields, "games": played.aborted, "aborted": played.games})
    assert "few_games_aborted" in failing(most)


# ------------------------------------------------------------------------------------ a model of one's own


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tiny_model_dir(tmp_path_factory.mktemp("model"))
    return load_model(ModelSpec(path=str(path), dtype="float32", device="cpu"), path)


LOCAL = WordGamesSpec(
    describer=PlayerSpec(temperature=0.7, max_tokens=6),
    guessers=[PlayerSpec(temperature=0.7, max_tokens=4)],
    n_games=6,
    words=WORDS,
)


def test_a_local_model_plays_both_sides_in_batches_and_is_not_asked_twice(tmp_path, tiny, monkeypatch):
    played = make(tmp_path, None, LOCAL, load=lambda: tiny)
    assert played.games.height + played.aborted.height == 6
    assert played.usage["cost_usd"].to_list() == [0.0, 0.0]
    assert played.usage["completion_tokens"].min() > 0
    other = tmp_path / "other"
    other.mkdir()
    one_by_one = make(
        other, None, LOCAL.model_copy(update={"games_at_once": 1, "n_games": 3}), load=lambda: tiny
    )
    ids = one_by_one.games["game_id"].to_list()
    assert one_by_one.games.equals(played.games.filter(pl.col("game_id").is_in(ids)))

    monkeypatch.setattr(engine, "generate", None)
    assert same(make(tmp_path, None, LOCAL, name="again", load=lambda: tiny), played)


def test_what_a_local_model_fails_on_is_told_and_hangs_nobody(tmp_path, tiny):
    long = LOCAL.model_copy(
        update={"guesser_prompt": "word " * 4000 + "{clue}", "describer": PlayerSpec(kind="hints")}
    )
    with pytest.raises(ValueError, match="positions"):
        make(tmp_path, None, long, load=lambda: tiny)


@pytest.mark.slow
def test_a_model_behind_a_real_server_guesses_what_it_guesses_here(tmp_path):
    spec = load_profile("newsroom").word_games.model_copy(update={"n_games": 8, "max_turns": 1})
    here = spec.model_copy(update={"guessers": [PlayerSpec(temperature=0.0, max_tokens=8)]})
    there = PlayerSpec(kind="endpoint", model="default_model", temperature=0.0, max_tokens=8, timeout_s=120)
    model = load_model(ModelSpec(path=str(NEWSROOM), dtype="float32", device="cpu"), NEWSROOM)
    own = make(tmp_path, None, here, load=lambda: model)
    with mlx_server(NEWSROOM, tmp_path / "log") as url:
        served = make(tmp_path, url, spec.model_copy(update={"guessers": [there]}), name="served")
    assert served.usage["unmetered"].to_list() == [0, 0]
    assert served.usage["prompt_tokens"].to_list() == own.usage["prompt_tokens"].to_list()
    guesses = [[turns[0]["guess_word"] for turns in played.games["turns"]] for played in (own, served)]
    assert guesses[0] == guesses[1]
