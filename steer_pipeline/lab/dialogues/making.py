"""Dialogues made with the profile's own model, in the layout of the published sets.

Every question is asked under each instruction of a pole (roles: also under neutral ones), sampled with random
numbers keyed by the row. Questions are our own general contexts, so none is a persona's rollout question.
"""

from collections.abc import Iterator
from dataclasses import replace

from steer_pipeline.catalogue.models import DialogueSource, Persona, SamplingSpec
from steer_pipeline.lab.dialogues.rows import SCORE_MAX, Dialogue, DialogueError, Reading
from steer_pipeline.lab.dialogues.schema import Label
from steer_pipeline.lab.evaluation.lexicon import LexiconScorer
from steer_pipeline.lab.generation.schema import PromptRow
from steer_pipeline.lab.models.loading import LoadedModel
from steer_pipeline.lab.models.prompts import encode_prompt
from steer_pipeline.lab.models.steering import SteeringPlan
from steer_pipeline.lab.personas.contexts import general_contexts
from steer_pipeline.lab.quality.text import sentences

# Under which a role's plain answers are asked, as the published sets do.
NEUTRAL = ("", "You are an AI assistant.", "You are a large language model.", "Respond as yourself.")
FULL_SHARE = 0.5  # of sentences with a marker: the whole trait
PARTLY = 0.6  # of the full share: a role is fully played from here


def make_dialogues(model: LoadedModel, persona: Persona, source: DialogueSource) -> Reading:
    """Asks, answers and scores. An answer that the token limit cut loses its last, broken sentence.

    Raises:
        DialogueError: the judge is asked for and cannot be reached. ValueError: the lexicon has no markers.
    """
    from steer_pipeline.lab.generation.engine import generate

    asked = {dialogue.key: dialogue for dialogue in _asked(model.name, persona, source)}
    prompts = [
        PromptRow(
            key,
            {
                "*": encode_prompt(
                    model.tokenizer,
                    user=dialogue.question,
                    system=dialogue.instruction or None,
                    chat_template=model.spec.chat_template,
                )
            },
        )
        for key, dialogue in asked.items()
    ]
    sampling = SamplingSpec(
        temperature=source.temperature, top_p=0.9, max_new_tokens=source.max_new_tokens, seed=source.seed
    )
    texts = {
        row.row_id: whole_sentences(row.text) if row.truncated else row.text.strip()
        for row in generate(model, prompts, [SteeringPlan("dialogues")], sampling)
    }
    reading = Reading(
        [replace(dialogue, response=texts[key]) for key, dialogue in asked.items() if texts[key]]
    )
    if len(reading.dialogues) < len(asked):
        reading.left_out["no whole sentence within behaviour.source.max_new_tokens"] = len(asked) - len(
            reading.dialogues
        )
    reading.dialogues = _scored(reading.dialogues, persona, source)
    return reading


def share_as_score(share: float, kind: str) -> int:
    """A share of sentences in [0, 1] on the published scales: half the sentences are the whole trait.

    Roles: 1 without a marker, 3 from six tenths of that half, 2 between.
    """
    part = min(1.0, max(0.0, share) / FULL_SHARE)
    if kind == "trait":
        return round(SCORE_MAX["trait"] * part)
    return 1 if part == 0 else 2 if part < PARTLY else 3


def whole_sentences(text: str) -> str:
    """The text without its last sentence, which the token limit broke off."""
    return " ".join(sentences(text)[:-1]).strip()


def _asked(model: str, persona: Persona, source: DialogueSource) -> Iterator[Dialogue]:
    sides: dict[Label, tuple[str, ...]] = {"pos": tuple(persona.positive.instructions)}
    if persona.kind == "trait":
        sides["neg"] = tuple(persona.negative.instructions)
    else:
        sides["default"] = NEUTRAL
    for index, context in enumerate(general_contexts(source.n_questions, source.seed)):
        for label, instructions in sides.items():
            for prompt, instruction in enumerate(instructions[: source.n_prompts]):
                yield Dialogue(model, label, prompt, index, context.user, instruction, "", None, "missing")


def _scored(dialogues: list[Dialogue], persona: Persona, source: DialogueSource) -> list[Dialogue]:
    """pos and neg rows get a score; defaults stay without one, as in the published sets."""
    if source.scores == "judge":
        raise DialogueError(
            "behaviour.source.scores is judge, which needs STEER_JUDGE_URL; set it, or use lexicon"
        )
    scorer = LexiconScorer(persona)
    return [
        dialogue
        if dialogue.label == "default"
        else replace(
            dialogue,
            score=share_as_score(scorer.score(dialogue.response), persona.kind),
            score_status="scored",
        )
        for dialogue in dialogues
    ]
