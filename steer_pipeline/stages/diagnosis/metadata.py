"""What a person sees of the diagnosis."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import polars as pl

from steer_pipeline import show

if TYPE_CHECKING:
    from steer_pipeline.lab.rewrites.diagnosis import Diagnosis

SHOWN = 4
PROVENANCE = ("model", "device", "dtype", "backend", "rows")  # told of every step


def of_diagnosis(diagnosis: "Diagnosis", rows: pl.DataFrame) -> dict[str, Any]:
    """All numbers, and the first rewrites beside their sources."""
    numbers = {name: value for name, value in asdict(diagnosis).items() if name not in PROVENANCE}
    turn = {True: "taken", False: "before the user's text", None: "raw prompts"}
    numbers["takes_system_turn"] = turn[diagnosis.takes_system_turn]
    first = rows.unique("row_id", maintain_order=True).head(SHOWN).select("source_text", "output")
    return {
        "samples": show.samples(first.to_dicts()),
        **{name: show.significant(value) for name, value in numbers.items() if value is not None},
    }
