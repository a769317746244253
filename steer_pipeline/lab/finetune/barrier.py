"""Whether a barrier did anything, as the loss curves of a run tell.

In: `history.parquet` of a fine-tuning. Out: a verdict. A barrier that never fires leaves an adapter as it would be
without one, and one that always dominates leaves the base as it was; both look like results.
"""

import polars as pl

from steer_pipeline.lab.finetune.recipe import KlRecipe
from steer_pipeline.lab.verdict import Verdict

CLAIM = "barrier_works"


def barrier_works(history: pl.DataFrame, kl: KlRecipe) -> Verdict:
    """Fires in some passes, and does not outweigh in all steps what is learned.

    A fresh adapter is its reference, so that the first step's gradient says nothing and is left out.

    Args:
        history: of `HISTORY_SCHEMA`; its rows of training.
    """
    train = history.filter(pl.col("split") == "train")
    fired = train["barrier"].drop_nulls()
    ratios = train.filter(pl.col("step") > 1)["gradient_ratio"].drop_nulls()
    share = float(fired.mean() or 0.0)  # type: ignore[arg-type]
    numbers: dict[str, float | int | str] = {
        "fired": share,
        "kl_last": float(train["kl"].drop_nulls()[-1]) if train["kl"].drop_nulls().len() else 0.0,
        "gradient_ratio_median": float(ratios.median() or 0.0),  # type: ignore[arg-type]
        "ratios_measured": ratios.len(),
        "tau": kl.tau,
    }
    told = f"{kl.direction} KL, {kl.over}, above tau {kl.tau:g} nats in {share:.0%} of the passes"
    if share == 0.0:
        return Verdict(
            CLAIM,
            False,
            f"barrier never fired: {told}; the adapter is the one without a barrier",
            numbers,
            blocking=False,
            cure=f"lower tau below {float(train['kl'].max() or 0.0):.3g}, the largest {kl.over} of this run",  # type: ignore[arg-type]
        )
    weighed = f"its gradient is {numbers['gradient_ratio_median']:.3g} times that of what is learned (median)"
    if ratios.len() and bool((ratios > 1).all()):
        return Verdict(
            CLAIM,
            False,
            f"barrier always dominates: {told}, and {weighed}, never less than it",
            numbers,
            blocking=False,
            cure=f"lower its weight ({kl.weight:g}), or raise tau",
        )
    return Verdict(CLAIM, True, f"{told}; {weighed}", numbers, blocking=False)
