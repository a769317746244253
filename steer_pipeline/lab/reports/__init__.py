"""Comparison of packs and the reports made from it. In: packs. Out: tables, Markdown, HTML and plots."""

from steer_pipeline.lab.reports.comparison import (
    ComparisonTables,
    compare_variants,
    difference_from_base,
)

__all__ = ["ComparisonTables", "compare_variants", "difference_from_base"]
