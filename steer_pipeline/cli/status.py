"""`steer status`: what is out of date, and why. It makes nothing."""

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import click

from steer_pipeline.io.store import label

if TYPE_CHECKING:
    from steer_pipeline.campaigns.driver import Driver


@dataclass(frozen=True)
class Stale:
    """One asset partition that is missing or out of date."""

    asset: str
    partition: str | None
    why: str


@click.command()
@click.option("--json", "as_json", is_flag=True, help="A list of {asset, partition, why}.")
@click.option("--stale-only", is_flag=True, help="Leave out what was never made.")
def status(as_json: bool, stale_only: bool) -> None:
    """List what is missing or stale, and why: the same answer as Dagster's UI gives."""
    from steer_pipeline.campaigns.driver import open_driver
    from steer_pipeline.definitions import defs
    from steer_pipeline.settings import settings
    from steer_pipeline.staleness import NEVER

    with open_driver(defs, settings().home) as driver:
        found = stale(driver)
    if stale_only:
        found = [each for each in found if each.why != NEVER]
    if as_json:
        click.echo(json.dumps([asdict(each) for each in found], indent=1))
        return
    for each in found:
        click.echo(f"{label(each.asset, each.partition)}: {each.why}")
    click.echo(
        "everything is fresh" if not found else f"{len(found)} of the graph's partitions are missing or stale"
    )


def stale(driver: "Driver") -> list[Stale]:
    """All asset partitions that are missing or out of date, in the order of the graph."""
    driver.observe()
    return [
        Stale(asset, partition, "; ".join(why))
        for asset in driver.assets()
        for partition, why in driver.stale(asset, driver.partitions(asset) or [None]).items()
    ]
