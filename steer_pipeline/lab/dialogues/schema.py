"""The rows of a behaviour set. No torch here: stages and checks import it.

One row is one dialogue: a question, perhaps asked under a persona's instruction, and the answer with its score.
`messages` never holds the instruction; the column `instruction` does, for arms that put it into context.
"""

from typing import Literal

import polars as pl

from steer_pipeline.lab.columns import described

Label = Literal["pos", "neg", "default"]
SPLITS = ("train", "validation", "test")
UNUSED = "unused"  # the budgets are full

BEHAVIOUR_SCHEMA, BEHAVIOUR_COLUMNS = described(
    row_id=(pl.String(), "hash of model, persona, kind, label, prompt and question"),
    model=(pl.String(), "who wrote the answer"),
    persona=(pl.String(), "name in the catalogue"),
    kind=(pl.String(), "trait | role"),
    label=(pl.String(), "pos | neg | default"),
    prompt_index=(pl.Int64(), "which instruction of its label"),
    question_index=(pl.Int64(), "of the source; the same question has one index for every label"),
    question=(pl.String(), "as it was asked, without the instruction"),
    instruction=(pl.String(), 'system turn that it was asked under; "" for none'),
    messages=(pl.List(pl.Struct({"role": pl.String(), "content": pl.String()})), "user, assistant"),
    score=(pl.Int64(), "on the scale of the persona's kind (trait 0 to 100, role 0 to 3); null without one"),
    score_status=(pl.String(), "scored | refusal | missing"),
    counts=(pl.Boolean(), "a pos row with a score that is high enough: what training may use"),
    n_prompt_tokens=(pl.Int64(), "without the instruction"),
    n_response_tokens=(pl.Int64(), "supervised: after truncation, the end of turn included"),
    split=(pl.String(), "train | validation | test | unused: of the question, for every label"),
)
