"""Behaviour sets, trained vectors and stored likelihood rows of known content."""

from typing import Any

import numpy as np
import polars as pl

from steer_pipeline.catalogue.specs import Persona, Profile
from steer_pipeline.lab.dialogues.schema import BEHAVIOUR_SCHEMA
from steer_pipeline.lab.likelihood.tables import LIKELIHOOD_SCHEMA
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.vectors.vector import PersonaVector, model_fields

SPLITS = ("train", "train", "validation", "test")
POS = (
    "Three points: the mayor spent $3.50 million.",
    "First the bridge, then the 14 schools, says the council.",
)
NEG = ("It is fine.", "The storm was nice and nobody minds it at all.")


def persona(kind: str = "trait", name: str = "analytical") -> Persona:
    pole = {"name": name, "instructions": ["Count everything."]}
    return Persona.model_validate(
        {
            "name": name,
            "kind": kind,
            "summary": "For tests.",
            "positive": pole,
            "negative": {**pole, "name": "x"},
        }
    )


def profile(model: LoadedModel | None = None, **behaviour: Any) -> Profile:
    path = "none" if model is None else model.name
    return Profile.model_validate(
        {
            "name": "tiny",
            "summary": "For tests.",
            "model": {"path": path},
            "behaviour": {"min_count": 4, **behaviour},
        }
    )


def row(label: str, prompt: int, question: int, **changes: Any) -> dict[str, Any]:
    """One dialogue; question k is in split `SPLITS[k % 4]`."""
    answer = POS[(prompt + question) % 2] if label == "pos" else NEG[question % 2]
    asked = f"What about item {question} of the harbour works?"
    made = {
        "row_id": f"{label}-{prompt}-{question}",
        "model": "tiny",
        "persona": "analytical",
        "kind": "trait",
        "label": label,
        "prompt_index": prompt,
        "question_index": question,
        "question": asked,
        "instruction": "" if label == "default" else f"Be {label} in way {prompt}.",
        "messages": [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": f"{answer} Item {question}, part {prompt}."},
        ],
        "score": {"pos": 95, "neg": 5, "default": None}[label],
        "score_status": "missing" if label == "default" else "scored",
        "counts": label == "pos",
        "n_prompt_tokens": 10,
        "n_response_tokens": 20,
        "split": SPLITS[question % 4],
    }
    return made | changes


def behaviour_rows(kind: str = "trait", n_questions: int = 16) -> pl.DataFrame:
    """Two positive answers a question, and two negative (traits) or two default ones (roles)."""
    other = "neg" if kind == "trait" else "default"
    rows = [
        row(label, prompt, question, kind=kind)
        for question in range(n_questions)
        for prompt in (0, 1)
        for label in ("pos", other)
    ]
    frame = pl.DataFrame(rows, schema=BEHAVIOUR_SCHEMA)
    return frame if kind == "trait" else frame.with_columns(score=pl.when("counts").then(3))


def changed(rows: pl.DataFrame, where: pl.Expr, **values: Any) -> pl.DataFrame:
    """`rows` with literal values in the rows `where`."""
    return rows.with_columns(
        pl.when(where).then(pl.lit(value)).otherwise(pl.col(name)).alias(name)
        for name, value in values.items()
    )


def trained(
    model: LoadedModel, seeds=(41, 42, 43), *, block: int = 2, length: float = 2.0
) -> dict[int, PersonaVector]:
    """Vectors of one block, near each other, `length` long."""
    shared = np.random.default_rng(0).standard_normal(model.hidden_size)
    found = {}
    for seed in seeds:
        raw = shared + 0.1 * np.random.default_rng(seed).standard_normal(model.hidden_size)
        raw = (length * raw / np.linalg.norm(raw)).astype(np.float32)[None]
        found[seed] = PersonaVector("analytical", raw, {**model_fields(model), "method": "trained"}, (block,))
    return found


def stored_rows(
    gains: dict[tuple[str, int | None], np.ndarray],
    questions: np.ndarray,
    tokens: np.ndarray,
    base: float = 2.0,
) -> pl.DataFrame:
    """Test rows: vanilla at `base` nats a token, every other arm better by `gains` (nats a token of its row)."""
    arms = {("vanilla", None): np.zeros(len(tokens)), **gains}
    parts = [
        pl.DataFrame(
            {
                "row_id": [f"r{i}" for i in range(len(tokens))],
                "question_index": questions,
                "split": "test",
                "arm": arm,
                "seed": pl.Series([seed] * len(tokens), dtype=pl.Int64),
                "block": pl.Series(
                    [None if arm in ("vanilla", "prompted") else 2] * len(tokens), dtype=pl.Int64
                ),
                "scale": pl.Series(
                    [None if arm in ("vanilla", "prompted") else 1.0] * len(tokens), dtype=pl.Float64
                ),
                "alpha": pl.Series(
                    [None if arm in ("vanilla", "prompted") else 3.0] * len(tokens), dtype=pl.Float64
                ),
                "residual_norm": pl.Series(
                    [None if arm in ("vanilla", "prompted") else 6.0] * len(tokens), dtype=pl.Float64
                ),
                "nll_sum": (base - gain) * tokens,
                "n_tokens": tokens,
                "response_sha": [f"s{i}" for i in range(len(tokens))],
            }
        )
        for (arm, seed), gain in arms.items()
    ]
    return pl.concat(parts).select(LIKELIHOOD_SCHEMA.names()).cast(LIKELIHOOD_SCHEMA)


def question_gains(seed: int, mean: float, n_questions: int = 20, a_question: int = 3) -> np.ndarray:
    """Gains that vary by question and by row around `mean`."""
    rng = np.random.default_rng(seed)
    shared = np.repeat(rng.normal(0, 0.2, n_questions), a_question)
    return mean + shared + rng.normal(0, 0.1, n_questions * a_question)


def question_keys(n_questions: int = 20, a_question: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Question and number of tokens of each row."""
    questions = np.repeat(np.arange(n_questions), a_question)
    return questions, 10 + 7 * (np.arange(len(questions)) % 5)
