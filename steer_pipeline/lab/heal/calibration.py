"""Iso-KL calibration: the dose at which a teacher's texts diverge from base by a given number of nats.

In: a model, a teacher, prompts and a target. Out: the dose, and every dose that was tried, as rows. The divergence of a
dose is the 95th percentile over the tokens of its own rollouts of KL(steered || base), over the whole vocabulary: a
mean hides the single token at which a text falls apart. Where another teacher is to be matched, it is the mean: that is
what students of the texts learn, and teachers that are alike in the percentile may lie far apart in it. Doses of
different vectors, blocks, operators and models are alike in it, multiples of a vector are not. It knows nothing of
traits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from steer_pipeline.catalogue.healing import HealCalibrationSpec
from steer_pipeline.catalogue.specs import SamplingSpec
from steer_pipeline.lab.columns import described
from steer_pipeline.lab.generation.engine import generate
from steer_pipeline.lab.generation.jobs import BrokenLogits, FinishedRow, PromptRow
from steer_pipeline.lab.heal.teacher import HealError, Teacher
from steer_pipeline.lab.models.hidden import position_kl
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.sites import SteeringPlan
from steer_pipeline.lab.verdict import Verdict

PERCENTILE = 95
P95, MEAN = "kl_p95", "kl_mean"
_TOLD = {P95: "95th percentile", MEAN: "mean"}
_EDGE = 0.05  # a step this near an end of the bracket, as a share of it, is replaced by bisection

CURVE_SCHEMA, CURVE_COLUMNS = described(
    probe=(pl.Int32(), "number of the try"),
    step=(pl.String(), "how it was chosen: bracket | secant | bisection"),
    dose=(pl.Float64(), "multiple of the vector; see teacher.DOSES"),
    alpha=(pl.Float64(), "the same as the operator takes it at a block: a length, or a share of the angle"),
    kl_p95=(pl.Float64(), "nats: 95th percentile over tokens of KL(steered || base); inf: the logits broke"),
    kl_mean=(pl.Float64(), "nats: mean over tokens"),
    kl_max=(pl.Float64(), "nats: largest of a token"),
    n_tokens=(pl.Int32(), "positions measured, all rollouts together"),
    n_prompts=(pl.Int32(), "rollouts"),
    example=(pl.String(), "rollout of the first prompt"),
)


@dataclass(frozen=True, eq=False)
class Calibration:
    """A dose and how it was found.

    Attributes:
        dose: multiple of the vector (see `teacher.DOSES`) whose divergence was nearest to the target.
        alpha: the same as the operator takes it, averaged over the blocks.
        kl_p95, kl_mean: of that dose, nats.
        converged: whether the divergence is within the tolerance of the target; greedy texts change by leaps, so that
            no dose may have it.
        curve: `CURVE_SCHEMA`, in the order of the tries.
    """

    teacher: str
    operator: str
    blocks: tuple[int, ...]
    target_nats: float
    tolerance: float
    dose: float
    alpha: float
    kl_p95: float
    kl_mean: float
    converged: bool
    curve: pl.DataFrame


def calibrate(
    model: LoadedModel,
    teacher: Teacher,
    prompts: Sequence[PromptRow],
    spec: HealCalibrationSpec,
    *,
    by: str = P95,
) -> Calibration:
    """The dose whose KL(steered || base) is the target.

    From `spec.start` the bracket grows by factors of two; inside of it regula falsi (Illinois) on logarithms, which
    expects KL to grow like a power of the dose, with bisection where its step is of no use.

    Args:
        prompts: the first `spec.n_prompts` are used; see `prompts.spread`.
        by: of the tokens' divergences, `kl_p95` or `kl_mean`.

    Raises:
        HealError: too few prompts, or no dose from `min_dose` to `max_dose` brackets the target: says both ends.
    """
    if len(prompts) < spec.n_prompts:
        raise HealError(f"calibration wants {spec.n_prompts} prompts, {len(prompts)} are given; give more")
    if model.dtype != "float32":
        raise HealError(
            f"model {model.name} is in {model.dtype}, whose rounding is as large as small divergences; load it in "
            "float32"
        )
    search = _Search(model, teacher, prompts[: spec.n_prompts], spec, by)
    search.refine(*search.bracket())
    best = min(search.rows, key=lambda row: abs(search.distance(row[by])))
    return Calibration(
        teacher=teacher.name,
        operator=teacher.operator,
        blocks=teacher.blocks,
        target_nats=spec.target_nats,
        tolerance=spec.tolerance,
        dose=best["dose"],
        alpha=best["alpha"],
        kl_p95=best["kl_p95"],
        kl_mean=best["kl_mean"],
        converged=search.near(best[by]),
        curve=pl.DataFrame(search.rows, schema=CURVE_SCHEMA),
    )


def calibration_claim(found: Calibration) -> Verdict:
    """The dose has the divergence that was asked for."""
    apart = abs(found.kl_p95 / found.target_nats - 1)
    return Verdict(
        "dose_has_the_target_divergence",
        found.converged,
        f"dose {found.dose:.4g} of {found.teacher} ({found.operator}, blocks {', '.join(map(str, found.blocks))}): p95 "
        f"of KL(steered || base) {found.kl_p95:.3g} nats, target {found.target_nats:g}; {apart:.1%} apart, limit "
        f"{found.tolerance:.1%}, after {found.curve.height} doses",
        {
            "dose": found.dose,
            "alpha": found.alpha,
            "kl_p95": found.kl_p95,
            "kl_mean": found.kl_mean,
            "target_nats": found.target_nats,
            "probes": found.curve.height,
        },
        cure=""
        if found.converged
        else "sample the rollouts (temperature), take more prompts, or a wider tolerance",
    )


class _Search:
    """The doses that were tried, and what to try next."""

    def __init__(
        self,
        model: LoadedModel,
        teacher: Teacher,
        prompts: Sequence[PromptRow],
        spec: HealCalibrationSpec,
        by: str,
    ) -> None:
        self.model, self.teacher, self.prompts, self.spec, self.by = model, teacher, prompts, spec, by
        self.rows: list[dict] = []

    def distance(self, kl: float) -> float:
        """log(kl / target); -inf for no divergence at all."""
        if not kl < math.inf:
            return math.inf
        return math.log(kl / self.spec.target_nats) if kl > 0 else -math.inf

    def near(self, kl: float) -> bool:
        return abs(kl / self.spec.target_nats - 1) <= self.spec.tolerance

    def bracket(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """(log dose, distance) below the target and above it; the same twice where a dose met it."""
        ceiling = min(self.spec.max_dose, self.teacher.max_dose)
        at = dose = min(self.spec.start, ceiling)
        value = first = self._probe(dose, "bracket")
        upwards = value < 0
        while (value < 0) == upwards and not self.near(self.rows[-1][self.by]):
            before = (math.log(dose), value)
            further = min(2 * dose, ceiling) if upwards else max(dose / 2, self.spec.min_dose)
            if further == dose:
                raise HealError(self._none(at, first, dose))
            dose, value = further, self._probe(further, "bracket")
            if (value < 0) != upwards:
                after = (math.log(dose), value)
                return (before, after) if upwards else (after, before)
        return ((math.log(dose), value),) * 2

    def refine(self, low: tuple[float, float], high: tuple[float, float]) -> None:
        """Regula falsi between a dose below the target and one above it."""
        (a, fa), (b, fb) = low, high
        for _ in range(self.spec.max_probes):
            if self.near(self.rows[-1][self.by]) or b - a < 1e-4:
                return
            at = b - fb * (b - a) / (fb - fa) if math.isfinite(fa) and math.isfinite(fb) else math.nan
            edge = _EDGE * (b - a)
            step = "secant" if a + edge < at < b - edge else "bisection"
            at = at if step == "secant" else (a + b) / 2
            value = self._probe(math.exp(at), step)
            if value < 0:
                a, fa, fb = at, value, fb / 2  # Illinois: what stays counts half, so that both ends move
            else:
                b, fb, fa = at, value, fa / 2

    def _probe(self, dose: float, step: str) -> float:
        """Measures a dose, notes it, and gives its distance from the target."""
        measured = divergence(
            self.model,
            self.teacher.plan(dose),
            self.prompts,
            SamplingSpec(
                temperature=self.spec.temperature,
                top_p=1.0,
                max_new_tokens=self.spec.n_tokens,
                seed=self.spec.seed,
            ),
        )
        self.rows.append(
            {
                "probe": len(self.rows),
                "step": step,
                "dose": dose,
                "alpha": self.teacher.alpha(dose),
                **measured,
            }
        )
        return self.distance(self.rows[-1][self.by])

    def _none(self, start: float, first: float, end: float) -> str:
        told = sorted((row["dose"], row[self.by]) for row in (self.rows[0], self.rows[-1]))
        (low, low_kl), (high, high_kl) = told[0], told[-1]
        side = "above" if first >= 0 else "below"
        cure = "min_dose" if first >= 0 else "max_dose"
        return (
            f"teacher {self.teacher.name!r} ({self.teacher.operator}): no dose tried has "
            f"{self.spec.target_nats:g} nats ({_TOLD[self.by]} of KL to base a token): {low_kl:.3g} at dose {low:.4g}, "
            f"{high_kl:.3g} at dose {high:.4g}, both {side} the target; set another target, or {cure} further out"
        )


def divergence(
    model: LoadedModel, plan: SteeringPlan, prompts: Sequence[PromptRow], sampling: SamplingSpec
) -> dict[str, float | int | str]:
    """What a plan does to the distributions of the tokens that it generates itself.

    Returns:
        kl_p95, kl_mean, kl_max (nats; infinite where the logits break), n_tokens, n_prompts, example.
    """
    try:
        made = {row.row_id: row for row in generate(model, prompts, [plan], sampling)}
    except BrokenLogits:
        broken = dict.fromkeys(("kl_p95", "kl_mean", "kl_max"), math.inf)
        return {**broken, "n_tokens": 0, "n_prompts": len(prompts), "example": ""}
    values = np.concatenate(rollout_kl(model, plan, prompts, [made[row.row_id] for row in prompts]))
    return {
        "kl_p95": float(np.percentile(values, PERCENTILE)),
        "kl_mean": float(values.mean()),
        "kl_max": float(values.max()),
        "n_tokens": len(values),
        "n_prompts": len(prompts),
        "example": made[prompts[0].row_id].text,
    }


def rollout_kl(
    model: LoadedModel, plan: SteeringPlan, prompts: Sequence[PromptRow], made: Sequence[FinishedRow]
) -> list[np.ndarray]:
    """fp32 nats a row: KL(steered || base) at each token of texts that a plan made, the end of the text among them."""
    end = min(model.eos_ids)
    ids = [
        [*prompt.ids["*"], *row.token_ids, *([] if row.truncated else [end])]
        for prompt, row in zip(prompts, made, strict=True)
    ]
    return position_kl(model, ids, [len(prompt.ids["*"]) for prompt in prompts], plan)
