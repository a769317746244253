"""What the graph stands on and Dagster does not make; see `origins.py` for their versions."""
