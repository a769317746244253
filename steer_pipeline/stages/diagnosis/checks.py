"""What ought to hold of a model before it is steered. Only a model that does not rewrite at all stops the pilot."""

from collections.abc import Iterator

import dagster as dg

from steer_pipeline.lab.limits import MAX_COPIES, MIN_BASE_FACTS, MIN_ENDED
from steer_pipeline.resources import ArtifactStoreResource
from steer_pipeline.settings import settings
from steer_pipeline.stages.kit import Claims, must, reader, should, user_errors

DIAGNOSIS = Claims(  # how to go on is told by the verdicts
    "model_diagnosis",
    must(
        "base_follows_the_prompt",
        "What base makes of the rewrite prompt keeps at least diagnosis.min_facts_kept of the facts: it does the job.",
    ),
    should("base_keeps_the_facts", f"Base keeps at least {MIN_BASE_FACTS:.0%} of its sources' facts."),
    should(
        "base_is_clean",
        "Base's share of suspect rewrites is not beyond gates.max_suspect_rate, which stops packs.",
    ),
    should("answers_end_by_themselves", f"At least {MIN_ENDED:.0%} of the rewrites end by themselves."),
    should(
        "rewrites_are_no_copies", f"At most {MAX_COPIES:.0%} of the rewrites are a piece of their source."
    ),
    should(
        "a_batch_fits_into_memory",
        "Keys and values of model.batch_tokens tokens find room beside the weights.",
    ),
)


@DIAGNOSIS.check()
def model_diagnosis_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether the model does the job at all, and what to expect of it."""
    from steer_pipeline.lab.rewrites.diagnosis import diagnosis_verdicts, load_diagnosis

    with user_errors():
        found = load_diagnosis(reader(context, store).folder("model_diagnosis"))
        yield from map(DIAGNOSIS.judged, diagnosis_verdicts(found, settings().profile))


CHECKS = [model_diagnosis_checks]
