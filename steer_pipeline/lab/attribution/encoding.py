"""Rows as ids: made once through `lab/finetune/data.py`, written for other tools, and compared among consumers.

In: rows of a manifest. Out: examples, `ids.parquet` with a row per example (labels are -100 where nothing is learned),
and `seen.parquet`, in which every consumer writes down what it was given.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from steer_pipeline.lab.attribution.rows import AttributionError, text_rows
from steer_pipeline.lab.columns import described
from steer_pipeline.lab.finetune.data import IGNORED, Example, encode_examples
from steer_pipeline.lab.verdict import Verdict

IDS, SEEN = "ids.parquet", "seen.parquet"
Encoder = Callable[[pl.DataFrame], list[Example]]
IDS_SCHEMA, IDS_COLUMNS = described(
    row_id=(pl.String(), "of the manifest"),
    split=(pl.String(), "train | query | selection | eval"),
    input_ids=(pl.List(pl.Int64()), "prompt, completion and end of turn"),
    labels=(pl.List(pl.Int64()), "the same ids where they are learned, -100 elsewhere"),
    length=(pl.Int64(), "ids"),
)
SEEN_SCHEMA, SEEN_COLUMNS = described(
    row_id=(pl.String(), "of the manifest"),
    prompt_sha=(pl.String(), "hash of the prompt's ids"),
    ids_sha=(
        pl.String(),
        "hash of all ids and of where the completion begins; null: only the prompt was read",
    ),
)


def encoder(tokenizer: Any, *, chat_template: bool) -> Encoder:
    """Rows -> examples, whole: a row that is too long is dropped by the manifest, and not cut."""

    def encode(rows: pl.DataFrame) -> list[Example]:
        return encode_examples(tokenizer, text_rows(rows), chat_template=chat_template)

    return encode


def write_ids(rows: pl.DataFrame, examples: Iterable[Example], folder: Path) -> None:
    """`ids.parquet` of a manifest's rows, in their order."""
    by_row = {one.row_id: one for one in examples}
    pl.DataFrame(
        [
            {
                "row_id": name,
                "split": split,
                "input_ids": list(by_row[name].ids),
                "labels": labels_of(by_row[name]),
                "length": len(by_row[name].ids),
            }
            for name, split in rows.select("row_id", "split").iter_rows()
        ],
        schema=IDS_SCHEMA,
    ).write_parquet(folder / IDS)


def labels_of(example: Example) -> list[int]:
    """Ids where they are learned, `IGNORED` elsewhere."""
    masked = set(example.masked)
    return [
        IGNORED if position < example.start or position in masked else token
        for position, token in enumerate(example.ids)
    ]


def read_examples(folder: Path, *splits: str) -> list[Example]:
    """The examples of some splits, in the manifest's order; of all, where none is named.

    Raises:
        AttributionError: a row has no token to learn.
    """
    ids = pl.read_parquet(folder / IDS)
    rows = ids.filter(pl.col("split").is_in(list(splits))) if splits else ids
    return [
        _example(name, tokens, labels)
        for name, tokens, labels in rows.select("row_id", "input_ids", "labels").iter_rows()
    ]


def _example(row_id: str, ids: Sequence[int], labels: Sequence[int]) -> Example:
    learned = [position for position, label in enumerate(labels) if label != IGNORED]
    if not learned:
        raise AttributionError(
            f"row {row_id!r}: all labels are {IGNORED}, nothing is learned of it; drop the row"
        )
    start = learned[0]
    masked = tuple(position for position in range(start, len(ids)) if labels[position] == IGNORED)
    return Example(row_id, tuple(ids), start, masked)


# ------------------------------------------------------------------------------------ what consumers saw


def note_seen(
    examples: Iterable[Example], folder: Path, *, prompts: Mapping[str, Sequence[int]] | None = None
) -> None:
    """Writes down which ids a consumer was given.

    Args:
        prompts: row -> ids, of rows of which it reads no more than the prompt.
    """
    rows: list[dict[str, str | None]] = [
        {
            "row_id": one.row_id,
            "prompt_sha": _sha(one.ids[: one.start]),
            "ids_sha": _sha((one.start, *one.ids)),
        }
        for one in examples
    ]
    rows += [
        {"row_id": name, "prompt_sha": _sha(ids), "ids_sha": None} for name, ids in (prompts or {}).items()
    ]
    pl.DataFrame(rows, schema=SEEN_SCHEMA).write_parquet(folder / SEEN)


def alignment(manifest: Sequence[Example], seen: Mapping[str, pl.DataFrame]) -> Verdict:
    """Whether every consumer saw the manifest's ids, row by row; none may differ.

    Args:
        seen: consumer -> `SEEN_SCHEMA`.
    """
    prompts = {one.row_id: _sha(one.ids[: one.start]) for one in manifest}
    wholes = {one.row_id: _sha((one.start, *one.ids)) for one in manifest}
    wrong = [
        {"consumer": who, "row": name}
        for who, rows in sorted(seen.items())
        for name, prompt, whole in rows.select("row_id", "prompt_sha", "ids_sha").iter_rows()
        if prompts.get(name) != prompt or (whole is not None and wholes.get(name) != whole)
    ]
    compared = sum(rows.height for rows in seen.values())
    message = f"{compared} rows of {len(seen)} consumers compared with the manifest, {len(wrong)} differ"
    numbers = {"compared": compared, "consumers": len(seen), "mismatches": len(wrong)}
    return Verdict("ids_are_seen_alike", not wrong and compared > 0, message, numbers, wrong[:5])


def _sha(ids: Iterable[int]) -> str:
    return hashlib.blake2b(repr(tuple(ids)).encode(), digest_size=8).hexdigest()
