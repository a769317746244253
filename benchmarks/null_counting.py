"""How often verdicts are given in seeded runs, with exact intervals: what every null of `benchmarks.null` tells.

In: a function of a run that gives verdict -> whether it claims something. Out: rates on null runs, where claims are
false, and on planted runs, where they are true, and whether level and power hold.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from scipy.stats import binomtest

from benchmarks.null_texts import tell

LEVEL = 0.05  # of every verdict
POWER = 0.95  # with which an effect of the size seen is to be found
Claims = Callable[[int, bool], Mapping[str, bool]]  # (run, planted) -> verdict -> whether it claims something


def rate(hits: int, runs: int) -> dict[str, float]:
    """Share of runs with its exact 95% interval (Clopper and Pearson)."""
    bounds = binomtest(hits, runs).proportion_ci(method="exact")
    return {"rate": hits / runs, "low": round(float(bounds.low), 4), "high": round(float(bounds.high), 4)}


def counted(name: str, claims: Claims, runs: int) -> dict[str, Any]:
    """`rejected` of null runs and `planted` of the others, by verdict.

    Level holds where the interval of no rate lies above `LEVEL`; power where none of a planted one lies below `POWER`.
    """
    false, true = Counter[str](), Counter[str]()
    verdicts: dict[bool, list[str]] = {}
    for planted, found in ((False, false), (True, true)):
        for run in range(runs):
            told = claims(run, planted)
            verdicts[planted] = list(told)
            found.update(verdict for verdict, claimed in told.items() if claimed)
            tell(f"{name} {'planted' if planted else 'null'} {run + 1}/{runs}: {dict(found)}")
    rejected = {verdict: rate(false[verdict], runs) for verdict in verdicts[False]}
    seen = {verdict: rate(true[verdict], runs) for verdict in verdicts[True]}
    return {
        "runs": runs,
        "rejected": rejected,
        "holds": all(one["low"] <= LEVEL for one in rejected.values()),
        "planted": {"found": seen, "holds": all(one["high"] >= POWER for one in seen.values())},
    }
