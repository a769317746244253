"""Contrast sets of given texts: both poles of a pair stand as the assistant's answer to the same prompt.

In: a persona's examples, or a JSONL file of pairs. Out: rows of `CONTRAST_SCHEMA` with source `pairs`. The model
generates nothing, so that this works on models that do not follow instructions.
"""

import codecs
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from steer_pipeline.catalogue.specs import ContrastSpec, Persona, VectorSpec
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.models.prompts import encode_completion, encode_prompt
from steer_pipeline.lab.personas.contexts import HELD_OUT, TRAIN, Context, split_contexts
from steer_pipeline.lab.personas.contrast import ContrastError
from steer_pipeline.lab.personas.schema import CONTRAST_SCHEMA, PAIRS, SIDES
from steer_pipeline.lab.vectors.extracted import MIN_PAIRS

_AB = {"positive": "answer_matching_behavior", "negative": "answer_not_matching_behavior"}
_FORMS = f"a line has prompt (or question), positive and negative; or question, {' and '.join(_AB.values())}"
_SHOWN = 3  # bad lines that an error names


@dataclass(frozen=True)
class GivenPair:
    """One prompt and what both poles answer to it. `pair_id` is shared by contexts with the same texts."""

    pair_id: str
    prompt: str
    positive: str
    negative: str
    category: str
    split: str | None = None

    @property
    def context_id(self) -> str:
        return _sha(PAIRS, self.prompt, self.positive, self.negative)


