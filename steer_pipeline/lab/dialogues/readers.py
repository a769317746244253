"""Reads scored dialogues: the newsroom's file, and the layouts in which such sets are published.

`responses`: `roles_240/` and `traits_240/` of one model, each with `responses/{name}.jsonl` (system_prompt, label,
prompt_index, conversation, question_index, question) and `extract_scores/{name}.json` ("pos_p0_q17" -> whole number
or "REFUSAL"). `processed`: `{model}__{role|trait}__{name}` with `__min{N}` and `__{pos|neg}` perhaps, as Parquet or
as a directory of `save_to_disk`. Roles come with `{int}_default` sets, which have no scores and never count.

A name may be both a role and a trait; the persona's kind decides which file is read, and they are never merged.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from steer_pipeline.catalogue.specs import DialogueSource, Persona
from steer_pipeline.lab.dialogues.rows import (
    Dialogue,
    DialogueError,
    Reading,
    as_index,
    as_label,
    as_score,
    require_scores,
    require_unique,
    row_key,
    take_turns,
)
from steer_pipeline.lab.models.identity import MODEL_SLUGS

NEWSROOM_FILE = "dialogues.parquet"
DEFAULT_NAME = re.compile(r"\d+_default")
SCORE_KEY = re.compile(r"(pos|neg|default|neutral)_p(\d+)_q(\d+)")


def read_dialogues(source: DialogueSource, persona: Persona, home: Path, shipped: Path) -> Reading:
    """Every dialogue of a persona that `source` holds; for a role, those of the defaults too.

    Args:
        source: of any kind but `generate`; its path starts at `home` where it is relative.
        shipped: the newsroom's folder, for kind `newsroom` without a path.

    Raises:
        DialogueError: files are missing, broken or of another kind, or no row has a score.
    """
    if source.path is None and source.kind != "newsroom":
        raise DialogueError(
            f"behaviour.source.path is missing; kind {source.kind} reads files: say where they are"
        )
    path = shipped / NEWSROOM_FILE if source.path is None else home / source.path
    readers = {"newsroom": _read_newsroom, "responses": _read_responses, "processed": _read_processed}
    reading = readers[source.kind](path, persona)
    where = f"{persona.kind} {persona.name} in {path}"
    require_unique(reading.dialogues, where)
    require_scores(reading, where)
    return reading


# -------------------------------------------------------------------------------------- newsroom


def _read_newsroom(path: Path, persona: Persona) -> Reading:
    if not path.is_file():
        raise DialogueError(f"{path} is missing; make it: python -m newsroom dialogues")
    rows = _read_parquet(path)
    mine = rows.filter(persona=persona.name, kind=persona.kind)
    if mine.is_empty():
        known = ", ".join(sorted(rows.filter(pl.col("label") != "default")["persona"].unique()))
        raise DialogueError(f"{path}: no dialogues of the {persona.kind} {persona.name}; it has {known}")
    reading = Reading(list(_of_newsroom(mine)))
    if persona.kind == "role":
        sets = rows.filter(label="default").partition_by("persona", maintain_order=True)
        reading.dialogues += _numbered_defaults([list(_of_newsroom(one)) for one in sets])
    return reading


def _of_newsroom(rows: pl.DataFrame) -> Iterator[Dialogue]:
    names = {"system_prompt": "instruction"}
    return (Dialogue(**row) for row in rows.drop("persona", "kind").rename(names).iter_rows(named=True))


def _numbered_defaults(sets: Sequence[Sequence[Dialogue]]) -> list[Dialogue]:
    """The rows of all default sets; their prompts are counted on from one set to the next."""
    numbered: list[Dialogue] = []
    first = 0
    for rows in sets:
        numbered += [
            replace(
                row,
                label="default",
                prompt_index=first + row.prompt_index,
                score=None,
                score_status="missing",
            )
            for row in rows
        ]
        first += 1 + max((row.prompt_index for row in rows), default=-1)
    return numbered


# ------------------------------------------------------------------------------------- responses


def _read_responses(path: Path, persona: Persona) -> Reading:
    folder, model = _kind_folder(path, persona.kind)
    answers = folder / "responses" / f"{persona.name}.jsonl"
    scores = folder / "extract_scores" / f"{persona.name}.json"
    for file in (answers, scores):
        if not file.is_file():
            known = sorted(p.stem for p in file.parent.glob(f"*{file.suffix}"))
            raise DialogueError(
                f"{file} is missing; {file.parent.name}/ has {', '.join(known[:12]) or 'nothing'}"
            )
    known_scores = _read_scores(scores, persona.kind)
    reading = Reading()
    for dialogue in _read_lines(answers, model, reading):
        score, status = known_scores.pop(dialogue.key, (None, "missing"))
        reading.dialogues.append(replace(dialogue, score=score, score_status=status))
    if known_scores:
        reading.left_out["score without a row"] += len(known_scores)
    if persona.kind == "role":
        files = sorted((folder / "responses").glob("*_default.jsonl"), key=lambda file: file.name)
        sets = [
            list(_read_lines(file, model, reading)) for file in files if DEFAULT_NAME.fullmatch(file.stem)
        ]
        reading.dialogues += _numbered_defaults(sets)
    return reading


def _kind_folder(path: Path, kind: str) -> tuple[Path, str]:
    """The folder that holds `responses/` for this kind, and the model's name."""
    if (path / "responses").is_dir():
        named = re.match(r"(role|trait)s", path.name)
        if named and named[1] != kind:
            raise DialogueError(f"{path} holds {named[0]}, the persona is a {kind}; give the folder above it")
        folder = path
    else:
        folders = sorted(p for p in path.glob(f"{kind}s*") if (p / "responses").is_dir())
        if len(folders) != 1:
            seen = ", ".join(p.name for p in folders) or "none"
            raise DialogueError(
                f"{path}: one folder {kind}s*/ with responses/ in it is expected, found {seen}; "
                "behaviour.source.path is the folder of one model"
            )
        folder = folders[0]
    slug = folder.parent.name if re.match(r"(role|trait)s", folder.name) else folder.name
    return folder, MODEL_SLUGS.get(slug, slug)


