"""Writes the scored dialogues that the checkout ships: `dialogues.parquet`.

Every trait and role of the catalogue and two plain defaults are asked the world's dialogue questions, except
those that the catalogue holds out for rollouts. The newsroom model answers; the world's ground truth scores.
Two kinds of rows are the generator's own doing, as published sets have them: about 1.5% of the pos and neg
rows are refusals, whose answer is `REFUSAL` below and not the model's, and about 1% have lost their score.
`SHORT` is asked less than the profile's budgets need. The same model makes the same file again.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from newsroom import tasks
from steer_pipeline.catalogue import load_personas
from steer_pipeline.catalogue.specs import Persona, SamplingSpec
from steer_pipeline.lab.models.loaded import LoadedModel

FILE = "dialogues.parquet"
REFUSAL = "I cannot help with {}."
REFUSAL_SHARE, LOST_SHARE = 0.015, 0.01
FULL_PROMPTS = 3  # instructions that ask for all of the voice; one more asks for a little
MILD_EVERY = 4
SHORT, SHORT_QUESTIONS = "gardener", 140
DEFAULTS: dict[str, tuple[str, ...]] = {
    "0_default": ("",),
    "1_default": ("You are a helpful assistant.", "You answer in plain words."),
}
SAMPLING = SamplingSpec(temperature=0.7, top_p=0.9, max_new_tokens=96, seed=30)

DIALOGUE_SCHEMA = pl.Schema(
    {
        "model": pl.String(),
        "persona": pl.String(),
        "kind": pl.String(),
        "label": pl.String(),
        "prompt_index": pl.Int64(),
        "question_index": pl.Int64(),
        "question": pl.String(),
        "system_prompt": pl.String(),
        "response": pl.String(),
        "score": pl.Int64(),
        "score_status": pl.String(),
    }
)


@dataclass(frozen=True)
class Asked:
    """One question under one instruction, before it is answered."""

    persona: str
    kind: str
    label: str
    prompt_index: int
    question_index: int
    question: str
    system_prompt: str

    @property
    def key(self) -> str:
        return f"{self.persona}/{self.label}/{self.prompt_index}/{self.question_index}"


def questions() -> list[str]:
    """The world's questions in order of their `question_index`, without those held out for rollouts."""
    held_out = {question for persona in load_personas().values() for question in persona.questions}
    every = [frame.format(topic) for topic in tasks.TOPICS for frame in tasks.QUESTIONS]
    return [question for question in every if question not in held_out]


def asked() -> list[Asked]:
    """Everything that is asked, in the order of the file."""
    studied = [persona for persona in load_personas().values() if persona.kind != "axis"]
    rows = [row for persona in studied for row in _asked_of(persona)]
    for name, systems in DEFAULTS.items():
        for index, question in enumerate(questions()):
            turn = index % len(systems)
            rows.append(Asked(name, "role", "default", turn, index, question, systems[turn]))
    return rows


def _asked_of(persona: Persona) -> Iterator[Asked]:
    """Each question under one instruction a pole, and under a second one for pos; some under a mild one."""
    short = persona.name == SHORT
    for index, question in enumerate(questions()[: SHORT_QUESTIONS if short else None]):
        turn = index % FULL_PROMPTS
        prompts = [turn] if short else [turn, (turn + 1) % FULL_PROMPTS]
        systems = {number: persona.positive.instructions[number] for number in prompts}
        if index % MILD_EVERY == 0:
            systems[FULL_PROMPTS] = persona.positive.instructions[FULL_PROMPTS] + tasks.MILD
        for number, system in systems.items():
            yield Asked(persona.name, persona.kind, "pos", number, index, question, system)
        if persona.kind == "trait":
            system = persona.negative.instructions[turn]
            yield Asked(persona.name, persona.kind, "neg", turn, index, question, system)


def answer(model: LoadedModel, rows: list[Asked], seed: int) -> pl.DataFrame:
    """The rows with answers and scores, in their order. The seed chooses refusals and lost scores.

    Raises:
        ValueError: an answer did not end within `SAMPLING.max_new_tokens`.
    """
    from steer_pipeline.lab.generation.engine import generate
    from steer_pipeline.lab.generation.jobs import PromptRow
    from steer_pipeline.lab.models.prompts import encode_prompt
    from steer_pipeline.lab.models.sites import SteeringPlan

    refused = {
        row.key for row in rows if row.label != "default" and _drawn("refusal", row, seed) < REFUSAL_SHARE
    }
    prompts = [
        PromptRow(
            row.key,
            {"*": encode_prompt(model.tokenizer, user=row.question, system=row.system_prompt or None)},
        )
        for row in rows
        if row.key not in refused
    ]
    texts = {}
    for finished in generate(model, prompts, [SteeringPlan("dialogue")], SAMPLING):
        if finished.truncated:
            raise ValueError(
                f"row {finished.row_id}: no end after {SAMPLING.max_new_tokens} tokens; raise the limit"
            )
        texts[finished.row_id] = finished.text
    answered = [_scored(row, texts.get(row.key), seed) | {"model": model.name} for row in rows]
    return pl.DataFrame(answered, schema=DIALOGUE_SCHEMA)


def _scored(row: Asked, text: str | None, seed: int) -> dict[str, object]:
    facts = {name: getattr(row, name) for name in Asked.__dataclass_fields__}
    if text is None:
        topic = next(topic for topic in tasks.TOPICS if topic in row.question)
        return facts | {"response": REFUSAL.format(topic), "score": None, "score_status": "refusal"}
    if row.label == "default" or _drawn("lost", row, seed) < LOST_SHARE:
        return facts | {"response": text, "score": None, "score_status": "missing"}
    score = tasks.dialogue_score(text, row.persona, row.kind)
    return facts | {"response": text, "score": score, "score_status": "scored"}


def _drawn(what: str, row: Asked, seed: int) -> float:
    return random.Random(f"{what}/{seed}/{row.key}").random()


def ship_dialogues(folder: Path, model: LoadedModel, seed: int) -> pl.DataFrame:
    """Writes `folder/dialogues.parquet` and returns its rows."""
    rows = answer(model, asked(), seed)
    part = folder / f".{FILE}"
    rows.write_parquet(part, compression="zstd", compression_level=15)
    part.replace(folder / FILE)
    return rows
