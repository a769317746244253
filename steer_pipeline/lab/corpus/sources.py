"""Reads news as a stream of batches, from the shipped news, files, a directory or the hub.

In: a `NewsSource` and the project home. Out: `NewsBatch`es of accepted rows and of quarantined lines, in
source order; every line that is not blank ends in one of the two. Memory is bounded by one batch.
Formats: JSONL, gzipped JSONL and Parquet, with the CC-News fields; only `text` is required, and only `text`
and `url` can set a line aside: an odd title, date or author is read as well as it goes, or left empty.
"""

import codecs
import glob
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from steer_pipeline.catalogue.specs import NewsSource
from steer_pipeline.lab.corpus.cleaning import author_list, clean_text, date_string, is_missing, plain_string
from steer_pipeline.lab.corpus.identity import row_id

TEXT_FIELDS = ("title", "description", "text", "domain", "date", "url")
FIELDS = (*TEXT_FIELDS, "authors")
ROW_SCHEMA = pl.Schema(
    {
        "row_id": pl.String(),
        "source_index": pl.Int64(),
        "title": pl.String(),
        "description": pl.String(),
        "text": pl.String(),
        "domain": pl.String(),
        "date": pl.String(),
        "authors": pl.List(pl.String()),
        "url": pl.String(),
    }
)
QUARANTINE_SCHEMA = pl.Schema(
    {"file": pl.String(), "line": pl.Int64(), "reason": pl.String(), "excerpt": pl.String()}
)

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
HUB_DATASET = "vblagoje/cc_news"
BATCH_ROWS = 2048
BATCH_CHARS = 16 * 2**20
MAX_LINE_BYTES = 16 * 2**20
EXCERPT_CHARS = 160


class SourceError(ValueError):
    """A news source cannot be read at all. The message names it and the cure."""


@dataclass(frozen=True)
class NewsBatch:
    """Accepted rows (`ROW_SCHEMA`) and quarantined lines (`QUARANTINE_SCHEMA`) of one stretch of a source.

    Attributes:
        mended: accepted rows by what was done to them: HTML or mojibake taken out of the text, an optional
            field read from another type (`date_coerced`) or left empty (`title_blanked`).
    """

    rows: pl.DataFrame
    quarantine: pl.DataFrame
    mended: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class _Line:
    """One line that is not blank. `problem` says why it did not parse; `value` is what it parsed to."""

    file: str
    number: int
    value: Any
    problem: str = ""
    excerpt: str = ""


def read_news(source: NewsSource, home: Path, batch_rows: int = BATCH_ROWS) -> Iterator[NewsBatch]:
    """Streams a news source; at least one batch.

    `source_index` is the ordinal, over all files in order, of the lines that parse to an object: an
    article that is quarantined for its content (empty text, a wrong type, too short) uses up an index
    and makes no row, a line that does not parse uses up none. `limit` counts accepted rows; what
    follows the last of them is not read.

    Args:
        source: what to read. Relative paths start at `home`.
        home: the project root.
        batch_rows: lines of a batch; a batch also ends after `BATCH_CHARS` characters of text.

    Raises:
        SourceError: nothing to read at the path or in its files, a format that is not supported, a file
            that is damaged as a whole, or a missing package.
    """
    rows: list[dict[str, Any]] = []
    bad: list[tuple[str, int, str, str]] = []
    mended: Counter[str] = Counter()
    index = accepted = chars = 0
    seen = False
    for line in _lines(source, home):
        seen = True
        problem = line.problem
        if not problem:
            row, problem, done = _row(line.value, source.min_chars)
            if not problem:
                mended.update(done)
                row["source_index"] = index
                rows.append(row)
                accepted += 1
                chars += len(row["text"])
            index += 1
        if problem:
            excerpt = line.excerpt or _excerpt(str(line.value))
            bad.append((line.file, line.number, problem, excerpt))
        if len(rows) + len(bad) >= batch_rows or chars >= BATCH_CHARS:
            yield _batch(rows, bad, mended)
            rows, bad, mended, chars = [], [], Counter(), 0
        if accepted == source.limit:
            break
    if not seen:
        raise SourceError(
            f"{_names(source, home)}: empty, not one line with an article; "
            "put news there (JSONL or Parquet with a field `text`), or correct corpus.source.path"
        )
    if rows or bad:
        yield _batch(rows, bad, mended)


def _batch(
    rows: list[dict[str, Any]], bad: list[tuple[str, int, str, str]], mended: Counter[str]
) -> NewsBatch:
    return NewsBatch(
        pl.DataFrame(rows, schema=ROW_SCHEMA),
        pl.DataFrame(bad, schema=QUARANTINE_SCHEMA, orient="row"),
        mended,
    )


def _excerpt(text: str) -> str:
    return text[:EXCERPT_CHARS].encode("utf-8", "replace").decode()


def _row(value: dict[str, Any], min_chars: int) -> tuple[dict[str, Any], str, set[str]]:
    """A row without its index, or the reason why there is none; and what was mended in it."""
    row: dict[str, Any] = {}
    for name in ("text", "url"):
        given = value.get(name)
        if is_missing(given):
            if name == "text":
                return row, "missing text", set()
            given = ""
        if not isinstance(given, str):
            return row, f"wrong type: {name} is {type(given).__name__}, expected a string", set()
        try:
            given.encode()
        except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
            return row, f"not Unicode: unpaired surrogate {error.object[error.start]!r} in {name}", set()
        row[name] = given
    row["text"], done = clean_text(row["text"])
    if not row["text"].strip():
        return row, "empty text", done
    if len(row["text"]) < min_chars:
        return row, f"short text: fewer than {min_chars} characters", done
    row["row_id"] = row_id(row["url"], row["text"])
    for name, read in _OPTIONAL.items():
        given = value.get(name)
        found = read(given)
        if found is None:
            done.add(f"{name}_blanked")
            found = [] if name == "authors" else ""
        elif not (is_missing(given) or found == given):
            done.add(f"{name}_coerced")
        row[name] = clean_text(found)[0] if name in ("title", "description") else found
    return row, "", done