def _read_scores(path: Path, kind: str) -> dict[str, tuple[int | None, Any]]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) < len(pairs):
            raise DialogueError(f"{path}: a key comes twice; keep one score a row")
        return entries

    try:
        data = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DialogueError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise DialogueError(f'{path}: an object like {{"pos_p0_q17": 3}} is expected')
    scores = {}
    for key, value in data.items():
        match = SCORE_KEY.fullmatch(key)
        if match is None:
            raise DialogueError(f"{path}: key {key!r} is not {{label}}_p{{prompt}}_q{{question}}")
        label = as_label(match[1], f"{path}: {key}")
        scores[row_key(label, int(match[2]), int(match[3]))] = as_score(value, kind, f"{path}: {key}")
    return scores


def _read_lines(path: Path, model: str, reading: Reading) -> Iterator[Dialogue]:
    """The dialogues of a JSONL file, without scores; unusable rows are counted."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                record = json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise DialogueError(f"{where}: not valid JSON: {error}; cut or mend the line") from error
            if not isinstance(record, dict) or not isinstance(record.get("conversation"), list):
                raise DialogueError(f"{where}: field conversation is missing; a list of turns is expected")
            dialogue = _dialogue(record, record["conversation"], model, where)
            if isinstance(dialogue, str):
                reading.left_out[dialogue] += 1
            else:
                yield dialogue


def _dialogue(record: dict[str, Any], turns: Sequence[Any], model: str, where: str) -> Dialogue | str:
    """A record of either published layout, without its score, or why it cannot be used."""
    label = as_label(record.get("label"), where)
    prompt = as_index(record.get("prompt_index"), "prompt_index", where)
    index = as_index(record.get("question_index"), "question_index", where)
    question = str(record.get("question") or "").strip()
    if not all(isinstance(turn, dict) for turn in turns):
        raise DialogueError(f"{where}: a turn is not an object with role and content")
    taken = take_turns(turns, question, str(record.get("system_prompt") or ""))
    if isinstance(taken, str):
        return taken
    return Dialogue(model, label, prompt, index, question, *taken, None, "missing")


# ------------------------------------------------------------------------------------- processed


@dataclass(frozen=True)
class _Set:
    """One processed data set, by the parts of its name."""

    path: Path
    model: str
    kind: str
    name: str
    minimum: str | None
    label: str | None


SET_NAME = re.compile(
    r"(?P<model>.+?)__(?P<kind>role|trait)__(?P<name>.+?)(?P<minimum>__min\d+)?(?:__(?P<label>pos|neg))?"
)
COLUMNS = (
    "model",
    "system_prompt",
    "label",
    "prompt_index",
    "question_index",
    "question",
    "messages",
    "extract_score",
)


def _read_processed(path: Path, persona: Persona) -> Reading:
    sets = list(_sets(path))
    chosen = _chosen(sets, persona, path)
    reading = Reading()
    for one in chosen:
        reading.dialogues += _of_processed(one, persona.kind, reading)
    if persona.kind == "role":
        defaults = [one for one in sets if one.kind == "role" and DEFAULT_NAME.fullmatch(one.name)]
        mine = sorted((one for one in defaults if one.model == chosen[0].model), key=lambda one: one.name)
        reading.dialogues += _numbered_defaults([_of_processed(one, "role", reading) for one in mine])
    return reading


def _sets(path: Path) -> Iterator[_Set]:
    """The data sets under a root; Parquet where a set is there both ways."""
    if not path.is_dir():
        raise DialogueError(
            f"{path}: no such directory; behaviour.source.path is the root of the processed sets"
        )
    for entry in sorted(path.iterdir()):
        parquet = entry.suffix == ".parquet"
        if not parquet and (not entry.is_dir() or entry.with_name(f"{entry.name}.parquet").is_file()):
            continue
        match = SET_NAME.fullmatch(entry.name.removesuffix(".parquet"))
        if match:
            yield _Set(entry, **match.groupdict())


def _chosen(sets: Sequence[_Set], persona: Persona, path: Path) -> list[_Set]:
    """The persona's whole set, or its pos and neg halves; one model's, and not cut at a minimum score."""
    named = [one for one in sets if one.kind == persona.kind and one.name == persona.name]
    if not named:
        known = sorted({one.name for one in sets if one.kind == persona.kind})
        raise DialogueError(
            f"{path}: no set of the {persona.kind} {persona.name}; it has {', '.join(known[:12]) or 'none'}"
        )
    if len(models := sorted({one.model for one in named})) > 1:
        raise DialogueError(
            f"{path}: {persona.kind} {persona.name} is there of several models ({', '.join(models)}); "
            "point behaviour.source.path at a directory with one model's sets"
        )
    uncut = [one for one in named if one.minimum is None] or named
    whole = [one for one in uncut if one.label is None]
    halves = {one.label: one for one in uncut}
    if len(whole) > 1 or (not whole and len(halves) < len(uncut)):
        raise DialogueError(
            f"{path}: several sets fit: {', '.join(one.path.name for one in uncut)}; keep one"
        )
    return whole or list(halves.values())


def _of_processed(one: _Set, kind: str, reading: Reading) -> list[Dialogue]:
    rows = _read_parquet(one.path) if one.path.suffix == ".parquet" else _from_disk(one.path)
    named = [name for name in ("role", "trait") if name in rows.columns]
    if named != [kind]:
        raise DialogueError(
            f"{one.path}: has column {' and '.join(named) or 'neither role nor trait'}; {kind} is expected"
        )
    if missing := [name for name in COLUMNS if name not in rows.columns]:
        raise DialogueError(f"{one.path}: column {missing[0]} is missing; it has {', '.join(rows.columns)}")
    if rows.is_empty():
        raise DialogueError(f"{one.path}: no rows")
    if others := sorted(set(rows[kind].unique().to_list()) - {one.name}, key=str):
        raise DialogueError(
            f"{one.path}: rows of {kind} {others[0]!r} in the set of {one.name}; split the file"
        )
    dialogues = []
    for number, record in enumerate(rows.iter_rows(named=True)):
        where = f"{one.path}, row {number}"
        model = record["model"] or one.model
        dialogue = _dialogue(record, record["messages"] or [], MODEL_SLUGS.get(model, model), where)
        score, status = as_score(record["extract_score"], kind, where)
        if isinstance(dialogue, str):
            reading.left_out[dialogue] += 1
        else:
            dialogues.append(replace(dialogue, score=score, score_status=status))
    return dialogues


def _read_parquet(path: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DialogueError(
            f"{path}: not a Parquet file that can be read: {error}; fetch or make it anew"
        ) from error


def _from_disk(path: Path) -> pl.DataFrame:
    """A `Dataset`, or the train split of a `DatasetDict`, that `save_to_disk` wrote."""
    try:
        from datasets import Dataset, load_from_disk
    except ImportError as error:
        raise DialogueError(
            f"{path} was written by save_to_disk; install the extra: steer-pipeline[hub]"
        ) from error
    try:
        saved = load_from_disk(str(path))
    except FileNotFoundError as error:
        raise DialogueError(f"{path}: not a directory of save_to_disk: {error}") from error
    if not isinstance(saved, Dataset):
        if "train" not in saved:
            raise DialogueError(f"{path}: no split train; it has {', '.join(saved) or 'none'}")
        saved = saved["train"]
    return pl.DataFrame(saved.with_format("arrow")[:])
