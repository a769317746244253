"""What a vector that was carried to another model does there, beside that model's own vector and random rotations.

In: a vector with its contrast set, both models, a profile and news. Out: a folder: `rows.parquet`, one row a news item
and arm (text, trait, costs); `maps.parquet`, one row a map (fit on texts it was not fitted on, rank); `shares.parquet`,
one row an arm; `summary.json`; `native/`, the target's own vector and dose curve.

All arms are added at one block with one length, those of the target's own vector at its recommended dose, and draw the
same random numbers. The target's own vector is made as the source's was, of texts of its own.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from steer_pipeline.catalogue import load_persona, load_profile
from steer_pipeline.catalogue.specs import Persona, Profile, TransportSpec
from steer_pipeline.lab.columns import described
from steer_pipeline.lab.corpus.identity import digest64
from steer_pipeline.lab.evaluation import Scales, require_telling
from steer_pipeline.lab.generation.engine import generate
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.sites import Site, SteeringPlan, SteeringTerm
from steer_pipeline.lab.personas.contexts import reserved_rows
from steer_pipeline.lab.personas.dose import Cell, prompt_rows, run_cells
from steer_pipeline.lab.personas.steps import (
    dose_scales,
    make_contrast,
    make_dose_curve,
    make_vector,
    reserved_for_personas,
    with_facts,
)
from steer_pipeline.lab.transport.maps import EMBEDDINGS, Map, fit_map, random_rotation
from steer_pipeline.lab.transport.matching import (
    Matched,
    MatchedText,
    contrast_texts,
    matched_states,
    require_disjoint,
    shared_embeddings,
    without_trait,
)
from steer_pipeline.lab.transport.shares import Shares, share_table
from steer_pipeline.lab.vectors.doses import Recommendation, make_term
from steer_pipeline.lab.vectors.vector import PersonaVector, VectorError, require_same_model, save_vector

ROWS, MAPS, SHARES, SUMMARY, NATIVE = (
    "rows.parquet",
    "maps.parquet",
    "shares.parquet",
    "summary.json",
    "native",
)
PLOT = "shares.png"
STREAM = "transport"
NEAR = 0.25  # of depth: how far from its counterpart a block may be that `fit` chooses
NEWS, OTHERS, OWN = "news", "others", "own"
MAP_SCHEMA, MAP_COLUMNS = described(
    way=(pl.String(), "procrustes | subspace | embeddings | ridge"),
    texts=(pl.String(), "what it was fitted on: news | others | own, each with those before it"),
    source_block=(pl.Int64(), "whose output states and vector come from"),
    target_block=(pl.Int64(), "where the vector is added"),
    r2=(pl.Float64(), "of the target's states on texts it was not fitted on; below 0: worse than their mean"),
    cosine=(pl.Float64(), "mean, of predicted and real deviations from the mean on those texts"),
    n_fitted=(pl.Int64(), "rows it was fitted on: tokens, or texts where tokenizers differ"),
    n_judged=(pl.Int64(), "rows it was judged on"),
    rank=(pl.Int64(), "dimensions of the source that arrive"),
    chosen=(pl.Boolean(), "whether its vector was measured"),
    varies=(
        pl.Float64(),
        "variance of the target's fitted states along its own vector, over that of an average direction; near 0: these "
        "texts say nothing of where the vector should go",
    ),
    cosine_to_native=(pl.Float64(), "of the carried direction and the target's own vector"),
)


@dataclass(frozen=True, eq=False)
class Cargo:
    """What is carried, and what it is compared with.

    Attributes:
        vector: of the source.
        contrast: persona -> contrast set of the source, that of the vector's persona among them.
    """

    persona: Persona
    vector: PersonaVector
    contrast: Mapping[str, pl.DataFrame]


@dataclass(frozen=True, eq=False)
class Native:
    """The target's own vector, its recommended dose, and the scale that its texts are scored on."""

    vector: PersonaVector
    dose: Recommendation
    scales: Scales

    @property
    def block(self) -> int:
        assert self.dose.block is not None
        return self.dose.block

    @property
    def alpha(self) -> float:
        assert self.dose.alpha is not None
        return self.dose.alpha


@dataclass(frozen=True, eq=False)
class Carried:
    """One map and what became of the vector: fp32 [target hidden] of norm 1."""

    way: str
    texts: str
    block: int
    unit: np.ndarray


