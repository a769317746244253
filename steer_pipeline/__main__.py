"""`python -m steer_pipeline` is `steer`."""

from steer_pipeline.cli import main

main()
