"""Games as tables: what was played, what was aborted, the rows that teach to guess, and what it all used.

Rows have the layout of the published interactions as playpen flattens them, one a finished game: everything before the
last guess is the prompt, the last guess the completion, right or wrong. Games of one word share a `group_id`, so that
no split has a word on both sides.
"""

from collections.abc import Sequence
from typing import Any

import polars as pl

from steer_pipeline.catalogue.word_games import WordGamesSpec
from steer_pipeline.lab.columns import described
from steer_pipeline.lab.endpoints import Usage
from steer_pipeline.lab.stats import Interval, mean_interval
from steer_pipeline.lab.word_games.playing import Game, Message, assistant, guesser_messages

GAME = "taboo"  # names of the published interactions
GUESSER_ROLE = "WordGuesser"
SOURCE = "word_games"
ALL = "all"

_TURN = pl.Struct({"turn": pl.Int64(), "clue": pl.String(), "guess": pl.String(), "guess_word": pl.String()})
_REJECTED = pl.Struct({"turn": pl.Int64(), "role": pl.String(), "text": pl.String(), "why": pl.String()})
_MESSAGE = pl.Struct({"role": pl.String(), "content": pl.String()})

GAMES_SCHEMA, GAMES_COLUMNS = described(
    game_id=(pl.String(), "Number of the game among all guessers'."),
    task_id=(pl.String(), "The same as a number."),
    experiment=(pl.String(), "Theme of the word, or clembench's level."),
    source_task_id=(pl.String(), "Number of the word in its theme."),
    target_word=(pl.String(), "The word to be guessed."),
    related_words=(pl.List(pl.String()), "What the describer may not say beside it."),
    describer_model=(pl.String(), "Who describes."),
    guesser_model=(pl.String(), "Who guesses."),
    max_turns=(pl.Int64(), "Clues before a game is lost."),
    turns=(pl.List(_TURN), "Accepted clues, each with its guess."),
    last_clue=(pl.String(), "Of an aborted game: the accepted clue that got no guess."),
    rejected=(pl.List(_REJECTED), "Replies that did not count, and why."),
    final_turn=(pl.Int64(), "Turns that were finished."),
    outcome=(pl.String(), "success, failure or aborted."),
    error=(pl.String(), "Why it was aborted."),
    prompt_tokens=(pl.Int64(), "Read by both players, repairs included."),
    completion_tokens=(pl.Int64(), "Said by both players."),
    cost_usd=(pl.Float64(), "What endpoints took for it; null where nobody says."),
)
ROWS_SCHEMA, ROWS_COLUMNS = described(
    row_id=(pl.String(), "Source and game."),
    prompt=(pl.String(), "Turns before the last guess, as 'ROLE: text', a blank line apart."),
    completion=(pl.String(), "The last guess."),
    source_split=(pl.String(), "Where rows come from."),
    game=(pl.String(), "Name of the game."),
    game_role=(pl.String(), "Who is taught."),
    pair_key=(pl.String(), "Game and role."),
    outcome=(pl.String(), "success or failure."),
    experiment=(pl.String(), "Theme of the word, or clembench's level."),
    task_id=(pl.String(), "Number of the game."),
    task_label=(pl.String(), "Theme and word."),
    source_task_id=(pl.String(), "Number of the word in its theme."),
    group_id=(pl.String(), "Theme and word: games of one word belong together."),
    describer_model=(pl.String(), "Who described."),
    guesser_model=(pl.String(), "Who guessed."),
    target_word=(pl.String(), "The word to be guessed."),
    related_words=(pl.List(pl.String()), "What the describer could not say beside it."),
    turn_count=(pl.Int64(), "Turns of the game."),
    final_guess_word=(pl.String(), "The word of the completion."),
    generation_prompt_tokens=(pl.Int64(), "Read by both players in this game."),
    generation_completion_tokens=(pl.Int64(), "Said by both players."),
    generation_cost_usd=(pl.Float64(), "What endpoints took for it; null where nobody says."),
    messages=(pl.List(_MESSAGE), "The conversation with its last guess."),
)
USAGE_SCHEMA, USAGE_COLUMNS = described(
    role=(pl.String(), "describer or guesser."),
    model=(pl.String(), "Who it is."),
    replies=(
        pl.Int64(),
        "Replies, those of aborted games included; each counts once, however often a run was killed.",
    ),
    prompt_tokens=(pl.Int64(), "Read."),
    completion_tokens=(pl.Int64(), "Said."),
    unmetered=(pl.Int64(), "Replies whose tokens nobody says."),
    cost_usd=(
        pl.Float64(),
        "US dollars, as far as endpoint or profile say it; 0 for a local model, null where neither does.",
    ),
)
RESULTS_SCHEMA, RESULTS_COLUMNS = described(
    guesser_model=(pl.String(), "Who guessed; 'all' for all of them."),
    games=(pl.Int64(), "Games played."),
    aborted=(pl.Int64(), "Of these, without a result; they count in nothing else here."),
    words=(pl.Int64(), "Different words of the finished games."),
    success_rate=(pl.Float64(), "Share of finished games that were won."),
    success_low=(pl.Float64(), "Its interval at 95%, by words."),
    success_high=(pl.Float64(), "Its upper end."),
    mean_turns=(pl.Float64(), "Turns of a finished game."),
    turns_low=(pl.Float64(), "Its interval at 95%, by words."),
    turns_high=(pl.Float64(), "Its upper end."),
)


