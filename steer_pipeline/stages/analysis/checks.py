"""What must hold of an analysis. Numbers without a matched null stop what comes after; what is not found warns."""

from collections.abc import Iterator

import dagster as dg

from steer_pipeline.lab.limits import (
    MAX_FALSE_FINDINGS,
    MIN_AUDIT_AUC,
    MIN_GATE_PRECISION,
    MIN_GATE_RECALL,
    MIN_NAMED,
    MIN_SCREENING_R,
)
from steer_pipeline.partitions import ANALYSIS, CLEAN, EXPERIMENTS, PAIR
from steer_pipeline.resources import ArtifactStoreResource
from steer_pipeline.settings import settings
from steer_pipeline.stages.kit import Claims, must, ought, reader, should, user_errors

BASIS = Claims(
    "analysis_basis",
    must(
        "there_are_directions",
        "The dictionary holds directions beside principal components.",
        "materialise persona_vector of those that analysis.personas names",
    ),
    should(
        "nothing_is_left_out",
        "All published vectors of the folder could be read.",
        "read why; what has too few samples has no direction",
    ),
)
SUSCEPTIBILITY = Claims(
    "weight_susceptibility",
    must(
        "matched_null",
        "Every number stands within random directions of the states' covariance.",
        "materialise weight_susceptibility again",
    ),
    partitions_def=PAIR,
)
CLEANNESS = Claims(
    "clean_students",
    ought(
        "clean_pairs_show_nothing",
        f"At most {MAX_FALSE_FINDINGS:g} of pairs of two clean students have a finding.",
        "believe no finding before: raise analysis.n_null, or train clean students of more seeds",
    ),
    should(
        "enough_clean_students",
        "There are clean students enough to say what training does to any model.",
        "name more students.seeds, then `steer make students`",
    ),
)
REPORT = Claims(
    "pair_report",
    should(
        "what_was_taught_is_found",
        "The directions that a student's variant targets are found in it.",
        "read `clean_t` and `null_p` of the findings: train clean students of more seeds, or longer students",
    ),
    ought(
        "controls_show_nothing",
        "Nothing is found in a student of a control.",
        "read what its pack says of that persona before you believe other findings",
    ),
    partitions_def=PAIR,
)
AUDIT = Claims(
    "checkpoint_audit",
    should(
        "audit_tells_planted",
        f"Adapters that were taught something are told from clean ones of their norm: AUC at least {MIN_AUDIT_AUC:g}.",
        "read it by dose: raise auditing.plant.rows or steps, or audit on texts of the task (auditing.audit.texts)",
    ),
    should(
        "audit_names_planted",
        f"In at least {MIN_NAMED:g} of planted adapters the direction that was taught is found.",
        "train more clean adapters (auditing.plant.n_clean), or read other blocks (auditing.audit.blocks)",
    ),
    ought(
        "audit_raises_no_alarm",
        "Clean adapters in which something is found are no more than the level promises.",
        "believe no verdict before: train more clean adapters (auditing.plant.n_clean)",
    ),
)
SCREENING = Claims(
    "data_screening",
    should(
        "screening_predicts",
        f"Projections of rows predict what training on them does: r above {MIN_SCREENING_R:g} with its whole interval.",
        "read r by persona; project at another block (auditing.screening.block)",
    ),
    should(
        "gate_is_sharp",
        f"Flags have a precision of at least {MIN_GATE_PRECISION:g} and a recall of at least {MIN_GATE_RECALL:g}.",
        "change auditing.screening.quantile, or project at another block",
    ),
)
PREVENTION = Claims(
    "preventative_steering",
    should(
        "prevention_prevents",
        "Some preventative dose brings the unwanted trait to the level of students that never saw it, at their loss.",
        "read the table of arms: try other auditing.prevention.strengths",
    ),
)


@BASIS.check()
def analysis_basis_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether there is something to look for."""
    from steer_pipeline.lab.analysis.claims import basis_verdicts

    with user_errors():
        folder = reader(context, store).folder("analysis_basis")
    yield from map(BASIS.judged, basis_verdicts(folder))


@SUSCEPTIBILITY.check()
def weight_susceptibility_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether all numbers have their null."""
    from steer_pipeline.lab.analysis.claims import susceptibility_verdicts

    with user_errors():
        folder = reader(context, store).folder("weight_susceptibility", context.partition_key)
    yield from map(SUSCEPTIBILITY.judged, susceptibility_verdicts(folder, settings().profile.analysis))


@CLEANNESS.check()
def clean_students_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether nothing is found where nothing is."""
    from steer_pipeline.lab.analysis.claims import clean_verdicts

    with user_errors():
        folder = reader(context, store).folder("clean_students")
    yield from map(CLEANNESS.judged, clean_verdicts(folder))


@REPORT.check()
def pair_report_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether the findings are what is known of the pair."""
    from steer_pipeline.lab.analysis.claims import report_verdicts

    with user_errors():
        folder = reader(context, store).folder("pair_report", context.partition_key)
    student = settings().profile.analysis.pairs[context.partition_key].student
    variant = settings().variants.get(student) if student else None
    targets = {} if variant is None else variant.targets
    yield from map(REPORT.judged, report_verdicts(folder, targets, student in CLEAN))


@AUDIT.check()
def checkpoint_audit_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether planted adapters are told from clean ones."""
    from steer_pipeline.lab.analysis.claims import audit_verdicts

    with user_errors():
        folder = reader(context, store).folder("checkpoint_audit")
    yield from map(AUDIT.judged, audit_verdicts(folder, settings().profile.auditing.audit.level))


@SCREENING.check()
def data_screening_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether rows say what training on them does."""
    from steer_pipeline.lab.analysis.claims import screening_verdicts

    with user_errors():
        folder = reader(context, store).folder("data_screening")
    yield from map(SCREENING.judged, screening_verdicts(folder))


@PREVENTION.check()
def preventative_steering_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether the unwanted trait stays out."""
    from steer_pipeline.lab.analysis.claims import prevention_verdicts

    with user_errors():
        folder = reader(context, store).folder("preventative_steering")
    yield from map(PREVENTION.judged, prevention_verdicts(folder))


TRIED = {
    "checkpoint_audit": checkpoint_audit_checks,
    "data_screening": data_screening_checks,
    "preventative_steering": preventative_steering_checks,
}
CHECKS = (
    [
        analysis_basis_checks,
        weight_susceptibility_checks,
        clean_students_checks,
        pair_report_checks,
        *(check for name, check in TRIED.items() if name in EXPERIMENTS),
    ]
    if ANALYSIS.pairs
    else []
)
