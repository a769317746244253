"""The likelihood of held-out answers under each arm: one estimator on the same response tokens for all.

In: counted rows of a behaviour set, a model and vectors. Out: rows of LIKELIHOOD_SCHEMA, one sum an arm, seed and
dialogue. Arms: vanilla (bare question), prompted (each row's own instruction really in context), and vectors
added at every position to the bare question, as they were trained. `tables` makes means of the sums.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from steer_pipeline.catalogue.specs import Profile
from steer_pipeline.lab.arms import AVERAGED, LEARNED, PROMPTED, RANDOM, TRAINED, VANILLA, Arm
from steer_pipeline.lab.dialogues.encoding import EncodedDialogue
from steer_pipeline.lab.dialogues.requests import encode_rows, response_hash
from steer_pipeline.lab.likelihood.tables import LIKELIHOOD_SCHEMA, selection_table
from steer_pipeline.lab.models.hidden import sequence_nll
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.sites import Site, SteeringTerm
from steer_pipeline.lab.vectors.doses import direction_seed, make_term, random_like
from steer_pipeline.lab.vectors.vector import PersonaVector, VectorError

SCALES = (0.5, 1.0, 2.0, 4.0)  # of the averaged vector's natural magnitude, at every block
REFINED = (2**-0.5, 2**0.5)  # of the best of them, at its block
MAX_BLOCKS = 8
MIN_RANDOM = 8  # random directions


def measure(
    model: LoadedModel,
    rows: pl.DataFrame,
    arms: Sequence[Arm],
    profile: Profile,
    residual_norms: Sequence[float],
) -> pl.DataFrame:
    """Rows of LIKELIHOOD_SCHEMA: every arm on every row.

    Args:
        rows: BEHAVIOUR_SCHEMA, all to be measured.
        residual_norms: [n_blocks], of this model.

    Raises:
        VectorError: a row of the prompted arm has no instruction, so that it would be vanilla under another name.
    """
    if any(arm.arm == PROMPTED for arm in arms):
        _require_instructions(rows)
    ways = {
        instructed: encode_rows(model, rows, profile, instructed=instructed)
        for instructed in sorted({arm.arm == PROMPTED for arm in arms})
    }
    tables = [_measured(model, rows, arm, ways[arm.arm == PROMPTED], residual_norms) for arm in arms]
    return pl.concat(tables).select(LIKELIHOOD_SCHEMA.names()).cast(LIKELIHOOD_SCHEMA)


def _require_instructions(rows: pl.DataFrame) -> None:
    bare = rows.filter(pl.col("instruction") == "")
    if bare.height:
        raise VectorError(
            f"row {bare['row_id'][0]}: no instruction, so the prompted arm would be unprompted "
            f"({bare.height} of {rows.height} rows); give the system turn that the answer was asked under"
        )


def _measured(
    model: LoadedModel,
    rows: pl.DataFrame,
    arm: Arm,
    dialogues: Sequence[EncodedDialogue],
    residual_norms: Sequence[float],
) -> pl.DataFrame:
    """One arm on every row."""
    ids, starts = [one.ids for one in dialogues], [one.start for one in dialogues]
    sums, counts = sequence_nll(model, ids, starts, None if arm.term is None else arm.plan)
    block, alpha, norm = None, None, None
    if arm.term is not None:
        block, alpha = arm.term.site.block, arm.term.alpha
        norm = float(residual_norms[block])
    return rows.select("row_id", "question_index", "split").with_columns(
        arm=pl.lit(arm.arm),
        seed=pl.lit(arm.seed, dtype=pl.Int64),
        block=pl.lit(block, dtype=pl.Int64),
        scale=pl.lit(arm.scale, dtype=pl.Float64),
        alpha=pl.lit(alpha, dtype=pl.Float64),
        residual_norm=pl.lit(norm, dtype=pl.Float64),
        nll_sum=pl.Series(sums.astype(np.float64)),
        n_tokens=pl.Series(counts),
        response_sha=pl.Series([response_hash(one) for one in dialogues]),
    )


def natural_term(vector: PersonaVector, block: int, scale: float = 1.0) -> SteeringTerm:
    """`scale` times the direction at `block` in its natural magnitude."""
    return make_term(vector, Site(block), scale * float(np.linalg.norm(vector.at(block))))


def site_of(trained: Mapping[int, PersonaVector]) -> int:
    """The one block at which the trained vectors of all seeds sit.

    Raises:
        VectorError: no vector, one of several blocks, or seeds at different blocks.
    """
    blocks = {seed: vector.present_blocks for seed, vector in trained.items()}
    if len(set(blocks.values())) != 1 or len(next(iter(blocks.values()))) != 1:
        raise VectorError(
            f"trained vectors by seed have blocks {blocks}; one block, the same for all, is needed"
        )
    return next(iter(blocks.values()))[0]


def trained_and_random(trained: Mapping[int, PersonaVector], random_seeds: Sequence[int]) -> list[Arm]:
    """An arm a trained vector, in natural magnitude, and random directions of their norms at their site.

    Single random directions gain or lose a good part of the gap by luck, so there are at least `MIN_RANDOM`: those
    of `random_seeds`, then of the numbers that follow. Those of two personas differ.
    """
    block = site_of(trained)
    terms = {seed: natural_term(trained[seed], block) for seed in sorted(trained)}
    arms = [Arm(TRAINED, term, LEARNED, seed) for seed, term in terms.items()]
    norms, last = list(terms.values()), max(random_seeds)
    owner = next(iter(trained.values())).persona
    seeds = [*random_seeds, *range(last + 1, last + 1 + MIN_RANDOM - len(random_seeds))]
    return arms + [
        Arm(RANDOM, random_like(norms[i % len(norms)], direction_seed(seed, owner, 0, 0)), LEARNED, seed)
        for i, seed in enumerate(seeds)
    ]


def swept_blocks(n_blocks: int, site: int) -> list[int]:
    """Blocks at which the averaged vector is tried: all, or in a deep model an even spread and the trained site."""
    if n_blocks <= MAX_BLOCKS:
        return list(range(n_blocks))
    spread = np.linspace(0, n_blocks - 1, MAX_BLOCKS + 1).round().astype(int)[1:]
    return sorted({*spread.tolist(), site})


def choose_scale(
    model: LoadedModel,
    rows: pl.DataFrame,
    averaged: PersonaVector,
    site: int,
    profile: Profile,
    residual_norms: Sequence[float],
) -> pl.DataFrame:
    """Measures vanilla and the averaged vector at every block and scale on validation rows.

    Coarse scales at all blocks, then finer ones around the best. The choice is the first row of
    `selection_table`.
    """
    arms = [Arm(VANILLA)] + [
        Arm(AVERAGED, natural_term(averaged, block, scale), scale)
        for block in swept_blocks(model.n_blocks, site)
        for scale in SCALES
    ]
    coarse = measure(model, rows, arms, profile, residual_norms)
    best = selection_table(coarse).row(0, named=True)
    finer = [
        Arm(AVERAGED, natural_term(averaged, best["block"], best["scale"] * step), best["scale"] * step)
        for step in REFINED
    ]
    return pl.concat([coarse, measure(model, rows, finer, profile, residual_norms)])
