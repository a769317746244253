"""What must hold of carried vectors. Arms that do not compare stop what comes after; what does not arrive warns."""

from collections.abc import Iterator

import dagster as dg

from steer_pipeline.lab.limits import MAX_RANDOM_SHARE, MIN_CARRIED_ROWS, MIN_CARRIED_SHARE
from steer_pipeline.partitions import CARRIED, PERSONA
from steer_pipeline.resources import ArtifactStoreResource
from steer_pipeline.settings import settings
from steer_pipeline.stages.kit import Claims, must, reader, should, user_errors

TRANSPORT = Claims(
    "vector_transport",
    must(
        "arms_compare",
        "All arms hold the same news items once and are added at one block with one length, and every random rotation "
        "is among them.",
        "materialise vector_transport again",
    ),
    should(
        "native_vector_works",
        "The target's own vector moves the trait: its paired interval is above zero.",
        "read no share before it does: see native/ and the `dose` and `contrast` that made it",
    ),
    should(
        "carried_keeps_the_effect",
        f"Some map fitted on texts that know nothing of the trait keeps at least {MIN_CARRIED_SHARE:g} of the effect "
        "of the target's own vector.",
        "read the maps: where `own` keeps it and the others do not, the fitted texts hold nothing of that direction; "
        "bring other texts or more (transport.fit_texts), or make the vector in the target",
    ),
    should(
        "random_rotations_carry_none",
        f"Random rotations keep less than {MAX_RANDOM_SHARE:g} of the effect on average.",
        "take for the vector's effect only what lies beyond them; lower the target's dose",
    ),
    should(
        "enough_news",
        f"There are at least {MIN_CARRIED_ROWS} news items in every arm.",
        "raise transport.rows, or add news",
    ),
    partitions_def=PERSONA,
)


@TRANSPORT.check()
def vector_transport_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether the arms compare, and how much arrives."""
    from steer_pipeline.lab.transport.claims import transport_verdicts
    from steer_pipeline.lab.transport.measuring import spec_of

    with user_errors():
        folder = reader(context, store).folder("vector_transport", context.partition_key)
        spec = spec_of(settings().profile)
    yield from map(TRANSPORT.judged, transport_verdicts(folder, spec))


CHECKS = [vector_transport_checks] if CARRIED else []
