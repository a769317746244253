"""Arms: the ways in which one model is asked the same things, in rollouts and in likelihoods alike.

Plain values. Which arms there are is the business of `behaviour.arms` and `likelihood.measuring`.
"""

from dataclasses import dataclass

import polars as pl

from steer_pipeline.lab.models.sites import SteeringPlan, SteeringTerm

VANILLA, PROMPTED, TRAINED, AVERAGED, RANDOM = ARMS = ("vanilla", "prompted", "trained", "averaged", "random")
LEARNED = 1.0  # the scale at which a trained vector is what was learned


@dataclass(frozen=True, eq=False)
class Arm:
    """One way of asking.

    Attributes:
        arm: one of `ARMS`, or prompted_<i>, by its instruction.
        term: what is added; None for nothing.
        scale: multiple of the vector; None where nothing is added.
        seed: of a random direction, or the one that a trained vector was learned with.
        prompt_index: which positive instruction stands in the system turn; None for none, or each row's own.
        scope: of the positions that are steered; see `SteeringPlan`.
    """

    arm: str
    term: SteeringTerm | None = None
    scale: float | None = None
    seed: int | None = None
    prompt_index: int | None = None
    scope: str = "all"

    @property
    def name(self) -> str:
        """`vanilla`, `prompted_0`, `trained@0.5`, `random@51`: unique among rollouts, and name of the random stream.

        `arm_label` says the same of stored rows.
        """
        if self.scale is None:
            return self.arm
        return f"{self.arm}@{self.seed if self.arm == RANDOM else format(self.scale, 'g')}"

    @property
    def plan(self) -> SteeringPlan:
        terms = () if self.term is None else (self.term,)
        return SteeringPlan(self.name, terms, self.scope, self.name)


def arm_label() -> pl.Expr:
    """`arm_name` of stored rows (columns arm, scale, seed): see `Arm.name`."""
    number = (
        pl.when(pl.col("arm") == RANDOM)
        .then(pl.col("seed").cast(pl.String))
        .otherwise(pl.col("scale").map_elements(lambda scale: f"{scale:g}", return_dtype=pl.String))
    )
    steered = pl.concat_str("arm", pl.lit("@"), number)
    return pl.when(pl.col("scale").is_null()).then(pl.col("arm")).otherwise(steered).alias("arm_name")


def family_of(arm: str) -> str:
    """`prompted` of `prompted_3`; every other arm is its own family."""
    return PROMPTED if arm.startswith(f"{PROMPTED}_") else arm
