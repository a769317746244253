"""What the steps of attribution read: sources, the manifest with its ids, the base adapter, rankings, all players.

In: a reader of the store and the profile. Out: values that `lab/attribution` and `lab/sae` take. Runs no model.
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from steer_pipeline.catalogue.attribution import (
    PREDICTED,
    AttributionSpec,
    CardsSpec,
    ChatSpec,
    GamesSpec,
    InteractionsSpec,
    PackSpec,
    tried,
)
from steer_pipeline.catalogue.attribution_scoring import AttributionScoringSpec
from steer_pipeline.catalogue.specs import ModelSpec, Profile
from steer_pipeline.io.reader import Reader
from steer_pipeline.lab.attribution.encoding import SEEN, Encoder, note_seen, read_examples, write_ids
from steer_pipeline.lab.attribution.manifest import (
    MANIFEST,
    Manifest,
    make_manifest,
    read_manifest,
    write_manifest,
)
from steer_pipeline.lab.attribution.quality_table import PROTOCOL, QUALITY
from steer_pipeline.lab.attribution.rows import EVAL, QUERY, SELECTION, TRAIN, text_rows
from steer_pipeline.lab.attribution.scoring.methods import Direction, Scoring
from steer_pipeline.lab.attribution.scoring.passes import Progress
from steer_pipeline.lab.attribution.scoring.quality import Retrainings, agreement
from steer_pipeline.lab.attribution.scoring.ranking import Ranking
from steer_pipeline.lab.attribution.soundness import Trial
from steer_pipeline.lab.attribution.sources.cards import card_rows
from steer_pipeline.lab.attribution.sources.games import game_rows
from steer_pipeline.lab.attribution.sources.interactions import interaction_rows
from steer_pipeline.lab.attribution.sources.packs import pack_rows
from steer_pipeline.lab.attribution.sources.smoltalk import chat_rows
from steer_pipeline.lab.attribution.subsets import BUDGETS
from steer_pipeline.lab.attribution.word_eval import GUESSES
from steer_pipeline.lab.finetune.bundles import place
from steer_pipeline.lab.finetune.data import Example, digest, encode_examples
from steer_pipeline.lab.sae.stage import read_predictor
from steer_pipeline.lab.students.data import released_keep_set
from steer_pipeline.lab.vectors.vector import load_vector
from steer_pipeline.lab.verdict import Verdict

RANKING, COSTS = "ranking.parquet", "numbers.json"


# ------------------------------------------------------------------------------------ rows


def make_rows(read: Reader, profile: Profile, home: Path, encode: Encoder, folder: Path) -> Manifest:
    """Reads all sources, splits them and writes manifest and ids.

    Raises:
        AttributionError: a source cannot be read, or a split stays empty.
        StoreError: a source has not been made.
    """
    frames, left_out = [], Counter[str]()
    for source in profile.attribution.sources:
        match source:
            case CardsSpec():
                frames.append(card_rows(source))
            case PackSpec():
                frames.append(pack_rows(source, released_keep_set(read, source.variant), profile))
            case GamesSpec():
                frames.append(game_rows(source, read.folder("word_games")))
            case InteractionsSpec() | ChatSpec():
                found = (
                    chat_rows(source, home)
                    if isinstance(source, ChatSpec)
                    else interaction_rows(source, home)
                )
                frames.append(found.rows)
                left_out.update(found.left_out)
    manifest = make_manifest(frames, profile.attribution.splits, encode, left_out)
    write_manifest(manifest, folder)
    write_ids(manifest.rows, encode(manifest.rows), folder)
    return manifest


@dataclass(frozen=True)
class Rows:
    """The stored manifest and the ids of its rows; every consumer is given these and no others."""

    folder: Path

    @property
    def manifest(self) -> Manifest:
        return read_manifest(self.folder)

    @property
    def pool(self) -> list[Example]:
        return read_examples(self.folder, TRAIN)

    @property
    def queries(self) -> list[Example]:
        return read_examples(self.folder, QUERY)

    @property
    def selection(self) -> list[Example]:
        return read_examples(self.folder, SELECTION)

    @property
    def eval(self) -> list[Example]:
        return read_examples(self.folder, EVAL)

    @property
    def all(self) -> list[Example]:
        return read_examples(self.folder)


def read_manifest_rows(read: Reader) -> Rows:
    """The current manifest.

    Raises:
        StoreError: it has not been made.
    """
    return Rows(read.folder("sft_manifest"))


def learned_rows(rows: Rows, subsets: pl.DataFrame, arm: str) -> dict[int, list[Example]]:
    """seed -> examples of the rows that an arm learns, in the order of its subset."""
    pool = {one.row_id: one for one in rows.pool}
    own = subsets.filter(arm=arm)
    return {
        seed: [pool[name] for name in own.filter(seed=seed)["row_id"]]
        for seed in own["seed"].unique(maintain_order=True)
    }


# ------------------------------------------------------------------------------------ rankings


def base_adapter(read: Reader, spec: AttributionSpec) -> Path:
    """Folder of the adapter that learned the whole pool."""
    return read.folder("base_adapter") / place(spec.seed)


def scoring_of(
    read: Reader, rows: Rows, model: ModelSpec, home: Path, spec: AttributionSpec, name: str
) -> Scoring:
    """What is ranked by the method `name`, on which models, and for which queries."""
    adapter = base_adapter(read, spec)
    aimed = spec.scoring.methods[name].kind == "direction"
    return Scoring(
        model.model_copy(update={"adapter": (*model.adapters, str(adapter))}),
        model,
        home,
        tuple(rows.pool),
        tuple(rows.queries),
        spec.scoring,
        _direction(read, spec) if aimed else None,
    )


def make_trial(
    read: Reader,
    rows: Rows,
    model: ModelSpec,
    home: Path,
    profile: Profile,
    tokenizer: Any,
    work: Path,
    progress: Progress | None,
) -> Trial:
    """What the methods of `attribution.sanity` are tried on."""
    spec = profile.attribution
    methods = tried(spec)
    aimed = [name for name in methods if spec.scoring.methods[name].kind == "direction"]
    method = (aimed or methods)[0]
    return Trial(
        scoring_of(read, rows, model, home, spec, method),
        text_rows(rows.manifest.split(TRAIN)),
        text_rows(rows.manifest.split(QUERY)),
        rows.selection,
        partial(encode_examples, tokenizer, chat_template=profile.model.chat_template),
        spec.learn,
        spec.seed,
        work,
        progress,
    )


def _direction(read: Reader, spec: AttributionSpec) -> Direction:
    assert spec.direction is not None  # the profile says so
    vector = load_vector(read.folder("persona_vector", spec.direction))
    block = vector.default_block
    return Direction(block, vector.unit_at(block))


def write_ranking(made: Ranking, scoring: Scoring, folder: Path) -> None:
    """The ranking, what it cost, and which ids it was made on."""
    made.table.write_parquet(folder / RANKING)
    (folder / COSTS).write_text(json.dumps(dict(made.numbers), indent=1, sort_keys=True) + "\n")
    note_seen([*scoring.pool, *scoring.queries], folder)


def read_ranking(name: str, folder: Path) -> Ranking:
    """What `write_ranking` wrote."""
    return Ranking(name, pl.read_parquet(folder / RANKING), json.loads((folder / COSTS).read_text()))


def read_rankings(read: Reader, names: Sequence[str], *, all_of_them: bool = True) -> dict[str, Ranking]:
    """Rankings of some methods, from the store.

    Args:
        all_of_them: False: those that there are; a method whose tool is not installed has none.

    Raises:
        StoreError: one is missing, or all are.
    """
    found = {name: read.current("attribution_ranking", name) for name in names}
    if all_of_them or not any(found.values()):
        return {name: read_ranking(name, read.folder("attribution_ranking", name)) for name in names}
    return {name: read_ranking(name, one.path) for name, one in found.items() if one is not None}


def scores_of_arms(read: Reader, spec: AttributionSpec) -> dict[str, dict[str, float]]:
    """method -> row -> score, of all rankings that arms use; that of features by their held-out predictions."""
    used = dict.fromkeys(arm.ranking for arm in spec.arms.values() if arm.ranking is not None)
    methods = [name for name in used if name != PREDICTED]
    found = {name: made.scores for name, made in read_rankings(read, methods).items()}
    if PREDICTED in used:
        told = read_predictor(read.folder("rank_predictor")).predictions
        found[PREDICTED] = {name: -float(rank) for name, rank in told.select("row_id", "rank").iter_rows()}
    return found


def rows_to_predict(read: Reader, spec: AttributionSpec) -> pl.DataFrame:
    """Rows of the pool with `score` of the ranking that features are to tell, and their `loss` where a method has it.

    Rows without a score are left out.
    """
    target = read_rankings(read, [spec.predict])[spec.predict]
    losses = [name for name, method in spec.scoring.methods.items() if method.kind == "loss"][:1]
    loss = {
        name: value for made in read_rankings(read, losses).values() for name, value in made.scores.items()
    }
    pool = read_manifest_rows(read).manifest.split(TRAIN).filter(pl.col("row_id").is_in(list(target.scores)))
    return pool.with_columns(
        score=pl.Series([target.scores[name] for name in pool["row_id"]], dtype=pl.Float64),
        loss=pl.Series([loss.get(name) for name in pool["row_id"]], dtype=pl.Float64),
    )


def agreements(rankings: Mapping[str, Ranking], spec: AttributionScoringSpec) -> dict[str, dict[str, float]]:
    """`one = other` -> how far two back ends agree, of methods that differ in nothing else."""
    same: dict[str, list[str]] = {}
    for name in rankings:
        told = spec.methods[name].model_dump(mode="json")
        if told.pop("back_end", None) is not None:
            same.setdefault(json.dumps(told, sort_keys=True), []).append(name)
    pairs = [names for names in same.values() if len(names) == 2]
    return {f"{one} = {other}": agreement(rankings[one], rankings[other]) for one, other in pairs}


def ranking_verdict(made: Ranking) -> Verdict:
    """Whether every row of the pool has a score; a row without one says why."""
    failed = made.table.filter(pl.col("failed").is_not_null())
    scored = made.table.height - failed.height
    message = f"{scored} of {made.table.height} rows have a score"
    if failed.height:
        message += f"; {failed['failed'][0]}" if failed["failed"].n_unique() == 1 else "; for several reasons"
    examples = [
        {"row": name, "why": why} for name, why in failed.head(5).select("row_id", "failed").iter_rows()
    ]
    return Verdict("every_row_is_scored", not failed.height, message, {"coverage": made.coverage}, examples)


# ------------------------------------------------------------------------------------ quality


def retrainings_of(
    rows: Rows, model: ModelSpec, home: Path, spec: AttributionSpec, work: Path, progress: Progress | None
) -> Retrainings:
    """Trainings of the pool without some rows; what they cost is kept in `work`, by the training that they are of."""
    queries, pool = tuple(rows.queries), tuple(rows.pool)
    replay = Scoring(model, model, home, pool, queries, spec.scoring).replay()
    made_of = [str(replay.below), replay.recipe.model_dump_json(), digest(pool), digest(queries)]
    key = hashlib.sha256("\x1f".join([*made_of, *(one.row_id for one in pool)]).encode()).hexdigest()[:16]
    return Retrainings(replay, work / f"{key}.txt", progress)


@dataclass(frozen=True, eq=False)
class TableInputs:
    """What the results are made of."""

    guesses: pl.DataFrame
    quality: pl.DataFrame
    budgets: pl.DataFrame
    protocol: dict[str, Any]
    manifest: dict[str, Any]


def read_table_inputs(read: Reader, players: Sequence[str]) -> TableInputs:
    """Guesses of all players that have played, and the tables beside them.

    Raises:
        StoreError: a table, or guesses of every player, have not been made.
    """
    versions = [read.current("word_eval", player) for player in players]
    guesses = [pl.read_parquet(one.path / GUESSES) for one in versions if one is not None]
    return TableInputs(
        pl.concat(guesses) if guesses else pl.read_parquet(read.folder("word_eval", players[0]) / GUESSES),
        pl.read_parquet(read.folder("attribution_quality") / QUALITY),
        pl.read_parquet(read.folder("attribution_subsets") / BUDGETS),
        json.loads((read.folder("subset_losses") / PROTOCOL).read_text()),
        json.loads((read.folder("sft_manifest") / MANIFEST).read_text()),
    )


# ------------------------------------------------------------------------------------ who saw what


def seen_by(read: Reader, places: Sequence[tuple[str, str | None]]) -> dict[str, pl.DataFrame]:
    """consumer -> ids that it was given, of all that have been made."""
    found = {}
    for asset, partition in places:
        version = read.current(asset, partition)
        if version is not None and (version.path / SEEN).is_file():
            found[asset if partition is None else f"{asset}[{partition}]"] = pl.read_parquet(
                version.path / SEEN
            )
    return found


def forget(work: Path) -> None:
    """Work of a step whose result is in the store."""
    shutil.rmtree(work, ignore_errors=True)
