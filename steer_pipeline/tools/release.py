"""Releases of rewrite packs from the command line: promote, roll back, and the history.

    python -m steer_pipeline.tools.release promote paranoid        run the gates of the newest pack, release it
    python -m steer_pipeline.tools.release rollback paranoid       back to the version released before; again: further
    python -m steer_pipeline.tools.release rollback paranoid --to 6ce75af9
    python -m steer_pipeline.tools.release history [paranoid]

Each promotion or rollback is a materialisation of `rewrite_release`; the history is read from these.
"""

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence

from steer_pipeline.lab.rewrites import GATES
from steer_pipeline.resources import open_store
from steer_pipeline.settings import settings
from steer_pipeline.stages.rewrites.release import RELEASE, Entry, history
from steer_pipeline.tools.console import readers_may_leave
from steer_pipeline.tools.driver import Driver, Outcome, open_driver

__all__ = ["Entry", "history", "main", "promote", "rollback", "shown"]


def promote(driver: Driver, variant: str) -> Outcome:
    """Runs the gates of the newest pack, as it lies there, and releases it if they pass."""
    checks = [("rewrite_pack", gate) for gate in GATES]
    return driver.materialize(
        [RELEASE], checks=checks, partition=variant, config={RELEASE: {"action": "promote"}}
    )


def rollback(driver: Driver, variant: str, to: str | None = None) -> Outcome:
    """Releases the version `to` (a hash or its beginning), or goes back one step in the history.

    Without an earlier release the outcome's error says so.
    """
    asked = {"action": "rollback", **({"version": to} if to else {})}
    return driver.materialize([RELEASE], partition=variant, config={RELEASE: asked})


def shown(entries: Sequence[Entry]) -> str:
    """The history for people, a line an entry."""
    return "\n".join(
        f"{entry.when:%Y-%m-%d %H:%M:%S}  {entry.variant:<24} {entry.action:<9} {entry.version}  "
        f"before: {entry.previous:<16}  {entry.rows} rows  run {entry.run_id[:8]}"
        + ("" if entry.carried_out else "  NOT CARRIED OUT: the run ended before the pointer moved")
        for entry in entries
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
    failed = False
    with readers_may_leave(), open_driver(defs, settings().home) as driver:
        if options.command == "history":
            print(shown(history(driver.instance, open_store(), options.variant)))
        for variant in asked if options.command != "history" else ():
            outcome = (
                promote(driver, variant)
                if options.command == "promote"
                else rollback(driver, variant, options.to)
            )
            for problem in [*outcome.stopped_by, *outcome.errors]:
                print(f"FAILED: {problem}", file=sys.stderr)
            failed |= not outcome.success
            if outcome.success:
                print(shown(history(driver.instance, open_store(), variant, limit=1)))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
