"""Which prompts the heal loop samples, and which others its arms are judged on. Runs no model.

In: the profile's `heal.pool`, truncated news or a file. Out: `prompts.PROMPT_SCHEMA`. Held-out news are near duplicates
of none in the pool, and as far as the corpus allows neither has made a vector or chosen a dose.
"""

import json
from pathlib import Path
from typing import Any

import polars as pl

from steer_pipeline.catalogue.healing import HealPoolSpec
from steer_pipeline.catalogue.specs import Profile
from steer_pipeline.lab.heal.prompts import PROMPT_SCHEMA, check_prompts, spread
from steer_pipeline.lab.heal.teacher import HealError
from steer_pipeline.lab.personas.steps import reserved_for_personas, with_facts
from steer_pipeline.lab.rewrites.work import user_turn
from steer_pipeline.lab.students.data import in_keyed_order, unlike

NEWS = "news"


def pool_of(profile: Profile, news: pl.DataFrame, known_facts: Path, home: Path) -> pl.DataFrame:
    """The prompts of a profile.

    Args:
        news: row_id, source_index, text.
        known_facts: Parquet of ground truth (row_id, facts); other news are held to the facts of their lead.
        home: where relative paths start.

    Raises:
        HealError: there are too few news or prompts, or a line of the file cannot be used (it is named).
    """
    if profile.heal.pool.kind == "file":
        return _of_file(profile.heal.pool, home)
    return _of_news(profile, news, known_facts)


def _of_news(profile: Profile, news: pl.DataFrame, known_facts: Path) -> pl.DataFrame:
    spec = profile.heal.pool
    reserved = reserved_for_personas(profile, news)["row_id"].implode()
    ordered = in_keyed_order(news.unique("text", keep="first", maintain_order=True), spec.seed)
    ordered = ordered.with_columns(seen=pl.col("row_id").is_in(reserved)).sort("seen", maintain_order=True)
    learned = ordered.head(spec.n)
    candidates = ordered.tail(max(0, ordered.height - spec.n)).head(2 * spec.n_held_out)
    held_out = unlike(candidates, learned, profile.corpus.near_duplicate_threshold).head(spec.n_held_out)
    if held_out.height < spec.n_held_out:
        raise HealError(
            f"the corpus has {news.height} news: {spec.n} for the pool leave {held_out.height} that are unlike them, "
            f"{spec.n_held_out} are to be held out; add news, or lower heal.pool.n or heal.pool.n_held_out"
        )
    both = pl.concat([learned.with_columns(held_out=False), held_out.with_columns(held_out=True)])
    rows = with_facts(both, known_facts)
    return check_prompts(
        rows.select(
            prompt_id="row_id",
            category=pl.lit(NEWS),
            prompt=pl.Series([user_turn(profile, text) for text in rows["text"]]),
            system=pl.lit(profile.rewrites.system, pl.String),
            source="text",
            facts="facts",
            held_out="held_out",
        )
    )


def _of_file(spec: HealPoolSpec, home: Path) -> pl.DataFrame:
    path = home / str(spec.path)
    if not path.is_file():
        raise HealError(f"{spec.path}: no such file; heal.pool.path names a JSONL file of prompts")
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    rows = [_line(number, line) for number, line in enumerate(lines, start=1)]
    told = [row for row in rows if "held_out" in row]
    if told and len(told) < len(rows):
        raise HealError(
            f"{spec.path}: {len(told)} of {len(rows)} lines have held_out; give it in all or none"
        )
    frame = check_prompts(pl.DataFrame([{"held_out": False, **row} for row in rows]))
    if not told:
        chosen = spread(frame, spec.n_held_out, spec.seed)["prompt_id"].implode()
        frame = frame.with_columns(held_out=pl.col("prompt_id").is_in(chosen))
    parts = [
        spread(frame.filter(pl.col("held_out") == side), n, spec.seed)
        for side, n in ((False, spec.n), (True, spec.n_held_out))
    ]
    for part, n, name in zip(parts, (spec.n, spec.n_held_out), ("n", "n_held_out"), strict=True):
        if part.height < n:
            raise HealError(f"{spec.path}: {part.height} prompts where heal.pool.{name} wants {n}; add lines")
    return pl.concat(parts)


def _line(number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise HealError(f"line {number} of the prompts is no JSON ({error.msg}); mend it") from error
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
        raise HealError(f"line {number} of the prompts has no prompt; give it, or drop the line")
    known = {name: value for name, value in row.items() if name in PROMPT_SCHEMA}
    return {"prompt_id": f"line{number:05d}", "category": "file"} | known
