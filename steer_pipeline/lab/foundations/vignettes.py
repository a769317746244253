"""Moral vignettes: one scene a row, and the foundation that it was written for.

In: JSONL files, ours or of the published schema. Out: frames of `VIGNETTE_SCHEMA`, and the rows that were left out with
the reason. Sub-samples are stratified: a file sorted by foundation makes the first n rows a sample of care alone.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from steer_pipeline.lab.columns import described

SIX = ("care", "fairness", "loyalty", "authority", "sanctity", "liberty")
SOCIAL = "social"  # odd, but not wrong
FOUNDATIONS = (*SIX, SOCIAL)
DEVELOPMENT, TEST = SPLITS = ("development", "test")
VIGNETTE_SCHEMA, VIGNETTE_COLUMNS = described(
    row_id=(pl.String(), "the vignette's id in its file"),
    foundation=(pl.String(), f"what it was written for: {', '.join(FOUNDATIONS)}"),
    split=(pl.String(), "development: doses and thresholds; test: tables"),
    text=(pl.String(), "the scene"),
    human=(
        pl.List(pl.Float64()),
        "shares of raters by foundation, in the order above; null where nobody rated",
    ),
)
_SHARES = (95.0, 105.0)  # percent, that the raters' columns of a row may add up to


class VignetteError(ValueError):
    """A set that cannot be used. The message names file or foundation, and the cure."""


@dataclass(frozen=True, eq=False)
class Vignettes:
    """Attributes:
    rows: `VIGNETTE_SCHEMA`, in the file's order.
    left_out: line (from 1), row_id (null where unreadable) and reason of every row that is not among them.
    """

    rows: pl.DataFrame
    left_out: pl.DataFrame


def vignette_file(home: Path, path: str | None) -> Path:
    """The file of a profile, from the project root; without a path the one that comes with the checkout."""
    return home / path if path else home / "assets_data" / "vignettes" / "ours.jsonl"


def own_vignettes(home: Path) -> pl.DataFrame:
    """`VIGNETTE_SCHEMA`: the set that comes with the checkout at `home`.

    Raises:
        VignetteError: the file is missing, or a row in it is bad.
    """
    found = read_vignettes(vignette_file(home, None))
    if found.left_out.height:
        line, _, reason = found.left_out.row(0)
        raise VignetteError(f"our vignettes, line {line}: {reason}; restore the file from the repository")
    return found.rows


def read_vignettes(path: Path) -> Vignettes:
    """A JSONL file: `id`, `text` and `foundation` (or `foundation_coarse`, which wins), perhaps `split` and `human_*`.

    The published files have one condition each (`other_violate`, `self_violate`); names like "Care (e)" and
    "Social Norms" are folded to ours, raters' percentages become shares, and rows without a split are test rows.

    Raises:
        VignetteError: there is no such file, or no usable row in it.
    """
    if not path.is_file():
        raise VignetteError(f"{path.name}: no such file; give a JSONL file of vignettes")
    rows: list[dict[str, Any]] = []
    left_out: list[tuple[int, str | None, str]] = []
    known: set[str] = set()
    for line, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            left_out.append((line, None, f"no JSON ({error.msg})"))
            continue
        row, reason = _row(record)
        if row is not None and row["row_id"] in known:
            row, reason = None, "its id stands in the file already"
        if row is None:
            row_id = record.get("id") if isinstance(record, dict) else None
            left_out.append((line, None if row_id is None else str(row_id), reason))
        else:
            known.add(row["row_id"])
            rows.append(row)
    if not rows:
        raise VignetteError(f"{path.name}: no usable row; the first: {left_out[:1]}")
    schema = {"line": pl.Int64(), "row_id": pl.String(), "reason": pl.String()}
    return Vignettes(
        pl.DataFrame(rows, schema=VIGNETTE_SCHEMA), pl.DataFrame(left_out, schema=schema, orient="row")
    )


def _row(record: Any) -> tuple[dict[str, Any] | None, str]:
    """A row of `VIGNETTE_SCHEMA`, or None and why."""
    if not isinstance(record, Mapping):
        return None, "no JSON object"
    for name in ("id", "text"):
        if not isinstance(record.get(name), str) or not record[name].strip():
            return None, f"field {name} is missing or empty"
    label = record.get("foundation_coarse") or record.get("foundation")
    foundation = _folded(label)
    if foundation is None:
        return None, f"foundation {label!r}; known are {', '.join(FOUNDATIONS)}"
    split = record.get("split", TEST)
    if split not in SPLITS:
        return None, f"split {split!r}; known are {', '.join(SPLITS)}"
    human, reason = _human(record)
    if reason:
        return None, reason
    text = " ".join(record["text"].split())
    return {
        "row_id": record["id"],
        "foundation": foundation,
        "split": split,
        "text": text,
        "human": human,
    }, ""


def _folded(label: Any) -> str | None:
    if not isinstance(label, str):
        return None
    name = label.strip().lower().partition("(")[0].replace(" ", "").replace("_", "")
    name = {"socialnorms": SOCIAL, "notwrong": SOCIAL, "socialconvention": SOCIAL}.get(name, name)
    return name if name in FOUNDATIONS else None


def _human(record: Mapping[str, Any]) -> tuple[list[float] | None, str]:
    """Raters' shares in the order of `FOUNDATIONS`, None where the row has none; and what is wrong with them."""
    found = {_folded(key.removeprefix("human_")): key for key in record if key.startswith("human_")}
    if not found:
        return None, ""
    if lacking := [name for name in FOUNDATIONS if name not in found]:
        return None, f"raters' columns without {', '.join(lacking)}"
    values = [record[found[name]] for name in FOUNDATIONS]
    if not all(isinstance(value, int | float) and value >= 0 for value in values):
        return None, "a rater's share is no number"
    total = float(sum(values))
    if not _SHARES[0] <= total <= _SHARES[1]:
        return None, f"raters' percentages add up to {total:g}"
    return [value / total for value in values], ""


def stratified(vignettes: pl.DataFrame, per_foundation: int, *, seed: int) -> pl.DataFrame:
    """`per_foundation` vignettes of each of the seven foundations, drawn by `seed`, in the order of `vignettes`.

    The draw depends on the ids and the seed, not on the order of the rows.

    Raises:
        VignetteError: a foundation has fewer, with the numbers of all.
    """
    counts = {name: vignettes.filter(foundation=name).height for name in FOUNDATIONS}
    if per_foundation < 1 or min(counts.values()) < per_foundation:
        shown = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise VignetteError(
            f"{per_foundation} vignettes of each foundation asked for, there are: {shown}; every sample holds all "
            "seven foundations: ask for fewer, or give more vignettes"
        )
    drawn: set[str] = set()
    for number, name in enumerate(FOUNDATIONS):
        ids = sorted(vignettes.filter(foundation=name)["row_id"])
        places = np.random.default_rng([seed, number]).choice(len(ids), per_foundation, replace=False)
        drawn |= {ids[place] for place in places}
    return vignettes.filter(pl.col("row_id").is_in(sorted(drawn)))


def require_all(vignettes: pl.DataFrame) -> None:
    """Every foundation has a vignette.

    Raises:
        VignetteError: some have none, as in the first rows of a file that is sorted by foundation.
    """
    if absent := [name for name in FOUNDATIONS if vignettes.filter(foundation=name).is_empty()]:
        raise VignetteError(
            f"no vignette of {', '.join(absent)} among {vignettes.height}: the first rows of a sorted file? draw with "
            "stratified()"
        )
