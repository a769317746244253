"""Gate 1 of the heal loop: which doses move the trait, and the trait alone, in coherent texts.

In: a teacher, doses, prompts and scales. Out: one row a text; of these rows, without a model, one row a dose with a
verdict. Thresholds are made of what random directions of the same length do at each dose: how far the trait, other
scales and the coherence signals move when nothing is meant. What a coherent text may lose at least is the profile's
`CoherenceSpec`, against base on the same prompts; noise can widen that, never narrow it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from steer_pipeline.catalogue.healing import HealGateSpec
from steer_pipeline.catalogue.specs import CoherenceSpec, SamplingSpec
from steer_pipeline.lab.columns import described
from steer_pipeline.lab.corpus.identity import digest64
from steer_pipeline.lab.evaluation import TraitScorer
from steer_pipeline.lab.generation.engine import generate
from steer_pipeline.lab.generation.jobs import BrokenLogits, FinishedRow, PromptRow
from steer_pipeline.lab.heal.calibration import PERCENTILE, rollout_kl
from steer_pipeline.lab.heal.prompts import held_against, prompt_rows, require_open, spread
from steer_pipeline.lab.heal.teacher import STREAM, HealError, Teacher
from steer_pipeline.lab.models.completions import completion_nll
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.sites import SteeringPlan
from steer_pipeline.lab.quality.coherence import COSTS, Cost, coherence, text_costs
from steer_pipeline.lab.stats import Interval, mean_interval
from steer_pipeline.lab.verdict import Verdict

GOOD, TOO_WEAK, TOO_STRONG = "good", "too weak", "too strong"
WRONG_TARGET, COLLAPSED = "wrong target", "collapsed"
VERDICTS = (TOO_WEAK, GOOD, TOO_STRONG, WRONG_TARGET, COLLAPSED)
BASE, TEACHER, RANDOM = "base", "teacher", "random"
MOST = 0.5  # of texts; where more than base's are loops or empty than this, the dose has collapsed
COST, OFF = "cost_", "off_"  # of a row: what it lost, how far it is on another scale

_ROWS: dict[str, tuple[Any, str]] = {
    "prompt_id": (pl.String(), "the prompt that is answered"),
    "direction": (pl.String(), "base | teacher | random"),
    "draw": (pl.Int32(), "number of a random direction; null: none"),
    "dose": (pl.Float64(), "multiple of the vector; 0: base"),
    "alpha": (pl.Float64(), "the same as the operator takes it at a block"),
    "text": (pl.String(), "what was said; empty where the logits broke"),
    "n_tokens": (pl.Int32(), "of it, the end of turn included"),
    "truncated": (pl.Boolean(), "stopped by the token limit"),
    "collapsed": (pl.Boolean(), "a loop, or no word at all"),
    "trait": (pl.Float64(), "score on the persona's scale, -1 to 1"),
    "kl": (pl.List(pl.Float32()), "nats a token: KL(steered || base); the teacher's rows only"),
    **{f"{COST}{name}": (pl.Float64(), text) for name, text in COSTS.items()},
}
ROW_SCHEMA, ROW_COLUMNS = described(**_ROWS)  # and one column `off_NAME` for each other scale

_LIMITS = {f"limit_{name}": (pl.Float64(), f"largest extra {name} allowed") for name in COSTS}
_EXTRAS = {
    f"extra_{name}{edge}": (pl.Float64(), f"{text}: mean paired difference to base{of}")
    for name, text in COSTS.items()
    for edge, of in (("", ""), ("_low", ", low end of its interval"), ("_high", ", high end"))
}
GATE_SCHEMA, GATE_COLUMNS = described(
    dose=(pl.Float64(), "multiple of the vector"),
    alpha=(pl.Float64(), "the same as the operator takes it at a block"),
    verdict=(pl.String(), "too weak | good | too strong | wrong target | collapsed"),
    why=(pl.String(), "the numbers that decided"),
    n=(pl.Int32(), "prompts"),
    shift=(pl.Float64(), "of the trait against base on the same prompts, mean"),
    shift_low=(pl.Float64(), "low end of its 95% interval over prompts"),
    shift_high=(pl.Float64(), "high end"),
    noise_mean=(pl.Float64(), "mean shift of the random directions"),
    noise_bound=(pl.Float64(), "shift in the dose's direction that another random one stays under"),
    off_scale=(
        pl.String(),
        "the other scale that moved furthest beyond its noise, or furthest; null: none given",
    ),
    off_shift=(pl.Float64(), "how far it moved"),
    off_bound=(pl.Float64(), "size that another random direction's movement stays under"),
    kl_p95=(pl.Float64(), "nats: 95th percentile over tokens of KL(steered || base)"),
    kl_mean=(pl.Float64(), "nats: mean over tokens"),
    collapsed_rate=(pl.Float64(), "share of texts that are loops or empty"),
    random_collapsed_rate=(pl.Float64(), "the same of the random directions' texts"),
    **_EXTRAS,
    **_LIMITS,
    example=(pl.String(), "the dose's answer to the first prompt"),
)


# ------------------------------------------------------------------------------------ rows, with a model


@dataclass(frozen=True)
class _Arm:
    direction: str
    draw: int | None
    dose: float
    alpha: float
    plan: SteeringPlan


def gate_rows(
    model: LoadedModel,
    teacher: Teacher,
    prompts: pl.DataFrame,
    spec: HealGateSpec,
    scorer: TraitScorer,
    off_target: Mapping[str, TraitScorer],
    sampling: SamplingSpec,
) -> pl.DataFrame:
    """One text a prompt of base, of every dose, and of random directions at every dose, scored.

    All draw the same random numbers. A dose whose logits break leaves empty texts.

    Args:
        prompts: `prompts.PROMPT_SCHEMA`, none held out; `spec.n_prompts` of them are answered.
        off_target: scales that should stay where they are, by name.

    Returns:
        `ROW_SCHEMA` and a column `off_NAME` for each other scale, by arm and prompt.

    Raises:
        HealError: a prompt is held out.
    """
    chosen = spread(require_open(prompts), spec.n_prompts, spec.seed)
    rows = prompt_rows(model, chosen)
    arms = _arms(teacher, spec)
    said = _said(model, rows, [arm.plan for arm in arms], sampling)
    nll = completion_nll(
        model,
        [row.ids["*"] for row in rows],
        [[said[arm.plan.variant, row.row_id].token_ids for arm in arms] for row in rows],
    )
    frames = []
    for number, arm in enumerate(arms):
        made = [said[arm.plan.variant, row.row_id] for row in rows]
        frame = _scored(
            model, arm, made, chosen, [of_prompt[number] for of_prompt in nll], scorer, off_target
        )
        kl: list[list[float] | None] = [None] * len(made)
        if arm.direction == TEACHER and all(row.token_ids or not row.truncated for row in made):
            kl = [values.tolist() for values in rollout_kl(model, arm.plan, rows, made)]
        frames.append(frame.with_columns(kl=pl.Series(kl, dtype=pl.List(pl.Float32))))
    return pl.concat(frames).select(*ROW_SCHEMA, *(f"{OFF}{name}" for name in off_target))


def _arms(teacher: Teacher, spec: HealGateSpec) -> list[_Arm]:
    arms = [_Arm(BASE, None, 0.0, 0.0, SteeringPlan(BASE, stream=STREAM))]
    for dose in spec.doses:
        plan = teacher.plan(dose, f"teacher_dose{dose:+g}")
        arms.append(_Arm(TEACHER, None, dose, teacher.alpha(dose), plan))
    for draw in range(spec.n_random):
        other = teacher.randomised(digest64(f"{spec.seed}\x1f{teacher.name}\x1f{draw}"))
        for dose in spec.doses:
            plan = other.plan(dose, f"random{draw:02d}_dose{dose:+g}")
            arms.append(_Arm(RANDOM, draw, dose, other.alpha(dose), plan))
    return arms


def _said(
    model: LoadedModel, rows: Sequence[PromptRow], plans: Sequence[SteeringPlan], sampling: SamplingSpec
) -> dict[tuple[str, str], FinishedRow]:
    """(variant, row id) -> what was said. Where logits break, the plans are tried one by one to see whose."""
    try:
        return {(row.variant, row.row_id): row for row in generate(model, rows, plans, sampling)}
    except BrokenLogits:
        if len(plans) > 1:
            return {key: row for plan in plans for key, row in _said(model, rows, [plan], sampling).items()}
        variant = plans[0].variant
        return {
            (variant, row.row_id): FinishedRow(
                row.row_id, variant, "", [], len(row.ids["*"]), 0, "length", True, sampling.seed
            )
            for row in rows
        }


def _scored(
    model: LoadedModel,
    arm: _Arm,
    made: Sequence[FinishedRow],
    prompts: pl.DataFrame,
    nll: Sequence[float],
    scorer: TraitScorer,
    off_target: Mapping[str, TraitScorer],
) -> pl.DataFrame:
    texts = [row.text for row in made]
    special = model.tokenizer.all_special_tokens
    suspects, kept = held_against(prompts, texts, special)
    costs = text_costs(texts, suspects, kept, [None if np.isnan(value) else float(value) for value in nll])
    frame = pl.DataFrame(
        {
            "prompt_id": prompts["prompt_id"],
            "text": texts,
            "n_tokens": [row.n_new_tokens for row in made],
            "truncated": [row.truncated for row in made],
            "trait": np.asarray(scorer.score_many(texts), dtype=np.float64),
            **{f"{OFF}{name}": np.asarray(other.score_many(texts)) for name, other in off_target.items()},
        },
        schema_overrides={"n_tokens": pl.Int32},
    )
    empty = pl.Series([not any(char.isalnum() for char in text) for text in texts])
    return frame.with_columns(
        pl.lit(arm.direction).alias("direction"),
        pl.lit(arm.draw, pl.Int32).alias("draw"),
        pl.lit(arm.dose).alias("dose"),
        pl.lit(arm.alpha).alias("alpha"),
        ((costs["loops"] > 0) | empty).alias("collapsed"),
        *(costs[name].alias(f"{COST}{name}") for name in COSTS),
    )


# ------------------------------------------------------------------------------------ the table, without one


@dataclass(frozen=True)
class _Noise:
    """What random directions did at one dose: each one's mean difference to base."""

    values: np.ndarray
    level: float

    @property
    def spread(self) -> float:
        """How far another random direction's value may lie from their mean: a one-sided prediction bound, Student's t.

        From n directions: t(level, n - 1) s sqrt(1 + 1 / n).
        """
        from scipy.stats import t

        n = len(self.values)
        return float(t.ppf(self.level, n - 1) * self.values.std(ddof=1) * np.sqrt(1 + 1 / n))

    @property
    def mean(self) -> float:
        return float(self.values.mean())


