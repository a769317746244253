"""The behaviour set of a persona: read or made, then counted and split."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from steer_pipeline.catalogue.specs import Persona, Profile
from steer_pipeline.lab.dialogues.readers import read_dialogues
from steer_pipeline.lab.dialogues.selection import behaviour_rows

if TYPE_CHECKING:
    from steer_pipeline.lab.dialogues.making import Judge
    from steer_pipeline.lab.generation.journal import Journal
    from steer_pipeline.lab.models.loaded import LoadedModel


def make_behaviour_set(
    persona: Persona,
    profile: Profile,
    tokenizer: Any,
    *,
    home: Path,
    shipped: Path,
    model: Callable[[], "LoadedModel"],
    judge: "Judge | None" = None,
    journal: "Path | Journal | None" = None,
) -> tuple[pl.DataFrame, Counter[str]]:
    """Rows of `BEHAVIOUR_SCHEMA`, and what was left out, by reason.

    Args:
        shipped: where the newsroom's dialogues are.
        model: called for kind `generate` only, like `judge`, which is needed where the profile wants its scores.
        journal: of answers that are being made.

    Raises:
        DialogueError: the dialogues cannot be read, made or used.
    """
    spec = profile.behaviour
    if spec.source.kind == "generate":
        from steer_pipeline.lab.dialogues.making import make_dialogues

        reading = make_dialogues(model(), persona, spec.source, judge=judge, journal=journal)
    else:
        reading = read_dialogues(spec.source, persona, home, shipped)
    rows, held_out = behaviour_rows(reading.dialogues, persona, spec, tokenizer, profile.model.chat_template)
    return rows, reading.left_out + held_out
