"""The behaviour table: what each arm did to the trait and to the text, from stored rows and nothing else.

In: rollouts, MiniLM scores and, where a judge answered, its scores, a persona each. Out: frames. Questions are the
units: samples are averaged within one, intervals are over them, and an arm is compared with vanilla on the same
questions. An effect is claimed where a test of the mean (Holm over the persona's arms) and an interval that holds
for all arms at once say so, and the shift is large enough to matter.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import polars as pl

from steer_pipeline.catalogue.scale import SCALES
from steer_pipeline.lab.arms import PROMPTED, RANDOM, VANILLA, arm_label, family_of
from steer_pipeline.lab.behaviour.agreement import agreement, judge_counts
from steer_pipeline.lab.behaviour.correction import corrections
from steer_pipeline.lab.behaviour.schema import (
    COHERENCE_METRICS,
    DOWN,
    JUDGE,
    LOOP,
    MINILM,
    NLL,
    NONE,
    SUMMARY_SCHEMA,
    TOKENS,
    TRAIT_METRICS,
    TRUTH,
    UP,
    BehaviourTables,
    PersonaRows,
    TableError,
)
from steer_pipeline.lab.behaviour.scoring import REPORT_COLUMNS
from steer_pipeline.lab.controls import Controls, judge_controls, row_noise
from steer_pipeline.lab.evaluation.judgement import NOT_ASKED, SCORED
from steer_pipeline.lab.stats import (
    bootstrap_means,
    detectable,
    holm,
    mean_intervals,
    mean_tests,
    percentiles,
    simultaneous_intervals,
)

POOLED = (PROMPTED, RANDOM)  # means over their arms, shown beside them
LEVEL = 0.95
# Smaller shifts of a probability (or share of a scale) are no effect, however sure they are.
MIN_EFFECT = 0.02


def make_tables(
    stored: Mapping[str, PersonaRows], *, seed: int, alpha: float = 0.05, n_boot: int = 10_000
) -> BehaviourTables:
    """Everything that the behaviour table holds; the same rows and seed give the same tables.

    Raises:
        TableError: no persona, rows that do not go together, or a persona without a vanilla arm.
    """
    if not stored:
        raise TableError("there are no rollouts to compare: materialise rollouts and minilm_scores first")
    rows = pl.concat([joined(name, persona) for name, persona in stored.items()])
    summary = pl.concat(
        [
            summarise(own, seed=seed, alpha=alpha, n_boot=n_boot)
            for own in rows.partition_by("persona", maintain_order=True)
        ]
    )
    scorers = pl.concat([one.minilm.select("persona", *REPORT_COLUMNS).head(1) for one in stored.values()])
    controls = random_shifts(rows, seed=seed, n_boot=n_boot)
    return BehaviourTables(
        rows, summary, agreement(rows, seed), judge_counts(rows), scorers, controls, corrections(rows, seed)
    )


def random_shifts(rows: pl.DataFrame, *, seed: int, n_boot: int = 10_000) -> pl.DataFrame:
    """`CONTROL_SCHEMA`: what random directions do to each trait metric of each persona, over all of them together.

    Questions and directions both count: what a few directions happen to do is no property of random directions. A
    mean shift below `MIN_EFFECT` is none.

    Args:
        rows: as `joined` gives them, of all personas.
    """
    blocks = []
    for (persona,), own in rows.group_by("persona", maintain_order=True):
        for metric in TRAIT_METRICS:
            cells = _to_vanilla(own, metric)
            if cells is not None:
                names = [(RANDOM, str(persona), metric)]
                several = 1 if cells.shape[1] > 1 else None
                blocks.append(Controls(names, cells, row_noise(cells), several, MIN_EFFECT))
    return judge_controls(blocks, seed=seed, n_boot=n_boot)


def _to_vanilla(rows: pl.DataFrame, metric: str) -> np.ndarray | None:
    """Random arms less vanilla, samples averaged: float64 [questions, directions, 1]; None where there are none."""
    own = rows.filter(pl.col("arm").is_in([VANILLA, RANDOM])).drop_nulls(metric)
    wide = own.pivot(on="arm_name", index="question_index", values=metric, aggregate_function="mean")
    drawn = [name for name in wide.columns if name not in ("question_index", VANILLA)]
    if VANILLA not in wide.columns or not drawn:
        return None
    differences = wide.select((pl.col(name) - pl.col(VANILLA)).alias(name) for name in drawn)
    return differences.cast(pl.Float64).fill_null(float("nan")).to_numpy()[:, :, None]


def gather(
    personas: Sequence[str], rows: Callable[[str, str], pl.DataFrame | None]
) -> dict[str, PersonaRows]:
    """persona -> what is stored of it, of those that have both rollouts and MiniLM scores.

    Args:
        rows: current rows of an asset and persona; None where there are none.
    """
    stored = {}
    for persona in personas:
        rollouts = rows("rollouts", persona)
        scores = None if rollouts is None else rows("minilm_scores", persona)
        if rollouts is not None and scores is not None:
            stored[persona] = PersonaRows(rollouts, scores, rows("judge_scores", persona))
    return stored


def joined(persona: str, stored: PersonaRows) -> pl.DataFrame:
    """One row a rollout with `minilm`, `truth`, `judge` (share of its scale), `judge_status` and coherence.

    Raises:
        TableError: a rollout without exactly one MiniLM score, a judge score on another scale than the kind's,
            or a score of a row that is not among the rollouts.
    """
    rollouts = stored.rollouts
    if rollouts["row_id"].n_unique() != rollouts.height:
        raise TableError(f"{persona}: a row_id of the rollouts occurs twice; materialise rollouts again")
    _same_rows(persona, "minilm_scores", rollouts, stored.minilm)
    if stored.minilm["score"].null_count():
        raise TableError(f"{persona}: minilm_scores has null scores; materialise it again")
    kind = rollouts["kind"][0]
    rows = rollouts.select(
        "row_id", "persona", "kind", "arm", "scale", "seed", "question_index", "sample",
        arm_label(),
        pl.col("trait_truth").cast(pl.Float64).alias(TRUTH),
        pl.when(pl.col("base_tokens") > 0).then(pl.col("base_nll") / pl.col("base_tokens")).alias(NLL),
        pl.col("loop").cast(pl.Float64).alias(LOOP),
        pl.col("n_new_tokens").cast(pl.Float64).alias(TOKENS),
    ).join(stored.minilm.select("row_id", pl.col("score").alias(MINILM)), on="row_id", how="left")  # fmt: skip
    return rows.join(_judged(persona, kind, rollouts, stored.judge), on="row_id", how="left")


def _judged(persona: str, kind: str, rollouts: pl.DataFrame, judge: pl.DataFrame | None) -> pl.DataFrame:
    """row_id, judge, judge_status: all `not_asked` without a judge."""
    if judge is None:
        return rollouts.select(
            "row_id", pl.lit(None, pl.Float64).alias(JUDGE), pl.lit(NOT_ASKED.status).alias("judge_status")
        )
    _same_rows(persona, "judge_scores", rollouts, judge)
    scale, is_scored = SCALES[kind], pl.col("status") == SCORED
    wrong = judge.filter(is_scored & ((pl.col("scale_max") != scale.top) | ~scale.holds(pl.col("score"))))
    if not wrong.is_empty():
        row = wrong.row(0, named=True)
        raise TableError(
            f"{persona}: row {row['row_id']} has judge score {row['score']} of {row['scale_max']}; a {kind} is "
            f"judged on {scale}: role and trait scales must not be mixed"
        )
    share = pl.when(is_scored).then(scale.share(pl.col("score"))).cast(pl.Float64)
    return judge.select("row_id", share.alias(JUDGE), pl.col("status").cast(pl.String).alias("judge_status"))


def _same_rows(persona: str, asset: str, rollouts: pl.DataFrame, scores: pl.DataFrame) -> None:
    ours, theirs = set(rollouts["row_id"]), scores["row_id"].to_list()
    if len(theirs) != len(set(theirs)) or set(theirs) != ours:
        raise TableError(
            f"{persona}: {asset} has {len(theirs)} rows, {len(ours & set(theirs))} of the {len(ours)} rollouts "
            f"among them; it was made from other rollouts: materialise {asset} again"
        )


# ------------------------------------------------------------------------------------------ one persona


def summarise(rows: pl.DataFrame, *, seed: int, alpha: float = 0.05, n_boot: int = 10_000) -> pl.DataFrame:
    """The summary of one persona: every metric that has a value, every arm, pooled arms last.

    Args:
        rows: as `joined` gives them.
        alpha: family-wise error of the verdicts of one metric.

    Raises:
        TableError: there is no vanilla arm, or it lacks a question that another arm has.
    """
    persona = rows["persona"][0]
    if VANILLA not in set(rows["arm"]):
        raise TableError(f"{persona}: no vanilla arm; a difference needs one: materialise rollouts again")
    facts = rows.select("arm_name", "arm", "scale", "seed").unique("arm_name", maintain_order=True)
    arms = {row["arm_name"]: row | {"pooled": False} for row in facts.iter_rows(named=True)}
    parts = {
        VANILLA: [VANILLA],
        PROMPTED: [name for name, row in arms.items() if family_of(row["arm"]) == PROMPTED],
        RANDOM: [name for name, row in arms.items() if row["arm"] == RANDOM],
    }
    for name in POOLED:
        if parts[name]:
            arms[name] = {"arm_name": name, "arm": name, "scale": None, "seed": None, "pooled": True}
    records = []
    for metric in (*TRAIT_METRICS, *COHERENCE_METRICS):
        if rows[metric].null_count() == rows.height:
            continue
        values = _by_question(rows, metric, arms, parts)
        missing = np.isnan(values[:, list(arms).index(VANILLA)])
        if missing.all() or (missing.any() and metric not in (JUDGE, NLL)):
            raise TableError(f"{persona}: vanilla lacks {metric} for {int(missing.sum())} questions")
        pooled = {name: parts[name] for name in POOLED if name in arms}
        table = _compare(values, list(arms), pooled, metric, seed, alpha, n_boot)
        records += [
            {"persona": persona, "kind": rows["kind"][0], "metric": metric, **arm, **numbers}
            for arm, numbers in zip(arms.values(), table, strict=True)
        ]
    return pl.DataFrame(records, schema=SUMMARY_SCHEMA)


def _by_question(
    rows: pl.DataFrame, metric: str, arms: Mapping[str, dict], parts: Mapping[str, Sequence[str]]
) -> np.ndarray:
    """Mean of the samples: float64 [questions, arms], NaN where an arm has no value."""
    cells = rows.group_by("question_index", "arm_name").agg(pl.col(metric).mean())
    questions = sorted(rows["question_index"].unique())
    place, column = {q: i for i, q in enumerate(questions)}, {name: i for i, name in enumerate(arms)}
    values = np.full((len(questions), len(arms)), np.nan)
    for question, name, value in cells.iter_rows():
        values[place[question], column[name]] = np.nan if value is None else value
    for name, arm in arms.items():
        if arm["pooled"]:
            own = values[:, [column[part] for part in parts[name]]]
            filled = np.isfinite(own).sum(axis=1)
            values[:, column[name]] = np.where(filled, np.nansum(own, axis=1) / np.maximum(filled, 1), np.nan)
    return values


def _compare(
    values: np.ndarray,
    names: Sequence[str],
    pooled: Mapping[str, Sequence[str]],
    metric: str,
    seed: int,
    alpha: float,
    n_boot: int,
) -> list[dict]:
    """Numbers of every arm of one metric.

    A pooled arm is not tested: it has the verdict that most of its arms share.
    """
    vanilla, others = names.index(VANILLA), [i for i, name in enumerate(names) if name != VANILLA]
    top = np.inf if metric in (NLL, TOKENS) else 1.0
    means = mean_intervals(values, level=LEVEL, bounds=(0.0, top))
    numbers: list[dict] = [
        {
            "n_questions": one.n,
            "mean": _number(one.estimate),
            "low": _number(one.low),
            "high": _number(one.high),
        }
        for one in means
    ]
    differences = values[:, others] - values[:, [vanilla]]
    shifts, sizes = mean_intervals(differences, level=LEVEL), detectable(differences, level=LEVEL)
    for i, shift, size in zip(others, shifts, sizes, strict=True):
        numbers[i] |= {
            "difference": _number(shift.estimate),
            "difference_low": _number(shift.low),
            "difference_high": _number(shift.high),
            "detectable": _number(size),
        }
    single = [i for i in others if names[i] not in pooled]
    if metric in TRAIT_METRICS and single:
        _judge_arms(numbers, single, values[:, single] - values[:, [vanilla]], seed, alpha, n_boot)
        for name, own in pooled.items():
            numbers[names.index(name)]["verdict"] = _shared(
                [numbers[names.index(part)]["verdict"] for part in own]
            )
        if PROMPTED in pooled:
            _close_gaps(numbers, values, vanilla, names.index(PROMPTED), seed, n_boot)
    return numbers


def _judge_arms(
    numbers: list[dict], others: Sequence[int], differences: np.ndarray, seed: int, alpha: float, n_boot: int
) -> None:
    """Adds p, Holm's p over these arms, simultaneous intervals and the verdict."""
    ps = mean_tests(differences)
    adjusted = holm(ps)
    whole = np.isfinite(differences).all(axis=1)
    bands = None
    if 2 * whole.sum() >= len(differences) and whole.sum() > 1:  # refusals leave holes in a judge's scores
        bands = simultaneous_intervals(differences[whole], level=1 - alpha, seed=seed, n_boot=n_boot)
    for place, i in enumerate(others):
        band = bands[place] if bands else None
        shift = numbers[i]["difference"]
        sure = adjusted[place] < alpha and (band is None or not band.includes_zero)
        sure = sure and shift is not None and abs(shift) >= MIN_EFFECT
        numbers[i] |= {
            "p": float(ps[place]),
            "p_holm": float(adjusted[place]),
            "simultaneous_low": band.low if band else None,
            "simultaneous_high": band.high if band else None,
            "verdict": (UP if shift > 0 else DOWN) if sure else NONE,
        }


