"""All players of held-out games: the model itself, the base adapter, and the adapters of an arm by seed.

In: adapters of a player by seed, and what loads a model with them. Out: guesses of all seeds, written with what was
read.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from steer_pipeline.catalogue.attribution import AttributionSpec
from steer_pipeline.io.reader import Reader
from steer_pipeline.lab.attribution.rows import EVAL
from steer_pipeline.lab.attribution.stage import Rows, base_adapter
from steer_pipeline.lab.attribution.word_eval import NO_SEED, play, write_guesses
from steer_pipeline.lab.finetune.bundles import ADAPTERS
from steer_pipeline.lab.models.loaded import LoadedModel

Adapters = Mapping[int, Sequence[Path]]  # seed -> folders of adapters, the lowest first


def players_of(read: Reader, spec: AttributionSpec, arm: str) -> Adapters:
    """The adapters with which a player plays, by seed; none for the model itself.

    Raises:
        StoreError: they have not been trained.
    """
    if arm == "base":
        return {NO_SEED: ()}
    below = base_adapter(read, spec)
    if arm == "base_adapter":
        return {spec.seed: (below,)}
    folder = read.folder("continuation_adapter", arm)
    under = (below,) if spec.arms[arm].mode == "continued" else ()
    made = pl.read_parquet(folder / ADAPTERS)
    return {seed: (*under, folder / name) for seed, name in made.select("seed", "folder").iter_rows()}


def seeds_of(spec: AttributionSpec, arm: str) -> Sequence[int]:
    """Under which seeds a player plays."""
    return {"base": [NO_SEED], "base_adapter": [spec.seed]}.get(arm, spec.seeds)


def play_all(
    arm: str,
    adapters: Adapters,
    rows: Rows,
    load: Callable[[Any], LoadedModel],
    folder: Path,
    *,
    max_new_tokens: int,
    journal: Callable[[str], Any] | None = None,
) -> pl.DataFrame:
    """Guesses of one player under all its seeds, in the held-out games, written into `folder`."""
    games, examples = rows.manifest.split(EVAL), rows.eval
    found = []
    for seed, folders in adapters.items():
        model = load([str(one) for one in folders] or None)
        book = None if journal is None else journal(f"{arm}-{seed}")
        found.append(
            play(arm, model, games, examples, seed=seed, max_new_tokens=max_new_tokens, journal=book)
        )
    guesses = pl.concat(found)
    write_guesses(guesses, examples, folder)
    return guesses
