"""The group of all verbs, loaded when they are asked for, and how errors look: one paragraph, no traceback.

The exit status is 0, 1 where something has failed, and 2 where the command was used wrongly.
"""

import importlib.util
import logging
import sys
import warnings

import click

from steer_pipeline.cli.options import with_common

# In the order of work. What a verb needs is imported inside it, so that help is there at once.
VERBS = {
    "make": "steer_pipeline.cli.make:make",
    "status": "steer_pipeline.cli.status:status",
    "report": "steer_pipeline.cli.report:report",
    "query": "steer_pipeline.cli.query:query",
    "release": "steer_pipeline.cli.release:release",
    "ui": "steer_pipeline.cli.ui:ui",
    "backfill": "steer_pipeline.cli.backfill:backfill",
    "import": "steer_pipeline.cli.exchange:import_",
    "export": "steer_pipeline.cli.exchange:export",
    "model": "steer_pipeline.cli.model:model",
    "new": "steer_pipeline.cli.new:new",
    "check": "steer_pipeline.cli.check:check",
    "doctor": "steer_pipeline.cli.doctor:doctor",
    "prune": "steer_pipeline.cli.prune:prune",
}


class Steer(click.Group):
    """Loads verbs late, and prints what a user can mend as one paragraph.

    Any other error is a fault of ours and keeps its traceback.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [verb for verb, place in VERBS.items() if importlib.util.find_spec(place.partition(":")[0])]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        module, _, name = VERBS[cmd_name].partition(":")
        return with_common(getattr(importlib.import_module(module), name))

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except Exception as error:
            # These import nothing that reads the catalogue: it may be what is broken.
            from steer_pipeline.campaigns.errors import NoSuchName, NotHere, Stopped
            from steer_pipeline.catalogue import CatalogueError
            from steer_pipeline.io.query import QueryError
            from steer_pipeline.io.store import StoreError

            if isinstance(error, NoSuchName):
                raise click.UsageError(str(error)) from error
            if isinstance(error, CatalogueError | StoreError | QueryError | Stopped | NotHere):
                raise click.ClickException(str(error)) from error
            raise


@click.group(
    cls=Steer,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        "show_default": True,
    },
)
def steer() -> None:
    """Persona-steering research as a Dagster asset graph."""
    warnings.filterwarnings("ignore")
    logging.getLogger("dagster").setLevel(logging.CRITICAL)


with_common(steer)


def main() -> None:
    """What the console script calls."""
    sys.exit(steer.main(prog_name="steer"))
