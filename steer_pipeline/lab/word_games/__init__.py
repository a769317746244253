"""The word game: one player describes a word without saying it, another guesses it.

`make_word_games` plays all games of a profile and writes them; `training_rows` are what a model can learn from them.
`read_guess` is how a guess is read, here and wherever guesses are judged.
"""

from steer_pipeline.lab.word_games.claims import game_verdicts
from steer_pipeline.lab.word_games.making import WordGames, make_word_games, play_games, read_word_games
from steer_pipeline.lab.word_games.playing import Game, Turn
from steer_pipeline.lab.word_games.rules import read_clue, read_guess, violations
from steer_pipeline.lab.word_games.tables import ROWS_COLUMNS, ROWS_SCHEMA, training_rows
from steer_pipeline.lab.word_games.words import Match, Word, WordError, matches, word_list

__all__ = [
    "ROWS_COLUMNS",
    "ROWS_SCHEMA",
    "Game",
    "Match",
    "Turn",
    "Word",
    "WordError",
    "WordGames",
    "game_verdicts",
    "make_word_games",
    "matches",
    "play_games",
    "read_clue",
    "read_guess",
    "read_word_games",
    "training_rows",
    "violations",
    "word_list",
]
