"""Reads the catalogue. An error names the file and the field, and says what was expected."""

from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from steer_pipeline.catalogue.models import Persona, Profile, VariantSpec

CATALOGUE = Path(__file__).parent
Model = TypeVar("Model", bound=BaseModel)


class CatalogueError(ValueError):
    """A catalogue file is missing or wrong. The message names the file, the field and the cure."""


def _read(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise CatalogueError(f"{path}: not valid YAML: {error}") from error
    except UnicodeDecodeError as error:
        raise CatalogueError(f"{path}: not UTF-8 (byte {error.start + 1}); save the file as UTF-8") from error


def _validate(model: type[Model], data: Any, path: Path) -> Model:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in item['loc']) or '(top level)'}: {item['msg']}"
            for item in error.errors()
        )
        raise CatalogueError(f"{path}: {problems}") from error


def load_personas(folder: Path | None = None) -> dict[str, Persona]:
    """Every `personas/*.yaml`, by name and sorted; the file's stem is the persona's name."""
    personas = {}
    for path in sorted((folder or CATALOGUE / "personas").glob("*.yaml")):
        persona = _validate(Persona, _read(path), path)
        if persona.name != path.stem:
            raise CatalogueError(f"{path}: name is {persona.name!r}; rename the file or the persona")
        personas[persona.name] = persona
    if not personas:
        raise CatalogueError(f"{folder or CATALOGUE / 'personas'}: no persona files (*.yaml)")
    return personas


def load_profile(name: str, folder: Path | None = None) -> Profile:
    """`profiles/<name>.yaml`, or a path to a profile file of your own."""
    folder = folder or CATALOGUE / "profiles"
    path = Path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.yaml")))
        raise CatalogueError(f"{path}: no such profile; known: {known}; or give the path of a YAML file")
    return _validate(Profile, _read(path), path)


def load_variants(profile: Profile | None = None, path: Path | None = None) -> dict[str, VariantSpec]:
    """`variants.yaml` in file order, with the profile's own terms in place of the file's."""
    path = path or CATALOGUE / "variants.yaml"
    variants: dict[str, VariantSpec] = {}
    for entry in _read(path):
        variant = _validate(VariantSpec, entry, path)
        if variant.name in variants:
            raise CatalogueError(f"{path}: variant {variant.name!r} is given twice")
        variants[variant.name] = variant
    if profile is not None:
        for name, terms in profile.variants.items():
            if name not in variants:
                raise CatalogueError(f"profile {profile.name}: variants.{name}: not in {path.name}")
            variants[name] = variants[name].model_copy(update={"terms": terms})
    _check_references(variants, path)
    return variants


def _check_references(variants: dict[str, VariantSpec], path: Path) -> None:
    personas = _persona_names()
    for variant in variants.values():
        named = [term.persona for term in variant.terms] + list(variant.targets)
        named += [variant.prompted_by] if variant.prompted_by else []
        for persona in named:
            if persona not in personas:
                raise CatalogueError(
                    f"{path}: variant {variant.name!r} names persona {persona!r}, "
                    f"which has no file in personas/; known: {', '.join(personas)}"
                )
    if [v.name for v in variants.values() if v.role == "base"] != ["base"]:
        raise CatalogueError(f"{path}: exactly one variant has role base, and it is called base")


@lru_cache(maxsize=1)
def _persona_names() -> tuple[str, ...]:
    return tuple(load_personas())
