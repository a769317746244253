"""What the experiment is made of: personas, variants and profiles, YAML files checked by pydantic."""

from steer_pipeline.catalogue.loading import (
    CatalogueError,
    load_persona,
    load_personas,
    load_profile,
    load_variants,
    studied_names,
)
from steer_pipeline.catalogue.specs import Persona, Profile, VariantSpec

__all__ = [
    "CatalogueError",
    "Persona",
    "Profile",
    "VariantSpec",
    "load_persona",
    "load_personas",
    "load_profile",
    "load_variants",
    "studied_names",
]