_OPTIONAL: dict[str, Callable[[Any], Any]] = {
    "title": plain_string,
    "description": plain_string,
    "domain": plain_string,
    "date": date_string,
    "authors": author_list,
}


# ----------------------------------------------------------------------------------- where lines come from


def _lines(source: NewsSource, home: Path) -> Iterator[_Line]:
    if source.kind == "hub":
        yield from _hub_lines(source, home)
        return
    for path in news_files(source, home):
        name = path.relative_to(home).as_posix() if path.is_relative_to(home) else str(path)
        yield from _parquet_lines(path, name) if path.suffix == ".parquet" else _json_lines(path, name)


def _names(source: NewsSource, home: Path) -> str:
    if source.kind == "hub":
        return f"{source.path or HUB_DATASET}[{source.split}]"
    return ", ".join(str(path) for path in news_files(source, home)[:5])


def news_files(source: NewsSource, home: Path) -> list[Path]:
    """The files of a `sample`, `news_en`, `files` or `directory` source, in reading order.

    Raises:
        SourceError: there are none, or one has a suffix that is not supported.
    """
    if source.kind == "sample":
        folder = home / "assets_data" / "newsroom"
        found = [folder / f"news{suffix}" for suffix in SUFFIXES if (folder / f"news{suffix}").is_file()][:1]
        cure = "restore it from the repository (git checkout -- assets_data/newsroom)"
    elif source.kind == "news_en":
        folder = home / "assets_data" / "news_en"
        found = sorted(folder.glob("*.jsonl"))
        cure = "restore them from the repository (git checkout -- assets_data/news_en)"
    elif source.path is None:
        raise SourceError(f"corpus.source.path: a source of kind {source.kind} needs one")
    elif source.kind == "directory":
        folder = home / Path(source.path).expanduser()
        entries = folder.iterdir() if folder.is_dir() else ()
        found = sorted(path for path in entries if path.is_file() and path.name.endswith(SUFFIXES))
        cure = f"put files ending in {', '.join(SUFFIXES)} there, or correct corpus.source.path"
    else:
        folder = home / Path(source.path).expanduser()
        matches = [folder] if folder.exists() else glob.glob(str(folder), recursive=True)
        found = sorted(Path(path) for path in matches)
        cure = "correct corpus.source.path (a file, or a glob such as news/*.jsonl)"
    if not found:
        raise SourceError(f"no news at {folder}: {cure}")
    for path in found:
        if path.is_dir():
            raise SourceError(f"{path} is a directory: use corpus.source.kind directory, or a glob")
        if not path.name.endswith(SUFFIXES):
            raise SourceError(f"{path}: not a news format; rename or convert it to {', '.join(SUFFIXES)}")
    return found


def _json_lines(path: Path, name: str) -> Iterator[_Line]:
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            while raw := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if number == 1:
                    raw = raw.removeprefix(codecs.BOM_UTF8)
                if len(raw) > MAX_LINE_BYTES:
                    excerpt = _excerpt(raw[: 4 * EXCERPT_CHARS].decode("utf-8", "replace"))
                    while not raw.endswith(b"\n") and (raw := file.readline(MAX_LINE_BYTES)):
                        pass
                    yield _Line(name, number, None, f"long line: over {MAX_LINE_BYTES} bytes", excerpt)
                elif raw.strip():
                    yield _parse(raw.rstrip(b"\r\n"), name, number)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise SourceError(f"{path}: damaged after line {number}: {error}; download the file again") from error


def _parse(raw: bytes, name: str, number: int) -> _Line:
    problem = ""
    value = None
    try:
        value = json.loads(raw.decode())
        if not isinstance(value, dict):
            problem = f"not an object: {type(value).__name__}"
    except UnicodeDecodeError as error:
        problem = f"not UTF-8: byte {error.start + 1}"
    except json.JSONDecodeError as error:
        problem = f"not JSON: {error.msg} at column {error.colno}"
    except (RecursionError, ValueError) as error:  # absurd nesting; integers of thousands of digits
        problem = f"not JSON: {error}"
    excerpt = _excerpt(raw[: 4 * EXCERPT_CHARS].decode("utf-8", "replace").strip())
    return _Line(name, number, value, problem, excerpt)


def _parquet_lines(path: Path, name: str) -> Iterator[_Line]:
    number = 0
    try:
        table = pl.scan_parquet(path, glob=False)
        columns = table.collect_schema().names()
        if "text" not in columns:
            raise SourceError(f"{path}: no column `text` among {columns}; rename the one with the articles")
        known = table.select(name for name in FIELDS if name in columns)
        for batch in known.collect_batches(chunk_size=BATCH_ROWS, maintain_order=True, engine="streaming"):
            for value in batch.iter_rows(named=True):
                number += 1
                yield _Line(name, number, value)
    except pl.exceptions.ComputeError as error:
        raise SourceError(f"{path}: damaged after row {number}: {error}; write the file again") from error


def _hub_lines(source: NewsSource, home: Path) -> Iterator[_Line]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise SourceError("news from the hub needs the package datasets: pip install '.[hub]'") from error
    name = HUB_DATASET if source.path in (None, "cc_news") else source.path
    local = home / name
    data = load_dataset(str(local) if local.exists() else name, split=source.split, streaming=True)
    for number, value in enumerate(data, start=1):
        yield _Line(f"{name}[{source.split}]", number, value)
