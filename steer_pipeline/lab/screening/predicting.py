"""Whether the projection of training rows predicts what training on them does.

In: predicted shifts of students, and what they wrote on held-out prompts. Out: one row a student and direction with
the predicted and the actual shift, and their correlation with an interval over students.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from steer_pipeline.catalogue.auditing import ScreeningSpec
from steer_pipeline.catalogue.basis import SamplingSpec
from steer_pipeline.lab.columns import described
from steer_pipeline.lab.evaluation import TraitScorer
from steer_pipeline.lab.generation.engine import generate
from steer_pipeline.lab.generation.jobs import PromptRow
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.sites import SteeringPlan
from steer_pipeline.lab.stats import Interval, cluster_bootstrap
from steer_pipeline.lab.students.transfer import Load
from steer_pipeline.lab.verdict import Verdict

PLAN = SteeringPlan("student", stream="screening")  # all students draw the same random numbers
ITSELF = "model"
MIN_STUDENTS = 20

SHIFT_SCHEMA, SHIFT_COLUMNS = described(
    checkpoint=(pl.String(), "the student"),
    direction=(pl.String(), "persona"),
    predicted=(pl.Float64(), "mean projection of the rows that it learned"),
    actual=(pl.Float64(), "of its trait score to base's on held-out prompts, mean"),
    own=(pl.Boolean(), "whether its rows were steered along this direction"),
)
WRITTEN_SCHEMA, WRITTEN_COLUMNS = described(
    checkpoint=(pl.String(), "the student; `model`: base"),
    row_id=(pl.String(), "of the held-out prompt"),
    output=(pl.String(), "what it wrote"),
)
CORRELATION_SCHEMA, CORRELATION_COLUMNS = described(
    over=(
        pl.String(),
        "within: every student and direction, each direction in its own deviations | all: the same in plain units | "
        "own: planted ones on their direction | a persona",
    ),
    r=(pl.Float64(), "Pearson's correlation of predicted and actual shift"),
    low=(pl.Float64(), "its 95% interval over students"),
    high=(pl.Float64(), "its upper end"),
    students=(pl.Int64(), "that it stands on"),
)


def write_students(
    load: Load,
    adapters: Mapping[str, Path],
    prompts: Sequence[PromptRow],
    sampling: SamplingSpec,
) -> pl.DataFrame:
    """`WRITTEN_SCHEMA`: base and every student on the same prompts with the same random numbers.

    Args:
        load: gives the model with the adapter of a folder on it, or without one.
        adapters: name -> folder.
    """
    parts = [_written(ITSELF, load(None), prompts, sampling)]
    parts += [_written(name, load(folder), prompts, sampling) for name, folder in adapters.items()]
    return pl.concat(parts)


def _written(
    name: str, model: LoadedModel, prompts: Sequence[PromptRow], sampling: SamplingSpec
) -> pl.DataFrame:
    rows = sorted(generate(model, prompts, [PLAN], sampling), key=lambda row: row.row_id)
    made = [{"checkpoint": name, "row_id": row.row_id, "output": row.text} for row in rows]
    return pl.DataFrame(made, schema=WRITTEN_SCHEMA)


def scored(written: pl.DataFrame, scorers: Mapping[str, TraitScorer]) -> pl.DataFrame:
    """checkpoint, row_id, direction, score: every text on every persona's scale."""
    return pl.concat(
        [
            written.select("checkpoint", "row_id", direction=pl.lit(persona)).with_columns(
                score=pl.Series(scorer.score_many(written["output"].to_list()))
            )
            for persona, scorer in scorers.items()
        ]
    )


def shifts_of(scores: pl.DataFrame, predicted: pl.DataFrame, plants: pl.DataFrame) -> pl.DataFrame:
    """`SHIFT_SCHEMA`: predicted beside actual.

    Args:
        scores: of `scored`, base's among them.
        predicted: checkpoint, direction, predicted.
        plants: checkpoint, and the direction that its rows were steered along.

    Raises:
        ValueError: base's scores are missing.
    """
    base = scores.filter(checkpoint=ITSELF).select("row_id", "direction", base="score")
    if base.is_empty():
        raise ValueError(f"no texts of {ITSELF}: base must answer the held-out prompts too")
    moved = scores.filter(pl.col("checkpoint") != ITSELF).join(base, on=["row_id", "direction"])
    actual = moved.group_by("checkpoint", "direction").agg(actual=(pl.col("score") - pl.col("base")).mean())
    taught = plants.select("checkpoint", taught="direction")
    joined = predicted.join(actual, on=["checkpoint", "direction"]).join(taught, on="checkpoint", how="left")
    joined = joined.with_columns(own=(pl.col("direction") == pl.col("taught")).fill_null(value=False))
    return joined.select(pl.col(name).cast(kind) for name, kind in SHIFT_SCHEMA.items()).sort(
        "checkpoint", "direction"
    )


def correlations(shifts: pl.DataFrame, spec: ScreeningSpec) -> pl.DataFrame:
    """`CORRELATION_SCHEMA`: over everything, over what was planted, and persona by persona.

    A student is a cluster: its directions stand and fall together. Scales differ in how readily a text scores on them,
    and directions in how much rows vary along them; `within` takes both out.
    """
    names = ("predicted", "actual")
    standard = [
        ((pl.col(name) - pl.col(name).mean()) / pl.col(name).std()).over("direction").alias(name)
        for name in names
    ]
    within = shifts.with_columns(standard).filter(
        pl.all_horizontal(pl.col(name).is_finite() for name in names)
    )
    parts = {"within": within, "all": shifts, "own": shifts.filter("own")}
    parts |= {name: shifts.filter(direction=name) for name in shifts["direction"].unique().sort()}
    rows = []
    for over, own in parts.items():
        if (
            own["checkpoint"].n_unique() < 3
            or own["actual"].n_unique() < 2
            or own["predicted"].n_unique() < 2
        ):
            continue
        found = correlation(own, spec.seed)
        rows.append(
            {"over": over, "r": found.estimate, "low": found.low, "high": found.high, "students": found.n}
        )
    return pl.DataFrame(rows, schema=CORRELATION_SCHEMA)


def correlation(shifts: pl.DataFrame, seed: int) -> Interval:
    """Pearson's r of predicted and actual, with a percentile interval over students."""
    predicted, actual = shifts["predicted"].to_numpy(), shifts["actual"].to_numpy()

    def r(rows: np.ndarray) -> float:
        a, b = predicted[rows], actual[rows]
        return float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) > 0 and np.ptp(b) > 0 else float("nan")

    return cluster_bootstrap(r, shifts["checkpoint"].to_numpy(), seed=seed)


def screening_predicts(table: pl.DataFrame, least: float) -> Verdict:
    """The lower end of r's interval over students, within directions, is beyond a limit.

    Args:
        table: `CORRELATION_SCHEMA`.
    """
    own = table.filter(over="within").row(0, named=True)
    enough = own["students"] >= MIN_STUDENTS
    return Verdict(
        "screening_predicts",
        enough and own["low"] >= least,
        f"r {own['r']:.2f} ({own['low']:.2f} to {own['high']:.2f}) of predicted and actual shifts within directions "
        f"over {own['students']} students; at least {least:g} over {MIN_STUDENTS} is wanted",
        {"r": own["r"], "low": own["low"], "high": own["high"], "students": own["students"]},
        blocking=False,
    )
