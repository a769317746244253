"""What must hold of a behaviour set, found anew from its rows. Each function lists what does not; none is good."""

import polars as pl

from steer_pipeline.catalogue.specs import BehaviourSpec, Persona
from steer_pipeline.lab.dialogues.schema import SPLITS, UNUSED
from steer_pipeline.lab.dialogues.selection import minimum_score, plain, split_table
from steer_pipeline.lab.models.identity import same_name

SHOWN = 3


def score_problems(rows: pl.DataFrame, persona: Persona, spec: BehaviourSpec) -> list[str]:
    """Rows that count without a score, below the threshold or with another label than pos; scores that lie."""
    least = minimum_score(persona.kind, spec)
    scored = pl.col("score_status") == "scored"
    wrong = {
        "counts without a score": pl.col("counts") & (pl.col("score").is_null() | ~scored),
        f"counts below {least}": pl.col("counts") & (pl.col("score") < least),
        "counts and is not pos": pl.col("counts") & (pl.col("label") != "pos"),
        "is pos with a high enough score and does not count": ~pl.col("counts")
        & (pl.col("label") == "pos")
        & (pl.col("score") >= least),
        "has a score and is not scored": pl.col("score").is_not_null() & ~scored,
    }
    return _listed(rows, wrong)


def split_problems(rows: pl.DataFrame, persona: Persona) -> list[str]:
    """Questions in two splits, by index or by text; questions of the the rollouts; unknown splits."""
    compared = rows.with_columns(asked=pl.col("question").map_elements(plain, return_dtype=pl.String))
    problems = []
    for key in ("question_index", "asked"):
        leaks = (
            compared.group_by(key).agg(pl.col("split").unique().sort()).filter(pl.col("split").list.len() > 1)
        )
        problems += [
            f"{key} {value!r} is in {' and '.join(splits)}"
            for value, splits in leaks.sort(key).head(SHOWN).iter_rows()
        ]
    held_out = {plain(question) for question in persona.questions}
    seen = sorted(set(compared["asked"].to_list()) & held_out)
    problems += [f"{question!r} is held out for rollouts" for question in seen[:SHOWN]]
    strange = sorted(set(rows["split"].unique().to_list()) - {*SPLITS, UNUSED}, key=str)
    return problems + [f"split {name!r} is unknown" for name in strange]


def empty_splits(rows: pl.DataFrame) -> list[str]:
    """Splits without a row that counts."""
    filled = set(rows.filter("counts")["split"].unique().to_list())
    return [f"split {name} is empty" for name in SPLITS if name not in filled]


def instruction_problems(rows: pl.DataFrame, persona: Persona) -> list[str]:
    """Rows whose turns are not the bare question and its answer."""
    instructions = {*persona.positive.instructions, *rows["instruction"].unique().to_list()} - {""}
    turns = rows.select(
        "row_id",
        "question",
        roles=pl.col("messages").list.eval(pl.element().struct.field("role")).list.join(" "),
        user=pl.col("messages").list.first().struct.field("content"),
    )
    wrong = {
        "is not one user and one assistant turn": pl.col("roles") != "user assistant",
        "has more than the question in its user turn": pl.col("user") != pl.col("question"),
        "has an instruction in its user turn": pl.col("user").str.contains_any(sorted(instructions))
        if instructions
        else pl.lit(False),
    }
    return _listed(turns, wrong)


def model_problems(rows: pl.DataFrame, model: str) -> list[str]:
    """Models that wrote answers and are not `model`, with their number of rows."""
    written = rows.group_by("model").len().sort("model")
    return [
        f"{n} rows are of {name} and not of {model}"
        for name, n in written.iter_rows()
        if not same_name(name, model)
    ]


def budget_problems(rows: pl.DataFrame, spec: BehaviourSpec) -> list[str]:
    """Splits with fewer supervised response tokens than their budget."""
    table = split_table(rows, spec).filter(pl.col("got_tokens") < pl.col("wanted_tokens"))
    return [
        f"{split} has {got} of {wanted} tokens"
        for split, wanted, got in table.select("split", "wanted_tokens", "got_tokens").iter_rows()
    ]


def _listed(rows: pl.DataFrame, wrong: dict[str, pl.Expr]) -> list[str]:
    problems = []
    for what, broken in wrong.items():
        found = rows.filter(broken)["row_id"]
        if len(found):
            problems.append(f"{len(found)} rows: {what}, the first is {found[0]}")
    return problems
