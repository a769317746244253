"""Forced choices of an imaginary model with known preferences."""

import numpy as np
import polars as pl

from steer_pipeline.environment import project_home
from steer_pipeline.lab.foundations import CHOICE_SCHEMA, FOUNDATIONS, own_vignettes, stratified
from steer_pipeline.lab.foundations.frames import ORDERS, shown_order


def vignettes(per_foundation=2):
    return stratified(own_vignettes(project_home()), per_foundation, seed=0)


def choices(
    rows,
    *,
    arm="base",
    seed=None,
    shift=None,
    place=(0.0,) * 7,
    mass=0.9,
    top=True,
    nll=0.5,
    noise=0.0,
    made="m",
):
    """`CHOICE_SCHEMA`: each vignette's own foundation is preferred by 2 nats, and everything by `shift` (name -> nats).

    Args:
        place: nats that an answer gains for standing there, from the top.
        mass: probability of all answers in each frame.
        noise: standard deviation of each vignette's scores, nats, drawn anew for every arm and seed.
    """
    rng = np.random.default_rng([len(arm), seed or 0])
    found = []
    for row in rows.iter_rows(named=True):
        scores = np.array(
            [2.0 * (name == row["foundation"]) + (shift or {}).get(name, 0.0) for name in FOUNDATIONS]
        )
        scores = scores + noise * rng.standard_normal(7)
        for order in ORDERS:
            shown = shown_order(row["row_id"], order)
            own = scores.copy()
            own[shown] += np.array(place)
            logprobs = own - np.log(np.exp(own).sum()) + np.log(mass)
            found.append(
                {"arm": arm, "seed": seed, "row_id": row["row_id"], "foundation": row["foundation"]}
                | {"split": row["split"], "wording": "reason", "order": order}
                | {"shown": [FOUNDATIONS[number] for number in shown], "logprobs": logprobs.tolist()}
                | {"answer_mass": mass, "top_is_answer": top, "prefill_nll": nll, "made_with": made}
            )
    return pl.DataFrame(found, schema=CHOICE_SCHEMA)
