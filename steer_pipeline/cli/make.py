"""`steer make`: brings the pilot or the behaviour lab up to date.

Progress goes to stdout, its last line is one JSON object with the numbers; what went wrong goes to stderr, and then the
exit status is 1.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import click


def _names(_: click.Context, __: click.Parameter, value: str) -> list[str]:
    return [name.strip() for name in value.split(",") if name.strip()]


def _only(what: str) -> Callable[[Any], Any]:
    return click.option(
        "--only", default="", callback=_names, help=f"{what}, separated by commas.  [default: all]"
    )


FORCE = click.option("--force", is_flag=True, help="Make everything again, fresh or not.")


@click.group()
def make() -> None:
    """Make what is missing or stale, and nothing else; `steer status` says what that is."""


@make.command()
@click.option(
    "--size",
    type=click.Choice(["pilot", "full"]),
    default="pilot",
    show_default=True,
    help="Rows of the packs.",
)
@_only("Variants")
@FORCE
def pilot(size: str, only: list[str], force: bool) -> None:
    """Vectors, checked and released packs in all variants and controls, comparison and report.

    Base and the two controls that every difference stands beside are always made. The full size is refused while a
    gate of the pilot fails.
    """
    from steer_pipeline.campaigns.pilot import make_pilot

    _report("variants", lambda: make_pilot(size, only, force=force))


@make.command()
@_only("Traits and roles")
@FORCE
def behaviour(only: list[str], force: bool) -> None:
    """Trained vectors and what they do, for every trait and role."""
    from steer_pipeline.campaigns.behaviour import make_behaviour

    _report("personas", lambda: make_behaviour(only, force=force))


def _report(of: str, run: Callable[[], tuple[dict[str, Any], list[str]]]) -> None:
    started = time.monotonic()
    numbers, problems = run()
    for problem in problems:
        click.echo(f"FAILED: {problem}", err=True)
    click.echo(line(of, numbers, time.monotonic() - started))
    if problems:
        sys.exit(1)


def line(of: str, numbers: dict[str, Any], seconds: float) -> str:
    """The last line of stdout, its numbers to four digits."""
    return json.dumps({"seconds": round(seconds, 1), of: rounded(numbers)}, allow_nan=False)


def rounded(value: Any) -> Any:
    """Numbers of nested dictionaries to four digits."""
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    return round(value, 4) if isinstance(value, float) else value
