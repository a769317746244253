"""`steer make`: brings pilot, behaviour lab, students, carried vectors, heal loop or attribution up to date.

Progress goes to stdout, its last line is one JSON object with the numbers; what went wrong goes to stderr, and then the
exit status is 1.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from steer_pipeline.cli.options import DRY_RUN, PERSONAS, VARIANTS, examples, names

if TYPE_CHECKING:
    from steer_pipeline.campaigns.campaign import Result

SIZE = click.option(
    "--size", type=click.Choice(["pilot", "full"]), default="pilot", help="Rows of the packs."
)
FORCE = click.option("--force", is_flag=True, help="Make everything again, fresh or not.")


@click.group()
def make() -> None:
    """Make what is missing or stale, nothing else."""


@make.command(
    epilog=examples(
        "steer make pilot",
        "steer make pilot --variants trusting --dry-run",
        "steer make pilot --size full",
    )
)
@SIZE
@names("Variants", "--variants", "--only", "variants")
@FORCE
@DRY_RUN
def pilot(size: str, variants: list[str], force: bool, dry_run: bool) -> None:
    """Make vectors, packs, comparison and report.

    Packs of all variants and controls are checked by their gates and released. Base and the two controls that every
    difference stands beside are always made. The full size is refused while a gate of the pilot fails.
    """
    from steer_pipeline.campaigns.pilot import make_pilot
    from steer_pipeline.definitions import defs

    _report({"variants": lambda: make_pilot(defs, size, variants, force=force, dry_run=dry_run)})


@make.command(epilog=examples("steer make behaviour", "steer make behaviour --personas sailor,coach"))
@names("Traits and roles", "--personas", "--only", "personas")
@FORCE
@DRY_RUN
def behaviour(personas: list[str], force: bool, dry_run: bool) -> None:
    """Make trained vectors and see what they do.

    For every trait and role, beside prompting, averaged and random vectors.
    """
    from steer_pipeline.campaigns.behaviour import make_behaviour
    from steer_pipeline.definitions import defs

    _report({"personas": lambda: make_behaviour(defs, personas, force=force, dry_run=dry_run)})


@make.command(epilog=examples("steer make students", "steer make students --variants paranoid,trusting"))
@names("Variants", "--variants", "--only", "variants")
@FORCE
@DRY_RUN
def students(variants: list[str], force: bool, dry_run: bool) -> None:
    """Train students of released packs and see what travels.

    LoRA adapters of every variant and control, at each rank and seed, and what they write on held-out news. Base and
    the two controls are always among them. Packs that are not released yet are made first.
    """
    from steer_pipeline.campaigns.students import make_students
    from steer_pipeline.definitions import defs

    _report({"students": lambda: make_students(defs, variants, force=force, dry_run=dry_run)})


@make.command(epilog=examples("steer make transport", "steer make transport --personas paranoid"))
@names("Personas of the profile's `transport`", "--personas", "--only", "personas")
@FORCE
@DRY_RUN
def transport(personas: list[str], force: bool, dry_run: bool) -> None:
    """Carry persona vectors to another model and see what they do there.

    The model is the one that the profile's `transport` names. What linear maps keep of the effect stands beside that
    model's own vector and random rotations. Contrast sets and vectors that are missing are made first.
    """
    from steer_pipeline.campaigns.transport import make_transport
    from steer_pipeline.definitions import defs

    _report({"transport": lambda: make_transport(defs, personas, force=force, dry_run=dry_run)})


@make.command(epilog=examples("steer make heal", "steer make heal --arms on_policy,random_direction"))
@names("Arms of the profile's `heal`", "--arms", "--only", "arms")
@FORCE
@DRY_RUN
def heal(arms: list[str], force: bool, dry_run: bool) -> None:
    """Steer, filter, heal: does the trait survive without the damage?

    A vector steers, a filter keeps what is coherent, students learn it in every arm; their table beside base and the
    steered model, then rounds with the best arm. Base, the steered model and nll are always among the arms.
    """
    from steer_pipeline.campaigns.heal import make_heal
    from steer_pipeline.definitions import defs

    _report({"heal": lambda: make_heal(defs, arms, force=force, dry_run=dry_run)})


@make.command(name="barrier_sweep", epilog=examples("steer make barrier_sweep"))
@FORCE
@DRY_RUN
def barrier_sweep(force: bool, dry_run: bool) -> None:
    """Heal the kept texts again under a barrier of other strengths.

    Nothing is sampled anew. The table says whether divergence and movement fall with strength.
    """
    from steer_pipeline.campaigns.heal import make_sweep
    from steer_pipeline.definitions import defs

    _report({"barrier_sweep": lambda: make_sweep(defs, force=force, dry_run=dry_run)})


@make.command(
    epilog=examples("steer make attribution", "steer make attribution --arms top_gradient,top_magic")
)
@names("Arms of the profile's `attribution`", "--arms", "--only", "arms")
@FORCE
@DRY_RUN
def attribution(arms: list[str], force: bool, dry_run: bool) -> None:
    """Rank training rows, and see which of them help.

    Every method ranks the pool; adapters learn the first rows of a ranking, or as many others, and play held-out games.
    Rankings are judged by trainings without some rows. The arms of comparison are always among them.
    """
    from steer_pipeline.campaigns.attribution import make_attribution
    from steer_pipeline.definitions import defs

    _report({"attribution": lambda: make_attribution(defs, arms, force=force, dry_run=dry_run)})


@make.command(name="all", epilog=examples("steer make all", "steer make all --dry-run"))
@SIZE
@VARIANTS
@PERSONAS
@FORCE
@DRY_RUN
def everything(size: str, variants: list[str], personas: list[str], force: bool, dry_run: bool) -> None:
    """Make the pilot, then the behaviour lab.

    Where one fails the other goes on.
    """
    from steer_pipeline.campaigns.behaviour import chosen, make_behaviour
    from steer_pipeline.campaigns.pilot import make_pilot
    from steer_pipeline.definitions import defs

    chosen(personas)  # a misspelt name is an answer now, not after the pilot
    _report(
        {
            "variants": lambda: make_pilot(defs, size, variants, force=force, dry_run=dry_run),
            "personas": lambda: make_behaviour(defs, personas, force=force, dry_run=dry_run),
        }
    )


def _report(campaigns: "dict[str, Callable[[], Result]]") -> None:
    started = time.monotonic()
    results = {of: campaign() for of, campaign in campaigns.items()}
    plan = {place: why for result in results.values() for place, why in result.plan.items()}
    problems = [problem for result in results.values() for problem in result.problems]
    if click.get_current_context().params["dry_run"]:
        from steer_pipeline.io.store import label

        for place, why in plan.items():
            click.echo(f"would make {label(*place)}: {why}")
        click.echo(f"{len(plan)} to make" if plan else "everything is fresh")
    else:
        numbers = {of: result.numbers for of, result in results.items()}
        click.echo(line(numbers, time.monotonic() - started))
    for problem in problems:
        click.echo(f"FAILED: {problem}", err=True)
    if problems:
        sys.exit(1)


def line(numbers: dict[str, Any], seconds: float) -> str:
    """The last line of stdout, its numbers to four digits."""
    return json.dumps({"seconds": round(seconds, 1), **rounded(numbers)}, allow_nan=False)


def rounded(value: Any) -> Any:
    """Numbers of nested dictionaries to four digits."""
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    return round(value, 4) if isinstance(value, float) else value
