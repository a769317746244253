"""An arm is called the same by its value and by its stored row, and its plan steers as it says."""

import numpy as np
import polars as pl
import pytest

from steer_pipeline.lab.arms import ARMS, Arm, arm_label, family_of
from steer_pipeline.lab.models.sites import Site, SteeringTerm

TERM = SteeringTerm("sailor", np.eye(4, dtype=np.float32)[0], Site(1), 3.0)


@pytest.mark.parametrize(
    "arm, name",
    [
        (Arm("vanilla"), "vanilla"),
        (Arm("prompted_3", prompt_index=3), "prompted_3"),
        (Arm("trained", TERM, 0.5, 41), "trained@0.5"),
        (Arm("averaged", TERM, -1.0), "averaged@-1"),
        (Arm("random", TERM, 1.0, 51), "random@51"),
    ],
)
def test_value_and_stored_row_have_one_name(arm, name):
    kinds = {"arm": pl.String, "scale": pl.Float64, "seed": pl.Int64}
    row = pl.DataFrame([(arm.arm, arm.scale, arm.seed)], schema=kinds, orient="row")
    assert arm.name == name == row.select(arm_label()).item()
    assert family_of(arm.arm) in ARMS


def test_a_plan_holds_the_term_scope_and_a_stream_of_its_own():
    plan = Arm("trained", TERM, 0.5, scope="generated").plan
    assert plan.terms == (TERM,)
    assert (plan.scope, plan.stream) == ("generated", "trained@0.5")
    assert Arm("vanilla").plan.terms == ()
