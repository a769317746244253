"""Turns, repairs and aborted games, with players that say what the test wants."""

import asyncio
from collections.abc import Callable

import pytest

from steer_pipeline.catalogue.word_games import PlayerSpec, WordGamesSpec
from steer_pipeline.lab.endpoints import Reply, Usage
from steer_pipeline.lab.word_games import Game, Match, Word, training_rows
from steer_pipeline.lab.word_games.players import Request
from steer_pipeline.lab.word_games.playing import play
from steer_pipeline.lab.word_games.tables import games_table, results_table, usage_table

WORD = Word("kettle", ("boil", "tea", "steam"), ("spout", "stove", "pour"), "kitchen", "0")
MATCH = Match("game-00007", "7", 0, WORD)
SPEC = WordGamesSpec(describer=PlayerSpec(temperature=0.0), guessers=[PlayerSpec(temperature=0.9)])
A7 = [
    *(
        "row_id",
        "prompt",
        "completion",
        "source_split",
        "game",
        "game_role",
        "pair_key",
        "outcome",
        "experiment",
    ),
    *(
        "task_id",
        "task_label",
        "source_task_id",
        "group_id",
        "describer_model",
        "guesser_model",
        "target_word",
    ),
    *("related_words", "turn_count", "final_guess_word", "generation_prompt_tokens"),
    *("generation_completion_tokens", "generation_cost_usd", "messages"),
]


class Says:
    """Replies one after the other; None is no answer."""

    def __init__(self, name: str, *replies: str | None) -> None:
        self.name = self.identity = name
        self._replies, self.asked = list(replies), []

    async def ask(self, request: Request) -> Reply:
        self.asked.append(request)
        text = self._replies.pop(0)
        return (
            Reply(text, "gone", usage=Usage(1, 10, 2, 0.5))
            if text is not None
            else Reply(failure="HTTP 500: no")
        )


def played(describer: Says, guesser: Says, spec: WordGamesSpec = SPEC, match: Match = MATCH) -> Game:
    return asyncio.run(play(match, spec, describer, guesser))


def test_a_word_that_is_guessed_ends_the_game():
    describer, guesser = (
        Says("d", "CLUE: It whistles.", "CLUE: It has a spout."),
        Says("g", "GUESS: bird", "Kettle!"),
    )
    game = played(describer, guesser)
    assert (game.outcome, game.error, [turn.guess_word for turn in game.turns]) == (
        "success",
        "",
        ["bird", "kettle"],
    )
    assert game.describer_used == Usage(2, 20, 4, 1.0)
    told = describer.asked[1].messages[0]["content"]
    assert "'It whistles.' the answer was bird" in told
    assert [one["content"] for one in guesser.asked[1].messages[1:]] == [
        "GUESS: bird",
        "CLUE: It has a spout.",
    ]
    assert "CLUE: It whistles." in guesser.asked[1].messages[0]["content"]  # in one turn with the instruction


def test_after_the_last_turn_the_game_is_lost():
    game = played(Says("d", *["CLUE: It pours."] * 3), Says("g", "GUESS: jug", "GUESS: rain", "GUESS: cup"))
    assert (game.outcome, len(game.turns)) == ("failure", 3)


def test_a_clue_that_breaks_a_rule_goes_back_with_what_is_wrong_and_not_to_the_guesser():
    describer = Says("d", "CLUE: It boils your teas.", "...", "CLUE: It whistles.")
    guesser = Says("g", "GUESS: kettle")
    game = played(describer, guesser)
    assert game.outcome == "success"
    assert [one.why for one in game.rejected] == [
        "rule violation: 'boils' (stem of 'boil'), 'teas' (stem of 'tea')",
        "empty clue",
    ]
    again = describer.asked[1].messages
    assert [one["role"] for one in again] == ["user", "assistant", "user"]
    assert again[1]["content"] == "CLUE: It boils your teas."
    assert "'boils', 'teas', which is forbidden" in again[2]["content"]
    assert [one.temperature for one in describer.asked] == [0.0, 0.2, 0.2]
    assert len({one.key for one in describer.asked}) == 3
    assert not any("boils" in one["content"] for one in guesser.asked[0].messages)


def test_a_describer_that_keeps_breaking_rules_ends_the_game_without_a_result():
    game = played(Says("d", *["CLUE: a kettle"] * 3), Says("g"))
    assert (game.outcome, game.turns, game.last_clue) == ("aborted", (), "")
    assert game.error == "describer: rule violation: 'kettle' (stem of 'kettle')"
    assert training_rows([game], SPEC).height == 0


