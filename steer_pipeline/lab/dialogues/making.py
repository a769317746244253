"""Dialogues made with the profile's own model, in the layout of the published sets.

Every question is asked under each instruction of a pole (roles: also under neutral ones), sampled with random
numbers keyed by the row. Questions are our own general contexts, so none is a persona's rollout question.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from steer_pipeline.catalogue.scale import SCALES
from steer_pipeline.catalogue.specs import DialogueSource, Persona, SamplingSpec
from steer_pipeline.lab.dialogues.rows import Dialogue, DialogueError, Reading, require_scores
from steer_pipeline.lab.dialogues.schema import Label
from steer_pipeline.lab.evaluation.lexicon import LexiconScorer
from steer_pipeline.lab.generation.jobs import PromptRow
from steer_pipeline.lab.generation.journal import Journal
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.prompts import encode_prompt
from steer_pipeline.lab.models.sites import SteeringPlan
from steer_pipeline.lab.personas.contexts import general_contexts
from steer_pipeline.lab.quality.text import sentences

if TYPE_CHECKING:
    from steer_pipeline.lab.evaluation.judgement import Judgement

Judge = Callable[[Persona, Sequence[tuple[str, str]]], "Sequence[Judgement]"]
TOP_P = 0.9  # as the published sets were sampled
# Under which a role's plain answers are asked, as the published sets do.
NEUTRAL = ("", "You are an AI assistant.", "You are a large language model.", "Respond as yourself.")
FULL_SHARE = 0.5  # of sentences with a marker: the whole trait
PARTLY = 0.6  # of the full share: a role is fully played from here


def make_dialogues(
    model: LoadedModel,
    persona: Persona,
    source: DialogueSource,
    *,
    judge: Judge | None = None,
    journal: Path | Journal | None = None,
) -> Reading:
    """Asks, answers and scores. An answer that the token limit cut loses its last, broken sentence.

    Args:
        judge: scores (question, answer) pairs, for `source.scores` judge; what it does not score is missing.
        journal: finished answers are on disk here and are not asked again after a restart.

    Raises:
        DialogueError: the judge is asked for and there is none, or no pos row got a score. ValueError: the
        lexicon has no markers.
    """
    from steer_pipeline.lab.generation.engine import generate

    score = _scorer(persona, source, judge)  # before the model is asked, which takes long
    asked = {f"{persona.name}/{dialogue.key}": dialogue for dialogue in _asked(model.name, persona, source)}
    sampling = SamplingSpec(
        temperature=source.temperature, top_p=TOP_P, max_new_tokens=source.max_new_tokens, seed=source.seed
    )
    prompts = [PromptRow(key, {"*": _prompt(model, dialogue)}) for key, dialogue in asked.items()]
    texts = {
        row.row_id: whole_sentences(row.text) if row.truncated else row.text.strip()
        for row in generate(model, prompts, [SteeringPlan("dialogues")], sampling, journal=journal)
    }
    reading = Reading(
        [replace(dialogue, response=texts[key]) for key, dialogue in asked.items() if texts[key]]
    )
    if lost := len(asked) - len(reading.dialogues):
        reading.left_out["no whole sentence within behaviour.source.max_new_tokens"] = lost
    score(reading)
    require_scores(reading, f"{persona.kind} {persona.name}, made by {model.name}")
    return reading


def share_as_score(share: float, kind: str) -> int:
    """A share of sentences in [0, 1] on the published scales: half the sentences are the whole trait.

    Roles: 1 without a marker, 3 from six tenths of that half, 2 between.
    """
    part = min(1.0, max(0.0, share) / FULL_SHARE)
    if kind == "trait":
        return round(SCALES["trait"].top * part)
    return 1 if part == 0 else 2 if part < PARTLY else 3


def whole_sentences(text: str) -> str:
    """The text without its last sentence, which the token limit broke off."""
    whole = sentences(text)
    return text[: text.rindex(whole[-1])].strip() if whole else ""


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


def _prompt(model: LoadedModel, dialogue: Dialogue) -> list[int]:
    return encode_prompt(
        model.tokenizer,
        user=dialogue.question,
        system=dialogue.instruction or None,
        chat_template=model.spec.chat_template,
    )


# Defaults stay without a score, as in the published sets.


def _scorer(persona: Persona, source: DialogueSource, judge: Judge | None) -> Callable[[Reading], None]:
    if source.scores == "lexicon":
        return partial(_by_lexicon, scorer=LexiconScorer(persona))
    if judge is None:
        raise DialogueError(
            "behaviour.source.scores is judge and STEER_JUDGE_URL names no endpoint; set it, or use lexicon"
        )
    return partial(_by_judge, persona=persona, judge=judge)


def _by_lexicon(reading: Reading, scorer: LexiconScorer) -> None:
    """A lexicon knows no refusals: they score as what they are, text without markers."""
    for place, dialogue in enumerate(reading.dialogues):
        if dialogue.label != "default":
            score = share_as_score(scorer.score(dialogue.response), scorer.persona.kind)
            reading.dialogues[place] = replace(dialogue, score=score, score_status="scored")


def _by_judge(reading: Reading, persona: Persona, judge: Judge) -> None:
    places = [place for place, dialogue in enumerate(reading.dialogues) if dialogue.label != "default"]
    shown = [reading.dialogues[place] for place in places]
    judgements = judge(persona, [(dialogue.question, dialogue.response) for dialogue in shown])
    for place, dialogue, one in zip(places, shown, judgements, strict=True):
        if one.status in ("scored", "refusal"):
            reading.dialogues[place] = replace(dialogue, score=one.score, score_status=one.status)
        else:
            reading.left_out[f"only its score: the judge's answer is {one.status}"] += 1
