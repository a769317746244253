"""Behaviour rollouts: every arm's answers to a persona's held-out questions, in one call of the engine.

In: a loaded model, a persona, its arms and the sampling settings. Out: one row an answer (`ROLLOUT_SCHEMA`) with its
dose in both units, how it ended, how likely the unsteered model finds it, whether it loops, and the persona's
lexicon score. An arm's answer is what the engine generated and nothing of what it was asked.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from steer_pipeline.catalogue.specs import Persona, Profile, SamplingSpec
from steer_pipeline.lab.arms import Arm, arm_label
from steer_pipeline.lab.behaviour.arms import stored_arms
from steer_pipeline.lab.behaviour.schema import ROLLOUT_SCHEMA
from steer_pipeline.lab.dialogues.selection import plain
from steer_pipeline.lab.evaluation.lexicon import LexiconScorer
from steer_pipeline.lab.generation.engine import Progress, generate
from steer_pipeline.lab.generation.jobs import FinishedRow, PromptRow, decoding_hash
from steer_pipeline.lab.generation.journal import Journal
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.prompts import encode_prompt
from steer_pipeline.lab.quality.loops import duplicate_mass, find_loop
from steer_pipeline.lab.vectors.vector import require_same_model


def row_id(persona: str, arm: str, question_index: int, sample: int) -> str:
    """16 hex digits; unique within the rollouts of all personas."""
    return hashlib.sha256(f"{persona}:{arm}:{question_index}:{sample}".encode()).hexdigest()[:16]


def held_out_questions(persona: Persona, n_questions: int) -> list[str]:
    """The first questions of the catalogue's entry, which no behaviour set contains.

    Raises:
        ValueError: the persona has none, or the same one twice.
    """
    questions = persona.questions[:n_questions]
    if not questions:
        raise ValueError(f"persona {persona.name}: `questions` is empty; rollouts need held-out questions")
    if len(set(questions)) < len(questions):
        twice = next(question for question in questions if questions.count(question) > 1)
        raise ValueError(f"persona {persona.name}: question {twice!r} stands twice; remove one")
    return questions


def roll_out(
    model: LoadedModel,
    persona: Persona,
    profile: Profile,
    behaviour_set: pl.LazyFrame,
    *,
    trained: Path,
    comparison: Path,
    versions: Mapping[str, str] | None = None,
    journal: Path | Journal | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> tuple[pl.DataFrame, str]:
    """The rollouts that a profile asks for, with stored vectors, and why there are no averaged arms ("" if there are).

    Args:
        trained, comparison: folders of a trained_vector and a vector_comparison.
        versions: content hashes of these under `trained` and `averaged`.

    Raises:
        VectorError: a vector is damaged, or of another model and the profile does not allow that.
        ValueError: a question stands in the behaviour set; or as `make_rollouts`.
    """
    spec, allow = profile.rollouts, profile.behaviour.allow_other_model
    refuse_known_questions(persona, spec.n_questions, behaviour_set)
    arms, missing = stored_arms(
        persona,
        trained,
        comparison,
        spec,
        versions=versions,
        fits=lambda vector: require_same_model(vector, model, allow_other_model=allow),
    )
    rows = make_rollouts(
        model,
        persona,
        arms,
        spec.sampling,
        n_questions=spec.n_questions,
        n_samples=spec.n_samples,
        chat_template=profile.model.chat_template,
        journal=journal,
        progress=progress,
    )
    return rows, missing


def make_rollouts(
    model: LoadedModel,
    persona: Persona,
    arms: Sequence[Arm],
    sampling: SamplingSpec,
    *,
    n_questions: int,
    n_samples: int = 1,
    chat_template: bool = True,
    journal: Path | Journal | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> pl.DataFrame:
    """Every arm's answer to every held-out question, `n_samples` times, sorted by question, sample and arm.

    Steered arms and vanilla see the bare question; a prompted arm has its instruction as system turn (in the
    user turn where the template has no system role). A killed run goes on from its `journal`.

    Returns:
        Frame with `ROLLOUT_SCHEMA`.

    Raises:
        ValueError: no questions, a prompt that does not fit, or a plan that does not fit the model.
    """
    questions = held_out_questions(persona, n_questions)
    prompts = _prompts(model, persona, arms, questions, n_samples, chat_template)
    plans = [arm.plan for arm in arms]
    answers = {
        (row.row_id, row.variant): row
        for row in generate(model, prompts, plans, sampling, journal=journal, progress=progress)
    }
    finished = [answers[prompt.row_id, arm.name] for prompt in prompts for arm in arms]
    nll, tokens = _base_nll(model, [prompt.ids["*"] for prompt in prompts for _ in arms], finished)
    scorer = LexiconScorer(persona) if persona.positive.lexicon else None
    decoding = decoding_hash(sampling, model)
    rows = []
    for at, row in enumerate(finished):
        place, arm = divmod(at, len(arms))
        question_index, sample = divmod(place, n_samples)
        asked = {"question_index": question_index, "question": questions[question_index], "sample": sample}
        measured = _likelihood(float(nll[at]), int(tokens[at]))
        rows.append(
            {**_row(persona, arms[arm], row, scorer), **asked, **measured, "decoding_hash": decoding}
            | {"row_id": row_id(persona.name, arms[arm].name, question_index, sample)}
        )
    return pl.DataFrame(rows, schema=ROLLOUT_SCHEMA)


def _prompts(
    model: LoadedModel,
    persona: Persona,
    arms: Sequence[Arm],
    questions: Sequence[str],
    n_samples: int,
    chat_template: bool,
) -> list[PromptRow]:
    """One engine row a question and sample: its id keys the random numbers."""

    def encoded(question: str, instruction: str | None) -> list[int]:
        return encode_prompt(model.tokenizer, user=question, system=instruction, chat_template=chat_template)

    prompts: list[PromptRow] = []
    for i, question in enumerate(questions):
        ids = {"*": encoded(question, None)} | {
            arm.name: encoded(question, persona.positive.instructions[arm.prompt_index])
            for arm in arms
            if arm.prompt_index is not None
        }
        prompts += [PromptRow(f"{persona.name}:q{i}:s{sample}", ids) for sample in range(n_samples)]
    return prompts


def _likelihood(nll: float, tokens: int) -> dict[str, Any]:
    return {
        "base_nll": nll,
        "base_tokens": tokens,
        "perplexity": float(np.exp(nll / tokens)) if tokens else None,
    }


def _row(persona: Persona, arm: Arm, row: FinishedRow, scorer: LexiconScorer | None) -> dict[str, Any]:
    """What follows from the answer and its arm alone."""
    term = arm.term
    return {
        "persona": persona.name,
        "kind": persona.kind,
        "arm": arm.arm,
        "scale": arm.scale,
        "seed": arm.seed,
        "prompt_index": arm.prompt_index,
        "response": row.text,
        "n_prompt_tokens": row.n_prompt_tokens,
        "n_new_tokens": row.n_new_tokens,
        "finish_reason": row.finish_reason,
        "truncated": row.truncated,
        "block": term.site.block if term else None,
        "alpha": term.alpha if term else None,
        "dose_fraction": term.dose_fraction if term else None,
        "vector_version": term.version if term else None,
        "loop": find_loop(row.text) is not None,
        "loop_score": duplicate_mass(row.text),
        "trait_truth": scorer.score(row.text) if scorer else None,
        "sampling_seed": row.seed,
        "stream": arm.name,
    }


def _base_nll(
    model: LoadedModel, prompts: Sequence[list[int]], finished: Sequence[FinishedRow]
) -> tuple[np.ndarray, np.ndarray]:
    """Nats and tokens of each answer after the bare question, nothing added. The tokens are those generated,
    without the end token.
    """
    from steer_pipeline.lab.models.hidden import sequence_nll

    # Equal answers to one question (greedy arms, weak doses) are measured once.
    where: dict[tuple[int, ...], int] = {}
    ids: list[list[int]] = []
    starts, places = [], []
    for prompt, row in zip(prompts, finished, strict=True):
        key = (*prompt, *row.token_ids)
        if key not in where:
            where[key] = len(ids)
            ids.append([*prompt, *row.token_ids])
            starts.append(len(prompt))
        places.append(where[key])
    sums, counts = sequence_nll(model, ids, starts)
    return sums[places].astype(np.float64), counts[places]


# ---------------------------------------------------------------------------------- what must hold of rows


def known_questions(asked: Sequence[str], behaviour_set: pl.LazyFrame) -> list[str]:
    """Those of `asked` that the behaviour set has too, whatever their case and spaces."""
    seen = {plain(text) for text in behaviour_set.select("question").unique().collect()["question"]}
    return [question for question in asked if plain(question) in seen]


def refuse_known_questions(persona: Persona, n_questions: int, behaviour_set: pl.LazyFrame) -> None:
    """Before anything is generated; a claim says the same of what is stored.

    Raises:
        ValueError: a question of the rollouts stands in the behaviour set.
    """
    if known := known_questions(persona.questions[:n_questions], behaviour_set):
        raise ValueError(
            f"persona {persona.name}: {len(known)} of its questions stand in the behaviour set, {known[0]!r} "
            "first; ask others in the catalogue or take them out of the set"
        )


def missing_answers(rows: pl.DataFrame, names: Sequence[str], n_questions: int, n_samples: int) -> list[str]:
    """Arms with the number of answers that they lack or have twice; empty if all is there."""
    counted = rows.with_columns(arm_label()).group_by("arm_name").agg(
        cells=pl.struct("question_index", "sample").n_unique(), rows=pl.len()
    )  # fmt: skip
    have = {name: (cells, height) for name, cells, height in counted.iter_rows()}
    wanted = n_questions * n_samples
    problems = []
    for name in names:
        cells, height = have.pop(name, (0, 0))
        if (cells, height) != (wanted, wanted):
            problems.append(
                f"{name}: {cells} of {wanted} answers" + (", some twice" if height > cells else "")
            )
    return problems + [f"{name}: not an arm of this profile" for name in have]


def leaked_prompt(prompt: str, response: str) -> str | None:
    """The end of the rendered prompt that the response begins with, or None.

    A continuation cut at the wrong place begins with the prompt's last tokens, such as "assistant\\n"
    (left-padded batches sliced by their mask). Three letters at least, so that shared punctuation is no leak.
    """
    for length in range(min(len(prompt), len(response)), 0, -1):
        tail = prompt[-length:]
        if response.startswith(tail):
            return tail if sum(char.isalpha() for char in tail) >= 3 else None
    return None


def leaks(rows: pl.DataFrame, tokenizer: Any, instructions: Sequence[str], chat_template: bool) -> list[str]:
    """`row_id: what of the prompt its response begins with`, for every such row."""
    rendered: dict[tuple[str, int | None], str] = {}
    leaking = []
    for row in rows.select("row_id", "question", "prompt_index", "response").iter_rows(named=True):
        key = (row["question"], row["prompt_index"])
        if key not in rendered:
            system = None if key[1] is None else instructions[key[1]]
            ids = encode_prompt(tokenizer, user=key[0], system=system, chat_template=chat_template)
            rendered[key] = tokenizer.decode(ids, skip_special_tokens=True)
        if leak := leaked_prompt(rendered[key], row["response"]):
            leaking.append(f"{row['row_id']}: {leak!r}")
    return leaking
