"""The comparison of all stored packs: what it reads, what it writes, what of it the UI plots.

In: a reader of the store and the settings. Out: tables, a folder with them, flat numbers. No Dagster here.
"""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import polars as pl

from steer_pipeline.catalogue import load_personas
from steer_pipeline.settings import Settings
from steer_pipeline.stages.rewrites import making

MINILM_CONTEXTS = 96  # a side and persona; embedding more of the contrast set moves no held-out AUC


def targeted_personas(now: Settings) -> list[str]:
    """Personas that some variant must move, in catalogue order: the traits that every variant is scored on."""
    wanted = {persona for spec in now.variants.values() for persona in spec.targets}
    return [name for name in load_personas() if name in wanted]


def compare_stored(read: making.Reader, now: Settings) -> tuple[Any, dict[str, str]]:
    """`ComparisonTables` of every current pack, in the catalogue's order, and the versions that were read.

    Raises:
        ValueError: base, base_resample or random_direction has no pack.
    """
    from steer_pipeline.lab.reports.comparison import compare_variants

    current = {name: read.current("rewrite_pack", name) for name in now.variants}
    packs = {name: making.read_rows(version.path) for name, version in current.items() if version}
    if not packs:
        raise making.Refused("there is no rewrite_pack to compare: materialise rewrite_pack first")
    rows = pl.concat([pack.select("row_id") for pack in packs.values()])
    source = making.read_news_source(read, rows, now)
    tables = compare_variants(
        packs, source.facts, scorers(read, now), now.profile.rewrites.sampling.seed, sources=source.texts
    )
    return tables, {name: version.sha for name, version in current.items() if version}


def scorers(read: making.Reader, now: Settings) -> dict[str, dict[str, Any]]:
    """persona -> scale -> scorer: the lexicon, and MiniLM where the persona has a contrast set."""
    from steer_pipeline.lab.evaluation import LexiconScorer, MiniLMScorer

    personas, seed = load_personas(), now.profile.vector.seed
    found: dict[str, dict[str, Any]] = {}
    for name in targeted_personas(now):
        found[name] = {"lexicon": LexiconScorer(personas[name])} if personas[name].positive.lexicon else {}
        contrast = read.current("contrast_set", name)
        if contrast is not None:
            said = spoken(making.read_rows(contrast.path))
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


def write_tables(tables: Any, versions: dict[str, str], folder: Path) -> None:
    """One Parquet file a table, and `versions.json`."""
    for table in fields(tables):
        getattr(tables, table.name).write_parquet(folder / f"{table.name}.parquet")
    (folder / "versions.json").write_text(json.dumps(versions, indent=1, sort_keys=True) + "\n")


def read_tables(folder: Path) -> tuple[Any, dict[str, str]]:
    """What `write_tables` wrote."""
    from steer_pipeline.lab.reports.comparison import ComparisonTables

    found = {
        table.name: pl.read_parquet(folder / f"{table.name}.parquet") for table in fields(ComparisonTables)
    }
    return ComparisonTables(**found), json.loads((folder / "versions.json").read_text())


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
