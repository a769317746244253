"""What must hold of students, transfer and comparison. What makes a comparison unfair stops it; what students do not
show warns, with its numbers.
"""

from collections.abc import Iterator

import dagster as dg

from steer_pipeline.lab.limits import MIN_CLEAN, MIN_SEEDS, MIN_TRANSFER_ROWS
from steer_pipeline.partitions import VARIANT
from steer_pipeline.resources import ArtifactStoreResource
from steer_pipeline.settings import settings
from steer_pipeline.stages.kit import Claims, must, ought, reader, should, user_errors

ADAPTER = Claims(
    "student_adapter",
    must(
        "same_ids_everywhere",
        "Every row has the same token ids in training as in generation: prompt, completion and where it begins.",
        "make rewrite_raw and what follows again from today's news and prompt, then student_adapter",
    ),
    must(
        "every_rank_and_seed",
        "There is a student of every rank and seed of the profile.",
        "materialise student_adapter again",
    ),
    should(
        "selection_loss_falls",
        "The loss of rows that nobody learned falls during training, but for base and controls.",
        "lower students.learning_rate or students.epochs, or bring more rows",
    ),
    partitions_def=VARIANT,
)
TRANSFER = Claims(
    "student_transfer",
    must(
        "news_are_held_out",
        "No news item that students write on was learned, nor one that is nearly the same.",
        "add news, or lower students.held_out_rows, then materialise student_transfer again",
    ),
    must(
        "every_student_answers",
        "Every student, and the model itself, has one rewrite of each held-out news item.",
        "materialise student_transfer again",
    ),
    should(
        "enough_news",
        f"There are at least {MIN_TRANSFER_ROWS} held-out news items.",
        "raise students.held_out_rows, or add news",
    ),
    partitions_def=VARIANT,
)
COMPARISON = Claims(
    "student_comparison",
    ought(
        "every_student_beside_its_controls",
        "All variants have students, and those of base and of both controls of the same rank, seeds, rows, epochs, "
        "recipe and model stand beside them.",
        "materialise student_adapter and student_transfer of those that are named (`steer make students` does)",
    ),
    ought(
        "controls_stay",
        "No student of a control moves a trait or projection beyond its margin, over all ranks and metrics together.",
        "explain that first: what other students show is no evidence before",
    ),
    should(
        "traits_travel",
        "Every student moves the traits that its variant targets the way the catalogue says, beyond what students of "
        "controls do.",
        "read the teacher's own shift beside it: raise students.epochs or rows where the teacher moves and the "
        "student does not",
    ),
    should(
        "arms_are_compared",
        "Every arm of hidden transfer has students of the variant and of base.",
        "read why: most arms want more kept rows, or a setting (students.other_model)",
    ),
    should(
        "shifts_align",
        "At the end of training, the shift of every steered student points along its teacher's vector, and further "
        f"than that of any of at least {MIN_CLEAN} clean students.",
        "read the curves: raise students.epochs or rows where they still rise; name more students.seeds where the "
        "clean students are too few",
    ),
    should(
        "students_stay_coherent",
        "What a student's texts lose against the model itself keeps to the profile's `coherence`.",
        "read the cost beside its teacher's: lower students.epochs, or the variant's dose",
    ),
    should(
        "readouts_separate",
        "Every read-out tells its two packs apart on news left out of its fit.",
        "read no projection of that persona; raise students.rows, or read other blocks (students.read_blocks)",
    ),
    should(
        "at_least_three_seeds",
        f"There are students of at least {MIN_SEEDS} seeds: fewer say nothing of other ones.",
        "name more in students.seeds",
    ),
)


@ADAPTER.check()
def student_adapter_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether the students of a variant are all there and learned what generation sees."""
    from steer_pipeline.lab.students.claims import adapter_verdicts

    with user_errors():
        folder = reader(context, store).folder("student_adapter", context.partition_key)
    role = settings().variants[context.partition_key].role
    yield from map(ADAPTER.judged, adapter_verdicts(folder, settings().profile.students, role))


@TRANSFER.check()
def student_transfer_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether all students of a variant wrote on news that nobody learned."""
    from steer_pipeline.lab.students.claims import transfer_verdicts

    with user_errors():
        read = reader(context, store)
        folders = [
            read.folder(name, context.partition_key) for name in ("student_transfer", "student_adapter")
        ]
    yield from map(TRANSFER.judged, transfer_verdicts(*folders))


@COMPARISON.check()
def student_comparison_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether all students stand beside their controls, and what they show."""
    from steer_pipeline.lab.students.claims import comparison_verdicts

    with user_errors():
        folder = reader(context, store).folder("student_comparison")
    yield from map(COMPARISON.judged, comparison_verdicts(folder, settings().variants))


CHECKS = [student_adapter_checks, student_transfer_checks, student_comparison_checks]
