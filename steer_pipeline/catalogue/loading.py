"""Reads the catalogue. An error names the file and the field, and says what was expected."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from steer_pipeline.catalogue.specs import Persona, Profile, VariantSpec
from steer_pipeline.environment import catalogue_folder

Model = TypeVar("Model", bound=BaseModel)
BLANK = "TODO"  # how a text begins that `steer new` leaves to its author
_CURES = {  # for what pydantic says without a cure
    "extra_forbidden": "Extra inputs are not permitted: no field has this name; correct or remove it",
    "missing": "Field required; add it",
}


class CatalogueError(ValueError):
    """A catalogue file is missing or wrong. The message names the file, the field and the cure.

    Attributes:
        problems: one sentence each; the message has them all.
    """

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems) or (message,)


class _EachOnce(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error: the second would silently replace the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            first = seen.setdefault(key.value, key.start_mark.line)
            if first != key.start_mark.line:
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    f"{key.value} stands twice, in lines {first + 1} and {key.start_mark.line + 1}; keep one",
                    key.start_mark,
                )
        return super().construct_mapping(node, deep)


def _read(path: Path) -> Any:
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_EachOnce)
    except yaml.YAMLError as error:
        raise CatalogueError(f"{path}: not valid YAML: {error}") from error
    except UnicodeDecodeError as error:
        raise CatalogueError(f"{path}: not UTF-8 (byte {error.start + 1}); save the file as UTF-8") from error


def _validate(model: type[Model], data: Any, path: Path) -> Model:
    if problems := _blanks(data):
        raise CatalogueError(f"{path}: {'; '.join(problems)}", [f"{path}: {one}" for one in problems])
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = [
            f"{'.'.join(str(part) for part in item['loc']) or '(top level)'}: {_CURES.get(item['type'], item['msg'])}"
            for item in error.errors()
        ]
        raise CatalogueError(
            f"{path}: {'; '.join(problems)}", [f"{path}: {one}" for one in problems]
        ) from error


def _blanks(data: Any) -> list[str]:
    """What is still to be written, a sentence a field or list."""
    found: dict[str, list[str]] = {}
    for place in _blank_places(data, ()):
        whole = next((i for i, part in enumerate(place) if isinstance(part, int)), len(place))
        within = ".".join(str(part) for part in place[whole:])
        found.setdefault(".".join(str(part) for part in place[:whole]), []).append(within)
    return [
        f"{field}: still begins with {BLANK}; write it"
        if places == [""]
        else f"{field}: {len(places)} texts still begin with {BLANK} ({', '.join(places)}); write them"
        for field, places in found.items()
    ]


def _blank_places(data: Any, place: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
    if isinstance(data, str):
        if data.startswith(BLANK):
            yield place
    elif isinstance(data, dict | list):
        for part, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from _blank_places(value, (*place, part))


def persona_names(place: Path | None = None) -> list[str]:
    """Stems of `personas/*.yaml`, sorted: the names of all personas, of those with a broken file too.

    Raises:
        CatalogueError: there is no such file.
    """
    place = place or catalogue_folder() / "personas"
    names = sorted(path.stem for path in place.glob("*.yaml"))
    if not names:
        raise CatalogueError(f"{place}: no persona files (*.yaml)")
    return names


def studied_names(profile: Profile, place: Path | None = None) -> list[str]:
    """The personas of the catalogue that a profile studies, sorted.

    Raises:
        CatalogueError: the profile does without a persona that has no file.
    """
    names = persona_names(place)
    if unknown := sorted(set(profile.without_personas) - set(names)):
        raise CatalogueError(
            f"profile {profile.name}: without_personas: no file in personas/ for {', '.join(unknown)}; "
            f"known: {', '.join(names)}"
        )
    return [name for name in names if name not in profile.without_personas]


def load_persona(name: str, place: Path | None = None, *, profile: Profile | None = None) -> Persona:
    """`personas/<name>.yaml`, with the profile's lexicon in place of the file's; the stem is the persona's name."""
    path = (place or catalogue_folder() / "personas") / f"{name}.yaml"
    if not path.is_file():
        raise CatalogueError(f"{path}: no such file; known: {', '.join(persona_names(path.parent))}")
    persona = _validate(Persona, _read(path), path)
    if persona.name != name:
        raise CatalogueError(f"{path}: name is {persona.name!r}; rename the file or the persona")
    own = None if profile is None else profile.lexicons.get(name)
    if own is None:
        return persona
    poles = {
        side: getattr(persona, side).model_copy(update={"lexicon": getattr(own, side)})
        for side in ("positive", "negative")
    }
    return persona.model_copy(update=poles)


