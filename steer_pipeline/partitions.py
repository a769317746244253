"""Partitions of the graph, computed from the catalogue and the profile, nowhere else.

A new persona or variant is a new entry of the catalogue and appears when the definitions are loaded again.
"""

import dagster as dg

from steer_pipeline.catalogue import load_personas
from steer_pipeline.settings import settings

PERSONA = dg.StaticPartitionsDefinition(list(load_personas()))
# The behaviour lab studies what has scored dialogues; an axis has two poles and none.
TRAIT_OR_ROLE = dg.StaticPartitionsDefinition(
    [name for name, persona in load_personas().items() if persona.kind != "axis"]
)
VARIANT = dg.StaticPartitionsDefinition(list(settings().variants))


def personas_of_variants() -> dict[str, list[str]]:
    """Variant -> personas whose vectors it adds, in the order of its terms."""
    return {
        name: list(dict.fromkeys(term.persona for term in variant.terms))
        for name, variant in settings().variants.items()
    }


def _variants_of_personas() -> dict[str, list[str]]:
    needs = personas_of_variants()
    return {
        persona: [variant for variant, personas in needs.items() if persona in personas]
        for persona in PERSONA.get_partition_keys()
    }


# Downstream [variant] reads exactly the upstream [persona]s that its terms name; base reads none.
VARIANT_NEEDS = dg.StaticPartitionMapping(
    {persona: variants for persona, variants in _variants_of_personas().items() if variants}
)
