"""Options that mean the same on every verb.

`--profile` and `--store` set the environment of this process, which the package reads when its definitions are
imported: so they are eager, and verbs import inside their bodies.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import click


def _sets(variable: str, value: str | None) -> None:
    if value:
        os.environ[variable] = value


def _profile(_: click.Context, __: click.Parameter, value: str | None) -> None:
    is_file = value is not None and value.endswith((".yaml", ".yml"))
    _sets("STEER_PROFILE", str(Path(value or "").resolve()) if is_file else value)


def _store(_: click.Context, __: click.Parameter, value: str | None) -> None:
    is_folder = value is not None and "://" not in value
    _sets("STEER_STORE", str(Path(value or "").resolve()) if is_folder else value)


def _common() -> list[click.Option]:
    return [
        click.Option(
            ["--profile"],
            metavar="NAME|FILE",
            help="Profile of the catalogue, or a YAML file.  [default: STEER_PROFILE, else newsroom]",
            callback=_profile,
            expose_value=False,
            is_eager=True,
        ),
        click.Option(
            ["--store"],
            metavar="DIR|URL",
            help="Artifact store.  [default: STEER_STORE, else assets_data/store]",
            callback=_store,
            expose_value=False,
            is_eager=True,
        ),
    ]


def with_common(command: click.Command) -> click.Command:
    """The same verb, and the verbs below it, with `--profile` and `--store`."""
    flags = {flag for parameter in command.params for flag in parameter.opts}
    command.params += [option for option in _common() if not flags & set(option.opts)]
    for each in getattr(command, "commands", {}).values():
        with_common(each)
    return command


def _names(_: click.Context, __: click.Parameter, value: str) -> list[str]:
    return [name.strip() for name in value.split(",") if name.strip()]


def names(what: str, *flags: str, default: str = "  [default: all]"):
    """An option that takes names, separated by commas."""
    return click.option(
        *flags,
        metavar="A,B",
        default="",
        show_default=False,
        callback=_names,
        help=f"{what}, separated by commas.{default}",
    )


VARIANTS = names("Variants", "--variants")
PERSONAS = names("Personas", "--personas")
DRY_RUN = click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")


def known(given: Sequence[str], there_are: Sequence[str], what: str) -> None:
    """
    Raises:
        UsageError: a name is none of those that there are.
    """
    if unknown := [name for name in given if name not in there_are]:
        raise click.UsageError(f"no {what} {', '.join(unknown)}; the catalogue has {', '.join(there_are)}")


def examples(*lines: str) -> str:
    """The last part of a verb's help."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