def gate_table(rows: pl.DataFrame, spec: HealGateSpec, limits: CoherenceSpec) -> pl.DataFrame:
    """One row a dose, ascending: `GATE_SCHEMA`.

    The verdict, in this order: collapsed, where more than `MOST` of the texts beyond base's are loops or empty; too
    strong, where a coherence signal lost more than its limit and more than no loss at all; wrong target, where another
    scale moved beyond its noise and as far as the trait or further; too weak, where the trait moved no further than
    another random direction might, or its interval holds zero; good.

    Args:
        rows: what `gate_rows` returns.
        limits: the profile's. 0 leaves a signal to the noise alone, null does not judge by it.

    Raises:
        HealError: there are no base rows, or fewer than three random directions at a dose.
    """
    base = rows.filter(pl.col("direction") == BASE).sort("prompt_id")
    if base.is_empty():
        raise HealError("dose gate: no rows of base; make them with gate_rows")
    doses = rows.filter(pl.col("direction") == TEACHER)["dose"].unique().sort()
    table = [_dose_row(rows.filter(pl.col("dose") == dose), base, spec, limits) for dose in doses]
    return pl.DataFrame(table, schema=GATE_SCHEMA)


def _dose_row(
    rows: pl.DataFrame, base: pl.DataFrame, spec: HealGateSpec, limits: CoherenceSpec
) -> dict[str, Any]:
    own = rows.filter(pl.col("direction") == TEACHER).sort("prompt_id")
    random = rows.filter(pl.col("direction") == RANDOM).partition_by("draw", maintain_order=True)
    random = [frame.sort("prompt_id") for frame in random]
    dose = float(own["dose"][0])
    if len(random) < 3:
        raise HealError(f"dose gate: dose {dose:g} has {len(random)} random directions; 3 or more are needed")
    for frame in (own, *random):
        if frame["prompt_id"].to_list() != base["prompt_id"].to_list():
            raise HealError(f"dose gate: dose {dose:g} and base answer different prompts; make the rows anew")
    sign = 1.0 if dose > 0 else -1.0
    shift = mean_interval((own["trait"] - base["trait"]).to_numpy())
    noise = _noise("trait", random, base, spec)
    off = _off_target(own, random, base, spec)
    costs = {
        name: _widened(cost, _noise(f"{COST}{name}", random, base, spec))
        for name, cost in coherence(_costs(own), _costs(base), limits).items()
    }
    kl = np.array([value for values in own["kl"].drop_nulls() for value in values], dtype=np.float64)
    collapsed, of_base = _share(own["collapsed"]), _share(base["collapsed"])
    measured: dict[str, Any] = {
        "dose": dose,
        "alpha": float(own["alpha"][0]),
        "n": own.height,
        "shift": shift.estimate,
        "shift_low": shift.low,
        "shift_high": shift.high,
        "noise_mean": noise.mean,
        "noise_bound": sign * noise.mean + noise.spread,
        "off_scale": off[0],
        "off_shift": off[1],
        "off_bound": off[2],
        "kl_p95": float(np.percentile(kl, PERCENTILE)) if kl.size else None,
        "kl_mean": float(kl.mean()) if kl.size else None,
        "collapsed_rate": collapsed,
        "random_collapsed_rate": float(np.mean([_share(frame["collapsed"]) for frame in random])),
        **{key: value for name, cost in costs.items() for key, value in _flat(name, cost).items()},
        "example": own["text"][0],
    }
    verdict, why = _verdict(measured, sign, collapsed - of_base, costs)
    return {**measured, "verdict": verdict, "why": why}


