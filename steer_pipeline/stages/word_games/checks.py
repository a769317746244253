"""What must hold of word games. Games that broke a rule or were lost from the record stop what comes after."""

from collections.abc import Iterator

import dagster as dg

from steer_pipeline.lab.limits import MAX_ABORTED_GAMES, MIN_FINISHED_GAMES
from steer_pipeline.resources import ArtifactStoreResource
from steer_pipeline.settings import settings
from steer_pipeline.stages.kit import Claims, must, reader, should, user_errors

GAMES = Claims(
    "word_games",
    must(
        "every_game_once",
        "Every game that the profile asks for is there, once.",
        "materialise word_games again; what was said is kept",
    ),
    must(
        "clues_keep_the_rules",
        "No accepted clue says the word, a related one, or a form of either.",
        "materialise word_games again: rules or words have changed since",
    ),
    must(
        "rows_are_of_finished_games",
        "Rows are those of the games that were won or lost, one each, and of no aborted one.",
        "materialise word_games again",
    ),
    should(
        "few_games_aborted",
        f"At most {MAX_ABORTED_GAMES:.0%} of the games were aborted, or those left are the easy ones.",
        "read `aborted.parquet`; raise describer_repairs, or take a model that follows the rules",
    ),
    should(
        "enough_finished_games",
        f"There are at least {MIN_FINISHED_GAMES} finished games.",
        "raise word_games.n_games",
    ),
)


@GAMES.check()
def word_games_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether games were played by the rules, and are all there."""
    from steer_pipeline.lab.word_games import game_verdicts, read_word_games

    with user_errors():
        played = read_word_games(reader(context, store).folder("word_games"))
        found = list(game_verdicts(played, settings().profile.word_games))
    yield from map(GAMES.judged, found)


CHECKS = [word_games_checks]
