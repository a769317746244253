"""The group of all verbs, and how errors look: one paragraph, no traceback, exit status 1."""

import logging
import sys
import warnings

import click

from steer_pipeline.cli.check import check
from steer_pipeline.cli.doctor import doctor
from steer_pipeline.cli.exchange import export, import_
from steer_pipeline.cli.make import make
from steer_pipeline.cli.release import release
from steer_pipeline.cli.status import status


class Steer(click.Group):
    """Prints what a user can mend as one paragraph; anything else is a fault of ours and keeps its traceback."""

    def invoke(self, ctx: click.Context) -> object:
        from steer_pipeline.catalogue import CatalogueError
        from steer_pipeline.io.store import StoreError

        try:
            return super().invoke(ctx)
        except (CatalogueError, StoreError) as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=Steer, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def steer() -> None:
    """Persona-steering research as a Dagster asset graph."""
    warnings.filterwarnings("ignore")
    logging.getLogger("dagster").setLevel(logging.CRITICAL)


for verb in (make, status, release, import_, export, check, doctor):
    steer.add_command(verb)


def main() -> None:
    """What the console script calls."""
    sys.exit(steer.main(prog_name="steer"))