def _shared(verdicts: Sequence[str]) -> str:
    """The verdict of more than half of the arms, or no effect."""
    return next((one for one in (UP, DOWN) if 2 * verdicts.count(one) > len(verdicts)), NONE)


def _close_gaps(
    numbers: list[dict], values: np.ndarray, vanilla: int, prompted: int, seed: int, n_boot: int
) -> None:
    """Adds the share of the vanilla-to-prompted gap with an interval over questions.

    Numerator and denominator come from the same resamples. Where prompting has no effect there is no gap, and
    the share stays null.
    """
    if numbers[prompted]["verdict"] == NONE:
        return
    gap = numbers[prompted]["mean"] - numbers[vanilla]["mean"]
    drawn = bootstrap_means(values, seed=seed, n_boot=n_boot)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = (drawn - drawn[:, [vanilla]]) / (drawn[:, [prompted]] - drawn[:, [vanilla]])
    for i, own in enumerate(numbers):
        low, high = percentiles(shares[:, i], len(values), LEVEL)
        if own["mean"] is None or not np.isfinite(low):
            continue
        share = (own["mean"] - numbers[vanilla]["mean"]) / gap
        own |= {"trait_gap_closed": float(share), "trait_gap_low": low, "trait_gap_high": high}


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


# ------------------------------------------------------------------------------------------ for readers


