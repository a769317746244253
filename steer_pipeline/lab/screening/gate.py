"""Which training rows to leave out: those that lie further along some persona vector than neutral rows ever do.

In: projections of rows, those of neutral rows among them. Out: a flag a row, and precision and recall where it is known
which rows show a trait. The threshold comes from neutral rows on other prompts than those that are judged.
"""

import hashlib

import numpy as np
import polars as pl

from steer_pipeline.catalogue.auditing import ScreeningSpec
from steer_pipeline.lab.columns import described
from steer_pipeline.lab.screening.projecting import scores_of
from steer_pipeline.lab.stats import cluster_bootstrap
from steer_pipeline.lab.verdict import Verdict

MIN_NEUTRAL = 30

FLAG_SCHEMA, FLAG_COLUMNS = described(
    source=(pl.String(), "who wrote the row"),
    row_id=(pl.String(), "of its prompt"),
    direction=(pl.String(), "the one that it lies furthest along, in the neutral rows' standard deviations"),
    score=(pl.Float64(), "how far, in them"),
    flagged=(pl.Boolean(), "whether that is beyond the threshold"),
)
GATE_SCHEMA, GATE_COLUMNS = described(
    measure=(
        pl.String(),
        "precision: share of flagged rows that are planted | recall: share of planted rows that are "
        "flagged | false_alarms: share of neutral rows that are flagged",
    ),
    value=(pl.Float64(), "with planted and neutral rows in equal parts"),
    low=(pl.Float64(), "its 95% interval over prompts"),
    high=(pl.Float64(), "its upper end"),
    rows=(pl.Int64(), "planted and neutral rows that are judged"),
    threshold=(pl.Float64(), "of the score"),
)


def halves(row_ids: pl.Series, seed: int) -> pl.Series:
    """bool: prompts that thresholds are fitted on; the others are judged."""
    return pl.Series(
        [hashlib.sha256(f"{seed}:{one}".encode()).digest()[0] < 128 for one in row_ids], dtype=pl.Boolean
    )


def flag_rows(
    projections: pl.DataFrame, neutral: pl.DataFrame, spec: ScreeningSpec
) -> tuple[pl.DataFrame, float]:
    """`FLAG_SCHEMA` of every row, and the threshold.

    Each direction is measured in standard deviations of the neutral rows about their mean, so that one which varies by
    itself flags no more than others; a row's score is its largest distance.

    Args:
        projections: `PROJECTION_SCHEMA` of the rows to judge.
        neutral: the same of rows known to be neutral.

    Raises:
        ValueError: too few neutral rows for a quantile.
    """
    count = neutral.select("source", "row_id").unique().height
    if count < MIN_NEUTRAL:
        raise ValueError(
            f"{count} neutral rows; at least {MIN_NEUTRAL} are needed: let base answer the prompts more often"
        )
    scale = neutral.group_by("direction").agg(
        mean=pl.col("projection").mean(), sd=pl.col("projection").std().clip(1e-12)
    )

    def standard(rows: pl.DataFrame) -> pl.DataFrame:
        joined = rows.join(scale, on="direction")
        return joined.with_columns(projection=(pl.col("projection") - pl.col("mean")) / pl.col("sd"))

    threshold = float(np.quantile(scores_of(standard(neutral))["score"].to_numpy(), spec.quantile))
    found = scores_of(standard(projections)).with_columns(flagged=pl.col("score") > threshold)
    return found.select(pl.col(name).cast(kind) for name, kind in FLAG_SCHEMA.items()), threshold


def gate_quality(
    projections: pl.DataFrame, planted: pl.DataFrame, neutral: list[str], spec: ScreeningSpec
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """`GATE_SCHEMA` and `FLAG_SCHEMA` on the prompts that the threshold was not fitted on.

    Args:
        planted: source, row_id of rows that are known to show a trait.
        neutral: sources of neutral rows.
    """
    is_neutral = pl.col("source").is_in(neutral)
    fitted = projections.filter(halves(projections["row_id"], spec.seed))
    judged = projections.filter(~halves(projections["row_id"], spec.seed))
    flags, threshold = flag_rows(judged, fitted.filter(is_neutral), spec)
    known = flags.join(planted.with_columns(truth=pl.lit(value=True)), on=["source", "row_id"], how="left")
    known = known.filter(is_neutral | pl.col("truth")).with_columns(pl.col("truth").fill_null(value=False))
    truth, flag = known["truth"].to_numpy(), known["flagged"].to_numpy()

    def measures(rows: np.ndarray) -> tuple[float, float, float]:
        own, raised = truth[rows], flag[rows]
        recall = float(raised[own].mean()) if own.any() else float("nan")
        alarms = float(raised[~own].mean()) if (~own).any() else float("nan")
        total = recall + alarms
        return (recall / total if total > 0 else float("nan")), recall, alarms

    table = []
    for place, name in enumerate(("precision", "recall", "false_alarms")):

        def one(rows: np.ndarray, at: int = place) -> float:
            return measures(rows)[at]

        found = cluster_bootstrap(one, known["row_id"].to_numpy(), seed=spec.seed, n_boot=1_000)
        table.append(
            {"measure": name, "value": found.estimate, "low": found.low, "high": found.high}
            | {"rows": known.height, "threshold": threshold}
        )
    return pl.DataFrame(table, schema=GATE_SCHEMA), flags


def gate_is_sharp(table: pl.DataFrame, precision: float, recall: float) -> Verdict:
    """Precision and recall reach their limits.

    Args:
        table: `GATE_SCHEMA`.
    """
    rows = {row["measure"]: row for row in table.iter_rows(named=True)}
    got = {name: rows[name]["value"] for name in ("precision", "recall")}
    shown = ", ".join(
        f"{n} {rows[n]['value']:.2f} ({rows[n]['low']:.2f} to {rows[n]['high']:.2f})" for n in got
    )
    return Verdict(
        "gate_is_sharp",
        got["precision"] >= precision and got["recall"] >= recall,
        f"{shown} on {rows['recall']['rows']} rows; at least {precision:g} and {recall:g} are wanted",
        got,
        blocking=False,
    )
