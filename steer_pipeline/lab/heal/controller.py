"""The dose controller: the largest dose of which enough texts survive the filter, and the data made at it.

In: a way to sample a dose, a filter that says which rows survive, and limits. Out: the dose, every test as a row, and
all texts at that dose. A dose is taken only if it was tested itself, on prompts spread over categories; the test's
texts are those that the data hold for these prompts. Texts of other doses are no data. It knows neither vectors nor
filters.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from steer_pipeline.catalogue.specs import HealControllerSpec
from steer_pipeline.lab.columns import described
from steer_pipeline.lab.heal.prompts import require_open, spread
from steer_pipeline.lab.heal.teacher import HealError
from steer_pipeline.lab.verdict import Verdict

Sample = Callable[[float, pl.DataFrame], pl.DataFrame]  # dose, prompts -> rows of `samples.SAMPLE_SCHEMA`
Keep = Callable[[pl.DataFrame], Iterable[bool]]  # rows -> whether each survives, in their order

PROBE, DATA = "probe", "data"
PROBE_SCHEMA, PROBE_COLUMNS = described(
    probe=(pl.Int32(), "number of the test"),
    step=(pl.String(), "ceiling | floor | bisection"),
    dose=(pl.Float64(), "multiple of the vector"),
    n=(pl.Int32(), "texts that were tested"),
    kept=(pl.Int32(), "of them, how many survived"),
    share=(pl.Float64(), "kept / n"),
    passed=(pl.Boolean(), "the share reaches the target"),
)


@dataclass(frozen=True, eq=False)
class Settled:
    """The dose that was taken.

    Attributes:
        dose: multiple of the vector; tested, and passed.
        share: of its test's texts that survived; `n` of them.
        failed: the smallest tested dose that did not pass; None: the largest allowed dose passed.
        probes: `PROBE_SCHEMA`, in the order of the tests.
        rows: the tests' texts with `purpose` "probe" and `kept`, of all tested doses.
    """

    dose: float
    share: float
    n: int
    target: float
    failed: float | None
    probes: pl.DataFrame
    rows: pl.DataFrame


def settle(sample: Sample, keep: Keep, prompts: pl.DataFrame, spec: HealControllerSpec) -> Settled:
    """The largest dose found of which `spec.target_share` survives.

    The largest allowed dose is tested, then the smallest, then the middle between what passed and what failed, on
    logarithms.

    Raises:
        HealError: the smallest dose fails, with the shares of what was tested; or a prompt is held out.
    """
    tests = _Tests(sample, keep, spread(require_open(prompts), spec.n_prompts, spec.seed), spec)
    if tests.passes(spec.max_dose, "ceiling"):
        return tests.settled(spec.max_dose, None)
    if spec.min_dose == spec.max_dose or not tests.passes(spec.min_dose, "floor"):
        raise HealError(tests.nothing())
    low, high = spec.min_dose, spec.max_dose
    while high / low > spec.ratio and len(tests.probes) < spec.max_probes:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if tests.passes(middle, "bisection") else (low, middle)
    return tests.settled(low, high)


def collect(sample: Sample, keep: Keep, prompts: pl.DataFrame, settled: Settled) -> pl.DataFrame:
    """Every prompt's texts at the settled dose, those that were tested among them.

    Returns:
        Rows of the sampler, all of one dose, with `kept` (they survive the filter) and `purpose` "data".

    Raises:
        HealError: the sampler gives rows of another dose.
    """
    rows = sample(settled.dose, require_open(prompts))
    return _judged(rows, keep, settled.dose, DATA)


def settled_claim(settled: Settled, rows: pl.DataFrame) -> Verdict:
    """The share that the test promised holds on all data, and all data are of that dose.

    Args:
        rows: what `collect` returns.
    """
    doses = rows["dose"].unique().to_list()
    share = int(rows["kept"].sum()) / max(1, rows.height)
    # What the test's number of texts leaves to chance: two standard errors of a share at the target.
    chance = 2 * math.sqrt(settled.target * (1 - settled.target) / settled.n)
    limit = settled.target - chance
    tested = f"{settled.share:.0%} of {settled.n} texts survived its test"
    return Verdict(
        "dose_holds_on_all_texts",
        doses == [settled.dose] and share >= limit,
        f"dose {settled.dose:.4g}: {tested}, {share:.0%} of all {rows.height} survive; {settled.target:.0%} wanted, "
        f"and no less than {limit:.0%}, which a test of this size leaves to chance"
        + ("" if doses == [settled.dose] else f"; the rows are of doses {doses}"),
        {
            "dose": settled.dose,
            "share_tested": settled.share,
            "share": share,
            "limit": limit,
            "n": rows.height,
        },
    )


class _Tests:
    """The doses that were tested, and how."""

    def __init__(self, sample: Sample, keep: Keep, prompts: pl.DataFrame, spec: HealControllerSpec) -> None:
        self.sample, self.keep, self.prompts, self.spec = sample, keep, prompts, spec
        self.probes: list[dict[str, Any]] = []
        self.rows: list[pl.DataFrame] = []

    def passes(self, dose: float, step: str) -> bool:
        rows = _judged(self.sample(dose, self.prompts), self.keep, dose, PROBE)
        kept = int(rows["kept"].sum())
        share = kept / rows.height
        passed = share >= self.spec.target_share
        self.rows.append(rows)
        self.probes.append(
            {
                "probe": len(self.probes),
                "step": step,
                "dose": dose,
                "n": rows.height,
                "kept": kept,
                "share": share,
                "passed": passed,
            }
        )
        return passed

    def settled(self, dose: float, failed: float | None) -> Settled:
        own = next(probe for probe in self.probes if probe["dose"] == dose)
        return Settled(
            dose,
            own["share"],
            own["n"],
            self.spec.target_share,
            failed,
            pl.DataFrame(self.probes, schema=PROBE_SCHEMA),
            pl.concat(self.rows),
        )

    def nothing(self) -> str:
        told = ", ".join(
            f"{probe['dose']:g}: {probe['kept']} of {probe['n']} ({probe['share']:.0%})"
            for probe in self.probes
        )
        return (
            f"no dose from {self.spec.min_dose:g} to {self.spec.max_dose:g} passes: {self.spec.target_share:.0%} of "
            f"its texts must survive the filter; of {told} do; look at the filter's reasons, or lower min_dose"
        )


def _judged(rows: pl.DataFrame, keep: Keep, dose: float, purpose: str) -> pl.DataFrame:
    if rows.is_empty():
        raise HealError(f"dose {dose:g}: the sampler gave no texts")
    if rows["dose"].unique().to_list() != [dose]:
        raise HealError(
            f"dose {dose:g}: the sampler gave texts of doses {rows['dose'].unique().sort().to_list()}"
        )
    kept = np.asarray(list(keep(rows)), dtype=bool)
    if len(kept) != rows.height:
        raise HealError(
            f"dose {dose:g}: the filter judged {len(kept)} of {rows.height} texts; one verdict a row"
        )
    return rows.with_columns(pl.Series("kept", kept), pl.lit(purpose).alias("purpose"))