def load_personas(place: Path | None = None, *, profile: Profile | None = None) -> dict[str, Persona]:
    """All personas by name, sorted. One broken file is an error; `read_personas` leaves it out."""
    return {name: load_persona(name, place, profile=profile) for name in persona_names(place)}


def read_personas(
    place: Path | None = None, *, profile: Profile | None = None
) -> tuple[dict[str, Persona], dict[str, CatalogueError]]:
    """The personas whose files are sound, and what is wrong with the others."""
    sound: dict[str, Persona] = {}
    broken: dict[str, CatalogueError] = {}
    for name in persona_names(place):
        try:
            sound[name] = load_persona(name, place, profile=profile)
        except CatalogueError as error:
            broken[name] = error
    return sound, broken


def load_profile(name: str, place: Path | None = None) -> Profile:
    """`profiles/<name>.yaml`, or a path to a profile file of your own."""
    path = profile_path(name, place)
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in (place or catalogue_folder() / "profiles").glob("*.yaml")))
        raise CatalogueError(f"{path}: no such profile; known: {known}; or give the path of a YAML file")
    return _validate(Profile, _read(path), path)


def profile_path(name: str, place: Path | None = None) -> Path:
    """The file of a profile, by name or by its own path."""
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    return (place or catalogue_folder() / "profiles") / f"{name}.yaml"


def load_variants(profile: Profile | None = None, path: Path | None = None) -> dict[str, VariantSpec]:
    """`variants.yaml` in file order, with the profile's own terms in place of the file's.

    One broken variant is an error; `read_variants` leaves it out.
    """
    sound, broken = read_variants(profile, path)
    for error in broken.values():
        raise error
    return sound


def read_variants(
    profile: Profile | None = None, path: Path | None = None
) -> tuple[dict[str, VariantSpec], dict[str, CatalogueError]]:
    """The variants that are sound, in file order, and what is wrong with the others.

    Those that name a persona which the profile does without are neither.

    Raises:
        CatalogueError: the file is no list of named variants, or a name comes twice, or base is not as it must be:
        nothing can be compared then.
    """
    path = path or catalogue_folder() / "variants.yaml"
    entries = variant_entries(path)
    own = dict(profile.variants) if profile is not None else {}
    for name in own:
        if name not in entries:
            raise CatalogueError(f"profile {profile.name}: variants.{name}: not in {path.name}")  # type: ignore[union-attr]
    sound: dict[str, VariantSpec] = {}
    broken: dict[str, CatalogueError] = {}
    for name, entry in entries.items():
        try:
            variant = _validate(VariantSpec, entry, path)
            variant = variant.model_copy(update={"terms": own[name]}) if name in own else variant
            variant = _scoped(variant, profile)
            _check_references(variant, path)
            if profile is not None and _named(variant) & set(profile.without_personas):
                continue
            sound[name] = variant
        except CatalogueError as error:
            broken[name] = error
    if "base" in broken:
        raise broken["base"]
    if [v.name for v in sound.values() if v.role == "base"] != ["base"]:
        raise CatalogueError(f"{path}: exactly one variant has role base, and it is called base")
    return sound, broken


def _scoped(variant: VariantSpec, profile: Profile | None) -> VariantSpec:
    """With a scope: of what is steered the profile's, where the variant has none of its own."""
    if variant.scope is not None:
        return variant
    steered = profile is not None and bool(variant.terms)
    return variant.model_copy(update={"scope": profile.rewrites.scope if profile and steered else "all"})


def variant_entries(path: Path) -> dict[str, Any]:
    """name -> entry of a file that lists variants."""
    read = _read(path)
    entries: dict[str, Any] = {}
    for number, entry in enumerate(read if isinstance(read, list) else [None], start=1):
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str):
            raise CatalogueError(
                f"{path}: entry {number} has no name; the file is a list of variants, each with one"
            )
        if name in entries:
            raise CatalogueError(f"{path}: variant {name!r} is given twice")
        entries[name] = entry
    return entries


def _named(variant: VariantSpec) -> set[str]:
    """Every persona that a variant speaks of."""
    prompted = {variant.prompted_by} if variant.prompted_by else set()
    return {term.persona for term in variant.terms} | set(variant.targets) | prompted


def _check_references(variant: VariantSpec, path: Path) -> None:
    known = persona_names()
    for persona in sorted(_named(variant)):
        if persona not in known:
            raise CatalogueError(
                f"{path}: variant {variant.name!r} names persona {persona!r}, "
                f"which has no file in personas/; known: {', '.join(known)}"
            )
