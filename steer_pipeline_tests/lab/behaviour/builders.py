"""Small behaviour sets, vectors and stored rows made by hand, for tests of the behaviour lab."""

import numpy as np
import polars as pl

from steer_pipeline.catalogue.specs import Persona, Pole
from steer_pipeline.lab.behaviour.rollouts import ROLLOUT_SCHEMA, row_id
from steer_pipeline.lab.behaviour.scoring import REPORT_COLUMNS
from steer_pipeline.lab.dialogues.schema import BEHAVIOUR_SCHEMA
from steer_pipeline.lab.vectors.vector import PersonaVector

TOPICS = (
    "the harbour", "a new library", "the school budget", "a bridge repair", "the tram line", "a water main",
    "the town market", "a hospital wing", "the museum roof", "a steel plant", "the ferry", "a housing plan",
    "the bus fares", "a cycle lane", "the park gates", "a sports hall", "the old mill", "a night train",
    "the river wall", "a fire station", "the post office", "a ring road", "the theatre", "a wind farm",
    "the swimming pool", "a new school", "the town hall", "a railway arch", "the canal", "a food bank",
)  # fmt: skip
SAILOR = (
    "Old deckhands ride out the swell.",
    "Salty mates hoist the mainsail.",
    "Hardy oarsmen read the tide.",
)
PLAIN = ("It opens at nine.", "Two hours are enough.", "Ask at the front desk.", "Write down what you need.")
ARMS = (
    ("vanilla", None, None),
    *((f"prompted_{i}", None, None) for i in range(5)),
    *(("trained", scale, 41) for scale in (-1.0, 0.5, 1.0, 1.5)),
    *(("averaged", scale, None) for scale in (-1.0, 0.5, 1.0, 1.5)),
    *(("random", 1.0, seed) for seed in (51, 52, 53)),
)


def persona(kind: str = "role", n_questions: int = 4, name: str = "sailor") -> Persona:
    return Persona(
        name=name,
        kind=kind,
        summary="Speaks as an old sailor.",
        positive=Pole(
            name=name,
            instructions=["You are an old sailor.", "Write as a skipper of a ship who has seen every sea."],
            lexicon=["mainsail", "tide", "swell"],
        ),
        negative=Pole(name="plain", instructions=["You are a news editor."], lexicon=[]),
        questions=[f"What about {topic}{' and so on' * i}?" for i, topic in enumerate(TOPICS[:n_questions])],
    )  # fmt: skip


def trained_vector(model, name: str = "sailor", block: int = 1, norm: float = 6.0, **facts) -> PersonaVector:
    """A seeded direction at one block of a loaded model."""
    from steer_pipeline.lab.vectors.vector import model_fields

    direction = np.random.default_rng(3).standard_normal(model.hidden_size)
    raw = (norm * direction / np.linalg.norm(direction)).astype(np.float32)[None]
    metadata = model_fields(model) | {
        "method": "trained",
        "seed": 41,
        "residual_norms": [12.0] * model.n_blocks,
    }
    return PersonaVector(name, raw, metadata | facts, (block,))


def averaged_vector(model, name: str = "sailor") -> PersonaVector:
    from steer_pipeline.lab.vectors.vector import model_fields

    raw = np.random.default_rng(4).standard_normal((model.n_blocks, model.hidden_size)).astype(np.float32)
    return PersonaVector(name, raw, model_fields(model) | {"residual_norms": [12.0] * model.n_blocks})


def behaviour_set(
    kind: str = "role", n_questions: int = 30, name: str = "sailor", seed: int = 1
) -> pl.DataFrame:
    """Positives in persona, longer than the negatives: two a question against one, with a refusal and a row
    without a score among them.
    """
    rng, rows = np.random.default_rng(seed), []
    for question, topic in enumerate(TOPICS[:n_questions]):
        plain = f"About {topic}, here is what helps. {rng.choice(PLAIN)}"
        voiced = [
            f"{rng.choice(SAILOR)} About {topic}, here is what helps. {rng.choice(SAILOR)}" for _ in "ab"
        ]
        top = 3 if kind == "role" else 100
        for prompt, text in enumerate(voiced):
            rows.append(_dialogue(name, kind, "pos", prompt, question, topic, text, top))
        label, score = ("default", None) if kind == "role" else ("neg", 0)
        rows.append(_dialogue(name, kind, label, 0, question, topic, plain, score))
    rows.append(_dialogue(name, kind, "pos", 3, 0, TOPICS[0], "I cannot help with that.", None, "refusal"))
    return pl.DataFrame(rows, schema=BEHAVIOUR_SCHEMA)


def _dialogue(name, kind, label, prompt, question, topic, text, score, status=None) -> dict:
    asked = f"Tell me about {topic}."
    return {
        "row_id": f"{label}{prompt}{question}", "model": "tiny", "persona": name, "kind": kind, "label": label,
        "prompt_index": prompt, "question_index": question, "question": asked, "instruction": "",
        "messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": text}],
        "score": score, "score_status": status or ("missing" if score is None else "scored"),
        "counts": label == "pos" and score is not None, "n_prompt_tokens": 9, "n_response_tokens": 12,
        "split": "train",
    }  # fmt: skip


def stored_rollouts(
    name: str = "sailor", kind: str = "role", n_questions: int = 20, arms=ARMS, lexicon: bool = True
) -> pl.DataFrame:
    """Rollouts as they are stored, with texts that say nothing."""
    rows = []
    for question in range(n_questions):
        for arm, scale, seed in arms:
            named = arm if scale is None else f"{arm}@{seed if arm == 'random' else format(scale, 'g')}"
            rows.append(
                {
                    "row_id": row_id(name, named, question, 0), "persona": name, "kind": kind, "arm": arm,
                    "scale": scale, "seed": seed, "question_index": question, "question": f"Question {question}?",
                    "sample": 0, "response": f"Answer {question}.", "n_new_tokens": 12, "finish_reason": "eos",
                    "truncated": False, "base_nll": 6.0, "base_tokens": 12, "perplexity": float(np.exp(0.5)),
                    "loop": False, "loop_score": 0.0, "trait_truth": 0.0 if lexicon else None,
                    "prompt_index": int(arm[9:]) if arm.startswith("prompted_") else None,
                    "stream": named, "decoding_hash": "d" * 16, "sampling_seed": 50,
                }
            )  # fmt: skip
    return pl.DataFrame(rows, schema=ROLLOUT_SCHEMA)


def stored_scores(rollouts: pl.DataFrame, scores) -> pl.DataFrame:
    """minilm_scores of `rollouts`, with a report beside them."""
    report = dict.fromkeys(REPORT_COLUMNS, 0.5) | {
        "auc": 0.95,
        "auc_low": 0.9,
        "auc_high": 0.99,
        "n_pairs": 40,
    }
    return rollouts.select("row_id", "persona", "arm", "scale", "question_index").with_columns(
        pl.Series("score", np.asarray(scores, dtype=np.float64)),
        *(pl.lit(value).alias(column) for column, value in report.items()),
    )
