"""What must hold of word games before rows of them teach anything."""

from collections.abc import Iterator
from typing import Any

import polars as pl

from steer_pipeline.catalogue.word_games import WordGamesSpec
from steer_pipeline.lab.limits import MAX_ABORTED_GAMES, MIN_FINISHED_GAMES
from steer_pipeline.lab.verdict import Verdict
from steer_pipeline.lab.word_games.making import WordGames
from steer_pipeline.lab.word_games.rules import violations
from steer_pipeline.lab.word_games.tables import ALL, SOURCE

_SHOWN = 5


def game_verdicts(played: WordGames, spec: WordGamesSpec) -> Iterator[Verdict]:
    """The claims of stored games, from their rows alone."""
    yield _every_game_once(played, spec)
    yield _clues_keep_the_rules(played, spec)
    yield _rows_of_finished_games(played)
    yield _few_aborted(played)
    yield _enough_games(played)


def _every_game_once(played: WordGames, spec: WordGamesSpec) -> Verdict:
    ids = [*played.games["game_id"], *played.aborted["game_id"]]
    wanted = spec.n_games * len(spec.guessers)
    return Verdict(
        "every_game_once",
        len(set(ids)) == len(ids) == wanted,
        f"{len(set(ids))} different games of {len(ids)} stored, {wanted} asked for",
        {"games": len(ids), "asked_for": wanted},
    )


def _clues_keep_the_rules(played: WordGames, spec: WordGamesSpec) -> Verdict:
    broken: list[dict[str, Any]] = []
    n_clues = 0
    for game in pl.concat([played.games, played.aborted]).iter_rows(named=True):
        clues = [
            *(turn["clue"] for turn in game["turns"]),
            *([game["last_clue"]] if game["last_clue"] else []),
        ]
        n_clues += len(clues)
        for clue in clues:
            found = violations(clue, game["target_word"], game["related_words"], prefix_rule=spec.prefix_rule)
            if found:
                broken.append({"game": game["game_id"], "clue": clue, "says": ", ".join(map(str, found))})
    return Verdict(
        "clues_keep_the_rules",
        not broken,
        f"{len(broken)} of {n_clues} accepted clues say the word, a related one or a form of either",
        {"clues": n_clues, "violations": len(broken)},
        broken[:_SHOWN],
    )


def _rows_of_finished_games(played: WordGames) -> Verdict:
    wanted = {f"{SOURCE}-{name}" for name in played.games["game_id"]}
    rows = played.rows["row_id"].to_list()
    unfinished = played.rows.filter(~pl.col("outcome").is_in(["success", "failure"])).height
    strange = sorted({*rows} ^ wanted)
    return Verdict(
        "rows_are_of_finished_games",
        not strange and not unfinished and len(set(rows)) == len(rows),
        f"{len(rows)} rows of {len(wanted)} finished games; {len(strange)} on one side alone, {unfinished} without a "
        "result",
        {"rows": len(rows), "finished_games": len(wanted)},
        [{"row": name} for name in strange[:_SHOWN]],
    )


def _few_aborted(played: WordGames) -> Verdict:
    n = played.games.height + played.aborted.height
    share = played.aborted.height / max(n, 1)
    reasons = ", ".join(f"{count} {why}" for why, count in played.summary["aborted_because"].items())
    return Verdict(
        "few_games_aborted",
        share <= MAX_ABORTED_GAMES,
        f"{played.aborted.height} of {n} games ({share:.0%}) were aborted, at most {MAX_ABORTED_GAMES:.0%} may be"
        + (f": {reasons}" if reasons else ""),
        {"aborted_share": share},
        played.aborted.select("game_id", "target_word", "error").head(_SHOWN).to_dicts(),
    )


def _enough_games(played: WordGames) -> Verdict:
    row = played.results.row(by_predicate=pl.col("guesser_model") == ALL, named=True)
    finished = row["games"] - row["aborted"]
    rate = (
        f"success rate {row['success_rate']:.2f} [{row['success_low']:.2f}, {row['success_high']:.2f}], "
        f"{row['mean_turns']:.2f} turns"
        if finished
        else "no success rate"
    )
    return Verdict(
        "enough_finished_games",
        finished >= MIN_FINISHED_GAMES,
        f"{finished} finished games with {row['words']} words, at least {MIN_FINISHED_GAMES} are wanted; {rate}",
        {"finished_games": finished, "words": row["words"]},
    )
