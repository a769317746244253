"""Which dialogues count, and which split a question belongs to.

In: dialogues and a tokenizer. Out: rows of `BEHAVIOUR_SCHEMA`. Tokens are counted as training sees them: the
response after truncation, with its end of turn. A question is in one split, with all its rows. No torch here.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from steer_pipeline.catalogue.specs import BehaviourSpec, Persona
from steer_pipeline.lab.dialogues.encoding import encode_dialogue
from steer_pipeline.lab.dialogues.rows import Dialogue, DialogueError
from steer_pipeline.lab.dialogues.schema import BEHAVIOUR_SCHEMA, SPLITS, UNUSED


def behaviour_rows(
    dialogues: Sequence[Dialogue],
    persona: Persona,
    spec: BehaviourSpec,
    tokenizer: Any,
    chat_template: bool = True,
) -> tuple[pl.DataFrame, Counter[str]]:
    """Rows of `BEHAVIOUR_SCHEMA` sorted by label, question and prompt; and rows left out, by reason.

    Questions that the catalogue keeps for the persona's rollouts are left out.

    Raises:
        DialogueError: a question_index has two questions, a text cannot be encoded, or no row counts.
    """
    held_out = {plain(question) for question in persona.questions}
    kept = [dialogue for dialogue in dialogues if plain(dialogue.question) not in held_out]
    left_out = Counter({"question is held out for rollouts": len(dialogues) - len(kept)})
    records = [_record(dialogue, persona, spec, tokenizer, chat_template) for dialogue in kept]
    questions = question_numbers(kept)
    tokens: Counter[int] = Counter(dict.fromkeys(questions.values(), 0))
    for record in records:
        tokens[questions[record["question_index"]]] += record["n_response_tokens"] * record["counts"]
    if not tokens.total():
        raise DialogueError(
            f"{persona.kind} {persona.name}: none of {len(kept)} rows counts (label pos and a score of at least "
            f"{minimum_score(persona.kind, spec)}); lower behaviour.{persona.kind}_min_score or make more dialogues"
        )
    splits = assign_splits(tokens, budgets(spec), spec.seed)
    for record in records:
        record["split"] = splits[questions[record["question_index"]]]
    rows = pl.DataFrame(records, schema=BEHAVIOUR_SCHEMA).sort("label", "question_index", "prompt_index")
    return rows, +left_out


def plain(question: str) -> str:
    """A question as it is compared: without differences of case and white space."""
    return " ".join(question.casefold().split())


def minimum_score(kind: str, spec: BehaviourSpec) -> int:
    return spec.role_min_score if kind == "role" else spec.trait_min_score


def does_count(label: str, score: int | None, kind: str, spec: BehaviourSpec) -> bool:
    """A pos row whose score is high enough. No score, whatever the reason, never counts."""
    return label == "pos" and score is not None and score >= minimum_score(kind, spec)


def budgets(spec: BehaviourSpec) -> dict[str, int]:
    """Split -> wanted supervised response tokens."""
    return dict(zip(SPLITS, (spec.train_tokens, spec.validation_tokens, spec.test_tokens), strict=True))


def question_numbers(dialogues: Iterable[Dialogue]) -> dict[int, int]:
    """question_index -> the smallest index with the same question, so that a repeated question is one.

    Raises:
        DialogueError: an index stands for two questions.
    """
    texts: dict[int, str] = {}
    for dialogue in dialogues:
        text = plain(dialogue.question)
        if texts.setdefault(dialogue.question_index, text) != text:
            raise DialogueError(
                f"row {dialogue.key}: question_index {dialogue.question_index} is {dialogue.question!r} here and "
                f"{texts[dialogue.question_index]!r} elsewhere; number the questions of all files alike"
            )
    first: dict[str, int] = {}
    for index in sorted(texts):
        first.setdefault(texts[index], index)
    return {index: first[text] for index, text in texts.items()}


def assign_splits(tokens: Mapping[int, int], wanted: Mapping[str, int], seed: int) -> dict[int, str]:
    """Question -> split. Whole questions only, in an order that depends on seed and question alone.

    The next question goes to the split that has the smallest share of its budget, so a short set is spread in
    proportion to the budgets and train takes nothing from the others. Once every budget is met, and for questions
    without tokens that count, the split is `unused`.

    Args:
        tokens: question -> tokens of its rows that count.
        wanted: split -> budget in tokens.
    """
    order = sorted(tokens, key=lambda index: hashlib.sha256(f"{seed}:{index}".encode()).digest())
    got = dict.fromkeys(wanted, 0)
    splits: dict[int, str] = {}
    for index in order:
        split = min(wanted, key=lambda name: got[name] / wanted[name])
        if not tokens[index] or got[split] >= wanted[split]:
            splits[index] = UNUSED
            continue
        splits[index] = split
        got[split] += tokens[index]
    return splits


def split_table(rows: pl.DataFrame, spec: BehaviourSpec) -> pl.DataFrame:
    """One row a split: `split, wanted_tokens, got_tokens, rows, questions`; wanted is null for `unused`."""
    counted = rows.filter("counts")
    columns: dict[str, list[Any]] = defaultdict(list)
    for split in (*SPLITS, UNUSED):
        mine = counted.filter(split=split)
        columns["split"].append(split)
        columns["wanted_tokens"].append(budgets(spec).get(split))
        columns["got_tokens"].append(int(mine["n_response_tokens"].sum()))
        columns["rows"].append(mine.height)
        columns["questions"].append(mine["question_index"].n_unique())
    return pl.DataFrame(columns)


def _record(
    dialogue: Dialogue, persona: Persona, spec: BehaviourSpec, tokenizer: Any, chat_template: bool
) -> dict[str, Any]:
    try:
        encoded = encode_dialogue(
            tokenizer,
            question=dialogue.question,
            response=dialogue.response,
            chat_template=chat_template,
            max_response_tokens=spec.max_response_tokens,
        )
    except ValueError as error:
        raise DialogueError(f"{persona.name}, row {dialogue.key}: {error}") from error
    identity = (dialogue.model, persona.name, persona.kind, dialogue.key)
    return {
        "row_id": hashlib.sha256("\x1f".join(identity).encode()).hexdigest()[:16],
        "model": dialogue.model,
        "persona": persona.name,
        "kind": persona.kind,
        "label": dialogue.label,
        "prompt_index": dialogue.prompt_index,
        "question_index": dialogue.question_index,
        "question": dialogue.question,
        "instruction": dialogue.instruction,
        "messages": [
            {"role": "user", "content": dialogue.question},
            {"role": "assistant", "content": dialogue.response},
        ],
        "score": dialogue.score,
        "score_status": dialogue.score_status,
        "counts": does_count(dialogue.label, dialogue.score, persona.kind, spec),
        "n_prompt_tokens": encoded.start,
        "n_response_tokens": encoded.n_response,
    }
