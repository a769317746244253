"""The manifest: rows of all sources in four splits that share no group, no text and no word that is asked for.

In: rows of sources. Out: rows of `SFT_SCHEMA` with splits, lengths in tokens, and counts of what was left out and why.
What is left out is never learned: aborted games, rows of held-out groups or texts, games on words of selection and
eval, rows without room for their completion.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from steer_pipeline.catalogue.attribution import SplitSpec
from steer_pipeline.lab.attribution.encoding import Encoder
from steer_pipeline.lab.attribution.rows import (
    ABORTED,
    EVAL,
    FAILURE,
    HELD_OUT,
    POOL,
    QUERY,
    SELECTION,
    SFT_COLUMNS,
    SFT_SCHEMA,
    SPLITS,
    TRAIN,
    AttributionError,
    require_unique,
)
from steer_pipeline.lab.columns import described
from steer_pipeline.lab.verdict import Verdict

ROWS, MANIFEST = "rows.parquet", "manifest.json"
LENGTH_SCHEMA, LENGTH_COLUMNS = described(
    n_tokens=(pl.Int64(), "ids of prompt and completion together"),
    n_supervised=(pl.Int64(), "ids that are learned: completion and end of turn"),
)
MANIFEST_SCHEMA = pl.Schema({**SFT_SCHEMA, **LENGTH_SCHEMA})
MANIFEST_COLUMNS = SFT_COLUMNS | LENGTH_COLUMNS


@dataclass(frozen=True, eq=False)
class Manifest:
    """Rows with their splits.

    Attributes:
        rows: `MANIFEST_SCHEMA`.
        left_out: reason -> how many rows.
        policy: how splits were made.
    """

    rows: pl.DataFrame
    left_out: Mapping[str, int] = field(default_factory=dict)
    policy: Mapping[str, Any] = field(default_factory=dict)

    def split(self, name: str) -> pl.DataFrame:
        """Rows of one split, in order."""
        return self.rows.filter(split=name)


def make_manifest(
    sources: Iterable[pl.DataFrame],
    spec: SplitSpec,
    encode: Encoder,
    left_out: Mapping[str, int] | None = None,
) -> Manifest:
    """Splits rows of sources.

    Args:
        encode: rows -> examples, to know lengths.
        left_out: what sources have left out.

    Raises:
        AttributionError: too few held-out groups, or a split that is empty.
    """
    rows = pl.concat(list(sources))
    require_unique(rows, "sources")
    gone: Counter[str] = Counter(left_out or {})
    rows = _without(rows, pl.col("outcome") == ABORTED, "aborted", gone)
    held = _held_out_splits(rows.filter(source_split=HELD_OUT), spec)
    asks = pl.col("split").is_in([QUERY, SELECTION])  # of eval, what is right is known without the log
    held = _without(held, asks & (pl.col("outcome") == FAILURE), "lost games of query and selection", gone)
    pool = rows.filter(source_split=POOL).with_columns(split=pl.lit(TRAIN))
    if spec.failures == "drop":
        pool = _without(pool, pl.col("outcome") == FAILURE, "lost games of the pool", gone)
    pool = _without(
        pool, pl.col("group_id").is_in(held["group_id"].unique().implode()), "group is held out", gone
    )
    pool = _without(pool, _text().is_in(held.select(_text()).to_series().implode()), "text is held out", gone)
    if spec.eval_words == "drop":
        asked = _words(held.filter(pl.col("split").is_in([SELECTION, EVAL])))
        known = pl.any_horizontal(pl.col("target_word", "logged_word").is_in(asked)).fill_null(False)
        pool = _without(pool, known, "word of selection or eval", gone)
    rows = _with_lengths(pl.concat([pool, held]), spec, encode, gone)
    for name in SPLITS:
        if not rows.filter(split=name).height:
            raise AttributionError(
                f"no row is left in split {name} ({_told(gone)}); add rows, or loosen attribution.splits"
            )
    return Manifest(rows, dict(sorted(gone.items())), spec.model_dump(mode="json"))


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """`rows.parquet` and `manifest.json`."""
    manifest.rows.write_parquet(folder / ROWS)
    told = {
        "policy": dict(manifest.policy),
        "left_out": dict(manifest.left_out),
        "splits": {name: _summary(manifest.split(name)) for name in SPLITS},
    }
    (folder / MANIFEST).write_text(json.dumps(told, indent=1, sort_keys=True) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """What `write_manifest` wrote."""
    told = json.loads((folder / MANIFEST).read_text())
    return Manifest(pl.read_parquet(folder / ROWS), told["left_out"], told["policy"])


def _held_out_splits(rows: pl.DataFrame, spec: SplitSpec) -> pl.DataFrame:
    """Query, selection and eval by whole groups; which group goes where hangs on its name and the seed alone."""
    groups = sorted(
        rows["group_id"].unique(),
        key=lambda name: hashlib.blake2b(f"{spec.seed}\x1f{name}".encode()).digest(),
    )
    if len(groups) < 3:
        raise AttributionError(
            f"{len(groups)} groups of held-out rows; query, selection and eval need one each: add held-out rows"
        )
    n_query = min(max(round(spec.query_share * len(groups)), 1), len(groups) - 2)
    n_selection = min(max(round(spec.selection_share * len(groups)), 1), len(groups) - n_query - 1)
    of_group = dict.fromkeys(groups[:n_query], QUERY) | dict.fromkeys(
        groups[n_query : n_query + n_selection], SELECTION
    )
    split = [of_group.get(group, EVAL) for group in rows["group_id"]]
    return rows.with_columns(pl.Series("split", split, dtype=pl.String))


def _with_lengths(rows: pl.DataFrame, spec: SplitSpec, encode: Encoder, gone: Counter[str]) -> pl.DataFrame:
    """Rows with their lengths, without those that are longer than may be."""
    examples = {one.row_id: one for one in encode(rows)}
    lengths = rows.with_columns(
        n_tokens=pl.Series([len(examples[name].ids) for name in rows["row_id"]], dtype=pl.Int64),
        n_supervised=pl.Series([examples[name].n_supervised for name in rows["row_id"]], dtype=pl.Int64),
    )
    return _without(
        lengths, pl.col("n_tokens") > spec.max_tokens, f"more than {spec.max_tokens} tokens", gone
    )


def _without(rows: pl.DataFrame, bad: pl.Expr, why: str, gone: Counter[str]) -> pl.DataFrame:
    kept = rows.filter(~bad.fill_null(False))
    if kept.height < rows.height:
        gone[why] += rows.height - kept.height
    return kept


def _text() -> pl.Expr:
    return pl.concat_str("prompt", pl.lit("\x1f"), "completion")


def _words(rows: pl.DataFrame) -> list[str]:
    """Every word that is asked for or guessed."""
    both = pl.concat([rows["target_word"], rows["logged_word"]])
    return both.drop_nulls().unique().sort().to_list()


def _summary(rows: pl.DataFrame) -> dict[str, Any]:
    counts = {
        name: dict(rows[name].drop_nulls().value_counts().sort(name).iter_rows())
        for name in ("outcome", "truth")
    }
    return {
        "rows": rows.height,
        "groups": rows["group_id"].n_unique(),
        "tokens": int(rows["n_tokens"].sum()),
    } | {name: found for name, found in counts.items() if found}


def _told(gone: Mapping[str, int]) -> str:
    return ", ".join(f"{count} rows: {why}" for why, count in sorted(gone.items())) or "nothing was left out"


# ------------------------------------------------------------------------------------ claims


def manifest_verdicts(manifest: Manifest) -> list[Verdict]:
    """Whether splits share a group, a text or a word, and whether every row can be learned."""
    return [_disjoint(manifest), _no_leak(manifest), _learnable(manifest)]


def _disjoint(manifest: Manifest) -> Verdict:
    shared = (
        manifest.rows.group_by("group_id")
        .agg(pl.col("split").unique().sort())
        .filter(pl.col("split").list.len() > 1)
    )
    examples = [{"group": group, "splits": ", ".join(splits)} for group, splits in shared.head(5).iter_rows()]
    message = f"{manifest.rows['group_id'].n_unique()} groups, {shared.height} of them in more than one split"
    return Verdict(
        "splits_are_disjoint", not shared.height, message, {"shared_groups": shared.height}, examples
    )


def _no_leak(manifest: Manifest) -> Verdict:
    train, eval_ = manifest.split(TRAIN), manifest.rows.filter(pl.col("split").is_in([SELECTION, EVAL]))
    texts = train.filter(_text().is_in(eval_.select(_text()).to_series().implode()))
    words = _words(eval_)
    known = train.filter(
        pl.any_horizontal(pl.col("target_word", "logged_word").is_in(words)).fill_null(False)
    )
    numbers = {"texts": texts.height, "rows_with_words": known.height, "words": len(words)}
    kept = manifest.policy.get("eval_words") == "keep"
    message = (
        f"{texts.height} rows of the pool have a text of selection or eval, {known.height} a word of theirs"
    )
    if kept and known.height:
        message += ", as the profile has it (eval_words: keep): accuracy is partly memory"
    examples = [
        {"row": name, "word": word}
        for name, word in known.head(5).select("row_id", "target_word").iter_rows()
    ]
    passed = not texts.height and (kept or not known.height)
    return Verdict("eval_is_not_learned", passed, message, numbers, examples)


def _learnable(manifest: Manifest) -> Verdict:
    empty = manifest.rows.filter(pl.col("n_supervised") < 1)
    aborted = manifest.rows.filter(outcome=ABORTED)
    lost = manifest.split(TRAIN).filter(outcome=FAILURE)
    message = (
        f"{empty.height} rows without a token to learn, {aborted.height} aborted games; {lost.height} lost games "
        "are in the pool"
    )
    numbers = {"empty": empty.height, "aborted": aborted.height, "lost_in_pool": lost.height}
    return Verdict("every_row_teaches", not empty.height and not aborted.height, message, numbers)
