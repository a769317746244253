"""What each asset of the analysis does, from stored inputs to a folder. In: folders, specs, models. Out: files.

One pass over a pair's blocks an analysis: what is in memory is one block of both models.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from steer_pipeline.catalogue.analysis import AnalysisSpec
from steer_pipeline.catalogue.specs import Profile
from steer_pipeline.lab.analysis.attention import Asked, Attentions
from steer_pipeline.lab.analysis.directions import (
    PERSONA,
    TRAINED,
    Directions,
    joined,
    of_published,
    of_states,
    of_vectors,
    read_directions,
    save_directions,
)
from steer_pipeline.lab.analysis.findings import (
    STATISTIC_SCHEMA,
    as_statistics,
    clean_draw,
    null_rate,
    statistics_of,
)
from steer_pipeline.lab.analysis.mlp import Mlps
from steer_pipeline.lab.analysis.neutral import Neutral, load_neutral, read_neutral, save_neutral
from steer_pipeline.lab.analysis.pairs import ModelPair, Side
from steer_pipeline.lab.analysis.susceptibility import Susceptibilities, Susceptibility
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.students.data import in_keyed_order, prompt_ids
from steer_pipeline.lab.vectors.vector import PersonaVector

SUSCEPTIBILITY, FOUND, WEIGHTS = "susceptibility.parquet", "found.parquet", "weights.parquet"
MLP, PROJECTIONS, PUSHED, ATTENTION = (
    "mlp.parquet",
    "projections.parquet",
    "pushed.parquet",
    "attention.parquet",
)
STATISTICS, NULL_FINDINGS, RATE = "statistics.parquet", "null_findings.parquet", "rate.json"
MODEL_ITSELF = "model"  # what students of the statistics are tuned from, but for pairs of two students


# ------------------------------------------------------------------------------------------- basis


def make_basis(
    model: LoadedModel,
    vectors: Mapping[str, PersonaVector],
    trained: Mapping[str, PersonaVector],
    versions: Mapping[str, str],
    news: pl.DataFrame,
    profile: Profile,
    home: Path,
    folder: Path,
) -> tuple[Directions, Neutral]:
    """Directions and neutral states, into `folder`.

    Args:
        vectors, trained: by persona.
        versions: `persona:<name>` and `trained:<name>` -> version.

    Raises:
        VectorError, FormatError: see `directions`.
    """
    spec = profile.analysis
    rows = in_keyed_order(news, spec.seed).head(spec.texts)
    neutral = read_neutral(model, list(prompt_ids(model.tokenizer, rows, profile).values()))
    parts = []
    for kind, own in ((PERSONA, vectors), (TRAINED, trained)):
        if own:
            sources = {name: versions.get(f"{kind}:{name}", "") for name in own}
            parts.append(of_vectors(kind, own, sources))
    if spec.published is not None:
        parts.append(of_published(home / spec.published, model, components=spec.components))
    if spec.components:
        parts.append(of_states(neutral.states, spec.components))
    directions = joined(*parts)
    save_directions(directions, folder)
    save_neutral(neutral, folder)
    return directions, neutral


def read_basis(folder: Path, spec: AnalysisSpec) -> tuple[Directions, Neutral]:
    """What `make_basis` wrote, with the profile's null."""
    return read_directions(folder), load_neutral(folder).drawing(spec.n_null, spec.seed)


# ------------------------------------------------------------------------------------------- pairs


def write_susceptibility(pair: ModelPair, basis: Path, spec: AnalysisSpec, folder: Path) -> Susceptibility:
    """`susceptibility.parquet`, `found.parquet`, `weights.parquet`; every block is checked against its own module.

    Raises:
        PairError, NotDescribed: as `ModelPair.blocks`.
    """
    gathered = Susceptibilities(*read_basis(basis, spec))
    for block in pair.blocks():
        gathered.see(block)
    tables = gathered.tables(spec.level)
    tables.rows.write_parquet(folder / SUSCEPTIBILITY)
    tables.found.write_parquet(folder / FOUND)
    tables.weights.write_parquet(folder / WEIGHTS)
    return tables


def write_mlp(pair: ModelPair, basis: Path, spec: AnalysisSpec, folder: Path) -> pl.DataFrame:
    """`mlp.parquet`, `projections.parquet`, `pushed.parquet`; returns the last."""
    gathered = Mlps(*read_basis(basis, spec), spec.fraction)
    for block in pair.blocks(check=False):
        gathered.see(block)
    tables = gathered.tables(spec.level)
    tables.rows.write_parquet(folder / MLP)
    tables.projections.write_parquet(folder / PROJECTIONS)
    tables.pushed.write_parquet(folder / PUSHED)
    return tables.pushed


def write_attention(pair: ModelPair, basis: Path, spec: AnalysisSpec, folder: Path) -> pl.DataFrame:
    """`attention.parquet`, which is returned."""
    asked = Asked(tuple(spec.distances), spec.fraction, spec.top)
    gathered = Attentions(*read_basis(basis, spec), asked)
    for block in pair.blocks(check=False):
        gathered.see(block)
    table = gathered.table()
    table.write_parquet(folder / ATTENTION)
    return table


# ------------------------------------------------------------------------------------ clean students


def write_clean(
    base: Side,
    students: Mapping[str, Sequence[Path]],
    basis: Path,
    spec: AnalysisSpec,
    folder: Path,
    *,
    device: str = "cpu",
) -> dict[str, Any]:
    """Statistics of clean students on the model, of pairs of two of them, and what the rule finds in those.

    Args:
        students: adapter directories of base's and the controls' students by name, as `base rank-8/seed-61`.

    Returns:
        What stands in `rate.json`.
    """
    directions, neutral = read_basis(basis, spec)

    def statistics(before: str, after: str) -> pl.DataFrame:
        sides = [
            base if name == MODEL_ITSELF else Side(base.folder, (*base.adapters, *students[name]))
            for name in (before, after)
        ]
        pair = ModelPair(sides[0], sides[1], device)
        own = statistics_of(pair, directions, neutral, spec.fraction)
        return as_statistics(f"{before} | {after}", before, after, own)

    names = sorted(students)
    drawn = clean_draw(names, spec.clean_pairs, spec.seed)
    tables = [statistics(*pair) for pair in (*((MODEL_ITSELF, name) for name in names), *drawn)]
    table = pl.concat(tables) if tables else pl.DataFrame(schema=STATISTIC_SCHEMA)
    findings, rate = null_rate(table.filter(pl.col("base") != MODEL_ITSELF), level=spec.level)
    table.write_parquet(folder / STATISTICS)
    findings.write_parquet(folder / NULL_FINDINGS)
    told = {**asdict(rate), "students": len(names), "level": spec.level}
    (folder / RATE).write_text(json.dumps(told, indent=1, sort_keys=True) + "\n")
    return told