def _share(told: pl.Series) -> float:
    return int(told.sum()) / len(told)


def _noise(column: str, random: Sequence[pl.DataFrame], base: pl.DataFrame, spec: HealGateSpec) -> _Noise:
    differences = [(frame[column] - base[column]).drop_nulls().to_numpy() for frame in random]
    return _Noise(np.array([values.mean() if values.size else 0.0 for values in differences]), spec.level)


def _off_target(
    own: pl.DataFrame, random: Sequence[pl.DataFrame], base: pl.DataFrame, spec: HealGateSpec
) -> tuple[str | None, float | None, float | None]:
    """(scale, its shift, its bound) of the other scale that moved furthest beyond its noise, else furthest."""
    found = []
    for column in (name for name in own.columns if name.startswith(OFF)):
        noise = _noise(column, random, base, spec)
        moved = float((own[column] - base[column]).to_numpy().mean())
        found.append((column.removeprefix(OFF), moved, abs(noise.mean) + noise.spread))
    if not found:
        return None, None, None
    return max(found, key=lambda one: (abs(one[1]) > one[2], abs(one[1])))


def _widened(cost: Cost, noise: _Noise) -> Cost:
    """The cost with a limit no tighter than the spread among random directions; one that is not judged stays so."""
    return cost if cost.limit is None else replace(cost, limit=max(cost.limit, noise.spread))


