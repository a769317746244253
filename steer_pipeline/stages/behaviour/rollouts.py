"""Rollouts: what the model answers to held-out questions in every arm, and how much of the persona MiniLM sees in it.

One partition a persona. The personas of one process share one model load; a killed run does only what is missing.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from steer_pipeline import show
from steer_pipeline.catalogue import Persona, load_persona
from steer_pipeline.execution import GPU_POOL, GPU_TAGS
from steer_pipeline.io.journals import open_journal
from steer_pipeline.io.store import ArtifactStore
from steer_pipeline.keys import key
from steer_pipeline.lineage import MODEL, made_of
from steer_pipeline.partitions import TRAIT_OR_ROLE
from steer_pipeline.resources import ArtifactStoreResource, LanguageModelResource
from steer_pipeline.settings import Settings, settings

COMMON: dict[str, Any] = {
    "group_name": "behaviour",
    "owners": ["team:steering"],
    "partitions_def": TRAIT_OR_ROLE,
    "io_manager_key": "parquet_io",
}
CPU, GPU = (
    {"steer/stage": "behaviour", "steer/device": "cpu"},
    {"steer/stage": "behaviour", "steer/device": "gpu"},
)
WARN = dg.AssetCheckSeverity.WARN
MAX_LENGTH_AUC = 0.6  # of matched excerpts; 0.5 is what matching aims at
MAX_LENGTH_SHIFT = 0.1  # of the score between longer and shorter answers in which nothing should show
SHOWN = 3


@dg.asset(
    **COMMON,
    deps=["model_weights", "tokenizer", "chat_template", "persona_scale"],
    code_version=made_of("1", *MODEL, "model.chat_template", "rollouts", "behaviour.allow_other_model"),
    pool=GPU_POOL,
    op_tags=GPU_TAGS,
    tags=GPU,
    kinds={"pytorch", "parquet"},
)
def rollouts(
    context: dg.AssetExecutionContext,
    persona_spec: Persona,
    behaviour_set: pl.LazyFrame,
    trained_vector: Path,
    vector_comparison: Path,
    store: ArtifactStoreResource,
    language_model: LanguageModelResource,
) -> pl.DataFrame:
    """Answers of every arm to the persona's held-out questions: one row an answer.

    Arms, always: vanilla; prompted by each positive instruction; the trained vector at the profile's scales with
    both signs and the learned one; the averaged vector at multiples of its best dose, if there is one; random
    directions of the trained vector's length. All arms of a question share its prefill and draw from streams of
    their own. Perplexity is the unsteered model's, given the bare question.
    """
    now, shelf, persona = settings(), store.store(), persona_spec
    with _plain_failures():
        model = language_model.load()
        _refuse_known_questions(persona, behaviour_set, now)
        arms, missing = _arms(persona, trained_vector, vector_comparison, shelf, model, now)
        rows = _generate(model, persona, arms, shelf, now, lambda progress: context.log.info(str(progress)))
    context.add_output_metadata(_rollout_numbers(rows) | {"averaged_arms": missing or "present"})
    return rows


@dg.asset(
    **COMMON,
    code_version=made_of("1", "rollouts.minilm_texts", "behaviour.seed"),
    tags=CPU,
    kinds={"sklearn", "parquet"},
)
def minilm_scores(
    context: dg.AssetExecutionContext,
    persona_spec: Persona,
    behaviour_set: pl.LazyFrame,
    rollouts: pl.LazyFrame,
) -> pl.DataFrame:
    """MiniLM's calibrated probability, for every rollout, that it shows the persona; one row a rollout.

    Trained on the behaviour set: rows that count against `neg` rows of a trait or `default` rows of a role, cut to
    excerpts of equal length, held out by question. How well it separates unseen questions, the same procedure on
    shuffled labels, what length alone tells, and its calibration stand beside every score.
    """
    from steer_pipeline.lab.behaviour.scoring import TraitScorer, score_rollouts, training_texts

    profile = settings().profile
    with _plain_failures():
        texts = training_texts(
            behaviour_set.collect(), persona_spec.kind, profile.rollouts.minilm_texts, profile.behaviour.seed
        )
        scorer = TraitScorer(seed=profile.behaviour.seed).fit(texts)
        scores = score_rollouts(rollouts.collect(), scorer)
    context.add_output_metadata(_score_numbers(scores, scorer.report))
    return scores


# ------------------------------------------------------------------------------------------ making


def _arms(
    persona: Persona, trained: Path, comparison: Path, shelf: ArtifactStore, model: Any, now: Settings
) -> tuple[list[Any], str]:
    """All arms with vectors that were made on this model, and why the averaged ones are missing ("" if not).

    Raises:
        VectorError: a vector is damaged, or of another model and the profile does not allow that.
    """
    from steer_pipeline.lab.behaviour.arms import build_arms
    from steer_pipeline.lab.vectors.vector import load_vector, require_same_model

    learned, (averaged, missing) = load_vector(trained), read_averaged(comparison)
    for vector in [learned, *([averaged[0]] if averaged else [])]:
        require_same_model(vector, model, allow_other_model=now.profile.behaviour.allow_other_model)
    current = {
        "trained": shelf.current("trained_vector", persona.name),
        "averaged": shelf.current("vector_comparison", persona.name),
    }
    versions = {name: version.sha for name, version in current.items() if version is not None}
    return build_arms(persona, learned, averaged, now.profile.rollouts, versions=versions), missing


def read_averaged(comparison: Path) -> tuple[tuple[Any, Any] | None, str]:
    """The averaged vector with its best dose, or None and the reason that the comparison gives."""
    from steer_pipeline.lab.behaviour.arms import AveragedDose
    from steer_pipeline.lab.vectors.vector import load_vector

    missing = comparison / "averaged" / "MISSING.json"
    if missing.is_file():
        return None, json.loads(missing.read_text())["reason"]
    best = json.loads((comparison / "scales.json").read_text()).get("averaged")
    if best is None:
        return None, "vector_comparison names no dose for it"
    return (load_vector(comparison / "averaged"), AveragedDose(best["block"], best["alpha"])), ""


def _generate(
    model: Any, persona: Persona, arms: list[Any], shelf: ArtifactStore, now: Settings, tell: Any
) -> pl.DataFrame:
    from steer_pipeline.lab.behaviour.rollouts import make_rollouts

    spec = now.profile.rollouts
    return make_rollouts(
        model,
        persona,
        arms,
        spec.sampling,
        n_questions=spec.n_questions,
        n_samples=spec.n_samples,
        chat_template=now.profile.model.chat_template,
        journal=open_journal(shelf, "rollouts", persona.name),
        progress=tell,
    )


def _refuse_known_questions(persona: Persona, behaviour_set: pl.LazyFrame, now: Settings) -> None:
    """Before anything is generated; the check says the same of what is stored.

    Raises:
        ValueError: a question of the rollouts stands in the behaviour set.
    """
    asked = persona.questions[: now.profile.rollouts.n_questions]
    if known := known_questions(asked, behaviour_set):
        raise ValueError(
            f"persona {persona.name}: {len(known)} of its questions stand in the behaviour set, {known[0]!r} "
            "first; ask others in the catalogue or take them out of the set"
        )


def known_questions(asked: list[str], behaviour_set: pl.LazyFrame) -> list[str]:
    """Those of `asked` that the behaviour set has too, whatever their case and spaces."""
    seen = {_folded(text) for text in behaviour_set.select("question").unique().collect()["question"]}
    return [question for question in asked if _folded(question) in seen]


def _folded(question: str) -> str:
    return " ".join(question.casefold().split())


@contextmanager
def _plain_failures() -> Iterator[None]:
    """What the user must mend becomes a failure that is not tried again, with its sentence as description."""
    try:
        yield
    except ValueError as error:
        raise dg.Failure(str(error), allow_retries=False) from error


def _rollout_numbers(rows: pl.DataFrame) -> dict[str, Any]:
    """Numbers that the UI plots, and answers to one question side by side."""
    from steer_pipeline.lab.behaviour.rollouts import arm_label

    named = rows.with_columns(arm_label())
    shown = named.filter(question_index=0, sample=0).select("arm_name", "response")
    truth = named.drop_nulls("trait_truth").group_by("arm_name", maintain_order=True)
    return {
        "arms": named["arm_name"].n_unique(),
        "questions": rows["question_index"].n_unique(),
        "mean_new_tokens": float(rows["n_new_tokens"].mean() or 0.0),
        "truncated_rate": float(rows["truncated"].mean() or 0.0),
        "loop_rate": float(rows["loop"].mean() or 0.0),
        "vector_version": rows.filter(arm="trained")["vector_version"][0],
        "truth_by_arm": show.markdown_table(truth.agg(pl.col("trait_truth").mean())),
        "answers": show.samples([{k: str(v) for k, v in row.items()} for row in shown.to_dicts()]),
    }


def _score_numbers(scores: pl.DataFrame, report: Any) -> dict[str, Any]:
    by_arm = scores.group_by("arm", "scale", maintain_order=True).agg(pl.col("score").mean(), pl.len())
    reliability = [{"predicted": said, "positive": seen, "texts": n} for said, seen, n in report.reliability]
    return report.as_dict() | {
        "score_by_arm": show.markdown_table(by_arm),
        "reliability": show.markdown_table(pl.DataFrame(reliability)),
    }


# ------------------------------------------------------------------------------------------ checks


def _spec(name: str, asset: str, claim: str, *, blocking: bool = False) -> dg.AssetCheckSpec:
    return dg.AssetCheckSpec(
        name, asset=asset, description=claim, blocking=blocking, partitions_def=TRAIT_OR_ROLE
    )


def _folder(context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource, asset: str) -> Path:
    version = store.store().current(asset, context.partition_key)
    if version is None:
        raise dg.Failure(
            f"{asset}[{context.partition_key}] is not in the store: materialise it first", allow_retries=False
        )
    return version.path


def _rows(context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource, asset: str) -> pl.DataFrame:
    return pl.read_parquet(_folder(context, store, asset) / "data.parquet")


@dg.multi_asset_check(
    name="rollouts_checks",
    specs=[
        _spec(
            "prompt_is_not_in_the_response",
            "rollouts",
            "No response begins with the end of the prompt that it answers, chat template included.",
            blocking=True,
        ),
        _spec(
            "all_arms_present",
            "rollouts",
            "Vanilla, every instruction, both signs and the learned scale of the vectors, and every random seed "
            "have one answer to each question and sample; averaged arms lack only where there is no such vector.",
            blocking=True,
        ),
        _spec(
            "questions_are_held_out",
            "rollouts",
            "No question of the rollouts stands in the persona's behaviour set.",
            blocking=True,
        ),
    ],
)
def rollouts_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether rollouts hold answers only, all of them, to questions that nothing was trained on."""
    from steer_pipeline.lab.behaviour.arms import build_arms
    from steer_pipeline.lab.behaviour.rollouts import leaks, missing_answers
    from steer_pipeline.lab.models.loading import load_tokenizer
    from steer_pipeline.lab.vectors.vector import load_vector

    now, persona = settings(), load_persona(context.partition_key)
    profile, rows = now.profile, _rows(context, store, "rollouts")
    tokenizer = load_tokenizer(profile.model, now.home)
    found = leaks(rows, tokenizer, persona.positive.instructions, profile.model.chat_template)
    yield _result(
        "rollouts",
        "prompt_is_not_in_the_response",
        not found,
        f"{rows.height} responses, none begins with its prompt" if not found else "; ".join(found[:SHOWN]),
        {"leaks": len(found)},
    )
    averaged, missing = read_averaged(_folder(context, store, "vector_comparison"))
    learned = load_vector(_folder(context, store, "trained_vector"))
    names = [arm.name for arm in build_arms(persona, learned, averaged, profile.rollouts)]
    n_questions = min(len(persona.questions), profile.rollouts.n_questions)
    lacking = missing_answers(rows, names, n_questions, profile.rollouts.n_samples)
    yield _result(
        "rollouts",
        "all_arms_present",
        not lacking,
        "; ".join(lacking[:SHOWN])
        or f"{len(names)} arms" + (f"; no averaged arms: {missing}" if missing else ""),
        {"arms": len(names), "incomplete_arms": len(lacking)},
    )
    behaviour_set = pl.scan_parquet(_folder(context, store, "behaviour_set") / "data.parquet")
    known = known_questions(rows["question"].unique().sort().to_list(), behaviour_set)
    yield _result(
        "rollouts",
        "questions_are_held_out",
        not known,
        "; ".join(known[:SHOWN]) or f"{rows['question'].n_unique()} questions, none in the behaviour set",
        {"known_questions": len(known)},
    )


