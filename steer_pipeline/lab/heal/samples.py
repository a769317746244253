"""What the teacher says: several texts of each prompt at each dose, with the ids that were drawn.

In: a model, a teacher, doses and prompts that are not held out. Out: one row a text. Random numbers are keyed by prompt
and number of the text, and are the same at every dose; which other texts are made changes none. Token ids are kept, so
that training sees what was said and nothing that a tokenizer makes of it later. Nothing forbids or punishes repetition:
that would hide over-steering from the filter.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from steer_pipeline.catalogue.healing import HealSampleSpec
from steer_pipeline.lab.columns import described
from steer_pipeline.lab.generation.engine import generate
from steer_pipeline.lab.generation.jobs import FinishedRow, PromptRow
from steer_pipeline.lab.generation.journal import Journal
from steer_pipeline.lab.heal.prompts import prompt_rows, require_open
from steer_pipeline.lab.heal.teacher import STREAM, HealError, Teacher
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.sites import SteeringPlan

BASE_DOSE = 0.0  # of base's own texts, whatever the operator

SAMPLE_SCHEMA, SAMPLE_COLUMNS = described(
    sample_id=(pl.String(), "PROMPT/NUMBER@DOSE, unique"),
    prompt_id=(pl.String(), "the prompt that is answered"),
    category=(pl.String(), "of the prompt"),
    number=(pl.Int32(), "of the text among those of its prompt and dose"),
    teacher=(pl.String(), "whose vector steers; `base` for unsteered texts"),
    operator=(pl.String(), "how it steers; see sites.OPERATORS"),
    dose=(pl.Float64(), "multiple of the vector; 0: base"),
    alpha=(pl.Float64(), "the same as the operator takes it at a block"),
    prompt=(pl.String(), "the user's turn"),
    system=(pl.String(), "system turn; null: the template's own"),
    output=(pl.String(), "what was said, without special tokens"),
    prompt_ids=(pl.List(pl.Int32()), "token ids of the prompt, as they were run"),
    token_ids=(pl.List(pl.Int32()), "token ids as they were drawn, the end of turn left out"),
    truncated=(pl.Boolean(), "cut by the token limit: its end teaches nothing"),
    seed=(pl.Int64(), "of the sampling"),
)


def sample_rows(
    model: LoadedModel,
    teacher: Teacher,
    doses: Sequence[float],
    prompts: pl.DataFrame,
    spec: HealSampleSpec,
    *,
    journal: Path | Journal | None = None,
    progress: Callable[[Any], None] | None = None,
) -> pl.DataFrame:
    """`spec.samples_per_prompt` texts of every prompt at every dose.

    Args:
        doses: multiples of the vector; 0 are base's own texts, whatever the operator.
        prompts: `prompts.PROMPT_SCHEMA`.
        journal: where finished texts are kept, so that a run that was killed goes on where it was.

    Returns:
        `SAMPLE_SCHEMA`, sorted by dose, prompt and number.

    Raises:
        HealError: a prompt is held out, or a dose comes twice.
    """
    if len(set(doses)) < len(doses) or not doses:
        raise HealError(f"doses {list(doses)}: name each once, and at least one")
    asked = require_open(prompts)
    once = {row.row_id: row for row in prompt_rows(model, asked)}
    rows = [
        PromptRow(f"{prompt_id}/{number}", once[prompt_id].ids)
        for prompt_id in asked["prompt_id"]
        for number in range(spec.samples_per_prompt)
    ]
    base = SteeringPlan("base", (), teacher.scope, STREAM)
    plans = {dose: base if dose == BASE_DOSE else teacher.plan(dose) for dose in doses}
    made = generate(model, rows, list(plans.values()), spec.sampling(), journal=journal, progress=progress)
    dose_of = {plan.variant: dose for dose, plan in plans.items()}
    found = [_of_teacher(teacher, dose_of[one.variant], one) for one in made]
    asked = asked.with_columns(
        prompt_ids=pl.Series([once[name].ids["*"] for name in asked["prompt_id"]], dtype=pl.List(pl.Int32))
    )
    told = pl.DataFrame(found, schema_overrides=SAMPLE_SCHEMA).join(asked, on="prompt_id", how="left")
    return told.select(pl.col(name).cast(kind) for name, kind in SAMPLE_SCHEMA.items()).sort(
        "dose", "prompt_id", "number"
    )


def _of_teacher(teacher: Teacher, dose: float, one: FinishedRow) -> dict[str, Any]:
    """One text's own columns."""
    steered, (prompt_id, _, number) = dose != BASE_DOSE, one.row_id.rpartition("/")
    return {
        "sample_id": f"{one.row_id}@{dose:g}",
        "prompt_id": prompt_id,
        "number": int(number),
        "teacher": teacher.name if steered else "base",
        "operator": teacher.operator,
        "dose": dose,
        "alpha": teacher.alpha(dose) if steered else 0.0,
        "output": one.text,
        "token_ids": one.token_ids,
        "truncated": one.truncated,
        "seed": one.seed,
    }
