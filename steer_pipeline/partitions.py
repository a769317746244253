"""Partitions of the graph and their mappings, computed from the catalogue, nowhere else.

A new persona or variant is a new entry of the catalogue and appears when the definitions are loaded again, unless the
profile does without it. One whose entry is broken keeps its partition: its assets fail by name, the others go on.
"""

from collections.abc import Iterable, Mapping, Sequence

import dagster as dg

from steer_pipeline.catalogue.attribution import PREDICTED, UNTRAINED
from steer_pipeline.catalogue.healing import swept_arms, trained_arms
from steer_pipeline.catalogue.loading import read_personas
from steer_pipeline.settings import settings

_SOUND, _BROKEN = read_personas()

PERSONA = dg.StaticPartitionsDefinition(settings().persona_names)
# The behaviour lab studies what has scored dialogues; an axis has two poles and none.
TRAIT_OR_ROLE = dg.StaticPartitionsDefinition(
    [name for name in settings().persona_names if name in _BROKEN or _SOUND[name].kind != "axis"]
)
VARIANT = dg.StaticPartitionsDefinition(settings().variant_names)


def personas_of_variants() -> dict[str, list[str]]:
    """Variant -> personas whose vectors it adds, in the order of its terms."""
    return {
        name: list(dict.fromkeys(term.persona for term in variant.terms))
        for name, variant in settings().variants.items()
    }


def asked_for(
    definition: dg.PartitionsDefinition | None, variants: Sequence[str], personas: Sequence[str]
) -> list[str | None]:
    """Partitions of an asset that stand for the named variants and personas; [None] for an asset without partitions.

    None named are all; but where personas are named and no variants, those variants that are made of them.
    """
    if definition is None:
        return [None]
    keys = definition.get_partition_keys()
    if definition != VARIANT:
        return [name for name in keys if not personas or name in personas]
    if personas and not variants:
        made_of = personas_of_variants()
        return [name for name in keys if set(made_of.get(name, ())) & set(personas)]
    return [name for name in keys if not variants or name in variants]


def _mapping(needs: Mapping[str, Iterable[str]]) -> dg.StaticPartitionMapping:
    """Downstream [variant] reads exactly the upstream [persona]s that it needs."""
    by_persona = {
        persona: [variant for variant, personas in needs.items() if persona in personas]
        for persona in PERSONA.get_partition_keys()
    }
    return dg.StaticPartitionMapping(
        {persona: variants for persona, variants in by_persona.items() if variants}
    )


# The personas whose vectors a variant adds; base adds none.
VARIANT_NEEDS = _mapping(personas_of_variants())
# The persona whose instruction a prompted variant is given.
VARIANT_PROMPTED = _mapping(
    {name: [variant.prompted_by] for name, variant in settings().variants.items() if variant.prompted_by}
)
# Personas that some variant must move: the traits that every variant is scored on, in catalogue order.
TARGETED = [
    name
    for name in PERSONA.get_partition_keys()
    if any(name in variant.targets for variant in settings().variants.values())
]
# Personas whose vectors some variant adds.
STEERED = [
    name
    for name in PERSONA.get_partition_keys()
    if any(name in needed for needed in personas_of_variants().values())
]
BASE = "base"
# Variants whose pack goes through the arms of hidden transfer, base first as their control; none: no arms.
_WITH_ARMS = [name for name in settings().profile.students.arm_variants if name in settings().variants]
ARMED = [BASE, *_WITH_ARMS] if _WITH_ARMS else []
OF_ARMED = dg.SpecificPartitionsPartitionMapping(ARMED)
# A variant reads its own partition and base's.
WITH_BASE = dg.StaticPartitionMapping(
    {name: VARIANT.get_partition_keys() if name == BASE else [name] for name in VARIANT.get_partition_keys()}
)
TARGETED_PERSONAS = dg.SpecificPartitionsPartitionMapping(TARGETED)
STEERED_PERSONAS = dg.SpecificPartitionsPartitionMapping(STEERED)
# Personas whose vectors are carried to another model, where the profile names one.
CARRIED = [
    name
    for name in PERSONA.get_partition_keys()
    if settings().profile.transport is not None and name in settings().profile.transport.personas
]
CARRIED_PERSONAS = dg.SpecificPartitionsPartitionMapping(CARRIED)
# The heal loop: one persona, arms that train students (those of the barrier sweep, too), and all arms with base.
HEAL = settings().profile.heal
HEALED = HEAL.persona in PERSONA.get_partition_keys()
SWEPT = swept_arms(HEAL)
TRAINED_ARM = dg.StaticPartitionsDefinition([*trained_arms(HEAL), *SWEPT])
ARM = dg.StaticPartitionsDefinition(["base", "nll", *HEAL.arms, *SWEPT])
SAME_ARM = dg.StaticPartitionMapping({arm: arm for arm in TRAINED_ARM.get_partition_keys()})
HEALED_PERSONA = dg.SpecificPartitionsPartitionMapping([HEAL.persona])
# Whose scales texts of the heal loop are read on.
HEAL_SCALES = dg.SpecificPartitionsPartitionMapping(
    [
        name
        for name in PERSONA.get_partition_keys()
        if name == HEAL.persona or HEAL.evaluation.off_target is None or name in HEAL.evaluation.off_target
    ]
)
# Attribution: methods that rank the pool, arms that learn a part of it, and all who play the held-out games.
ATTRIBUTION = settings().profile.attribution
METHOD = dg.StaticPartitionsDefinition(list(ATTRIBUTION.scoring.methods))
LEARNER = dg.StaticPartitionsDefinition(list(ATTRIBUTION.arms))
PLAYER = dg.StaticPartitionsDefinition([*UNTRAINED, *ATTRIBUTION.arms])
SAME_LEARNER = dg.StaticPartitionMapping({arm: arm for arm in ATTRIBUTION.arms})
# Whether the autoencoder's predictor takes part: some arm learns what it predicts.
PREDICTS = any(arm.ranking == PREDICTED for arm in ATTRIBUTION.arms.values())
# Methods whose ranks arms learn, and of those the one that features are to tell.
USED_METHODS = [
    name
    for name in ATTRIBUTION.scoring.methods
    if any(arm.ranking == name for arm in ATTRIBUTION.arms.values())
]
