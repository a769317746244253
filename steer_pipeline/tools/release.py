"""Releases of rewrite packs from the command line: promote, roll back, and the history.

    python -m steer_pipeline.tools.release promote paranoid        run the gates of the newest pack, release it
    python -m steer_pipeline.tools.release rollback paranoid       back to the version released before
    python -m steer_pipeline.tools.release rollback paranoid --to 6ce75af9
    python -m steer_pipeline.tools.release history [paranoid]

Each promotion or roll-back is a materialisation of `rewrite_release`; the history is read from these.
"""

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import dagster as dg

from steer_pipeline.lab.rewrites import GATES
from steer_pipeline.settings import settings
from steer_pipeline.tools.driver import Driver, Outcome, open_driver

RELEASE = "rewrite_release"


@dataclass(frozen=True)
class Entry:
    """One line of the history."""

    when: datetime
    variant: str
    action: str
    version: str
    previous: str
    rows: int
    run_id: str


def history(instance: dg.DagsterInstance, variant: str | None = None, limit: int = 1000) -> list[Entry]:
    """Releases, newest first."""
    wanted = dg.AssetRecordsFilter(
        asset_key=dg.AssetKey(RELEASE), asset_partitions=[variant] if variant else None
    )
    entries = []
    for record in instance.fetch_materializations(wanted, limit=limit).records:
        metadata = record.asset_materialization.metadata
        entries.append(
            Entry(
                when=datetime.fromtimestamp(record.timestamp, UTC),
                variant=record.partition_key or "",
                action=str(metadata["action"].value),
                version=str(metadata["version"].value),
                previous=str(metadata["previous"].value),
                rows=int(metadata["rows"].value),
                run_id=record.run_id,
            )
        )
    return entries


def promote(driver: Driver, variant: str) -> Outcome:
    """Runs the gates of the newest pack, as it lies there, and releases it if they pass."""
    checks = [("rewrite_pack", gate) for gate in GATES]
    return driver.materialize([RELEASE], checks=checks, partition=variant)


def rollback(driver: Driver, variant: str, to: str | None = None) -> Outcome:
    """Releases the version `to`, or the one that was released before the present one.

    Raises:
        LookupError: there is no earlier release.
    """
    version = to or _former(history(driver.instance, variant), variant)
    return driver.materialize([RELEASE], partition=variant, config={RELEASE: {"version": version}})


def _former(entries: Sequence[Entry], variant: str) -> str:
    for entry in entries:
        if entry.version != entries[0].version:
            return entry.version
    raise LookupError(
        f"{variant} has no earlier release to go back to; `history {variant}` shows what there is"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m steer_pipeline.tools.release",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("promote").add_argument("variant", nargs="+")
    back = commands.add_parser("rollback")
    back.add_argument("variant")
    back.add_argument("--to", help="version, or its beginning; default: the one released before")
    commands.add_parser("history").add_argument("variant", nargs="?")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    logging.getLogger("dagster").setLevel(logging.CRITICAL)

    from steer_pipeline.definitions import defs

    asked = (
        options.variant if isinstance(options.variant, list) else [options.variant] if options.variant else []
    )
    if unknown := [name for name in asked if name not in settings().variants]:
        print(f"FAILED: no variant {unknown[0]!r}; known: {', '.join(settings().variants)}", file=sys.stderr)
        return 1
    with open_driver(defs, settings().home) as driver:
        if options.command == "history":
            _show(history(driver.instance, options.variant))
            return 0
        failed = False
        for variant in asked:
            try:
                outcome = (
                    promote(driver, variant)
                    if options.command == "promote"
                    else rollback(driver, variant, options.to)
                )
                problems = [*outcome.stopped_by, *outcome.errors]
            except LookupError as error:
                problems = [str(error)]
            for problem in problems:
                print(f"FAILED: {problem}", file=sys.stderr)
            failed |= bool(problems)
            if not problems:
                _show(history(driver.instance, variant)[:1])
    return 1 if failed else 0


def _show(entries: Sequence[Entry]) -> None:
    for entry in entries:
        print(
            f"{entry.when:%Y-%m-%d %H:%M:%S}  {entry.variant:<24} {entry.action:<9} {entry.version}  "
            f"before: {entry.previous:<16}  {entry.rows} rows  run {entry.run_id[:8]}"
        )


if __name__ == "__main__":
    sys.exit(main())
