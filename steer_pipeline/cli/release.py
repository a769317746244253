"""`steer release`: which version of a variant's pack is released: promote, roll back, history."""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from steer_pipeline.campaigns.driver import Driver, Outcome


@click.group()
def release() -> None:
    """Promote a pack, roll back, and see what was released when."""


@release.command()
@click.argument("variants", nargs=-1, required=True)
def promote(variants: tuple[str, ...]) -> None:
    """Run the gates of the newest packs of VARIANTS, and release those that pass."""
    from steer_pipeline.campaigns import release as commands

    _each(variants, commands.promote)


@release.command()
@click.argument("variant")
@click.option("--to", help="Version, or its beginning.  [default: the one released before]")
def rollback(variant: str, to: str | None) -> None:
    """Release an earlier version of VARIANT; again goes further back."""
    from steer_pipeline.campaigns import release as commands

    _each((variant,), lambda driver, name: commands.rollback(driver, name, to))


@release.command()
@click.argument("variant", required=False)
def history(variant: str | None) -> None:
    """Releases of VARIANT, or of all, newest first."""
    from steer_pipeline.cli.console import readers_may_leave

    with readers_may_leave(), _driver() as driver:
        _known((variant,) if variant else ())
        _show(driver, variant)


def _each(variants: tuple[str, ...], act: "Callable[[Driver, str], Outcome]") -> None:
    failed = False
    with _driver() as driver:
        _known(variants)
        for variant in variants:
            outcome = act(driver, variant)
            for problem in [*outcome.stopped_by, *outcome.errors]:
                click.echo(f"FAILED: {problem}", err=True)
            failed |= not outcome.success
            if outcome.success:
                _show(driver, variant, limit=1)
    if failed:
        sys.exit(1)


def _show(driver: "Driver", variant: str | None, limit: int = 1000) -> None:
    from steer_pipeline.campaigns.release import shown
    from steer_pipeline.resources import open_store
    from steer_pipeline.stages.rewrites.release import history as entries

    click.echo(shown(entries(driver.instance, open_store(), variant, limit=limit)))


def _driver() -> "AbstractContextManager[Driver]":
    from steer_pipeline.campaigns.driver import open_driver
    from steer_pipeline.definitions import defs
    from steer_pipeline.settings import settings

    return open_driver(defs, settings().home)


def _known(variants: tuple[str, ...]) -> None:
    from steer_pipeline.settings import settings

    known = settings().variant_names
    if unknown := [name for name in variants if name not in known]:
        raise click.ClickException(f"no variant {unknown[0]!r}; known: {', '.join(known)}")
