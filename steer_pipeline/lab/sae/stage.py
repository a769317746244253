"""The three steps of the stage: an autoencoder with its fidelity, features of the pool, ranks predicted from them.

In: a model, rows as ids, a ranking, the profile's `sae`. Out: folders that hold all that checks and reports read. Knows
nothing of where rows and rankings come from.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from steer_pipeline.catalogue.sae import RankPredictorSpec, SaeFeaturesSpec, SaeSpec
from steer_pipeline.lab.finetune.data import Example, in_keyed_order
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.sites import resolve_site
from steer_pipeline.lab.sae.claims import (
    beats_what_costs_nothing,
    every_row_has_features,
    groups_stay_whole,
    is_sparse,
    reconstructs,
    same_ids,
)
from steer_pipeline.lab.sae.dictionary import Sae, SaeError
from steer_pipeline.lab.sae.features import FEATURES, write_features
from steer_pipeline.lab.sae.fidelity import Fidelity, fidelity
from steer_pipeline.lab.sae.formats import at_block, read_sae, require_fit, write_sae
from steer_pipeline.lab.sae.predictor import RankPrediction, predict_ranks
from steer_pipeline.lab.sae.training import HISTORY_SCHEMA, TrainedSae, collect_states, train_sae
from steer_pipeline.lab.stats import Interval
from steer_pipeline.lab.verdict import Verdict

FIDELITY, HISTORY, NUMBERS = "fidelity.parquet", "history.parquet", "sae.json"
PREDICTIONS, QUALITY, GAINS, METADATA = (
    "predictions.parquet",
    "quality.parquet",
    "gains.parquet",
    "metadata.parquet",
)


@dataclass(frozen=True, eq=False)
class MadeSae:
    """An autoencoder and what is known of it.

    Attributes:
        history: of `training.HISTORY_SCHEMA`; empty for a published one.
        trained: whether it was trained here.
    """

    sae: Sae
    fidelity: Fidelity
    history: pl.DataFrame
    trained: bool

    @property
    def verdicts(self) -> list[Verdict]:
        return [
            reconstructs(self.fidelity),
            is_sparse(self.fidelity, self.sae.n_features, trained=self.trained),
        ]


def make_sae(
    model: LoadedModel,
    home: Path,
    train: Sequence[Example],
    held_out: Sequence[Example],
    spec: SaeSpec,
    folder: Path,
    progress: Callable[[str], None] | None = None,
) -> MadeSae:
    """Reads or trains an autoencoder, measures it on held-out rows and writes all of it to `folder`, in the layout of
    sae-lens: `cfg.json`, `sae_weights.safetensors`; of a trained one `sparsity.safetensors`; `fidelity.parquet`,
    `history.parquet` and `sae.json` beside.

    Args:
        home: project root, where relative directories start.
        train: rows of the pool; a published autoencoder does not look at them.
        held_out: rows of no other use; never those of eval.

    Raises:
        SaeError: no such directory, an autoencoder of another model, or rows that are too few.
    """
    overlapping = {one.row_id for one in train} & {one.row_id for one in held_out}
    if overlapping:
        raise SaeError(f"row {min(overlapping)!r} is in the pool and held out; split them again")
    trained: TrainedSae | None = None
    if spec.folder is not None:
        sae = at_block(read_sae(home / spec.folder), spec.block)
    else:
        trained = _trained(model, train, spec, progress)
        sae = trained.sae
    require_fit(sae, model)
    seed = spec.training.seed
    rows = in_keyed_order(held_out, seed)[: spec.fidelity_rows]
    density = None if trained is None else (trained.density, trained.n_tokens)
    history = pl.DataFrame(schema=HISTORY_SCHEMA) if trained is None else trained.history
    made = MadeSae(sae, fidelity(model, sae, rows, seed=seed, density=density), history, trained is not None)
    write_sae(sae, folder, None if trained is None else trained.density)
    made.fidelity.rows.write_parquet(folder / FIDELITY)
    history.write_parquet(folder / HISTORY)
    numbers = {"trained": made.trained, "source": spec.folder, **made.fidelity.numbers}
    (folder / NUMBERS).write_text(json.dumps(numbers, indent=2) + "\n")
    return made


def _trained(
    model: LoadedModel, train: Sequence[Example], spec: SaeSpec, progress: Callable[[str], None] | None
) -> TrainedSae:
    own = spec.training
    site = resolve_site(own.block, model.n_blocks)
    if progress is not None:
        progress(f"sae: states of {own.tokens} tokens at most, block {site.block}")
    states = collect_states(model, train, site, own.tokens, own.seed)
    about = {"model_name": model.known_as, "model_identity": str(model.identity), "tokens": len(states)}
    metadata = {**about, "training": own.model_dump(mode="json")}
    device = "cpu" if model.device == "mlx" else model.device
    return train_sae(states, own, site, metadata, device=device, progress=progress)


def read_made(folder: Path) -> MadeSae:
    """What `make_sae` wrote."""
    numbers = json.loads((folder / NUMBERS).read_text())
    rows = pl.read_parquet(folder / FIDELITY)

    def interval(name: str) -> Interval:
        return Interval(numbers[name], numbers[f"{name}_low"], numbers[f"{name}_high"], rows.height)

    found = Fidelity(
        rows,
        explained=interval("explained"),
        recovered=interval("recovered"),
        l0=interval("l0"),
        dead=numbers["dead"],
        dead_tokens=numbers["dead_tokens"],
    )
    return MadeSae(read_sae(folder), found, pl.read_parquet(folder / HISTORY), numbers["trained"])


def make_features(
    model: LoadedModel, made: Path, pool: Sequence[Example], spec: SaeFeaturesSpec, folder: Path
) -> Path:
    """`features.parquet` in `folder`: `FEATURE_SCHEMA` of every row of the pool, on the ids that training sees.

    Args:
        made: folder of `make_sae`.
    """
    path = folder / FEATURES
    write_features(model, read_sae(made), pool, spec, path)
    return path


def judge_features(features: pl.DataFrame, pool: Sequence[Example]) -> list[Verdict]:
    """Of `features.parquet`, against the rows as training encodes them."""
    return [same_ids(features, pool), every_row_has_features(features)]


def make_predictor(
    rows: pl.DataFrame, features: Path, made: Path, spec: RankPredictorSpec, folder: Path
) -> RankPrediction:
    """Predicts a ranking from features and writes the four tables to `folder`.

    Args:
        rows: the ranked rows with their `score`; see `predict_ranks`. Rows without a score are not among them.
        features: `features.parquet`; may hold more rows.
        made: folder of `make_sae`.
    """
    wanted = pl.read_parquet(features).filter(pl.col("row_id").is_in(rows["row_id"].implode()))
    found = predict_ranks(rows, wanted, read_sae(made).n_features, spec)
    found.predictions.write_parquet(folder / PREDICTIONS)
    found.quality.write_parquet(folder / QUALITY)
    found.gains.write_parquet(folder / GAINS)
    found.metadata.write_parquet(folder / METADATA)
    return found


def read_predictor(folder: Path) -> RankPrediction:
    """What `make_predictor` wrote."""
    names = (PREDICTIONS, QUALITY, GAINS, METADATA)
    return RankPrediction(*(pl.read_parquet(folder / name) for name in names))


def judge_predictor(found: RankPrediction) -> list[Verdict]:
    return [groups_stay_whole(found), beats_what_costs_nothing(found)]