@pytest.mark.parametrize("reply", ["GUESS: guess", "word", "GUESS: ", "?"])
def test_a_guess_that_is_none_is_asked_for_again_at_temperature_zero(reply):
    guesser = Says("g", reply, "GUESS: kettle")
    game = played(Says("d", "CLUE: It whistles."), guesser)
    assert game.outcome == "success"
    assert [one.temperature for one in guesser.asked] == [0.9, 0.0]
    (row,) = training_rows([game], SPEC).to_dicts()
    assert row["prompt"].count("USER:") == 1  # what did not count is not learned
    lost = played(Says("d", "CLUE: It whistles."), Says("g", reply, reply))
    assert (lost.outcome, lost.last_clue) == ("aborted", "It whistles.")
    assert lost.error.startswith("guesser: ")


def test_a_placeholder_is_a_guess_where_it_is_the_word():
    match = Match("game-1", "1", 0, Word("word", ("letters",), ("say",), "kitchen", "1"))
    assert played(Says("d", "CLUE: You say it."), Says("g", "GUESS: word"), match=match).outcome == "success"


def test_no_answer_aborts_and_what_was_used_still_counts():
    game = played(Says("d", "CLUE: It whistles.", None), Says("g", "GUESS: bird"))
    assert (game.outcome, game.error) == ("aborted", "describer: no answer (HTTP 500: no)")
    assert len(game.turns) == 1
    assert training_rows([game], SPEC).height == 0
    assert usage_table([game])["replies"].to_list() == [1, 1]


def test_braces_in_texts_stay_as_they_are():
    guesser = Says("g", "GUESS: kettle")
    played(Says("d", "CLUE: {clue} {turn}"), guesser)
    assert "CLUE: {clue} {turn}" in guesser.asked[0].messages[0]["content"]


def test_rows_have_the_published_layout_and_a_wrong_last_guess_is_kept_as_one():
    spec = SPEC.model_copy(update={"max_turns": 2, "system": "Be brief."})
    game = played(Says("d", "CLUE: It pours.", "CLUE: It whistles."), Says("g", "GUESS: jug", "A bird"), spec)
    rows = training_rows([game], spec)
    assert rows.columns == A7
    (row,) = rows.to_dicts()
    instruction = spec.guesser_prompt.replace("{clue}", "CLUE: It pours.")
    assert row["prompt"] == f"USER: {instruction}\n\nASSISTANT: GUESS: jug\n\nUSER: CLUE: It whistles."
    assert (row["completion"], row["final_guess_word"]) == ("GUESS: bird", "bird")
    assert (row["outcome"], row["target_word"], row["turn_count"]) == ("failure", "kettle", 2)
    assert [one["role"] for one in row["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    assert row["group_id"] == "kitchen::kettle"
    assert (row["generation_prompt_tokens"], row["generation_cost_usd"]) == (40, 2.0)


def test_games_of_one_word_are_one_group_whoever_played_them():
    games = [
        played(Says("d", "CLUE: It whistles."), Says(name, "GUESS: kettle"), match=Match(name, name, 0, WORD))
        for name in ("a", "b")
    ]
    rows = training_rows(games, SPEC)
    assert rows["group_id"].n_unique() == 1
    assert rows["row_id"].n_unique() == 2


def _some(n: int, outcome_of: Callable[[int], str]) -> list[Game]:
    games = []
    for i in range(n):
        word = Word(f"word{i}", (), ("a",), "t", str(i))
        reply = {"success": f"GUESS: word{i}", "failure": "GUESS: no", "aborted": None}[outcome_of(i)]
        match = Match(f"game-{i}", str(i), 0, word)
        games.append(played(Says("d", *["CLUE: hm"] * 3), Says("g", *[reply] * 3), match=match))
    return games


def test_rates_and_turns_are_of_finished_games_with_intervals():
    games = _some(40, lambda i: ["success", "failure", "failure", "aborted"][i % 4])
    results = results_table(games_table(games, SPEC))
    (own, total) = results.to_dicts()
    assert (own["guesser_model"], total["guesser_model"]) == ("g", "all")
    assert (total["games"], total["aborted"], total["words"]) == (40, 10, 30)
    assert total["success_rate"] == pytest.approx(1 / 3)
    assert total["success_low"] < 1 / 3 < total["success_high"]
    assert total["mean_turns"] == pytest.approx((1 + 3 + 3) / 3)
    assert total["turns_low"] < total["mean_turns"] < total["turns_high"]


def test_without_a_finished_game_there_is_no_rate():
    results = results_table(games_table(_some(3, lambda _: "aborted"), SPEC))
    assert results["success_rate"].to_list() == [None, None]


def test_usage_is_told_by_role_and_model_and_unknown_costs_stay_unknown():
    assert Usage(1, 5, 5) + Usage(1, 2, 2, 0.25) == Usage(2, 7, 7, 0.25)
    assert (Usage(1, 5, 5) + Usage(1)).cost_usd is None
    game = played(Says("d", "CLUE: It pours."), Says("g", "GUESS: kettle"))
    table = usage_table([game, game])
    assert table.select("role", "model", "replies", "prompt_tokens", "cost_usd").rows() == [
        ("describer", "d", 2, 20, 1.0),
        ("guesser", "g", 2, 20, 1.0),
    ]