def other_profile(profile: Profile) -> Profile:
    """By what the target is steered and judged: the profile that `transport.profile` names, or this one, with the
    target's model.
    """
    spec = spec_of(profile)
    base = profile if spec.profile is None else load_profile(spec.profile)
    return base.model_copy(update={"model": spec.model})


def spec_of(profile: Profile) -> TransportSpec:
    """The profile's `transport`.

    Raises:
        VectorError: it has none.
    """
    if profile.transport is None:
        raise VectorError(
            f"profile {profile.name} names no model to carry vectors to; give it `transport: {{model: {{path: ...}}}}`"
        )
    return profile.transport


def make_transport(
    source: LoadedModel,
    target: LoadedModel,
    cargo: Cargo,
    profile: Profile,
    there: Profile,
    news: pl.DataFrame,
    home: Path,
    folder: Path,
    known_facts: Path | None = None,
) -> dict[str, Any]:
    """Carries a vector, measures it and writes everything into `folder`; returns what stands in `summary.json`.

    Args:
        there: `other_profile`, which has the persona as the target speaks it.
        news: the corpus; which rows serve what is `transport_rows`' business.
        home: where relative paths start.
        known_facts: as `make_dose_curve`.

    Raises:
        VectorError: the vector is not of the source, or the target's own vector has no dose to compare with.
        MapError: texts are not disjoint from the trait or do not suffice.
        ScaleError: the target's scale says the same of all texts.
    """
    spec = spec_of(profile)
    require_same_model(cargo.vector, source)
    persona = load_persona(cargo.persona.name, profile=there)
    native = make_native(target, persona, there, news, home, folder / NATIVE, known_facts)
    measured, others = transport_rows(profile, there, news)
    texts = fit_texts(source, cargo, profile, others, native.scales)
    prompts = [there.rewrites.prompt.replace("{text}", text) for text in measured["text"]]
    for kind in set(texts) - {OWN}:
        require_disjoint(texts[kind], cargo.contrast[cargo.persona.name], prompts)
    carried, maps = carry_all(source, target, cargo.vector, texts, native, spec)
    cells = arm_cells(native, carried, cargo.vector, spec, there.rewrites.scope)
    rows = run_cells(
        target,
        with_facts(measured, known_facts),
        cells,
        there.dose.model_copy(update={"kl_rows": 0}),
        there.rewrites,
        native.scales,
        chat_template=there.model.chat_template,
    )
    require_telling(persona.name, native.scales.headline, rows["trait"])
    shares = share_table(rows, seed=spec.seed)
    counts = {kind: len(own) for kind, own in texts.items()}
    summary = summarised(source, target, cargo, native, shares, counts)
    _write(folder, rows, maps, shares, summary)
    return summary


def _write(
    folder: Path, rows: pl.DataFrame, maps: pl.DataFrame, shares: Shares, summary: Mapping[str, Any]
) -> None:
    rows.write_parquet(folder / ROWS)
    maps.write_parquet(folder / MAPS)
    shares.table.write_parquet(folder / SHARES)
    (folder / SUMMARY).write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n")


# ------------------------------------------------------------------------------------ the target by itself


def make_native(
    target: LoadedModel,
    persona: Persona,
    profile: Profile,
    news: pl.DataFrame,
    home: Path,
    folder: Path,
    known_facts: Path | None,
) -> Native:
    """The target's own vector and dose, made as the pipeline makes them; both are written into `folder`.

    Raises:
        VectorError: no dose of it will do, so there is nothing to compare with.
    """
    contrast = make_contrast(target, persona, profile, news, home).rows
    vector = make_vector(target, persona, profile, contrast, home)
    save_vector(vector, folder)
    dose = make_dose_curve(target, vector, persona, profile, news, contrast, folder, known_facts)
    if not dose.found:
        raise VectorError(
            f"{persona.name}: the target's own vector has no dose to compare with: {dose.reason}; choose other "
            "blocks or doses for it (the `dose` of the profile that transport.profile names)"
        )
    return Native(vector, dose, dose_scales(persona, profile, contrast))


