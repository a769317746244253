"""Coherence from several signals, relative to base: each signal's loss on one scale, and the worst of them.

In: per-row values of an arm and of base. Out: losses from 0 (as base's) to 1 (nothing left). A forced answer slot is
nearly blind to broken text, and a loop has a low perplexity: one signal alone misleads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from steer_pipeline.lab.quality.coherence import text_costs
from steer_pipeline.lab.quality.loops import duplicate_mass

BABBLE_NATS = 6.0  # a token: what lies between fluent text and random words, so all there is to lose


@dataclass(frozen=True)
class Signal:
    """What one signal measures.

    Attributes:
        worse: which way is a loss; "none": shown beside the others, judged by nobody.
        full: the change at which nothing is left; None: base's own mean.
    """

    name: str
    worse: Literal["up", "down", "either", "none"]
    full: float | None
    description: str

    def loss(self, change: np.ndarray, base: float) -> np.ndarray:
        """The share that is lost, in [0, 1], for mean changes against base's mean."""
        moved = {"up": change, "down": -change, "either": np.abs(change)}.get(
            self.worse, np.zeros_like(change)
        )
        full = base if self.full is None else self.full
        if not full > 0:
            return np.zeros_like(change)  # base has nothing to lose
        return np.clip(moved / full, 0.0, 1.0)


SIGNALS = {
    one.name: one
    for one in (
        Signal("answer_mass", "down", None, "probability of all answers of a forced choice"),
        Signal("unscorable", "up", 1.0, "share of forced choices whose likeliest token is no answer"),
        Signal(
            "prefill_nll", "up", BABBLE_NATS, "nats a token of the answer's given beginning, under the arm"
        ),
        Signal("nll", "either", BABBLE_NATS, "nats a token of free text, under the model without changes"),
        Signal("loops", "up", 1.0, "share of free texts that go round in circles"),
        Signal(
            "loop_score", "up", 1.0, "share of four-word windows of a free text that repeat an earlier one"
        ),
        Signal("suspects", "up", 1.0, "share of free texts that break a rule"),
        Signal("facts_lost", "up", 1.0, "share of the source's facts that a free text does not keep"),
        Signal("kl", "none", None, "nats a token from the model without changes"),
    )
}


def text_signals(
    texts: Sequence[str],
    nll: Sequence[float | None],
    *,
    suspects: Sequence[Sequence[str]] | None = None,
    facts_kept: Sequence[float | None] | None = None,
) -> pl.DataFrame:
    """Columns nll, loops, loop_score, and suspects and facts_lost where they are given: one row a text, in order.

    Args:
        nll: nats a token under the model without changes, given the prompt; None for an empty text.
        suspects: names of the rules that each text breaks.
        facts_kept: share of its source's facts.
    """
    n = len(texts)
    costs = text_costs(texts, suspects or [()] * n, facts_kept or [None] * n, nll)
    given = ["suspects"] * (suspects is not None) + ["facts_lost"] * (facts_kept is not None)
    score = pl.Series("loop_score", [duplicate_mass(text) for text in texts], dtype=pl.Float64)
    return costs.select("nll", "loops", *given).with_columns(score)


def text_rows(
    row_ids: Sequence[str],
    signals: pl.DataFrame,
    *,
    arm: str,
    seed: int | None,
    made_with: str,
    target: Sequence[float] | None = None,
    off_target: Mapping[str, Sequence[float]] | None = None,
) -> pl.DataFrame:
    """One arm's free texts as the stage table reads them: its key, target, `off_target_…` and signals.

    Args:
        row_ids: of the prompts, with the number of the sample where each was asked several times.
        signals: `text_signals` of the texts, in the same order.
        made_with: hash of what compared arms share: base model, precision, prompts, sampling and scorer.
        target: trait scores of the texts, more being more of the trait. off_target: name -> scores of other traits.
    """
    scores = {"target": target} if target is not None else {}
    scores |= {f"off_target_{name}": values for name, values in (off_target or {}).items()}
    return pl.DataFrame({"row_id": list(row_ids)}).select(
        pl.lit(arm).alias("arm"),
        pl.lit(seed, pl.Int64).alias("seed"),
        "row_id",
        pl.lit(made_with).alias("made_with"),
        *(pl.Series(name, list(values), dtype=pl.Float64) for name, values in scores.items()),
        *signals,
    )
