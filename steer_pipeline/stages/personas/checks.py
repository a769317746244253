"""What must hold of contrast sets, vectors and dose curves. Bad sides, broken directions and steering without effect
stop what is downstream; weak evidence warns, with its numbers.
"""

from collections.abc import Iterator

import dagster as dg

from steer_pipeline.catalogue import load_persona
from steer_pipeline.lab.limits import MIN_CONTRAST_AUC, MIN_SPLIT_HALF_COSINE
from steer_pipeline.partitions import PERSONA
from steer_pipeline.resources import ArtifactStoreResource
from steer_pipeline.settings import settings
from steer_pipeline.stages.kit import Claims, must, ought, reader, should, user_errors

CONTRAST = Claims(
    "contrast_set",
    must(
        "sides_share_their_contexts",
        "Both sides hold the same contexts: same user turn, split and instruction number, one row a side; both splits "
        "are there.",
        "materialise contrast_set again",
    ),
    should(
        "completions_show_the_contrast",
        "What the model says under the two instructions differs in the trait: paired difference above zero and AUC of "
        f"at least {MIN_CONTRAST_AUC}.",
        "read the completions; give the persona other instructions or marker words, or use a more able model",
    ),
    partitions_def=PERSONA,
)
VECTOR = Claims(
    "persona_vector",
    must(
        "directions_are_sound",
        "Every direction is finite, not zero and as wide as the model, and the files are of one vector.",
        "materialise persona_vector again",
    ),
    should(
        "halves_agree",
        "Directions of random halves of the pairs point the same way: mean cosine of at least "
        f"{MIN_SPLIT_HALF_COSINE} at the block that separates best.",
        "raise contrast.n_contexts, or write more pairs of given texts",
    ),
    should(
        "separates_held_out_contexts",
        "The best block tells the poles of unseen contexts apart better than 95% of refits on shuffled labels, search "
        "over blocks, sources and read-outs included.",
        "see whether the completions show the contrast; raise contrast.n_contexts, or set contrast.source: pairs",
    ),
    partitions_def=PERSONA,
)
DOSE = Claims(
    "dose_curve",
    must(
        "steering_takes_effect",
        "At every block of the sweep the largest dose changes the model's logits.",
        "sweep larger fractions or other blocks: dose.fractions, dose.blocks",
    ),
    ought(
        "a_coherent_dose_exists",
        "Some dose moves the trait and keeps the text coherent; its numbers, or why there is none.",
        "change dose.fractions or dose.blocks as the reason says, or give the variants doses of their own",
    ),
    should(
        "beyond_random_directions",
        "The trait moves beyond zero, further than under every random direction at the recommended block and norm, and "
        "than their spread tells; with both signs where both are used.",
        "take the shift of this persona for disturbance, or raise dose.n_rows or the dose",
    ),
    should(
        "swept_blocks_separate",
        "At every block of the sweep the vector tells the poles of unseen contexts apart better than 95% of refits on "
        "shuffled labels; else the blocks at which it does.",
        "set dose.blocks to blocks that are above their null",
    ),
    partitions_def=PERSONA,
    reads=["persona_vector"],
)


@CONTRAST.check()
def contrast_set_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether a contrast set is matched, and whether its completions differ in the trait."""
    from steer_pipeline.lab.personas.claims import contrast_shows, sides_match

    persona = context.partition_key
    with user_errors():
        rows = reader(context, store).made_rows("contrast_set", persona)
    matched = sides_match(rows)
    yield CONTRAST.judged(matched)
    if matched.numbers["mismatched_contexts"]:
        yield CONTRAST.unjudged("completions_show_the_contrast", "the sides do not match")
    else:
        profile = settings().profile
        asked = load_persona(persona, profile=profile)
        yield CONTRAST.judged(contrast_shows(rows, asked, profile.scales))


@VECTOR.check()
def persona_vector_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether a vector is whole, stable and better than chance."""
    from steer_pipeline.lab.personas.claims import vector_verdicts
    from steer_pipeline.lab.vectors.vector import VectorError, load_vector

    with user_errors():
        folder = reader(context, store).folder("persona_vector", context.partition_key)
    try:
        vector = load_vector(folder)
    except VectorError as error:
        yield VECTOR.result("directions_are_sound", False, str(error))
        for name in VECTOR.names[1:]:
            yield VECTOR.unjudged(name, "the vector cannot be read")
    else:
        yield from map(VECTOR.judged, vector_verdicts(vector))


@DOSE.check()
def dose_curve_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether steering does something, whether a dose can be recommended, and whether it is the direction."""
    from steer_pipeline.lab.personas.claims import dose_verdicts, sweep_of, swept_blocks_separate
    from steer_pipeline.lab.vectors.vector import load_vector

    with user_errors():
        read = reader(context, store)
        folder = read.folder("dose_curve", context.partition_key)
        yield from map(DOSE.judged, dose_verdicts(folder))
        vector = load_vector(read.folder("persona_vector", context.partition_key))
        yield DOSE.judged(swept_blocks_separate(vector, sweep_of(folder)))


CHECKS = [contrast_set_checks, persona_vector_checks, dose_curve_checks]
