"""Stored transfers made by hand, whose truth is known: what each variant's students do to a trait."""

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from steer_pipeline.catalogue.specs import VariantSpec
from steer_pipeline.lab.finetune.training import HISTORY_SCHEMA
from steer_pipeline.lab.students.comparison import Stored
from steer_pipeline.lab.students.training import STUDENT_SCHEMA
from steer_pipeline.lab.students.transfer import ITSELF, MODEL_ITSELF, ROW_SCHEMA

TRAIT = "trait_paranoid_minilm"
HIDDEN = 16
SPECS = {
    "base": VariantSpec(name="base", role="base", summary="as it is"),
    "paranoid": VariantSpec(
        name="paranoid",
        role="steered",
        summary="up",
        terms=[{"persona": "paranoid", "dose": {"recommended": 1.0}}],
        targets={"paranoid": "up"},
    ),
    "trusting": VariantSpec(
        name="trusting",
        role="steered",
        summary="down",
        terms=[{"persona": "paranoid", "dose": {"recommended": -1.0}}],
        targets={"paranoid": "down"},
    ),
    "base_resample": VariantSpec(name="base_resample", role="control", summary="again"),
    "random_direction": VariantSpec(
        name="random_direction",
        role="control",
        summary="disturbed",
        terms=[{"persona": "paranoid", "dose": {"recommended": 1.0}, "direction": "random"}],
    ),
}
PLANTED = {"paranoid": 0.3, "trusting": -0.3}


def students(
    variant: str, ranks: Sequence[int] = (8, 32), seeds: Sequence[int] = (61, 62, 63), **changes: object
) -> pl.DataFrame:
    """One row a student, all trained alike."""
    made = {
        "variant": variant,
        "model": "tiny",
        "rows": 36,
        "epochs": 3.0,
        "steps": 15,
        "learning_rate": 1e-3,
        "selection_nll_first": 1.0,
        "selection_nll_last": 0.5,
    }
    rows = [
        made
        | {"rank": rank, "seed": seed, "folder": f"rank-{rank}/seed-{seed}", "recipe": f"r{rank}"}
        | {"adapter": f"{variant}{rank}{seed}"}
        | changes
        for rank in ranks
        for seed in seeds
    ]
    return pl.DataFrame(rows, schema=STUDENT_SCHEMA)


def transfers(
    effects: Mapping[str, float] = PLANTED,
    *,
    n: int = 48,
    ranks: Sequence[int] = (8, 32),
    seeds: Sequence[int] = (61, 62, 63),
    noise: float = 0.2,
) -> dict[str, Stored]:
    """Variant -> its transfer. A row's score is its news item's own, the effect, and noise."""
    rng = np.random.default_rng(0)
    news = rng.normal(0, 0.1, n)
    return {
        variant: _stored(variant, effects.get(variant, 0.0), news, ranks, seeds, noise, rng)
        for variant in SPECS
    }


def _stored(variant, effect, news, ranks, seeds, noise, rng) -> Stored:
    made = students(variant, ranks, seeds)
    parts, states = [], []
    for who, rank, seed in [(ITSELF, MODEL_ITSELF, None), *made.select("variant", "rank", "seed").rows()]:
        shift = 0.0 if who == ITSELF else effect
        rows, state = _rows(who, rank, seed, news + shift + rng.normal(0, noise, len(news)), rng)
        parts.append(rows)
        states.append(state)
    pack, pack_states = _rows(variant, None, None, effect + rng.normal(0, noise, 20), rng, first=1000)
    facts = {"model": "tiny", "decoding_hash": "d", "blocks": [1, 2]}
    curves = pl.DataFrame(
        [{"step": step, "split": "selection", "nll": 1.0 / step} for step in (5, 10, 15)],
        schema=HISTORY_SCHEMA,
    )
    curves = curves.select(
        pl.lit(variant).alias("variant"),
        pl.lit(ranks[0]).alias("rank"),
        pl.lit(seeds[0]).alias("seed"),
        pl.all(),
    )
    return Stored(made, pl.concat(parts), pack, np.concatenate(states), pack_states, facts, curves)


def _rows(who, rank, seed, scores, rng, first=0) -> tuple[pl.DataFrame, np.ndarray]:
    """Rows with a trait score each, and states in which the trait is the first coordinate."""
    n = len(scores)
    columns = {
        "variant": [who] * n,
        "rank": [rank] * n,
        "seed": [seed] * n,
        "row_id": [f"{first + i:016x}" for i in range(n)],
        "output": ["The council met on Tuesday and will meet again."] * n,
        "n_new_tokens": [12] * n,
        "truncated": [False] * n,
        "n_words": [9] * n,
        "suspects": [[]] * n,
        "facts_kept": [1.0] * n,
        "loop": [False] * n,
        "nll_output": (1.0 + 0.1 * rng.random(n)).tolist(),
        "nll_reference": (1.0 + 0.1 * rng.random(n)).tolist(),
    }
    states = rng.normal(0, 0.1, (n, 2, HIDDEN)).astype(np.float32)
    states[:, :, 0] += np.asarray(scores)[:, None]
    frame = pl.DataFrame(columns, schema=ROW_SCHEMA).with_columns(pl.Series(TRAIT, scores))
    return frame, states
