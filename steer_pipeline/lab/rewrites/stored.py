"""The comparison of stored packs: which of them stand in it, what scores them, how its tables are kept.

In: a reader of the store and the settings. Out: `Compared`, as a value and as a folder, and flat numbers for plots.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import NamedTuple

import polars as pl

from steer_pipeline.catalogue.loading import read_personas
from steer_pipeline.catalogue.specs import Profile
from steer_pipeline.io.reader import Reader, read_rows
from steer_pipeline.lab.columns import completed
from steer_pipeline.lab.evaluation import (
    LexiconScorer,
    TraitScorer,
    example_scorer,
    needs_contrast,
    trait_scales,
)
from steer_pipeline.lab.rewrites import Refused
from steer_pipeline.lab.rewrites.axes import STORED_MATRIX
from steer_pipeline.lab.rewrites.comparison import (
    BASE,
    NEEDED,
    SUMMARY_SCHEMA,
    ComparisonTables,
    compare_variants,
)
from steer_pipeline.lab.rewrites.evidence import Sources, with_evidence
from steer_pipeline.lab.rewrites.source import source_of
from steer_pipeline.lab.rewrites.work import differences
from steer_pipeline.settings import Settings

NOTES = ("versions", "left_out", "sizes", "axes_left_out", "random_band")
BAND_VERSION, NO_BAND = "version", "left_out"
AXIS_SHUFFLES = 20  # of the null that a scale fitted on examples is held against


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
        axes_left_out: persona -> why no variant is scored on its axis.
        random_band: the `version` of the random band, or why there is none (`left_out`).
    """

    tables: ComparisonTables
    versions: dict[str, str]
    left_out: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, PackSize] = field(default_factory=dict)
    axes_left_out: dict[str, str] = field(default_factory=dict)
    random_band: dict[str, str] = field(default_factory=dict)

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
        personas: those whose traits every variant is scored on, and tested; all that the profile studies make the
            matrix of side effects.

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
    profile = settings.profile
    fitted = scorers(read, profile, personas)
    tables = compare_variants(
        packs,
        source.facts,
        fitted,
        {name: settings.variants[name].role for name in packs},
        profile.rewrites.sampling.seed,
        sources=source.texts,
    )
    band, about_band = _random_band(read, packs[BASE])
    axes = axis_scorers(profile, settings.persona_names, fitted)
    sources = Sources(settings.variants, fitted, axes, band, profile.coherence)
    tables, axes_left_out = with_evidence(tables, sources, seed=profile.rewrites.sampling.seed)
    versions = {name: version.sha for name, version in current.items() if version and name in packs}
    return Compared(tables, versions, left_out, sizes, axes_left_out, about_band)


def _random_band(read: Reader, base: pl.DataFrame) -> tuple[pl.DataFrame | None, dict[str, str]]:
    """Rows of the random directions with what there is to say of them; None where they cannot stand beside base."""
    version = read.current("random_band")
    if version is None:
        return None, {NO_BAND: "random_band has not been made: materialise it"}
    rows = read_rows(version.path)
    if why := obstacle(rows, base):
        return None, {NO_BAND: f"random_band: {why}"}
    return rows, {BAND_VERSION: version.sha}


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


def axis_scorers(
    profile: Profile, names: Sequence[str], fitted: Mapping[str, Mapping[str, TraitScorer]]
) -> dict[str, dict[str, Callable[[], TraitScorer]]]:
    """persona -> scale -> how to get its scorer, of all that can be scored; headline scales come first.

    Args:
        fitted: scorers that there are already. Other personas are scored by their lexicon, and by MiniLM fitted on
            their examples.
    """
    personas, _ = read_personas(profile=profile)
    result: dict[str, dict[str, Callable[[], TraitScorer]]] = {}
    for name in (name for name in names if name in personas):
        persona = personas[name]
        found: dict[str, Callable[[], TraitScorer]] = {
            scale: partial(_itself, scorer) for scale, scorer in fitted.get(name, {}).items()
        }
        if persona.positive.lexicon:
            found.setdefault("lexicon", partial(LexiconScorer, persona))
        if persona.examples is not None:
            found.setdefault(
                "minilm", partial(example_scorer, persona, seed=profile.vector.seed, n_shuffles=AXIS_SHUFFLES)
            )
        result[name] = found
    return result


def _itself(scorer: TraitScorer) -> TraitScorer:
    return scorer


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
    files = [f"{name}.json" for name in NOTES] + [f"{one.name}.parquet" for one in fields(ComparisonTables)]
    if absent := [name for name in files if not (folder / name).is_file()]:
        raise Refused(f"the comparison has no {absent[0]}: materialise rewrite_comparison again")
    tables = {
        table.name: pl.read_parquet(folder / f"{table.name}.parquet") for table in fields(ComparisonTables)
    }
    notes = {name: json.loads((folder / f"{name}.json").read_text()) for name in NOTES}
    notes["sizes"] = {name: PackSize(*pack) for name, pack in notes["sizes"].items()}
    tables["summary"] = completed(tables["summary"], SUMMARY_SCHEMA)
    tables["matrix"] = completed(tables["matrix"], STORED_MATRIX)
    return Compared(ComparisonTables(**tables), **notes)


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