def _costs(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.select(pl.col(f"{COST}{name}").alias(name) for name in COSTS)


def _flat(name: str, cost: Cost) -> dict[str, float | None]:
    of = cost.difference or Interval(np.nan, np.nan, np.nan, 0)
    values = (of.estimate, of.low, of.high)
    flat = {f"extra_{name}{edge}": value for edge, value in zip(("", "_low", "_high"), values, strict=True)}
    return {key: None if np.isnan(value) else value for key, value in flat.items()} | {
        f"limit_{name}": cost.limit
    }


def _verdict(
    row: Mapping[str, Any], sign: float, extra_collapsed: float, costs: Mapping[str, Cost]
) -> tuple[str, str]:
    trait = (
        f"trait {row['shift']:+.3f} [{row['shift_low']:+.3f}, {row['shift_high']:+.3f}], random directions reach "
        f"{sign * row['noise_bound']:+.3f}"
    )
    if extra_collapsed > MOST:
        return COLLAPSED, f"{row['collapsed_rate']:.0%} of the texts are loops or empty"
    beyond = [cost.sentence() for cost in costs.values() if not cost.within]
    if beyond:
        return TOO_STRONG, f"{'; '.join(beyond)}; {trait}"
    off = row["off_shift"]
    if off is not None and abs(off) > row["off_bound"] and abs(off) >= abs(row["shift"]):
        moved = f"{row['off_scale']} {off:+.3f}, random directions reach {row['off_bound']:.3f}"
        return WRONG_TARGET, f"{moved}; {trait}"
    told = row["shift_low"] > 0 if sign > 0 else row["shift_high"] < 0
    if not told or sign * row["shift"] <= row["noise_bound"]:
        return TOO_WEAK, trait
    return GOOD, trait


# ------------------------------------------------------------------------------------------- the claim


def gate_claim(table: pl.DataFrame) -> Verdict:
    """Some dose moves the trait, and the trait alone, in coherent texts."""
    counts = {name: table.filter(pl.col("verdict") == name).height for name in VERDICTS}
    good = table.filter(pl.col("verdict") == GOOD).sort(pl.col("dose").abs())
    told = ", ".join(f"{row['dose']:+g} {row['verdict']}" for row in table.iter_rows(named=True))
    numbers: dict[str, float | int | str] = {name.replace(" ", "_"): n for name, n in counts.items()}
    if good.is_empty():
        cure = _cure(counts)
        return Verdict(
            "a_dose_is_good", False, f"no dose of {table.height} is good: {told}", numbers, cure=cure
        )
    best = good.row(-1, named=True)
    nats = "" if best["kl_p95"] is None else f", {best['kl_p95']:.2g} nats a token at the 95th percentile"
    return Verdict(
        "a_dose_is_good",
        True,
        f"{good.height} of {table.height} doses are good, the largest {best['dose']:+g}{nats}: {best['why']} ({told})",
        numbers | {"largest_good_dose": best["dose"]},
    )


def _cure(counts: Mapping[str, int]) -> str:
    if counts[WRONG_TARGET]:
        return "the vector moves another scale as far: look at its contrast pairs, and try other blocks"
    if counts[TOO_WEAK] and counts[TOO_STRONG] + counts[COLLAPSED]:
        return "try doses between those that are too weak and those that are too strong, or other blocks"
    return "try larger doses" if counts[TOO_WEAK] else "try smaller doses"
