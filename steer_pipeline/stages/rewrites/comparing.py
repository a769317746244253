"""The comparison of all stored packs: what it reads, what it writes, what of it the UI plots.

In: a reader of the store and the settings. Out: tables, a folder with them, flat numbers. No Dagster here.
"""

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import polars as pl

from steer_pipeline.catalogue.loading import read_personas
from steer_pipeline.io.reader import Reader, read_rows
from steer_pipeline.partitions import TARGETED
from steer_pipeline.settings import Settings
from steer_pipeline.stages.rewrites import making

MINILM_CONTEXTS = 96  # a side and persona; embedding more of the contrast set moves no held-out AUC


@dataclass(frozen=True)
class Compared:
    """`ComparisonTables`, the versions of the packs in them, and which packs are not among them, and why."""

    tables: Any
    versions: dict[str, str]
    left_out: dict[str, str] = field(default_factory=dict)


def compare_stored(read: Reader, now: Settings) -> Compared:
    """Every current pack, in the catalogue's order; without those that were made otherwise than base.

    Raises:
        ValueError: base, base_resample or random_direction has no pack, or was made otherwise.
    """
    from steer_pipeline.lab.rewrites.comparison import NEEDED, compare_variants

    current = {name: read.current("rewrite_pack", name) for name in now.variants}
    packs = {name: read_rows(version.path) for name, version in current.items() if version}
    if "base" not in packs:
        raise making.Refused("there is no rewrite_pack of base to compare with: materialise it first")
    left_out = {name: why for name, pack in packs.items() if (why := obstacle(pack, packs["base"]))}
    if needed := [f"{name}: {left_out[name]}" for name in NEEDED if name in left_out]:
        raise making.Refused(
            f"{'; '.join(needed)}. Nothing is compared without its controls: make them again"
        )
    packs = {name: pack for name, pack in packs.items() if name not in left_out}
    rows = pl.concat([pack.select("row_id") for pack in packs.values()])
    source = making.read_news_source(read, rows, now)
    tables = compare_variants(
        packs,
        source.facts,
        scorers(read, now),
        {name: now.variants[name].role for name in packs},
        now.profile.rewrites.sampling.seed,
        sources=source.texts,
    )
    versions = {name: version.sha for name, version in current.items() if version and name in packs}
    return Compared(tables, versions, left_out)


def obstacle(pack: pl.DataFrame, base: pl.DataFrame) -> str:
    """Why a pack cannot stand beside base; empty if it can."""
    from steer_pipeline.lab.rewrites.work import differences

    if pack.is_empty():
        return "its pack has no rows"
    if any("made_with" not in rows.columns for rows in (pack, base)):
        return "it does not say how it was made: materialise rewrite_raw again"
    mine, theirs = pack["size"][0], base["size"][0]
    sizes = [] if mine == theirs else [f"size is {mine}, in base {theirs}"]
    return "; ".join([*differences(pack, base), *sizes])


def scorers(read: Reader, now: Settings) -> dict[str, dict[str, Any]]:
    """persona -> scale -> scorer: the lexicon, and MiniLM where the persona has a contrast set."""
    from steer_pipeline.lab.evaluation import LexiconScorer, MiniLMScorer

    (personas, _), seed = read_personas(), now.profile.vector.seed
    found: dict[str, dict[str, Any]] = {}
    for name in (name for name in TARGETED if name in personas):
        found[name] = {"lexicon": LexiconScorer(personas[name])} if personas[name].positive.lexicon else {}
        contrast = read.current("contrast_set", name)
        if contrast is not None:
            said = spoken(read_rows(contrast.path))
            sides = [said.filter(pl.col("side") == side) for side in ("positive", "negative")]
            groups = [context for side in sides for context in side["context_id"]]
            found[name]["minilm"] = MiniLMScorer(seed=seed).fit(
                *(s["completion"].to_list() for s in sides), groups
            )
    return found


def spoken(contrast: pl.DataFrame) -> pl.DataFrame:
    """Completions with text, of the first contexts by name that have both sides."""
    said = contrast.filter(pl.col("completion").str.strip_chars().str.len_chars() > 0)
    both = said.group_by("context_id").agg(sides=pl.col("side").n_unique()).filter(pl.col("sides") == 2)
    contexts = both["context_id"].sort().head(MINILM_CONTEXTS)
    return said.filter(pl.col("context_id").is_in(contexts.implode()))


def write_tables(compared: Compared, folder: Path) -> None:
    """One Parquet file a table, `versions.json` and `left_out.json`."""
    for table in fields(compared.tables):
        getattr(compared.tables, table.name).write_parquet(folder / f"{table.name}.parquet")
    for name in ("versions", "left_out"):
        said = json.dumps(getattr(compared, name), indent=1, sort_keys=True)
        (folder / f"{name}.json").write_text(said + "\n")


def read_tables(folder: Path) -> Compared:
    """What `write_tables` wrote."""
    from steer_pipeline.lab.rewrites.comparison import ComparisonTables

    found = {
        table.name: pl.read_parquet(folder / f"{table.name}.parquet") for table in fields(ComparisonTables)
    }
    versions, left_out = (
        json.loads((folder / f"{name}.json").read_text()) for name in ("versions", "left_out")
    )
    return Compared(ComparisonTables(**found), versions, left_out)


def numbers(tables: Any) -> dict[str, float | int]:
    """One number a variant and trait on the lexicon's scale, and the shares that the UI plots."""
    plotted: dict[str, float | int] = {"compared_rows": tables.rows.height}
    for row in tables.summary.iter_rows(named=True):
        if row["metric"].startswith("trait_") and row["difference"] is not None:
            plotted[f"{row['metric']}_shift_{row['variant']}"] = row["difference"]
        elif row["metric"] in ("facts_kept", "suspect") and row["mean"] is not None:
            plotted[f"{row['metric']}_{row['variant']}"] = row["mean"]
    return plotted


def shifts(tables: Any) -> dict[str, tuple[dict[str, tuple[float, float, float]], str]]:
    """Trait metric -> (variant -> shift, low, high; label of the axis), for the plots in the UI."""
    drawn: dict[str, tuple[dict[str, tuple[float, float, float]], str]] = {}
    for row in tables.summary.iter_rows(named=True):
        if row["metric"].startswith("trait_") and row["low"] is not None:
            trait = row["metric"].removeprefix("trait_")
            lines, _ = drawn.setdefault(trait, ({}, f"shift of {trait.replace('_', ' ')} to base, 95%"))
            lines[row["variant"]] = (row["difference"], row["low"], row["high"])
    return drawn
