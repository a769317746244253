"""What a person sees of word games: some of them as they were played, success by guesser, what they cost."""

from typing import TYPE_CHECKING, Any

import dagster as dg

from steer_pipeline import show

if TYPE_CHECKING:
    from steer_pipeline.lab.word_games import WordGames

SHOWN = 6


def of_games(played: "WordGames") -> dict[str, Any]:
    """Games, results and usage as tables, and the counts."""
    from steer_pipeline.lab.word_games.tables import RESULTS_COLUMNS, USAGE_COLUMNS

    games = [
        {
            "word": game["target_word"],
            "outcome": game["outcome"],
            "game": " / ".join(f"{turn['clue']} {turn['guess_word']}" for turn in game["turns"]),
        }
        for game in played.games.head(SHOWN).iter_rows(named=True)
    ]
    return {
        "games": show.samples(games),
        "results": show.markdown_table(played.results, RESULTS_COLUMNS),
        "usage": show.markdown_table(played.usage, USAGE_COLUMNS),
        "aborted_because": dg.MetadataValue.json(played.summary["aborted_because"]),
        "finished_games": played.games.height,
        "aborted_games": played.aborted.height,
        "rows": played.rows.height,
    }