def transport_rows(profile: Profile, there: Profile, news: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """News rows to measure on, and others to fit maps on; none served vectors or doses of either model.

    As far as the corpus allows, no pack rewrites them.

    Raises:
        ValueError: there are too few; the message says how many.
    """
    spec = spec_of(profile)
    used = {row_id for one in (profile, there) for row_id in reserved_for_personas(one, news)["row_id"]}
    free = news.filter(~pl.col("row_id").is_in(list(used)))
    distinct, wanted = free["text"].n_unique(), spec.rows + spec.fit_texts
    if distinct < wanted:
        raise ValueError(
            f"{distinct} distinct news items serve no vector or dose, {wanted} are needed ({spec.rows} for "
            f"transport.rows and {spec.fit_texts} for transport.fit_texts); add news or lower them"
        )
    chosen = reserved_rows(
        free,
        n_dose=spec.rows,
        n_contrast=spec.fit_texts,
        first_free=profile.rewrites.full_rows,
        seed=spec.seed,
    )
    measured, fitted = (chosen.filter(purpose=purpose) for purpose in ("dose", "contrast"))
    return measured.drop("purpose", "overlaps_rewrites"), fitted.drop("purpose", "overlaps_rewrites")


# ------------------------------------------------------------------------------------ the maps


def fit_texts(
    source: LoadedModel, cargo: Cargo, profile: Profile, news: pl.DataFrame, scales: Scales
) -> dict[str, list[MatchedText]]:
    """Kind -> texts, each kind with those before it, as `transport.texts` names them.

    Neutral rewrites of the source that show either pole by chance are left out.
    """
    spec, name = spec_of(profile), cargo.persona.name
    rng = np.random.default_rng(spec.seed)

    def some(persona: str) -> list[MatchedText]:
        all_of_it = contrast_texts(cargo.contrast[persona], persona)
        places = rng.permutation(len(all_of_it))[: spec.fit_texts]
        return [all_of_it[i] for i in sorted(places)]

    made: dict[str, list[MatchedText]] = {}
    known: list[MatchedText] = []
    for kind in (NEWS, OTHERS, OWN):
        if kind in spec.texts:
            if kind == NEWS:
                known = known + without_trait(base_rewrites(source, profile, news), scales.scorer)
            elif kind == OWN:
                known = known + some(name)
            else:
                known = known + [
                    text for other in sorted(cargo.contrast) if other != name for text in some(other)
                ]
            made[kind] = known
    return made


def base_rewrites(source: LoadedModel, profile: Profile, news: pl.DataFrame) -> list[MatchedText]:
    """What the source makes of the news by itself; empty answers are left out."""
    prompts = prompt_rows(source, news, profile.rewrites, profile.model.chat_template)
    plan = SteeringPlan("base", stream=STREAM)
    said = {row.row_id: row.text for row in generate(source, prompts, [plan], profile.rewrites.sampling)}
    return [
        MatchedText(
            f"{NEWS}:{row_id}",
            profile.rewrites.prompt.replace("{text}", text),
            said[row_id],
            profile.rewrites.system,
        )
        for row_id, text in news.select("row_id", "text").iter_rows()
        if said[row_id].strip()
    ]


def counterparts(
    n_source: int, n_target: int, target_block: int, present: Sequence[int], mapping: str
) -> list[int]:
    """Blocks of the source that a vector at `target_block` may come from, the nearest in depth first.

    Args:
        present: blocks that the vector has a direction at.
        mapping: "depth" gives one, "fit" all within a quarter of depth.
    """
    depth = (target_block + 0.5) / n_target
    ordered = sorted(present, key=lambda block: (abs((block + 0.5) / n_source - depth), block))
    if mapping == "depth":
        return ordered[:1]
    return [block for block in ordered if abs((block + 0.5) / n_source - depth) <= NEAR] or ordered[:1]


def carry_all(
    source: LoadedModel,
    target: LoadedModel,
    vector: PersonaVector,
    texts: Mapping[str, Sequence[MatchedText]],
    native: Native,
    spec: TransportSpec,
) -> tuple[list[Carried], pl.DataFrame]:
    """The vector under every way and kind of texts, and a row of `MAP_SCHEMA` a map."""
    blocks = counterparts(source.n_blocks, target.n_blocks, native.block, vector.present_blocks, spec.mapping)
    shared = shared_embeddings(source, target) if EMBEDDINGS in spec.ways else None
    carried, table = [], []
    for kind, own in texts.items():
        states = matched_states(source, target, own, blocks, [native.block], seed=spec.seed)
        for way in spec.ways:
            if way == EMBEDDINGS and kind != next(iter(texts)):
                continue  # it is fitted on no text
            tried = [_tried(way, kind, block, states, native, vector, spec, shared) for block in blocks]
            best = max(range(len(tried)), key=lambda i: tried[i][1]["r2"])
            table += [row | {"chosen": i == best} for i, (_, row) in enumerate(tried)]
            carried.append(tried[best][0])
    return carried, pl.DataFrame(table, schema=MAP_SCHEMA)


def _tried(
    way: str,
    kind: str,
    block: int,
    states: Matched,
    native: Native,
    vector: PersonaVector,
    spec: TransportSpec,
    shared: tuple[np.ndarray, np.ndarray] | None,
) -> tuple[Carried, dict[str, Any]]:
    """One map: the direction that arrives, and its row."""
    x, y, judged = states.source[block], states.target[native.block], states.judged
    made: Map = fit_map(way, x[~judged], y[~judged], components=spec.components, embeddings=shared)
    fit, unit = made.judged(x[judged], y[judged]), made.carry(vector.at(block))
    row = {
        "way": way,
        "texts": kind,
        "source_block": block,
        "target_block": native.block,
        "r2": fit.r2,
        "cosine": fit.cosine,
        "n_fitted": int((~judged).sum()),
        "n_judged": fit.n,
        "rank": made.rank,
        "varies": variance_along(y[~judged], native.vector.unit_at(native.block)),
        "cosine_to_native": float(unit @ native.vector.unit_at(native.block)),
    }
    return Carried(way, kind, block, unit), row


def variance_along(states: np.ndarray, unit: np.ndarray) -> float:
    """Of states [n, hidden] along a direction of norm 1, over the mean variance of all dimensions."""
    centred = np.asarray(states, dtype=np.float64) - states.mean(axis=0)
    return float(((centred @ unit) ** 2).mean() / np.maximum((centred**2).mean(), 1e-12))


# ------------------------------------------------------------------------------------ the arms


def arm_cells(
    native: Native, carried: Sequence[Carried], vector: PersonaVector, spec: TransportSpec, scope: str
) -> list[Cell]:
    """Base, the target's own vector, what was carried, and random rotations: all at one block with one length."""
    term = make_term(native.vector, Site(native.block, native.vector.site), native.alpha)
    fraction = native.dose.fraction or 0.0

    def cell(direction: str, name: str, own: SteeringTerm, draw: int | None = None) -> Cell:
        return Cell(direction, native.block, fraction, SteeringPlan(name, (own,), scope, STREAM), draw)

    def other(name: str, unit: np.ndarray) -> SteeringTerm:
        return replace(term, name=f"{name}:{term.name}", unit=unit, version=name, made_on=None)

    rotated = [
        _rotated(vector, carried[0].block, len(term.unit), spec.seed, draw) for draw in range(spec.n_random)
    ]
    return [
        Cell("base", None, 0.0, SteeringPlan("base", stream=STREAM)),
        cell("native", "native", term),
        *(
            cell("carried", f"{one.way}.{one.texts}", other(f"{one.way}.{one.texts}", one.unit))
            for one in carried
        ),
        *(
            cell("random", f"random{draw:02d}", other(f"random{draw:02d}", unit), draw)
            for draw, unit in enumerate(rotated)
        ),
    ]


def _rotated(vector: PersonaVector, block: int, width: int, seed: int, draw: int) -> np.ndarray:
    own = digest64(f"{seed}\x1f{vector.persona}\x1f{draw}")
    return random_rotation(vector.raw.shape[1], width, own).carry(vector.at(block))


def summarised(
    source: LoadedModel,
    target: LoadedModel,
    cargo: Cargo,
    native: Native,
    shares: Shares,
    texts: Mapping[str, int],
) -> dict[str, Any]:
    """What a reader needs beside the tables, and the numbers of the last line."""
    return {
        "persona": cargo.persona.name,
        "source": {
            "model": source.name,
            "weights_sha": source.weights_sha,
            "hidden_size": source.hidden_size,
        },
        "target": {
            "model": target.name,
            "weights_sha": target.weights_sha,
            "hidden_size": target.hidden_size,
        },
        "block": native.block,
        "fraction": native.dose.fraction,
        "alpha": native.alpha,
        "scale": native.scales.headline,
        "texts": dict(texts),
        **shares.headline(),
    }


def read_summary(folder: Path) -> dict[str, Any]:
    """`summary.json` of a made folder."""
    found: dict[str, Any] = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    return found


def read_tables(folder: Path) -> Iterator[pl.DataFrame]:
    """The tables of shares and of maps of a made folder."""
    yield pl.read_parquet(folder / SHARES)
    yield pl.read_parquet(folder / MAPS)
