"""`steer` in this process; options that set the environment leave no trace in it."""

import os

from click.testing import CliRunner, Result

from steer_pipeline.cli.main import steer

SET = ("STEER_PROFILE", "STEER_STORE")


def run(*arguments: str) -> Result:
    """What the command has printed and ended with; a fault of ours is raised."""
    before = {name: os.environ.get(name) for name in SET}
    done = CliRunner().invoke(steer, arguments, env=before, prog_name="steer")
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def printed(*arguments: str) -> str:
    """Its stdout; it must succeed."""
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def refused(*arguments: str, status: int = 1) -> str:
    """Its stderr; it must end with `status` and print nothing else."""
    done = run(*arguments)
    assert done.exit_code == status, done.output
    assert done.stdout == ""
    return done.stderr
