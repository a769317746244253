"""`steer prune`: frees the store of what nothing needs."""

import click

from steer_pipeline.cli.console import readers_may_leave
from steer_pipeline.cli.options import examples


@click.command(epilog=examples("steer prune", "steer prune --yes", "steer prune --keep-days 90"))
@click.option("--dry-run/--yes", default=True, help="Only say what would go, or delete it.")
@click.option("--keep-days", default=14.0, help="Versions and rows younger than this stay.")
def prune(dry_run: bool, keep_days: float) -> None:
    """Free the store of what nothing needs.

    That is: leftovers of killed writers, old versions that nothing refers to, and rows of journals that no run will
    take. Current versions, all that was ever released and all that these were made from stay. Run it while no run
    writes.
    """
    from steer_pipeline.campaigns.pruning import find_waste, remove, shown
    from steer_pipeline.lab.generation.journal import JournalError
    from steer_pipeline.resources import open_store

    store = open_store()
    waste = find_waste(store, keep_days)
    if not dry_run:
        try:
            remove(store, waste)
        except JournalError as error:
            raise click.ClickException(str(error)) from error
    with readers_may_leave():
        for line in shown(waste, removed=not dry_run):
            click.echo(line)
