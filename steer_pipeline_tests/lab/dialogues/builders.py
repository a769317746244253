"""Small published sets, written as their tools write them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from steer_pipeline.lab.dialogues.rows import Dialogue
from steer_pipeline.lab.generation.jobs import FinishedRow

INSTRUCTIONS = {
    "pos": ["You are an old sailor.", "Speak like a sailor."],
    "neg": ["Be plain.", "Say little."],
}


def question(index: int) -> str:
    return f"What is the use of item {index}?"


def dialogue(
    index: int, label: str = "pos", prompt: int = 0, score: int | None = 3, **changes: Any
) -> Dialogue:
    facts: dict[str, Any] = {
        "model": "google/gemma-2-27b-it",
        "label": label,
        "prompt_index": prompt,
        "question_index": index,
        "question": question(index),
        "instruction": INSTRUCTIONS[label][prompt] if label in INSTRUCTIONS else "",
        "response": f"It is item {index}, and it is of use at sea.",
        "score": score,
        "score_status": "missing" if score is None else "scored",
    }
    return Dialogue(**(facts | changes))


def record(index: int, label: str = "pos", prompt: int = 0, *, gemma: bool = False) -> dict[str, Any]:
    """A line of responses/{name}.jsonl; `gemma`: the instruction stands in the user turn."""
    system = INSTRUCTIONS[label][prompt] if label in INSTRUCTIONS else ""
    answer = {"role": "assistant", "content": f"It is item {index}, and it is of use at sea."}
    if gemma:
        asked = f"{system}\n\n{question(index)}" if system else question(index)
        turns = [{"role": "user", "content": asked}, answer]
    else:
        turns = [{"role": "system", "content": system}] if system else []
        turns += [{"role": "user", "content": question(index)}, answer]
    return {
        "system_prompt": system,
        "label": label,
        "prompt_index": prompt,
        "conversation": turns,
        "question_index": index,
        "question": question(index),
    }


def records(n: int, *, kind: str = "role", gemma: bool = False) -> list[dict[str, Any]]:
    labels = ["pos", "neg"] if kind == "trait" else ["pos"]
    return [
        record(i, label, prompt, gemma=gemma) for label in labels for prompt in range(2) for i in range(n)
    ]


def scores_of(lines: list[dict[str, Any]], score: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    return {
        f"{line['label']}_p{line['prompt_index']}_q{line['question_index']}": score(line) for line in lines
    }


def write_responses(
    root: Path,
    name: str,
    lines: list[dict[str, Any]],
    scores: dict[str, Any] | None,
    *,
    kind: str = "role",
    model: str = "gemma-2-27b",
) -> Path:
    """Writes one persona under `root/model` and returns that folder."""
    folder = root / model / f"{kind}s_240"
    for part in ("responses", "extract_scores"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "responses" / f"{name}.jsonl").write_text(text)
    if scores is not None:
        (folder / "extract_scores" / f"{name}.json").write_text(json.dumps(scores))
    return root / model


def processed(lines: list[dict[str, Any]], name: str, *, kind: str = "role", score: Any = 3) -> pl.DataFrame:
    """The rows of a processed data set, all with one score."""
    return pl.DataFrame(
        [
            {
                "model": "gemma-2-27b",
                kind: name,
                "system_prompt": line["system_prompt"],
                "label": line["label"],
                "prompt_index": line["prompt_index"],
                "question_index": line["question_index"],
                "question": line["question"],
                "messages": line["conversation"],
                "extract_score": score,
            }
            for line in lines
        ],
        schema_overrides={"extract_score": pl.Int64},
    )


def answering(text: str, reason: str = "eos") -> Callable[..., Any]:
    """A stand-in for `generate` that says `text` to every prompt."""

    def generate(model, rows, plans, sampling, **_):
        for row in rows:
            yield FinishedRow(
                row.row_id, "dialogues", text, [1], 1, 2, reason, reason == "length", sampling.seed
            )

    return generate
