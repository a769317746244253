"""`steer`: the one command. A file a verb; `main` is what the console script calls."""

from steer_pipeline.cli.main import main

__all__ = ["main"]
