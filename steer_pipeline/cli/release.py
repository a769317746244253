"""`steer release`: which version of a variant's pack is released: promote, roll back, history."""

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import click

from steer_pipeline.cli.console import readers_may_leave
from steer_pipeline.cli.options import DRY_RUN, VARIANTS, examples, known, names

if TYPE_CHECKING:
    from steer_pipeline.campaigns.driver import Driver, Outcome


@click.group()
def release() -> None:
    """Promote a pack, roll back, and see the history."""


@release.command(
    epilog=examples(
        "steer release promote paranoid",
        "steer release promote paranoid trusting",
        'steer release promote paranoid --despite "a small model: 6 of 50 rows more than base name a wrong figure"',
    )
)
@click.argument("given", metavar="[VARIANT]...", nargs=-1)
@names("Variants", "--variants", default="")
@click.option(
    "--despite",
    metavar="WHY",
    help="Release packs whose suspect rate or difference from base fails its gate, and log why. Damaged, misaligned or "
    "incomplete packs are refused all the same.",
)
@DRY_RUN
def promote(given: tuple[str, ...], variants: list[str], despite: str | None, dry_run: bool) -> None:
    """Run the gates of the newest packs of some variants, and release those that pass."""
    from steer_pipeline.campaigns import release as releases

    wanted = [*given, *variants]
    if not wanted:
        raise click.UsageError("name the variants to promote")
    if despite is not None and not despite.strip():
        raise click.UsageError("--despite wants a reason, which the history will show")
    if dry_run:
        _foretell(wanted, "promote", None, despite)
    else:
        _each(wanted, lambda driver, name: releases.promote(driver, name, despite))


@release.command(
    epilog=examples("steer release rollback paranoid", "steer release rollback paranoid --to 91411af1")
)
@click.argument("variant")
@click.option("--to", help="Version, or its beginning.  [default: the one released before]")
@DRY_RUN
def rollback(variant: str, to: str | None, dry_run: bool) -> None:
    """Release an earlier version of VARIANT; again goes further back."""
    from steer_pipeline.campaigns import release as releases

    if dry_run:
        _foretell([variant], "rollback", to)
    else:
        _each([variant], lambda driver, name: releases.rollback(driver, name, to))


@release.command(epilog=examples("steer release history", "steer release history paranoid"))
@click.argument("given", metavar="[VARIANT]...", nargs=-1)
@VARIANTS
def history(given: tuple[str, ...], variants: list[str]) -> None:
    """List the releases of some variants, or of all, newest first."""
    wanted = [*given, *variants]
    with readers_may_leave(), _driver() as driver:
        _known(wanted)
        for variant in wanted or [None]:
            _show(driver, variant)


def _each(variants: Sequence[str], act: "Callable[[Driver, str], Outcome]") -> None:
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


def _foretell(variants: Sequence[str], action: str, to: str | None, despite: str | None = None) -> None:
    from steer_pipeline.campaigns.release import foretold
    from steer_pipeline.resources import open_store

    with _driver() as driver:
        _known(variants)
        for variant in variants:
            click.echo(foretold(driver, open_store(), variant, action, to, despite))


def _show(driver: "Driver", variant: str | None, limit: int = 1000) -> None:
    from steer_pipeline.campaigns.release import shown
    from steer_pipeline.resources import open_store
    from steer_pipeline.stages.rewrites.history import history as entries

    click.echo(shown(entries(driver.instance, open_store(), variant, limit=limit)))


def _driver() -> "AbstractContextManager[Driver]":
    from steer_pipeline.campaigns.driver import open_driver
    from steer_pipeline.definitions import defs
    from steer_pipeline.settings import settings

    return open_driver(defs, settings().home)


def _known(variants: Sequence[str]) -> None:
    from steer_pipeline.settings import settings

    known(variants, settings().variant_names, "variant")
