"""`steer new`: a commented file to start from, in the catalogue that this process uses. Nothing is overwritten."""

import json
import os
import re
from contextlib import suppress
from pathlib import Path
from string import Template

import click

from steer_pipeline.cli.options import examples, known

NAME = click.argument("name", metavar="NAME")


@click.group()
def new() -> None:
    """Write a persona, a variant or a profile to start from."""


@new.command(epilog=examples("steer new persona wistful", "steer new persona butler --kind role"))
@NAME
@click.option("--kind", type=click.Choice(["axis", "trait", "role"]), default="axis", help="See the file.")
def persona(name: str, kind: str) -> None:
    """Write personas/NAME.yaml, with blanks for you to fill.

    Until the last of them is filled `steer check` lists them, and nothing is made of the persona.
    """
    from steer_pipeline.catalogue.loading import BLANK
    from steer_pipeline.catalogue.scale import SCALES
    from steer_pipeline.catalogue.specs import MIN_FIT, MIN_HELD_OUT

    pair = (
        f'    - positive: "{BLANK}: what {name} says"\n'
        f'      negative: "{BLANK}: what the other pole says on the same subject"'
    )
    text = _filled(
        "persona",
        name=_named(name),
        kind=kind,
        opposite="plain" if kind == "role" else f"not_{name}",
        top=SCALES[kind].top if kind in SCALES else 100,
        fit="\n".join([pair] * MIN_FIT),
        held_out="\n".join([pair] * MIN_HELD_OUT),
    )
    _written("personas", name, text)
    click.echo(
        f"next: write what it leaves to you, until steer check finds no {BLANK}; then steer new variant {name}"
    )


@new.command(epilog=examples("steer new variant wistful", "steer new variant glad --persona cheerful"))
@NAME
@click.option("--persona", "of", metavar="PERSONA", help="Whose vector it adds.  [default: NAME]")
def variant(name: str, of: str | None) -> None:
    """Add a steered variant to variants.yaml."""
    from steer_pipeline.catalogue.loading import persona_names, variant_entries
    from steer_pipeline.environment import catalogue_folder

    of, path = of or name, catalogue_folder() / "variants.yaml"
    known([of], persona_names(), "persona")
    if name in variant_entries(path):
        raise click.ClickException(f"{path}: there is a variant {name}; edit it, or take another name")
    before = path.read_text(encoding="utf-8").rstrip("\n")
    _replaced(path, f"{before}\n{_filled('variant', name=_named(name), persona=of)}")
    click.echo(path)
    click.echo(f"next: steer check, then steer make pilot --variants {name}")


@new.command(
    epilog=examples(
        "steer new profile mine --model HuggingFaceTB/SmolLM2-135M-Instruct",
        "steer new profile mine --model models/mine.gguf",
    )
)
@NAME
@click.option("--model", metavar="PATH", help="Hub id, directory or GGUF file.  [default: a blank]")
def profile(name: str, model: str | None) -> None:
    """Write profiles/NAME.yaml."""
    from steer_pipeline.catalogue.loading import BLANK

    path = json.dumps(model or f"{BLANK}: of your model")  # in quotes, as YAML takes them too
    _written("profiles", name, _filled("profile", name=_named(name, more="-."), model=path))
    click.echo(f"next: {'' if model else 'fill in model.path, then '}steer doctor --profile {name}")


def _named(name: str, more: str = "") -> str:
    """The name, if the catalogue takes it; `more` are characters beside those of all names."""
    if not re.fullmatch(rf"[a-z0-9][a-z0-9_{re.escape(more)}]*", name):
        raise click.UsageError(f"{name!r} is no name: use a-z, 0-9 and _, as in calm_voice")
    return name


def _filled(template: str, /, **values: object) -> str:
    from steer_pipeline.environment import PACKAGE

    text = (PACKAGE / "catalogue" / "templates" / f"{template}.yaml").read_text(encoding="utf-8")
    return Template(text).substitute(values)


def _written(folder: str, name: str, text: str) -> None:
    """Makes a new file of the catalogue and prints its path."""
    from steer_pipeline.environment import catalogue_folder

    path = catalogue_folder() / folder / f"{name}.yaml"
    if path.exists():
        raise click.ClickException(f"{path}: is there already; edit it, or take another name")
    _replaced(path, text)
    click.echo(path)


def _replaced(path: Path, text: str) -> None:
    """Writes all of it or nothing."""
    part = path.with_suffix(".part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise click.ClickException(
            f"{path}: cannot be written ({error.strerror}); copy the catalogue ({path.parent}) to a folder of your own "
            "and set STEER_CATALOGUE to it"
        ) from error