def _sha(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def given_pairs(
    persona: Persona, contrast: ContrastSpec, vector: VectorSpec, home: Path
) -> tuple[list[GivenPair], list[str]]:
    """The pairs that `contrast.pairs` names, or else the persona's examples, each with its split.

    Args:
        home: where relative paths start.

    Returns:
        The pairs, and a sentence for every line of the file that cannot be used.

    Raises:
        ContrastError: there are neither examples nor a file, or fewer than `MIN_PAIRS` pairs in a split.
    """
    problems: list[str] = []
    if contrast.pairs is not None:
        path = home / Path(contrast.pairs.replace("{persona}", persona.name)).expanduser()
        pairs, problems = read_pairs(path)
        where, cure = str(path), "add lines, or change vector.held_out_fraction"
        if all(pair.split is None for pair in pairs):
            pairs = _split(pairs, vector)
    elif persona.examples is not None:
        pairs = example_pairs(persona, contrast.pair_prompts)
        where, cure = f"persona {persona.name}", "write more examples"
    else:
        raise ContrastError(
            f"persona {persona.name} has no examples for contrast.source pairs; write some, or name a JSONL of pairs "
            "in contrast.pairs"
        )
    sizes = {
        split: len({pair.pair_id for pair in pairs if pair.split == split}) for split in (TRAIN, HELD_OUT)
    }
    if min(sizes.values()) < MIN_PAIRS:
        bad = f"; {len(problems)} lines cannot be used: {'; '.join(problems[:_SHOWN])}" if problems else ""
        raise ContrastError(
            f"{where}: {sizes[TRAIN]} pairs to fit and {sizes[HELD_OUT]} held out, at least {MIN_PAIRS} each are "
            f"needed; {cure}{bad}"
        )
    return pairs, problems


def example_pairs(persona: Persona, n_prompts: int) -> list[GivenPair]:
    """Every pair of the persona's examples, as answer to `n_prompts` of its prompts, which take turns."""
    examples = persona.examples
    assert examples is not None, "given_pairs asks for examples alone where there are any"
    count = min(n_prompts, len(examples.prompts))
    return [
        GivenPair(
            _sha(pair.positive, pair.negative),
            examples.prompts[(number + turn) % len(examples.prompts)],
            pair.positive,
            pair.negative,
            "examples",
            split,
        )
        for split, pairs in ((TRAIN, examples.fit), (HELD_OUT, examples.held_out))
        for number, pair in enumerate(pairs)
        for turn in range(count)
    ]


def _split(pairs: Sequence[GivenPair], spec: VectorSpec) -> list[GivenPair]:
    """Contexts of one pair stay together."""
    ids = list(dict.fromkeys(pair.pair_id for pair in pairs))
    if len(ids) < 2 * MIN_PAIRS:
        return list(pairs)
    contexts = split_contexts([Context(one, PAIRS, one) for one in ids], spec.held_out_fraction, spec.seed)
    splits = {context.context_id: context.split for context in contexts}
    return [replace(pair, split=splits[pair.pair_id]) for pair in pairs]


# ---------------------------------------------------------------------------------------- the file


def read_pairs(path: Path) -> tuple[list[GivenPair], list[str]]:
    """The pairs of a JSONL file, and a sentence (file, line, field) for every line that cannot be used.

    Raises:
        ContrastError: there is no such file, or one answer stands for the positive pole in every line, so that a
            vector would be that of its letters.
    """
    if not path.is_file():
        raise ContrastError(f"contrast.pairs: {path}: no such file; {_FORMS}")
    pairs: dict[str, GivenPair] = {}
    problems: list[str] = []
    splits: dict[str, str | None] = {}
    for number, found in _lines(path):
        problem = found if isinstance(found, str) else ""
        if isinstance(found, GivenPair):
            if found.context_id in pairs:
                problem = "field prompt: an earlier line has the same prompt and texts"
            elif splits.setdefault(found.pair_id, found.split) != found.split:
                problem = f"field split: {found.split}, but an earlier line has these texts in {splits[found.pair_id]}"
            else:
                pairs[found.context_id] = found
        if problem:
            problems.append(f"{path.name}, line {number}: {problem}")
    usable = list(pairs.values())
    if any(pair.split for pair in usable) and not all(pair.split for pair in usable):
        unsplit = sum(pair.split is None for pair in usable)
        problems.append(
            f"{path.name}: field split: {unsplit} lines have none and others do; name it in all or none"
        )
        usable = [pair for pair in usable if pair.split]
    if len(usable) > 1 and len({pair.positive for pair in usable}) == 1:
        raise ContrastError(
            f"{path}: the positive answer is {usable[0].positive!r} in all {len(usable)} lines: a vector would be that "
            "of this answer; swap the choices in half of the lines"
        )
    return usable, problems


def _lines(path: Path) -> Iterator[tuple[int, GivenPair | str]]:
    """(line number, pair or what is wrong with the line) of every line with text."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            line = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
            if line.strip():
                yield number, _parsed(line, path.name)


def _parsed(line: bytes, category: str) -> GivenPair | str:
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"
    if not isinstance(row, dict):
        return f"not an object: {type(row).__name__}"
    ab = any(name in row for name in _AB.values())
    names = {"prompt": "prompt" if "prompt" in row else "question"}
    names |= _AB if ab else {side: side for side in SIDES}
    texts = {}
    for part, name in names.items():
        text = row.get(name)
        if problem := _problem(text):
            return f"field {name}: {problem}; {_FORMS}"
        texts[part] = str(text).strip()
    if texts["positive"] == texts["negative"]:
        return f"field {names['negative']}: the same text as {names['positive']}"
    split = row.get("split")
    if split not in (None, "fit", TRAIN, HELD_OUT):
        return f"field split: {split!r}; train or held_out"
    split = TRAIN if split == "fit" else split
    # The answers of A/B questions are letters: there the question makes the pair.
    pair_id = _sha(texts["prompt"]) if ab else _sha(texts["positive"], texts["negative"])
    return GivenPair(pair_id, **texts, category=category, split=split)


def _problem(text: Any) -> str:
    if text is None:
        return "missing"
    if not isinstance(text, str):
        return f"{type(text).__name__} instead of a text"
    if not text.strip():
        return "empty"
    return "half a character (broken UTF-8)" if any("\ud800" <= char <= "\udfff" for char in text) else ""


# ---------------------------------------------------------------------------------------- as rows


def pair_rows(model: LoadedModel, pairs: Sequence[GivenPair], chat_template: bool = True) -> pl.DataFrame:
    """Rows of `CONTRAST_SCHEMA`, two a context: the same user turn, no system turn, the text as completion."""
    rows = []
    for pair in pairs:
        # Raw prompts have nothing that ends the question.
        user = pair.prompt if chat_template else f"{pair.prompt}\n"
        prompt_ids = encode_prompt(model.tokenizer, user=user, chat_template=chat_template)
        for side, text in ((SIDES[0], pair.positive), (SIDES[1], pair.negative)):
            ids = encode_completion(model.tokenizer, text, end_of_turn=False)
            rows.append(
                {
                    "context_id": pair.context_id,
                    "category": pair.category,
                    "split": pair.split,
                    "side": side,
                    "user": user,
                    "completion": text,
                    "n_tokens": len(ids),
                    "finish_reason": "given",
                    "prompt_ids": prompt_ids,
                    "completion_ids": ids,
                    "source": PAIRS,
                    "pair_id": pair.pair_id,
                }
            )
    return pl.DataFrame(rows, schema=CONTRAST_SCHEMA)
