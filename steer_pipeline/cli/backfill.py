"""`steer backfill`: many asset partitions at once, through the queue that the daemon of `steer ui` works off."""

import sys

import click

from steer_pipeline.cli.options import DRY_RUN, PERSONAS, VARIANTS, examples, known


@click.command(
    epilog=examples(
        "steer backfill rewrite_pack+ --variants base,paranoid --dry-run",
        "steer backfill contrast_set persona_vector --personas paranoid --wait",
        "steer backfill --retry-failed abcdefgh",
    )
)
@click.argument("assets", metavar="[ASSET[+]]...", nargs=-1)
@VARIANTS
@PERSONAS
@click.option("--retry-failed", metavar="ID", help="Submit what this former backfill has not made.")
@click.option("--wait", "waits", is_flag=True, help="Return when it has ended; what failed is printed.")
@DRY_RUN
def backfill(
    assets: tuple[str, ...],
    variants: list[str],
    personas: list[str],
    retry_failed: str | None,
    waits: bool,
    dry_run: bool,
) -> None:
    """Submit asset partitions to Dagster's queue, fresh or not.

    ASSET is a name, NAME+ also all that is made of it. Where personas are named and no variants, the variants that are
    made of them are taken. The daemon of `steer ui` makes them in the order of the graph, and skips what stands below a
    failure. For the jobs, run configuration and cancelling see the UI.
    """
    if bool(assets) == bool(retry_failed):
        raise click.UsageError("name assets, or a former backfill by --retry-failed")
    from steer_pipeline.campaigns import backfill as backfills
    from steer_pipeline.campaigns.driver import open_instance
    from steer_pipeline.definitions import defs
    from steer_pipeline.io.store import label
    from steer_pipeline.keys import key
    from steer_pipeline.partitions import PERSONA, VARIANT, asked_for
    from steer_pipeline.settings import settings

    known(variants, VARIANT.get_partition_keys(), "variant")
    known(personas, PERSONA.get_partition_keys(), "persona")
    graph = defs.resolve_asset_graph()
    with open_instance(settings().home) as instance:
        if retry_failed:
            wanted = backfills.unmade(instance, graph, retry_failed)
        else:
            wanted = {
                name: asked_for(graph.get(key(name)).partitions_def, variants, personas)
                for name in backfills.selected(graph, assets)
            }
        places = [label(name, partition) for name, partitions in wanted.items() for partition in partitions]
        if dry_run or not places:
            click.echo("\n".join([*(f"would submit {place}" for place in places), f"{len(places)} to make"]))
            return
        title = f"steer backfill {' '.join(assets) or f'--retry-failed {retry_failed}'}"
        submitted = backfills.submit(instance, graph, wanted, title)
        click.echo(f"backfill {submitted}: {len(places)} asset partitions, in the UI at /runs/b/{submitted}")
        if not backfills.daemon_is_there(instance):
            click.echo("no daemon works for this Dagster instance yet: start one with `steer ui`", err=True)
        if waits and (problems := backfills.wait(instance, graph, submitted, click.echo)):
            for problem in problems:
                click.echo(f"FAILED: {problem}", err=True)
            sys.exit(1)