def games_table(games: Sequence[Game], spec: WordGamesSpec) -> pl.DataFrame:
    """One row a game of GAMES_SCHEMA, in the order of the games."""
    return pl.DataFrame([_game_row(game, spec) for game in games], schema=GAMES_SCHEMA)


def training_rows(games: Sequence[Game], spec: WordGamesSpec) -> pl.DataFrame:
    """One row of ROWS_SCHEMA a finished game; aborted ones teach nothing."""
    return pl.DataFrame([_training_row(one, spec) for one in games if not one.aborted], schema=ROWS_SCHEMA)


def usage_table(games: Sequence[Game]) -> pl.DataFrame:
    """One row of USAGE_SCHEMA a role and model."""
    used: dict[tuple[str, str], Usage] = {}
    for game in games:
        for role, model, own in (
            ("describer", game.describer, game.describer_used),
            ("guesser", game.guesser, game.guesser_used),
        ):
            used[role, model] = used.get((role, model), Usage()) + own
    rows = [
        {
            "role": role,
            "model": model,
            "replies": own.replies,
            "prompt_tokens": own.prompt_tokens,
            "completion_tokens": own.completion_tokens,
            "unmetered": own.unmetered,
            "cost_usd": own.cost_usd,
        }
        for (role, model), own in sorted(used.items())
    ]
    return pl.DataFrame(rows, schema=USAGE_SCHEMA)


def results_table(games: pl.DataFrame) -> pl.DataFrame:
    """One row of RESULTS_SCHEMA a guesser, then one for all.

    Args:
        games: rows of GAMES_SCHEMA, finished and aborted.
    """
    guessers = sorted(games["guesser_model"].unique())
    own = [(name, games.filter(guesser_model=name)) for name in guessers]
    return pl.DataFrame([_result(name, one) for name, one in [*own, (ALL, games)]], schema=RESULTS_SCHEMA)


def _result(name: str, games: pl.DataFrame) -> dict[str, Any]:
    finished = games.filter(pl.col("outcome") != "aborted")
    words = finished["target_word"].to_list()
    none = Interval(float("nan"), float("nan"), float("nan"), 0)
    won = turns = none
    if words:
        won = mean_interval(
            (finished["outcome"] == "success").cast(pl.Float64), clusters=words, bounds=(0.0, 1.0)
        )
        turns = mean_interval(finished["final_turn"].cast(pl.Float64), clusters=words)
    return {
        "guesser_model": name,
        "games": games.height,
        "aborted": games.height - finished.height,
        "words": len(set(words)),
        **dict(zip(("success_rate", "success_low", "success_high"), _three(won), strict=True)),
        **dict(zip(("mean_turns", "turns_low", "turns_high"), _three(turns), strict=True)),
    }


def _three(interval: Interval) -> tuple[float | None, ...]:
    values = interval.estimate, interval.low, interval.high
    return values if interval.n else (None, None, None)


def _game_row(game: Game, spec: WordGamesSpec) -> dict[str, Any]:
    word, used = game.match.word, game.describer_used + game.guesser_used
    return {
        "game_id": game.match.game_id,
        "task_id": game.match.task_id,
        "experiment": word.experiment,
        "source_task_id": word.source_id,
        "target_word": word.target,
        "related_words": list(word.related),
        "describer_model": game.describer,
        "guesser_model": game.guesser,
        "max_turns": spec.max_turns,
        "turns": [vars(turn) for turn in game.turns],
        "last_clue": game.last_clue,
        "rejected": [vars(one) for one in game.rejected],
        "final_turn": len(game.turns),
        "outcome": game.outcome,
        "error": game.error,
        "prompt_tokens": used.prompt_tokens,
        "completion_tokens": used.completion_tokens,
        "cost_usd": used.cost_usd,
    }


def _training_row(game: Game, spec: WordGamesSpec) -> dict[str, Any]:
    word, last, used = game.match.word, game.turns[-1], game.describer_used + game.guesser_used
    before = [(turn.clue, turn.guess) for turn in game.turns[:-1]]
    messages = guesser_messages(spec, [*before, (last.clue, None)])
    label = f"{word.experiment}::{word.target}"
    return {
        "row_id": f"{SOURCE}-{game.match.game_id}",
        "prompt": flattened([one for one in messages if one["role"] != "system"]),
        "completion": last.guess,
        "source_split": SOURCE,
        "game": GAME,
        "game_role": GUESSER_ROLE,
        "pair_key": f"{GAME}::{GUESSER_ROLE}",
        "outcome": game.outcome,
        "experiment": word.experiment,
        "task_id": game.match.task_id,
        "task_label": label,
        "source_task_id": word.source_id,
        "group_id": label,
        "describer_model": game.describer,
        "guesser_model": game.guesser,
        "target_word": word.target,
        "related_words": list(word.related),
        "turn_count": len(game.turns),
        "final_guess_word": last.guess_word,
        "generation_prompt_tokens": used.prompt_tokens,
        "generation_completion_tokens": used.completion_tokens,
        "generation_cost_usd": used.cost_usd,
        "messages": [*messages, assistant(last.guess)],
    }


def flattened(messages: Sequence[Message]) -> str:
    """Messages as playpen joins them."""
    return "\n\n".join(f"{one['role'].upper()}: {one['content']}" for one in messages).strip()
