"""Behaviour sets: the scored dialogues of a trait or role that vectors are trained and compared on."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import dagster as dg
import polars as pl

from steer_pipeline import show
from steer_pipeline.catalogue import Persona, load_persona
from steer_pipeline.execution import GPU_POOL, GPU_TAGS, RETRY_NETWORK
from steer_pipeline.io.journals import open_journal
from steer_pipeline.keys import key
from steer_pipeline.lineage import MODEL, made_of
from steer_pipeline.partitions import TRAIT_OR_ROLE
from steer_pipeline.resources import ArtifactStoreResource, JudgeResource, LanguageModelResource
from steer_pipeline.settings import settings

# Only a profile that has its dialogues made needs the model, and with it the accelerator, and perhaps a judge.
MADE = settings().profile.behaviour.source.kind == "generate"
FOR_MAKING: dict[str, Any] = {"pool": GPU_POOL, "op_tags": GPU_TAGS, "retry_policy": RETRY_NETWORK}
READ = ("dialogue_source", "persona_scale", "tokenizer", "chat_template")


@dg.asset(
    group_name="vectors",
    owners=["team:steering"],
    partitions_def=TRAIT_OR_ROLE,
    io_manager_key="parquet_io",
    tags={"steer/stage": "vectors", "steer/device": "gpu" if MADE else "cpu"},
    kinds={"polars", "parquet"},
    deps=[*READ, "model_weights"] if MADE else list(READ),
    code_version=made_of(
        "1", "behaviour", "model.path", "model.chat_template", *([*MODEL, "judge"] if MADE else [])
    ),
    **(FOR_MAKING if MADE else {}),
)
def behaviour_set(
    context: dg.AssetExecutionContext,
    persona_spec: Persona,
    language_model: LanguageModelResource,
    judge: JudgeResource,
    store: ArtifactStoreResource,
) -> pl.DataFrame:
    """Scored dialogues of a trait or role: which of them count, and which split their question is in.

    One row a dialogue. `messages` holds the bare question and the answer; the instruction under which it was
    asked stands in `instruction`. Only pos rows with a high enough score count; roles bring their default rows
    along, which never do. Splits are sized in supervised response tokens. The model is loaded only where the
    profile has the dialogues made.
    """
    from steer_pipeline.lab.dialogues.building import make_behaviour_set
    from steer_pipeline.lab.models.loading import load_tokenizer

    now = settings()
    try:
        rows, left_out = make_behaviour_set(
            persona_spec,
            now.profile,
            load_tokenizer(now.profile.model, now.home),
            home=now.home,
            shipped=now.shipped,
            model=language_model.load,
            judge=partial(judge.ask, store=store.store()) if judge.endpoint() else None,
            journal=open_journal(store.store(), "behaviour_set", persona_spec.name),
        )
    except ValueError as error:  # as wrong at the next try
        raise dg.Failure(str(error), allow_retries=False) from error
    context.add_output_metadata(_numbers(rows, left_out))
    return rows


def _numbers(rows: pl.DataFrame, left_out: dict[str, int]) -> dict[str, Any]:
    from steer_pipeline.lab.dialogues.selection import split_table

    statuses = dict(rows.group_by("score_status").len().iter_rows())
    shown = rows.select(
        "label", "split", "score", "question", "instruction", answer=pl.col("messages").list.last().struct[1]
    )
    return {
        "rows_that_count": int(rows["counts"].sum()),
        "counted_tokens": int(rows.filter("counts")["n_response_tokens"].sum()),
        "refusals": statuses.get("refusal", 0),
        "missing_scores": statuses.get("missing", 0),
        "questions": rows["question_index"].n_unique(),
        "left_out": dg.MetadataValue.json(dict(left_out)),
        "splits": show.markdown_table(split_table(rows, settings().profile.behaviour)),
        "preview": show.preview(shown),
    }


# ----------------------------------------------------------------------------------------- checks


def _spec(name: str, claim: str, *, blocking: bool = True) -> dg.AssetCheckSpec:
    return dg.AssetCheckSpec(
        name, asset="behaviour_set", description=claim, blocking=blocking, partitions_def=TRAIT_OR_ROLE
    )


@dg.multi_asset_check(
    name="behaviour_set_checks",
    specs=[
        _spec(
            "no_row_without_a_score_counts",
            "Only pos rows with a score of at least the profile's minimum count, and all of those do.",
        ),
        _spec(
            "questions_are_disjoint",
            "No question is in two splits, by index or by text, or among the persona's rollout questions.",
        ),
        _spec("splits_are_not_empty", "Train, validation and test each have rows that count."),
        _spec(
            "instructions_are_stripped",
            "Every dialogue is one bare question and one answer: no system turn, no instruction before the question.",
        ),
        _spec(
            "dialogues_are_of_this_model",
            "The profile's model wrote the answers, unless the profile sets behaviour.allow_other_model.",
        ),
        _spec(
            "token_budget_is_met",
            "Each split has the supervised response tokens that the profile wants.",
            blocking=False,
        ),
    ],
)
def behaviour_set_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether a behaviour set holds what training and comparison take for granted."""
    from steer_pipeline.lab.dialogues import rules
    from steer_pipeline.lab.dialogues.selection import split_table
    from steer_pipeline.lab.models.identity import name_of

    profile, persona = settings().profile, load_persona(context.partition_key)
    spec, rows = profile.behaviour, _rows(context, store)
    counted = f"{int(rows['counts'].sum())} of {rows.height} rows count"
    yield _result("no_row_without_a_score_counts", rules.score_problems(rows, persona, spec), counted)
    questions = f"{rows['question_index'].n_unique()} questions, each in one split"
    yield _result("questions_are_disjoint", rules.split_problems(rows, persona), questions)
    table = split_table(rows, spec).drop_nulls()
    sizes = ", ".join(f"{split} {n} rows" for split, n in table.select("split", "rows").iter_rows())
    yield _result("splits_are_not_empty", rules.empty_splits(rows), sizes)
    bare = "every user turn is the bare question"
    yield _result("instructions_are_stripped", rules.instruction_problems(rows, persona), bare)
    foreign = rules.model_problems(rows, name_of(profile.model, settings().home))
    allowed = spec.allow_other_model and bool(foreign)
    told = f"behaviour.allow_other_model lets pass: {'; '.join(foreign)}" if allowed else "all of this model"
    yield _result("dialogues_are_of_this_model", [] if allowed else foreign, told)
    short = rules.budget_problems(rows, spec)
    tokens = {f"{split}_tokens": got for split, got in table.select("split", "got_tokens").iter_rows()}
    wanted = {f"{split}_wanted": n for split, n in table.select("split", "wanted_tokens").iter_rows()}
    yield _result(
        "token_budget_is_met", short, "every budget is met", tokens | wanted, dg.AssetCheckSeverity.WARN
    )


def _rows(context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource) -> pl.DataFrame:
    version = store.store().current("behaviour_set", context.partition_key)
    if version is None:
        raise dg.Failure(
            f"behaviour_set[{context.partition_key}] is not in the store: materialise it first",
            allow_retries=False,
        )
    return pl.read_parquet(version.path / "data.parquet")


def _result(
    name: str,
    problems: list[str],
    good: str,
    numbers: dict[str, Any] | None = None,
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        asset_key=key("behaviour_set"),
        check_name=name,
        passed=not problems,
        severity=severity,
        description="; ".join(problems) or good,
        metadata={"problems": len(problems), **(numbers or {})},
    )


ASSETS = [behaviour_set]
CHECKS = [behaviour_set_checks]
