"""The comparison of stored packs: which of them stand in it, what scores them, how its tables are kept.

In: a reader of the store and the settings. Out: `Compared`, as a value and as a folder, and flat numbers for plots.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import NamedTuple

import polars as pl

from steer_pipeline.catalogue.loading import read_personas
from steer_pipeline.catalogue.specs import Profile
from steer_pipeline.io.reader import Reader, read_rows
from steer_pipeline.lab.evaluation import TraitScorer, needs_contrast, require_telling, trait_scales
from steer_pipeline.lab.rewrites import Refused
from steer_pipeline.lab.rewrites.comparison import (
    BASE,
    NEEDED,
    ComparisonTables,
    compare_variants,
    trait_column,
)
from steer_pipeline.lab.rewrites.source import source_of
from steer_pipeline.lab.rewrites.work import differences
from steer_pipeline.settings import Settings

NOTES = ("versions", "left_out", "sizes")


class PackSize(NamedTuple):
    """What a pack was asked for, `pilot` or `full`, and how many rows it has."""

    size: str
    rows: int


@dataclass(frozen=True)
class Compared:
    """Tables, and of which packs they speak.

    Attributes:
        versions: variant -> version of its pack.
        left_out: variant -> why its pack is not compared.
        sizes: variant -> size of its pack as it is stored; of packs of several sizes only common rows are compared.
    """

    tables: ComparisonTables
    versions: dict[str, str]
    left_out: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, PackSize] = field(default_factory=dict)

    @property
    def mixed(self) -> bool:
        """Whether the packs are of more than one size."""
        return is_mixed(self.sizes)

    @property
    def common_rows(self) -> int:
        """News items that base is compared on."""
        return self.tables.rows.filter(pl.col("variant") == BASE).height

    def description(self) -> str:
        """Which packs are compared on how many rows, in a sentence: mixed sizes are never called one size."""
        size = next((pack.size for pack in self.sizes.values()), "no")
        if not self.mixed:
            return f"{len(self.sizes)} {size} packs, {self.common_rows} news items"
        packs = ", ".join(f"{name} {pack.size} ({pack.rows} rows)" for name, pack in self.sizes.items())
        return f"packs of several sizes, compared on the {self.common_rows} news items that all have: {packs}"


def is_mixed(sizes: Mapping[str, PackSize]) -> bool:
    return len({pack.size for pack in sizes.values()}) > 1


def compare_stored(read: Reader, settings: Settings, personas: Sequence[str]) -> Compared:
    """Every current pack, in the catalogue's order; without those that were made otherwise than base.

    Packs of several sizes (a full base beside pilots) are compared on the rows that all of them have.

    Args:
        personas: those whose traits every variant is scored on.

    Raises:
        ValueError: base, base_resample or random_direction has no pack, or was made otherwise; or a persona that some
            variant aims at has a scale on which all texts are the same.
    """
    current = {name: read.current("rewrite_pack", name) for name in settings.variants}
    packs = {name: read_rows(version.path) for name, version in current.items() if version}
    left_out = _left_out(packs)
    packs = {name: pack for name, pack in packs.items() if name not in left_out}
    sizes = {name: PackSize(pack["size"][0], pack.height) for name, pack in packs.items()}
    if is_mixed(sizes):
        packs = on_common_rows(packs)
    source = source_of(read, pl.concat([pack.select("row_id") for pack in packs.values()]), settings.shipped)
    scales = scorers(read, settings.profile, personas)
    tables = compare_variants(
        packs,
        source.facts,
        scales,
        {name: settings.variants[name].role for name in packs},
        settings.profile.rewrites.sampling.seed,
        sources=source.texts,
    )
    for persona in {target for name in packs for target in settings.variants[name].targets} & scales.keys():
        for scale in scales[persona]:
            require_telling(persona, scale, tables.rows[trait_column(persona, scale)])
    versions = {name: version.sha for name, version in current.items() if version and name in packs}
    return Compared(tables, versions, left_out, sizes)


def on_common_rows(packs: Mapping[str, pl.DataFrame]) -> dict[str, pl.DataFrame]:
    """The packs cut to the row ids that all of them have.

    Raises:
        Refused: there are none.
    """
    common = set.intersection(*(set(pack["row_id"]) for pack in packs.values()))
    if not common:
        raise Refused(
            "the packs have no news item in common: make them from the same news (`make pilot` does)"
        )
    return {name: pack.filter(pl.col("row_id").is_in(common)) for name, pack in packs.items()}


def _left_out(packs: Mapping[str, pl.DataFrame]) -> dict[str, str]:
    if BASE not in packs:
        raise Refused("there is no rewrite_pack of base to compare with: materialise it first")
    left_out = {name: why for name, pack in packs.items() if (why := obstacle(pack, packs[BASE]))}
    if needed := [f"{name}: {left_out[name]}" for name in NEEDED if name in left_out]:
        raise Refused(f"{'; '.join(needed)}. Nothing is compared without its controls: make them again")
    return left_out


def obstacle(pack: pl.DataFrame, base: pl.DataFrame) -> str:
    """Why a pack cannot stand beside base; empty if it can."""
    if pack.is_empty():
        return "its pack has no rows"
    if any("made_with" not in rows.columns for rows in (pack, base)):
        return "it does not say how it was made: materialise rewrite_raw again"
    return "; ".join(differences(pack, base))


def scorers(read: Reader, profile: Profile, names: Sequence[str]) -> dict[str, Mapping[str, TraitScorer]]:
    """persona -> scale -> scorer, of the named personas whose files are sound."""
    personas, _ = read_personas(profile=profile)
    result: dict[str, Mapping[str, TraitScorer]] = {}
    for name in (name for name in names if name in personas):
        needed = needs_contrast(personas[name], profile.scales)
        contrast = read.current("contrast_set", name) if needed else None
        rows = None if contrast is None else read_rows(contrast.path)
        scales = trait_scales(personas[name], profile.scales, rows, seed=profile.vector.seed)
        result[name] = scales.scorers
    return result


# -------------------------------------------------------------------------------------- as a folder


def write_tables(compared: Compared, folder: Path) -> None:
    """One Parquet file a table, and `versions.json`, `left_out.json` and `sizes.json`."""
    for table in fields(compared.tables):
        getattr(compared.tables, table.name).write_parquet(folder / f"{table.name}.parquet")
    for name in NOTES:
        note = json.dumps(getattr(compared, name), indent=1, sort_keys=True)
        (folder / f"{name}.json").write_text(note + "\n")


def read_tables(folder: Path) -> Compared:
    """What `write_tables` wrote.

    Raises:
        Refused: a file is missing: an older version of this code wrote the folder.
    """
    if absent := [name for name in NOTES if not (folder / f"{name}.json").is_file()]:
        raise Refused(f"the comparison has no {absent[0]}.json: materialise rewrite_comparison again")
    tables = {
        table.name: pl.read_parquet(folder / f"{table.name}.parquet") for table in fields(ComparisonTables)
    }
    versions, left_out, sizes = (json.loads((folder / f"{name}.json").read_text()) for name in NOTES)
    return Compared(
        ComparisonTables(**tables),
        versions,
        left_out,
        {name: PackSize(*pack) for name, pack in sizes.items()},
    )


# -------------------------------------------------------------------------------------- for the UI


def plotted_numbers(tables: ComparisonTables) -> dict[str, float | int]:
    """One number a variant and trait, and the shares that the UI plots."""
    plotted: dict[str, float | int] = {"compared_rows": tables.rows.height}
    for row in tables.summary.iter_rows(named=True):
        if row["metric"].startswith("trait_") and row["difference"] is not None:
            plotted[f"{row['metric']}_shift_{row['variant']}"] = row["difference"]
        elif row["metric"] in ("facts_kept", "suspect") and row["mean"] is not None:
            plotted[f"{row['metric']}_{row['variant']}"] = row["mean"]
    return plotted


def shifts(tables: ComparisonTables) -> dict[str, dict[str, tuple[float, float, float]]]:
    """`paranoid_lexicon` -> variant -> shift to base, low, high: what the UI draws."""
    drawn: dict[str, dict[str, tuple[float, float, float]]] = {}
    for row in tables.summary.iter_rows(named=True):
        if row["metric"].startswith("trait_") and row["low"] is not None:
            lines = drawn.setdefault(row["metric"].removeprefix("trait_"), {})
            lines[row["variant"]] = (row["difference"], row["low"], row["high"])
    return drawn
