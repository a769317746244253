"""What forced choices must show before numbers of arms mean anything. In: readings of base. Out: a verdict."""

import polars as pl

from steer_pipeline.lab.foundations.numbers import informedness
from steer_pipeline.lab.limits import MIN_ANSWER_MASS
from steer_pipeline.lab.verdict import Verdict


def base_can_choose(base: pl.DataFrame, *, seed: int) -> Verdict:
    """Whether the unsteered model answers with the given indices, and its answers depend on the scene.

    Small models prefer indices and places whatever is asked. Arms can be compared all the same, but what moves then is
    that preference. It blocks nothing: free texts may still tell.

    Args:
        base: `READING_SCHEMA` of base.
    """
    read = informedness(base)
    numbers: dict[str, float | int | str] = {"informedness": read.estimate, "vignettes": base.height}
    shown = f"{read.estimate:+.2f} nats [{read.low:+.2f}, {read.high:+.2f}]"
    fine, problems = f"{shown} more for the scene's own foundation", []
    if not base["answer_mass"].null_count():
        mass = float(base["answer_mass"].to_numpy().mean())
        numbers |= {"answer_mass": mass, "unscorable": float(base["unscorable"].to_numpy().mean())}
        fine = f"{mass:.2f} of the probability lies on the answers, {fine}"
        if mass < MIN_ANSWER_MASS:
            problems.append(f"{mass:.2f} of the probability lies on the answers, {MIN_ANSWER_MASS} is wanted")
    if not read.low > 0:
        problems.append(
            f"what it answers does not depend on the scene ({shown} for the scene's own foundation)"
        )
    return Verdict(
        "base_can_choose",
        not problems,
        "; ".join(problems) or fine,
        numbers,
        blocking=False,
        cure="ask with phrases (frames.PHRASES), read free texts, or take a larger model" if problems else "",
    )
