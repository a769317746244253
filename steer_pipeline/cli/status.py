"""`steer status`: what is out of date, and why. It makes nothing."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import click

from steer_pipeline.cli.console import readers_may_leave
from steer_pipeline.cli.options import PERSONAS, VARIANTS, examples, known

if TYPE_CHECKING:
    from steer_pipeline.campaigns.driver import Driver


@dataclass(frozen=True)
class Stale:
    """One asset partition that is missing or out of date."""

    asset: str
    partition: str | None
    why: str


@click.command(epilog=examples("steer status", "steer status --stale-only --json"))
@VARIANTS
@PERSONAS
@click.option("--json", "as_json", is_flag=True, help="A list of {asset, partition, why}.")
@click.option("--stale-only", is_flag=True, help="Leave out what was never made.")
def status(variants: list[str], personas: list[str], as_json: bool, stale_only: bool) -> None:
    """List what is missing or stale, and why.

    It is the answer that Dagster's UI gives too, and what `steer make` goes by.
    """
    from steer_pipeline.campaigns.driver import open_driver
    from steer_pipeline.definitions import defs
    from steer_pipeline.io.store import label
    from steer_pipeline.partitions import PERSONA, VARIANT
    from steer_pipeline.settings import settings
    from steer_pipeline.staleness import NEVER

    known(variants, VARIANT.get_partition_keys(), "variant")
    known(personas, PERSONA.get_partition_keys(), "persona")
    with open_driver(defs, settings().home) as driver:
        found = stale(driver, variants, personas)
        overruled = released_despite_gates(variants)
    if stale_only:
        found = [each for each in found if each.why != NEVER]
    with readers_may_leave():
        if as_json:
            click.echo(json.dumps([asdict(each) for each in found], indent=1))
            return
        for each in found:
            click.echo(f"{label(each.asset, each.partition)}: {each.why}")
        for variant, decision in overruled.items():
            click.echo(f"{variant} is released {decision}")
        click.echo(
            "everything is fresh"
            if not found
            else f"{len(found)} of the graph's partitions are missing or stale"
        )


def released_despite_gates(variants: Sequence[str] = ()) -> dict[str, str]:
    """variant -> which gates its released pack fails, and why it is released all the same."""
    from steer_pipeline.lab.rewrites.release import NONE, UNKNOWN, overruled_of, released_or_unknown
    from steer_pipeline.resources import open_store
    from steer_pipeline.settings import settings

    store, found = open_store(), {}
    for variant in variants or settings().variant_names:
        sha = released_or_unknown(store, variant)
        if sha not in (NONE, UNKNOWN) and (decision := overruled_of(store, variant, sha)) is not None:
            found[variant] = str(decision)
    return found


def stale(driver: "Driver", variants: Sequence[str] = (), personas: Sequence[str] = ()) -> list[Stale]:
    """All asset partitions that are missing or out of date, in the order of the graph."""
    from steer_pipeline.keys import key
    from steer_pipeline.partitions import asked_for

    driver.observe()
    wanted = {
        asset: asked_for(driver.asset_graph.get(key(asset)).partitions_def, variants, personas)
        for asset in driver.assets()
    }
    return [
        Stale(asset, partition, "; ".join(why))
        for asset, partitions in wanted.items()
        for partition, why in driver.stale(asset, partitions).items()
    ]
