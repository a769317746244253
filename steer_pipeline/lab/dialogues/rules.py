"""What must hold of a behaviour set, found anew from its rows. `judge_set` gives the verdicts; each of the functions
beneath lists what does not hold.
"""

from collections.abc import Callable, Iterator, Mapping

import polars as pl

from steer_pipeline.catalogue.specs import BehaviourSpec, Persona
from steer_pipeline.lab.dialogues.schema import SPLITS, UNUSED
from steer_pipeline.lab.dialogues.selection import minimum_score, plain, split_table
from steer_pipeline.lab.evaluation.judgement import SCORED
from steer_pipeline.lab.models.identity import same_name
from steer_pipeline.lab.verdict import Verdict

SHOWN = 3


def judge_set(rows: pl.DataFrame, persona: Persona, spec: BehaviourSpec, model: str) -> Iterator[Verdict]:
    """All verdicts on a behaviour set.

    Args:
        model: what the profile's model is called; see `identity.name_of`.
    """
    table = split_table(rows, spec).drop_nulls()
    sizes = ", ".join(f"{split} {n} rows" for split, n in table.select("split", "rows").iter_rows())
    counted = f"{int(rows['counts'].sum())} of {rows.height} rows count"
    questions = f"{rows['question_index'].n_unique()} questions, each in one split"
    yield _verdict("no_row_without_a_score_counts", score_problems(rows, persona, spec), counted)
    yield _verdict("questions_are_disjoint", split_problems(rows, persona), questions)
    yield _verdict("splits_are_not_empty", empty_splits(rows), sizes)
    bare = "every user turn is the bare question"
    yield _verdict("instructions_are_stripped", instruction_problems(rows, persona), bare)
    foreign, ours = model_problems(rows, model), "all of this model"
    if foreign and spec.allow_other_model:
        foreign, ours = [], f"behaviour.allow_other_model lets pass: {'; '.join(foreign)}"
    yield _verdict("dialogues_are_of_this_model", foreign, ours)
    tokens = {f"{split}_tokens": got for split, got in table.select("split", "got_tokens").iter_rows()}
    wanted = {f"{split}_wanted": n for split, n in table.select("split", "wanted_tokens").iter_rows()}
    met = "every budget is met: " + ", ".join(
        f"{n.removesuffix('_tokens')} {got}" for n, got in tokens.items()
    )
    yield _verdict("token_budget_is_met", budget_problems(rows, spec), met, {**tokens, **wanted})


def _verdict(claim: str, problems: list[str], good: str, numbers: Mapping[str, int] | None = None) -> Verdict:
    message = f"{'; '.join(problems)} (none is allowed)" if problems else good
    return Verdict(claim, not problems, message, {"problems": len(problems), **(numbers or {})})


def score_problems(rows: pl.DataFrame, persona: Persona, spec: BehaviourSpec) -> list[str]:
    """Rows that count without a score, below the threshold or with another label than pos; scores that lie."""
    least = minimum_score(persona.kind, spec)
    scored = pl.col("score_status") == SCORED
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
    """Questions in two splits, by index or by text; questions of the rollouts; unknown splits."""
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


def foreign_answers(rows: pl.DataFrame, is_ours: Callable[[str], bool]) -> pl.DataFrame:
    """Answers that another model wrote: columns model, rows, row_id (of the first), one row a model.

    Args:
        is_ours: whether a model of this name is ours; `LoadedModel.is_called`, or `same_name` where none is loaded.
    """
    written = rows.group_by("model").agg(rows=pl.len(), row_id=pl.col("row_id").first()).sort("model")
    return written.filter(~pl.col("model").map_elements(is_ours, return_dtype=pl.Boolean))


def model_problems(rows: pl.DataFrame, model: str) -> list[str]:
    """Models that wrote answers and are not `model`, with their number of rows."""
    others = foreign_answers(rows, lambda name: same_name(name, model))
    return [
        f"{n} rows are of {name} and not of {model}" for name, n in others.select("model", "rows").iter_rows()
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
        ids = rows.filter(broken)["row_id"]
        if len(ids):
            problems.append(f"{len(ids)} rows: {what}, the first is {ids[0]}")
    return problems
