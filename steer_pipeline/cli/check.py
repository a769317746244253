"""`steer check`: whether the catalogue's YAML is sound. It makes nothing and loads no model."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click


@click.command()
def check() -> None:
    """Validate all personas, variants and profiles of the catalogue.

    One line a problem, with file, field and cure; the exit status is 1 if there are any. A sound catalogue may have
    notes: personas whose instructions are no direct opposites.
    """
    from steer_pipeline.catalogue.loading import persona_names
    from steer_pipeline.environment import catalogue_folder

    found = list(dict.fromkeys(problems()))
    for problem in found:
        click.echo(problem, err=True)
    if found:
        click.echo(f"{len(found)} problem{'s' if len(found) > 1 else ''}", err=True)
        sys.exit(1)
    profiles = len(_profiles())
    click.echo(
        f"{catalogue_folder()}: {len(persona_names())} personas, variants and {profiles} profiles are sound"
    )
    for note in _notes():
        click.echo(f"note: {note}")


def problems() -> Iterator[str]:
    """Everything that is wrong with the catalogue, one sentence each; the same one may come twice."""
    from steer_pipeline.catalogue.loading import load_persona, load_profile, persona_names, read_variants

    names = _try(persona_names)
    yield from names.problems
    for name in names.value or []:
        persona = _try(lambda name=name: load_persona(name))
        yield from persona.problems
        if persona.value is not None:
            yield from _missing_vector(persona.value)
    for profile_name in _profiles():
        profile = _try(lambda name=profile_name: load_profile(name))
        yield from profile.problems
        if profile.value is not None:
            yield from (
                f"profile {profile_name}: lexicons.{name}: no file in personas/; correct or remove it"
                for name in sorted(set(profile.value.lexicons) - set(names.value or []))
            )
            variants = _try(lambda one=profile.value: read_variants(one))
            yield from variants.problems
            for error in (variants.value or ({}, {}))[1].values():
                yield from error.problems


def _notes() -> list[str]:
    """What is sound and may be better, of a sound catalogue."""
    from steer_pipeline.catalogue.loading import load_persona, persona_names
    from steer_pipeline.lab.personas.opposites import contrast_notes

    return contrast_notes(map(load_persona, persona_names()))


class _Tried:
    def __init__(self, value: Any, problems: tuple[str, ...]) -> None:
        self.value, self.problems = value, problems


def _try(read: Callable[[], Any]) -> _Tried:
    from steer_pipeline.catalogue.loading import CatalogueError

    try:
        return _Tried(read(), ())
    except CatalogueError as error:
        return _Tried(None, error.problems)


def _profiles() -> list[str]:
    """The catalogue's, and the one in use where it is a file of its own."""
    from steer_pipeline.environment import catalogue_folder, profile_name

    own = sorted(path.stem for path in (catalogue_folder() / "profiles").glob("*.yaml"))
    return own if profile_name() in own else [*own, profile_name()]


def _missing_vector(persona: Any) -> Iterator[str]:
    from steer_pipeline.environment import catalogue_folder, project_home

    if persona.vector != "computed" and not (place := project_home() / Path(persona.vector.path)).exists():
        file = catalogue_folder() / "personas" / f"{persona.name}.yaml"
        yield f"{file}: vector.path: there is nothing at {place}; correct it (relative paths start at the project root)"
