"""Word games, played by the profile's model or by models behind endpoints."""

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import dagster as dg

from steer_pipeline.io.journals import open_answers
from steer_pipeline.lineage import MODEL, made_of
from steer_pipeline.resources import ArtifactStoreResource, LanguageModelResource
from steer_pipeline.settings import settings
from steer_pipeline.stages.kit import cpu, folder, gpu, user_errors
from steer_pipeline.stages.word_games import metadata

SPEC = settings().profile.word_games
LOCAL = any(player.kind == "local" for player in (SPEC.describer, *SPEC.guessers))
BUNDLE: dict[str, Any] = (gpu if LOCAL else cpu)(
    "attribution", io_manager_key="bundle_io", kinds={"pytorch" if LOCAL else "openai", "parquet"}
)


def _version() -> str:
    """With the instances that the profile names: they are a file, which is none of its sections."""
    version = made_of("1", "word_games", *((*MODEL, "model.chat_template") if LOCAL else ()))
    if SPEC.instances is None:
        return version
    file = settings().home / SPEC.instances
    return f"{version} instances={sha256(file.read_bytes()).hexdigest()[:8] if file.is_file() else 'missing'}"


@dg.asset(
    code_version=_version(),
    deps=["model_weights", "tokenizer", "chat_template"] if LOCAL else [],
    **BUNDLE,
)
def word_games(
    store: ArtifactStoreResource, language_model: LanguageModelResource
) -> Iterator[dg.Output[Path]]:
    """Games of Taboo: a describer gives clues without saying a word, a guesser has a few turns to name it.

    `games.parquet`: finished games with their turns and what was rejected on the way; `aborted.parquet`: those without
    a result, which teach nothing. `rows.parquet`: one row a finished game to learn from. `results.parquet`: success
    and turns a guesser, with intervals over words; `usage.parquet`: tokens and cost a model; `words.parquet`: the list.
    Replies are kept as they come: a killed run goes on where it was.
    """
    from steer_pipeline.lab.endpoints import EndpointUnavailable
    from steer_pipeline.lab.word_games import make_word_games

    with folder("word_games") as made:
        try:
            with user_errors():
                played = make_word_games(
                    settings().profile.word_games,
                    settings().home,
                    made,
                    answers=open_answers(store.store(), "word_games", "player"),
                    load=language_model.load,
                    url=settings().games_url,
                )
        except EndpointUnavailable as error:
            raise dg.Failure(str(error)) from error
        yield dg.Output(made, metadata=metadata.of_games(played))


ASSETS = [word_games]
