"""Rows of prompt and completion as what training sees: ids, the boundary where the completion begins, and labels.

The ids are those of generation and evaluation (`lab/models/prompts.py`); `differing_rows` names those of which two
consumers saw other ones.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steer_pipeline.lab.models.prompts import encode_completion, encode_prompt

IGNORED = -100  # label of a position that is not supervised


class FinetuneError(ValueError):
    """A fine-tuning cannot be done as asked. The message names the row or setting and the cure."""


@dataclass(frozen=True)
class TextRow:
    """One row of prompt and completion as text.

    Attributes:
        system: system turn of the prompt; None for the template's own.
        ended: whether the completion came to its end; a truncated one does not teach to end.
    """

    row_id: str
    prompt: str
    completion: str
    system: str | None = None
    ended: bool = True


@dataclass(frozen=True)
class Example:
    """`ids[start:]` is the completion, which is supervised; `ids[:start]` the prompt, which is not.

    Attributes:
        masked: positions of completion tokens, ascending, that are read but not supervised.
    """

    row_id: str
    ids: tuple[int, ...]
    start: int
    masked: tuple[int, ...] = ()

    @property
    def n_supervised(self) -> int:
        return len(self.ids) - self.start - len(self.masked)


@dataclass(frozen=True)
class Lesson:
    """What a student learns; `selection` only shows how it gets on."""

    train: tuple[Example, ...]
    selection: tuple[Example, ...]


def encode_examples(
    tokenizer: Any, rows: Iterable[TextRow], *, chat_template: bool = True, max_tokens: int | None = None
) -> list[Example]:
    """Each row through the one tokenisation of prompt and completion.

    Args:
        max_tokens: longest example; a longer one loses the end of its completion, and with it the end of turn.

    Raises:
        FinetuneError: a row without a supervised token, or an id twice.
    """
    examples: dict[str, Example] = {}
    for row in rows:
        prompt = encode_prompt(tokenizer, user=row.prompt, system=row.system, chat_template=chat_template)
        ids = prompt + encode_completion(tokenizer, row.completion, end_of_turn=row.ended)
        example = Example(row.row_id, tuple(ids[:max_tokens]), len(prompt))
        if not row.completion or example.n_supervised < 1:
            room = f" within {max_tokens} tokens" if row.completion else ""
            raise FinetuneError(
                f"row {row.row_id!r}: no completion token to learn from{room}; drop the row, or raise max_tokens"
            )
        if row.row_id in examples:
            raise FinetuneError(f"row {row.row_id!r} comes twice; row ids must be unique")
        examples[row.row_id] = example
    return list(examples.values())


def differing_rows(one: Sequence[Example], other: Sequence[Example]) -> list[str]:
    """Ids of rows whose tokens or boundary differ between two consumers, or that only one of them has."""
    mine, theirs = ({e.row_id: (e.ids, e.start) for e in examples} for examples in (one, other))
    return sorted(name for name in {*mine, *theirs} if mine.get(name) != theirs.get(name))


def in_keyed_order(examples: Sequence[Example], seed: int) -> list[Example]:
    """Sorted by a hash of seed and row id: the order of the input does not matter."""
    return sorted(examples, key=lambda e: hashlib.blake2b(f"{seed}\x1f{e.row_id}".encode()).digest())


def digest(examples: Sequence[Example]) -> str:
    """16 hex digits of all ids, boundaries and masks, whatever their order."""
    found = hashlib.sha256()
    for example in sorted(examples, key=lambda e: e.row_id):
        masked = (example.masked,) if example.masked else ()
        found.update(repr((example.row_id, example.ids, example.start, *masked)).encode())
    return found.hexdigest()[:16]


def collate(examples: Sequence[Example], pad_id: int) -> dict[str, Tensor]:
    """One batch, padded on the left so that completions end together and only the last logits are needed.

    Returns:
        input_ids, attention_mask, position_ids, labels: int64 [n, t].
    """
    longest = max(len(e.ids) for e in examples)
    ids = torch.full((len(examples), longest), pad_id)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORED)
    for index, example in enumerate(examples):
        n = len(example.ids)
        ids[index, longest - n :] = torch.tensor(example.ids)
        mask[index, longest - n :] = 1
        begin = longest - n  # of the row within its padding
        labels[index, begin + example.start :] = ids[index, begin + example.start :]
        labels[index, [begin + position for position in example.masked]] = IGNORED
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "labels": labels}


def supervised_span(labels: Tensor) -> int:
    """How many of the last positions hold every supervised token of a batch of labels [n, t]."""
    supervised = (labels != IGNORED).any(0).nonzero()
    return labels.shape[1] - int(supervised[0])


def batch_inputs(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the model is called with."""
    return {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids")}
