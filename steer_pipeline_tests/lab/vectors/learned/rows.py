"""Small behaviour sets and trainers for the tests of this folder."""

from typing import Any

import numpy as np
import polars as pl

from steer_pipeline.catalogue.specs import ModelSpec, Persona, Profile, TrainingSpec
from steer_pipeline.lab.dialogues.schema import BEHAVIOUR_SCHEMA
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.vectors.learned.data import Dialogues
from steer_pipeline.lab.vectors.learned.loop import Trainer
from steer_pipeline_tests.tiny import SENTENCES

SPLITS = ("train", "train", "train", "validation", "test")


def behaviour_rows(model: str, n: int = 30, persona: str = "analytical") -> pl.DataFrame:
    """`n` rows over n / 2 questions, all of them scored and counted but for every seventh, a refusal."""
    rows = []
    for i in range(n):
        question, refused = i // 2, i % 7 == 6
        answer = SENTENCES[i % len(SENTENCES)] + f" {i} times." + (" It is so." if i % 3 else "")
        rows.append(
            {
                "row_id": f"{persona}-{i:04d}",
                "model": model,
                "persona": persona,
                "kind": "trait",
                "label": "pos",
                "prompt_index": i % 2,
                "question_index": question,
                "question": f"What about number {question}?",
                "instruction": "Weigh every factor.",
                "messages": [
                    {"role": "user", "content": f"What about number {question}?"},
                    {"role": "assistant", "content": answer},
                ],
                "score": None if refused else 90,
                "score_status": "refusal" if refused else "scored",
                "counts": not refused,
                "n_prompt_tokens": 10,
                "n_response_tokens": 20,
                "split": SPLITS[question % len(SPLITS)],
            }
        )
    return pl.DataFrame(rows, schema=BEHAVIOUR_SCHEMA)


def profile(model: LoadedModel, **training: Any) -> Profile:
    fields = {"block": 1, "learning_rates": [0.02, 0.05], "epochs": 2, "batch_rows": 4, "seeds": [1, 2, 3]}
    return Profile(
        name="tiny",
        summary="For tests.",
        model=ModelSpec(path=model.name),
        training=TrainingSpec(**{**fields, **training}),
    )


def persona(name: str = "analytical") -> Persona:
    pole = {"name": name, "instructions": ["Weigh every factor."]}
    return Persona.model_validate(
        {
            "name": name,
            "kind": "trait",
            "summary": "x",
            "positive": pole,
            "negative": {**pole, "name": "plain"},
        }
    )


def dialogues(
    n: int = 8, seed: int = 0, vocabulary: int = 400, longest: int = 40, *, alike: bool = False
) -> Dialogues:
    """Random ids; prompts and responses of all lengths.

    Args:
        alike: the two rows of a question begin with the same tokens.
    """
    rng = np.random.default_rng(seed)
    lengths = rng.integers(6, longest, n)
    ids = [rng.integers(5, vocabulary, length).tolist() for length in lengths]
    starts = [int(rng.integers(0, length - 1)) for length in lengths]
    for row in range(1, n if alike else 0, 2):
        common = int(rng.integers(0, min(lengths[row - 1 : row + 1])))
        ids[row][:common] = ids[row - 1][:common]
    return Dialogues([f"{seed}-{i}" for i in range(n)], ids, starts, np.arange(n) // 2)


def trainer(model: LoadedModel, site: int = 1, n: int = 12, **spec: Any) -> Trainer:
    return Trainer(model, site, dialogues(n), dialogues(6, seed=1), profile(model, **spec).training)
