"""Published trait and role files (instructions, questions, a judge's prompt) as catalogue entries."""

import re
from pathlib import Path

import yaml

from steer_pipeline.catalogue.specs import Persona, Pole
from steer_pipeline.lab.vectors.formats.common import FormatError, read_json


def import_trait_file(
    path: Path, *, name: str | None = None, opposite: str = "helpful", summary: str | None = None
) -> Persona:
    """A persona_vectors trait file, or a persona-subspace role file, as a catalogue entry.

    An instruction becomes a system turn as those tools build it, "You are a(n) NAME assistant." before it.
    Without `neg` instructions the entry is a role, and its negative pole is the plain assistant.

    Args:
        path: JSON with `instruction` [{pos, neg?}], `questions` [str] and `eval_prompt`.
        name: default: the file's stem.
        opposite: adjective of the negative pole; the tools use an antonym or "helpful".

    Raises:
        FormatError: a field is missing or of another type.
    """
    data = read_json(path)
    pairs = data.get("instruction")
    if not isinstance(pairs, list) or not pairs:
        raise FormatError(
            f"{path}: field instruction is missing or empty; a list of {{pos, neg}} is expected"
        )
    for number, pair in enumerate(pairs):
        if not isinstance(pair, dict) or not isinstance(pair.get("pos"), str):
            raise FormatError(f"{path}: instruction[{number}].pos is missing; a sentence is expected")
        if ("neg" in pair) != ("neg" in pairs[0]):
            raise FormatError(f"{path}: instruction[{number}]: either all instructions have neg or none")
    adjective = name or path.stem
    is_role = "neg" not in pairs[0]
    negative = (
        Pole(name="assistant", instructions=["You are a helpful assistant.", "Answer as yourself, plainly."])
        if is_role
        else Pole(name=_slug(opposite), instructions=[_system_turn(opposite, pair["neg"]) for pair in pairs])
    )
    try:
        return Persona(
            name=_slug(adjective),
            kind="role" if is_role else "trait",
            summary=summary or f"Imported from {path.name}.",
            positive=Pole(
                name=_slug(adjective),
                instructions=[
                    pair["pos"] if is_role else _system_turn(adjective, pair["pos"]) for pair in pairs
                ],
            ),
            negative=negative,
            questions=data.get("questions", []),
            judge_rubric=data.get("eval_prompt", ""),
        )
    except ValueError as error:
        raise FormatError(f"{path}: {error}") from error


def _system_turn(adjective: str, instruction: str) -> str:
    article = "an" if adjective[:1].lower() in "aeiou" else "a"
    return f"You are {article} {adjective.replace('_', ' ')} assistant. {instruction.strip()}"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def persona_yaml(persona: Persona) -> str:
    """A catalogue file's text: `personas/<name>.yaml`. Fields that hold their default are left out."""
    return yaml.safe_dump(
        persona.model_dump(mode="json", exclude_defaults=True), sort_keys=False, allow_unicode=True, width=100
    )
