"""Whether the scales agree: MiniLM, judge and ground truth, over all answers of a persona.

In: joined rows of the behaviour table. Out: one row a persona and pair of scales. Rank correlation, AUC for
"the truth shows the trait", and quadratic-weighted kappa between the judge and MiniLM on the judge's own levels;
intervals resample questions.
"""

from collections.abc import Callable

import numpy as np
import polars as pl

from steer_pipeline.catalogue.scale import SCALES
from steer_pipeline.lab.behaviour.schema import JUDGE, MINILM, TRUTH
from steer_pipeline.lab.evaluation.judgement import STATUSES
from steer_pipeline.lab.stats import auc_interval, cluster_bootstrap
from steer_pipeline.lab.stats.correlation import spearman

PAIRS = ((MINILM, TRUTH), (JUDGE, TRUTH), (MINILM, JUDGE))
N_BOOT = 400
AGREEMENT_SCHEMA = pl.Schema(
    {
        "persona": pl.String(),
        "first": pl.String(),
        "second": pl.String(),
        "n_rows": pl.Int64(),
        "spearman": pl.Float64(),
        "spearman_low": pl.Float64(),
        "spearman_high": pl.Float64(),
        "auc": pl.Float64(),  # of the first scale for "the truth is above zero"; null beside a judge
        "auc_low": pl.Float64(),
        "auc_high": pl.Float64(),
        "kappa": pl.Float64(),  # quadratic weights; MiniLM and judge only
        "kappa_low": pl.Float64(),
        "kappa_high": pl.Float64(),
    }
)


def agreement(rows: pl.DataFrame, seed: int) -> pl.DataFrame:
    """`AGREEMENT_SCHEMA`: pairs of scales that both have values; a number that is undefined is null."""
    pairs = []
    for own in rows.partition_by("persona", maintain_order=True):
        for first, second in PAIRS:
            both = own.drop_nulls([first, second])
            if both["question_index"].n_unique() < 2:
                continue
            row = {"persona": own["persona"][0], "first": first, "second": second, "n_rows": both.height}
            a, b = both[first].to_numpy(), both[second].to_numpy()
            questions = both["question_index"].to_numpy()
            row |= _interval("spearman", spearman, a, b, questions, seed)
            if second == TRUTH and 0 < (b > 0).sum() < len(b):
                area = auc_interval(a, b > 0, groups=questions, seed=seed, n_boot=N_BOOT)
                row |= {"auc": area.estimate, "auc_low": area.low, "auc_high": area.high}
            if second == JUDGE:
                x, y = (np.rint(SCALES[own["kind"][0]].steps(share)) for share in (a, b))
                row |= _interval("kappa", quadratic_kappa, x, y, questions, seed)
            pairs.append(row)
    return pl.DataFrame(pairs, schema=AGREEMENT_SCHEMA)


def _interval(
    name: str,
    statistic: Callable[[np.ndarray, np.ndarray], float],
    a: np.ndarray,
    b: np.ndarray,
    questions: np.ndarray,
    seed: int,
) -> dict[str, float]:
    """`name`, `name_low` and `name_high`; nothing where the statistic is undefined on the rows as they are."""
    if not np.isfinite(statistic(a, b)):
        return {}

    def drawn(rows: np.ndarray) -> float:
        return statistic(a[rows], b[rows])

    interval = cluster_bootstrap(drawn, questions, seed=seed, n_boot=N_BOOT)
    return {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}


def quadratic_kappa(a: np.ndarray, b: np.ndarray) -> float:
    """Cohen's kappa with quadratic weights between two columns of levels 0, 1, 2, ...; NaN where all are equal."""
    from sklearn.metrics import cohen_kappa_score

    levels = np.arange(int(max(a.max(), b.max())) + 1)
    if len(np.unique(np.r_[a, b])) < 2:
        return float("nan")
    return float(cohen_kappa_score(a.astype(int), b.astype(int), labels=levels, weights="quadratic"))


def judge_counts(rows: pl.DataFrame) -> pl.DataFrame:
    """persona, arm_name, rows, and answers by fate: refusals, invalid and missing ones each by themselves."""
    unknown = set(rows["judge_status"].drop_nulls()) - set(STATUSES)
    if unknown:
        raise ValueError(f"judge status {sorted(unknown)[0]!r}: known are {', '.join(STATUSES)}")
    counts = [
        (pl.col("judge_status") == status).sum().cast(pl.Int64).alias(f"judge_{status}")
        for status in STATUSES
    ]
    return rows.group_by("persona", "arm_name", maintain_order=True).agg(
        pl.len().cast(pl.Int64).alias("rows"), *counts
    )
