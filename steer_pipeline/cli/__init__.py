"""`steer`: the one command. Each module holds the verbs of one concern; `main` is what the console script calls."""

from steer_pipeline.cli.main import main

__all__ = ["main"]
