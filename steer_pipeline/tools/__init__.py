"""Command line tools: each module is one command, `python -m steer_pipeline.tools.<name>`."""
