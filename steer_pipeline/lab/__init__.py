"""How each artefact is made: pure Python, torch and polars. Never imports dagster (a test enforces it)."""
