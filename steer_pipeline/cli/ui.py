"""`steer ui`: Dagster's own webserver and daemon on the project."""

import os
import sys

import click

from steer_pipeline.cli.options import examples


@click.command(epilog=examples("steer ui", "steer ui --port 4000 --profile qwen3-4b"))
@click.option("--host", default="127.0.0.1", help="Address to listen on; 0.0.0.0 for all.")
@click.option("--port", default=3000, help="Port to listen on.")
@click.option("--verbose", is_flag=True, help="Log every tick of the sensors too.")
def ui(host: str, port: int, verbose: bool) -> None:
    """Serve Dagster's UI, with its daemon.

    The daemon runs backfills, schedules, sensors and automation.
    """
    from steer_pipeline.environment import project_home
    from steer_pipeline.settings import settings

    settings()  # what is wrong with the profile is said here, in one paragraph
    home = project_home()
    os.environ.setdefault("DAGSTER_HOME", str(home))
    os.chdir(home)
    command = ["dagster", "dev", "--host", host, "--port", str(port)]
    if not verbose:
        command += ["--log-level", "warning", "--code-server-log-level", "warning"]
    if not (home / "pyproject.toml").is_file():  # installed without a checkout: nothing names the definitions
        command += ["--module-name", "steer_pipeline.definitions"]
    click.echo(f"http://{host}:{port} in a moment; Ctrl-C ends it")
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", *command])  # whatever else PATH calls dagster
