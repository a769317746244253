"""Evaluation by forced choice over seven moral foundations: vignettes, frames, the read-out and its numbers.

`own_vignettes` or `read_vignettes` -> `stratified` -> `measure` (rows to store) -> `readings` -> `metric_rows`, which
`lab.heal.table` makes tables of, and `foundation_summary`.
"""

from steer_pipeline.lab.foundations.choosing import CHOICE_SCHEMA, measure
from steer_pipeline.lab.foundations.claims import base_can_choose
from steer_pipeline.lab.foundations.frames import PHRASES, WORDINGS, FrameError, Wording
from steer_pipeline.lab.foundations.numbers import (
    READING_SCHEMA,
    SUMMARY_SCHEMA,
    flip_rates,
    foundation_summary,
    gated_selectivity,
    informedness,
    metric_rows,
    place_preference,
    readings,
)
from steer_pipeline.lab.foundations.vignettes import (
    FOUNDATIONS,
    VIGNETTE_SCHEMA,
    VignetteError,
    own_vignettes,
    read_vignettes,
    stratified,
    vignette_file,
)

__all__ = [
    "CHOICE_SCHEMA",
    "FOUNDATIONS",
    "PHRASES",
    "READING_SCHEMA",
    "SUMMARY_SCHEMA",
    "VIGNETTE_SCHEMA",
    "WORDINGS",
    "FrameError",
    "VignetteError",
    "Wording",
    "base_can_choose",
    "flip_rates",
    "foundation_summary",
    "gated_selectivity",
    "informedness",
    "measure",
    "metric_rows",
    "own_vignettes",
    "place_preference",
    "read_vignettes",
    "readings",
    "stratified",
    "vignette_file",
]
