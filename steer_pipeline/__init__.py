"""Persona-steering research on language models as a Dagster asset graph."""

__version__ = "0.1.0"
