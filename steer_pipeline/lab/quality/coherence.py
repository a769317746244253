"""What a steered text loses, measured against base on the same rows.

In: one row a text with its costs, for a variant and for base. Out: the paired difference of each cost with an interval,
and whether it lies within a limit, as far as these rows can tell. A base model that is itself poor makes no dose
incoherent: only what is *more* than base's counts. Runs no model; NLL under the unsteered model is handed in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from steer_pipeline.catalogue.specs import CoherenceSpec
from steer_pipeline.lab.quality.loops import find_loop
from steer_pipeline.lab.quality.text import words
from steer_pipeline.lab.stats import Interval, mean_interval, minimum_detectable

# Cost -> what one row's value is. A positive difference to base is a loss; of two-sided costs either sign is.
COSTS = {
    "suspects": "1 where the text breaks a rule of ours, else 0",
    "facts_lost": "share of the source's facts that the text does not keep; null where the source has none",
    "loops": "1 where the text goes round in circles, else 0",
    "length": "natural logarithm of the number of words",
    "nll": "nats a token under the unsteered model",
}
TWO_SIDED = ("length", "nll")  # far shorter, or likelier than base's, as a loop is, is no better


@dataclass(frozen=True)
class Cost:
    """One cost of a variant: its mean, base's, and the paired difference.

    Attributes:
        difference: variant minus base, with a 95% interval over rows; None where no row has both.
        limit: the largest difference allowed, in either direction for two-sided costs; None: not judged.
        detectable: smallest difference that so many rows would find with 80% power; None: not measured.
    """

    name: str
    mean: float | None
    base: float | None
    difference: Interval | None
    limit: float | None
    detectable: float | None = None

    @property
    def within(self) -> bool:
        """Whether the estimate lies within the limit, or these rows cannot tell it from no loss at all.

        The second, because one loop in eight rows is 12.5 points: more than most limits, and no evidence. A cost that
        cannot be measured is not held against a text either.
        """
        if self.limit is None or self.loss is None or self.difference is None:
            return True
        low, high = self.difference.low, self.difference.high
        told = low > 0 or (self.name in TWO_SIDED and high < 0)
        return self.loss <= self.limit + 1e-12 or not told

    @property
    def loss(self) -> float | None:
        """The estimate of what is lost: the difference, of two-sided costs its size."""
        if self.difference is None:
            return None
        moved = self.difference.estimate
        return abs(moved) if self.name in TWO_SIDED else moved

    @property
    def strain(self) -> float | None:
        """The share of its limit that is used, 1 for all of it; None where there is no limit or no measurement."""
        if self.limit is None or self.loss is None:
            return None
        if self.loss <= 0:
            return 0.0
        return self.loss / self.limit if self.limit else float("inf")

    def sentence(self) -> str:
        """`suspects +2.0 points [0.0, 6.0], limit 5.0` and the like."""
        if self.difference is None:
            return f"{self.name.replace('_', ' ')} not measured"
        scale, unit = _SHOWN[self.name]
        low, high = (scale * edge for edge in (self.difference.low, self.difference.high))
        limit = "" if self.limit is None else f", limit {scale * self.limit:.3g}"
        shown = f"{scale * self.difference.estimate:+.3g}{unit} [{low:.3g}, {high:.3g}]"
        return f"{self.name.replace('_', ' ')} {shown}{limit}"


_SHOWN = {
    "suspects": (100.0, " points"),
    "facts_lost": (100.0, " points"),
    "loops": (100.0, " points"),
    "length": (1.0, " log words"),
    "nll": (1.0, " nats a token"),
}


def text_costs(
    texts: Sequence[str],
    suspects: Sequence[Sequence[str]],
    facts_kept: Sequence[float | None],
    nll: Sequence[float | None],
) -> pl.DataFrame:
    """One row a text, a column a cost (`COSTS`), in order.

    Args:
        suspects: names of the rules that each text breaks.
        facts_kept: share of its source's facts, None without facts.
        nll: mean over its tokens under the unsteered model, given its prompt; None for an empty text.
    """
    return pl.DataFrame(
        {
            "suspects": [float(bool(rules)) for rules in suspects],
            "facts_lost": [None if kept is None or np.isnan(kept) else 1.0 - kept for kept in facts_kept],
            "loops": [float(find_loop(text) is not None) for text in texts],
            "length": [float(np.log(max(1, len(words(text))))) for text in texts],
            "nll": list(nll),
        },
        schema=dict.fromkeys(COSTS, pl.Float64),
    )


def coherence(costs: pl.DataFrame, base: pl.DataFrame, spec: CoherenceSpec) -> dict[str, Cost]:
    """Every cost of a variant against base.

    Args:
        costs, base: `text_costs` of the same rows in the same order.

    Raises:
        ValueError: the two have not as many rows.
    """
    if costs.height != base.height:
        raise ValueError(f"{costs.height} rows against {base.height} of base; pair them by row_id first")
    return {name: paired_cost(name, costs[name], base[name], limit) for name, limit in limits(spec).items()}


def paired_cost(name: str, own: pl.Series, base: pl.Series, limit: float | None) -> Cost:
    """One cost against base, from values of the same rows in the same order: the rule of sweeps, reports and gates."""
    both = pl.DataFrame({"own": own, "base": base}).drop_nulls()
    if both.is_empty():
        return Cost(name, _mean(own), _mean(base), None, limit)
    apart = (both["own"] - both["base"]).to_numpy()
    least = minimum_detectable(apart[:, None])
    told = least if np.isfinite(least) else None
    return Cost(name, _mean(own), _mean(base), mean_interval(apart), limit, told)


def _mean(values: pl.Series) -> float | None:
    known = values.drop_nulls().to_numpy()
    return float(known.mean()) if known.size else None


def limits(spec: CoherenceSpec) -> Mapping[str, float | None]:
    """The limit of each cost, in its own unit."""
    return {
        "suspects": spec.max_extra_suspects,
        "facts_lost": spec.max_lost_facts,
        "loops": spec.max_extra_loops,
        "length": None if spec.max_length_ratio is None else float(np.log(spec.max_length_ratio)),
        "nll": spec.max_extra_nll,
    }


def beyond(costs: Mapping[str, Cost]) -> list[str]:
    """What stops a dose: a sentence for each cost outside its limit."""
    return [cost.sentence() for cost in costs.values() if not cost.within]
