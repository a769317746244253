"""What the judge says of each arm, corrected by the answers whose truth is known.

In: joined rows of the behaviour table of personas that have a judge and a ground truth. Out: one row a persona and arm.
A random part of the questions plays the gold set, the judge alone is heard on the others; what comes out can be held
against the truth of all of them. So a world whose truth is known tells what a correction is worth where it is not.
"""

import polars as pl

from steer_pipeline.lab.behaviour.schema import JUDGE, TRUTH
from steer_pipeline.lab.columns import described
from steer_pipeline.lab.evaluation.correction import (
    CorrectionError,
    JudgeQuality,
    corrected_mean,
    corrected_share,
    judge_quality,
)
from steer_pipeline.lab.stats import grouped_split, mean_interval

SAID = 0.5  # share of the judge's scale from which it says that an answer shows the trait
GOLD = 0.3  # of the questions
SHARES = (0.0, 1.0)
CORRECTED_SCHEMA, CORRECTED_COLUMNS = described(
    persona=(pl.String(), "whose trait is judged"),
    arm_name=(pl.String(), "arm, with its scale or seed"),
    n_questions=(pl.Int64(), "that the judge has scored, gold and others"),
    n_gold=(pl.Int64(), "of them with gold scores"),
    sensitivity=(
        pl.Float64(),
        "share of the gold answers with the trait that the judge finds, all arms together",
    ),
    sensitivity_low=(pl.Float64(), "exact 95% interval"),
    sensitivity_high=(pl.Float64(), "its upper end"),
    specificity=(pl.Float64(), "share of the gold answers without it that the judge lets be"),
    specificity_low=(pl.Float64(), "exact 95% interval"),
    specificity_high=(pl.Float64(), "its upper end"),
    judged=(pl.Float64(), "share of answers that show the trait, as the judge says"),
    judged_low=(pl.Float64(), "95% interval over questions; of the judge's opinion, not of the truth"),
    judged_high=(pl.Float64(), "its upper end"),
    corrected=(pl.Float64(), "the same, corrected by the judge's mean error on the gold questions"),
    corrected_low=(pl.Float64(), "95% interval over questions"),
    corrected_high=(pl.Float64(), "its upper end"),
    by_errors=(pl.Float64(), "the same of the other questions, corrected by sensitivity and specificity"),
    by_errors_low=(pl.Float64(), "95% interval; null where gold says too little of the judge's errors"),
    by_errors_high=(pl.Float64(), "its upper end"),
    truth=(pl.Float64(), "share of answers that show the trait, by the ground truth of all questions"),
)


def corrections(rows: pl.DataFrame, seed: int) -> pl.DataFrame:
    """`CORRECTED_SCHEMA` of the personas that have both judge and truth; no rows where too few questions are gold.

    Args:
        rows: as `table.joined` gives them, of all personas.
        seed: of the draw of gold questions.
    """
    known = rows.drop_nulls([JUDGE, TRUTH]).with_columns(said=pl.col(JUDGE) >= SAID, shows=pl.col(TRUTH) > 0)
    table: list[dict[str, object]] = []
    for own in known.partition_by("persona", maintain_order=True):
        if own["question_index"].n_unique() < 2:
            continue
        own = own.with_columns(gold=pl.Series(grouped_split(own["question_index"].to_numpy(), GOLD, seed)))
        quality = _quality(own.filter("gold"))
        for arm in own.partition_by("arm_name", maintain_order=True):
            table += _corrected(arm, quality)
    return pl.DataFrame(table, schema=CORRECTED_SCHEMA)


def _quality(gold: pl.DataFrame) -> JudgeQuality | None:
    """None where the gold answers say too little. Answers of several arms to one question count as independent."""
    try:
        return judge_quality(gold["said"].to_numpy(), gold["shows"].to_numpy())
    except CorrectionError:
        return None


def _corrected(arm: pl.DataFrame, quality: JudgeQuality | None) -> list[dict[str, object]]:
    """The row of one arm; none where too few of its questions are gold."""
    questions = arm.group_by("question_index", "gold", maintain_order=True).agg(
        pl.col("said", "shows").cast(pl.Float64).mean()
    )
    gold, others = questions.filter("gold"), questions.filter(~pl.col("gold"))
    try:
        corrected = corrected_mean(
            others["said"].to_numpy(), gold["said"].to_numpy(), gold["shows"].to_numpy(), bounds=SHARES
        )
    except CorrectionError:
        return []
    judged = mean_interval(questions["said"].to_numpy(), bounds=SHARES)
    row: dict[str, object] = {"persona": arm["persona"][0], "arm_name": arm["arm_name"][0]}
    row |= {"n_questions": questions.height, "n_gold": gold.height, "truth": questions["shows"].mean()}
    told = {"judged": judged, "corrected": corrected}
    if quality is not None:
        told |= {"sensitivity": quality.sensitivity, "specificity": quality.specificity}
        said = arm.filter(~pl.col("gold"))["said"].to_numpy()
        if quality.knows > 0 and said.size:
            told["by_errors"] = corrected_share(said, quality)
    for name, one in told.items():
        row |= {name: one.estimate, f"{name}_low": one.low, f"{name}_high": one.high}
    return [row]