def arms_table(tables: BehaviourTables) -> pl.DataFrame:
    """One row a persona and arm, wide: trait on every scale, coherence, verdict and gap, judge's counts.

    `score`, `verdict` and `trait_gap_closed` are MiniLM's; perplexity is exp of the mean nats a token over questions.
    """
    key = ["persona", "arm_name"]
    head = tables.summary.filter(metric=MINILM).select(
        "persona", "kind", "arm_name", "arm", "scale", "seed", "pooled", "n_questions",
        pl.col("mean").alias("score"), pl.col("low").alias("score_low"), pl.col("high").alias("score_high"),
        "difference", "difference_low", "difference_high", "detectable", "p_holm", "verdict",
        "trait_gap_closed", "trait_gap_low", "trait_gap_high",
    )  # fmt: skip
    for metric in (TRUTH, JUDGE):
        own = tables.summary.filter(metric=metric).select(
            *key,
            pl.col("mean").alias(metric),
            pl.col("low").alias(f"{metric}_low"),
            pl.col("high").alias(f"{metric}_high"),
            pl.col("verdict").alias(f"{metric}_verdict"),
        )
        head = head.join(own, on=key, how="left")
    for metric, name, read in (
        (NLL, "perplexity", lambda column: pl.col(column).exp()),
        (LOOP, "loop_rate", pl.col),
        (TOKENS, "new_tokens", pl.col),
    ):
        own = tables.summary.filter(metric=metric).select(
            *key,
            read("mean").alias(name),
            read("low").alias(f"{name}_low"),
            read("high").alias(f"{name}_high"),
        )
        head = head.join(own, on=key, how="left")
    return head.join(tables.judged.drop("rows"), on=key, how="left").join(
        tables.scorers, on="persona", how="left"
    )


def minilm_headline(scores: Mapping[str, pl.DataFrame]) -> dict[str, float]:
    """persona -> held-out AUC of its scorer, from stored minilm_scores."""
    return {persona: float(rows["auc"][0]) for persona, rows in scores.items() if rows.height}