def _result(
    asset: str,
    check: str,
    passed: bool,
    told: str,
    metadata: dict[str, Any],
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        asset_key=key(asset),
        check_name=check,
        passed=passed,
        severity=severity,
        description=told,
        metadata=metadata,
    )


@dg.multi_asset_check(
    name="minilm_scores_checks",
    specs=[
        _spec(
            "every_rollout_is_scored",
            "minilm_scores",
            "Every rollout has one score from 0 to 1, and nothing else has.",
            blocking=True,
        ),
        _spec(
            "scorer_separates",
            "minilm_scores",
            "On unseen questions the scorer tells positives from the rest: the AUC's interval lies above 0.5 and "
            "the AUC above 95% of those on shuffled labels.",
        ),
        _spec(
            "length_does_not_tell",
            "minilm_scores",
            f"Length alone has an AUC of at most {MAX_LENGTH_AUC} on what the scorer was trained on, and longer "
            f"vanilla and random answers score at most {MAX_LENGTH_SHIFT} above shorter ones.",
        ),
    ],
)
def minilm_scores_checks(
    context: dg.AssetCheckExecutionContext, store: ArtifactStoreResource
) -> Iterator[dg.AssetCheckResult]:
    """Whether the scores are whole, and whether they measure the persona and not the length."""
    from steer_pipeline.lab.behaviour.scoring import score_by_length

    scores, answers = _rows(context, store, "minilm_scores"), _rows(context, store, "rollouts")
    same = sorted(scores["row_id"]) == sorted(answers["row_id"])
    inside = int(scores["score"].is_between(0, 1).fill_null(False).sum())
    yield _result(
        "minilm_scores",
        "every_rollout_is_scored",
        same and inside == scores.height > 0,
        f"{inside} scores from 0 to 1 for {answers.height} rollouts"
        + ("" if same else "; not the same rows"),
        {"scores": inside, "rollouts": answers.height},
    )
    facts = scores.row(0, named=True)
    yield _result(
        "minilm_scores",
        "scorer_separates",
        facts["auc_low"] > 0.5 and facts["auc"] > facts["shuffled_high"],
        f"held-out AUC {facts['auc']:.3f} [{facts['auc_low']:.3f}, {facts['auc_high']:.3f}]; 95% of shuffled fits "
        f"stay under {facts['shuffled_high']:.3f}",
        {name: facts[name] for name in ("auc", "auc_low", "shuffled_mean", "shuffled_high")},
        WARN,
    )
    plain = answers.filter(pl.col("arm").is_in(["vanilla", "random"])).join(scores, on="row_id")
    shift = score_by_length(plain["score"].to_numpy(), plain["response"].to_list())
    matched = facts["length_auc_after"]
    yield _result(
        "minilm_scores",
        "length_does_not_tell",
        abs(matched - 0.5) <= MAX_LENGTH_AUC - 0.5 and shift <= MAX_LENGTH_SHIFT,
        f"length AUC {facts['length_auc_before']:.2f} of whole texts, {matched:.2f} of matched ones; longer plain "
        f"answers score {shift:+.3f} above shorter ones",
        {"length_auc_before": facts["length_auc_before"], "length_auc_after": matched, "length_shift": shift},
        WARN,
    )


ASSETS = [rollouts, minilm_scores]
CHECKS = [rollouts_checks, minilm_scores_checks]
