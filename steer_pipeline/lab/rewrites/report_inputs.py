"""What the report is made from: the comparison, its packs, and what is known of vectors and doses.

In: a reader of the store, the settings and the folder of a comparison. Out: `ReportInputs`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from steer_pipeline.io.reader import Reader, read_rows
from steer_pipeline.lab.rewrites import Refused
from steer_pipeline.lab.rewrites.comparison import BASE, ComparisonTables
from steer_pipeline.lab.rewrites.release import overruled_of
from steer_pipeline.lab.rewrites.stored import (
    BAND_VERSION,
    NO_BAND,
    Compared,
    PackSize,
    is_mixed,
    read_tables,
)
from steer_pipeline.lab.vectors.doses import Recommendation, load_recommendation
from steer_pipeline.lab.vectors.vector import best_block, load_vector
from steer_pipeline.settings import Settings


@dataclass(frozen=True)
class VectorInfo:
    """A persona vector's sidecar: `metadata` holds per-block lists (held_out_auc, split_half_cosine, ...)."""

    persona: str
    version: str
    metadata: Mapping[str, Any]

    def at(self, name: str, block: int | None) -> float | None:
        """One of the lists at a block; None where it was not measured."""
        values = self.metadata.get(name)
        return None if block is None or not values or block >= len(values) else values[block]

    @property
    def best_block(self) -> int | None:
        """The block that tells unseen contexts apart best; every table says the same."""
        return best_block(self.metadata)


@dataclass(frozen=True, eq=False)
class DoseInfo:
    """A dose sweep (one row a direction, block and fraction) and what it recommends."""

    persona: str
    version: str
    sweep: pl.DataFrame
    advice: Recommendation


@dataclass(frozen=True)
class ReportContext:
    """What the report names and cannot know from rows.

    Attributes:
        versions: artefact (`rewrite_pack/base`, `rewrite_comparison`, ...) -> content sha.
        facts: label -> text for the head of the report, such as profile, model, size, decoding hash.
        targets: variant -> persona -> `up` or `down`, the direction that the catalogue wants.
        left_out: variant -> why its pack is not compared.
        axes_left_out: persona -> why no variant is scored on its axis.
        without_band: why there is no random band; empty where there is one.
    """

    versions: Mapping[str, str]
    facts: Mapping[str, str] = field(default_factory=dict)
    targets: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    axes_left_out: Mapping[str, str] = field(default_factory=dict)
    without_band: str = ""


@dataclass(frozen=True, eq=False)
class ReportInputs:
    """Everything that the report shows.

    Attributes:
        tables: what `compare_variants` found.
        packs: the packs compared, as they are stored; `personas` says what was added to each variant.
        vectors, doses: may be empty (imported vectors without a sweep); their sections then say so.

    Raises:
        ValueError: a variant of the tables has no pack, or there are no versions to name.
    """

    tables: ComparisonTables
    packs: Mapping[str, pl.DataFrame]
    vectors: Sequence[VectorInfo]
    doses: Sequence[DoseInfo]
    context: ReportContext

    def __post_init__(self) -> None:
        if missing := [name for name in self.tables.variants if name not in self.packs]:
            raise ValueError(
                f"report: no pack for variant {missing[0]}; hand in the packs that were compared"
            )
        if not self.context.versions:
            raise ValueError(
                "report: context.versions is empty; name the versions that the tables were made from"
            )

    @property
    def sizes(self) -> dict[str, PackSize]:
        """Size of each pack as it is stored; `–` where its rows do not say."""
        return {
            name: PackSize(pack["size"][0] if "size" in pack.columns and pack.height else "–", pack.height)
            for name, pack in self.packs.items()
        }


def gather(read: Reader, settings: Settings, comparison: Path) -> ReportInputs:
    """The comparison in a folder, with the packs that it compared and their vectors and doses."""
    compared = read_tables(comparison)
    packs = {}
    for name, sha in compared.versions.items():
        packs[name] = read_rows(read.version("rewrite_pack", name, sha).path)
    personas = list(dict.fromkeys(term.persona for name in packs for term in settings.variants[name].terms))
    vectors, doses = _vectors(read, personas), _doses(read, personas)
    versions = (
        {f"rewrite_pack/{name}": sha for name, sha in compared.versions.items()}
        | (
            {"random_band": compared.random_band[BAND_VERSION]}
            if BAND_VERSION in compared.random_band
            else {}
        )
        | {f"persona_vector/{vector.persona}": vector.version for vector in vectors}
        | {f"dose_curve/{dose.persona}": dose.version for dose in doses}
    )
    context = ReportContext(
        versions=versions,
        facts=_facts(settings, packs[BASE], compared) | _overruled(read, compared),
        targets={name: settings.variants[name].targets for name in packs if settings.variants[name].targets},
        left_out=compared.left_out,
        axes_left_out=compared.axes_left_out,
        without_band=compared.random_band.get(NO_BAND, ""),
    )
    return ReportInputs(compared.tables, packs, vectors, doses, context)


def size_in_words(sizes: Mapping[str, PackSize], common_rows: int) -> str:
    """`pilot, 50 rows`; packs of several sizes are not called one size."""
    if not is_mixed(sizes):
        return f"{next(iter(sizes.values())).size}, {common_rows} rows"
    return f"mixed: compared on the {common_rows} rows that all packs have"


def _vectors(read: Reader, personas: Sequence[str]) -> list[VectorInfo]:
    current = {persona: read.current("persona_vector", persona) for persona in personas}
    return [
        VectorInfo(persona, version.sha, load_vector(version.path).metadata)
        for persona, version in current.items()
        if version is not None
    ]


def _doses(read: Reader, personas: Sequence[str]) -> list[DoseInfo]:
    infos = []
    for persona in personas:
        if (version := read.current("dose_curve", persona)) is not None:
            sweep = pl.read_parquet(version.path / "sweep.parquet")
            if "extra_nll" not in sweep.columns:
                raise Refused(
                    f"dose_curve of {persona} is of an older version of this code: materialise dose_curve again"
                )
            infos.append(DoseInfo(persona, version.sha, sweep, load_recommendation(version.path)))
    return infos


def _overruled(read: Reader, compared: Compared) -> dict[str, str]:
    """Packs that somebody released despite their gates, and why: nobody should read their numbers without it."""
    found = {name: overruled_of(read.store, name, sha) for name, sha in compared.versions.items()}
    return {f"{name} is released": str(one) for name, one in found.items() if one is not None}


def _facts(settings: Settings, base: pl.DataFrame, compared: Compared) -> dict[str, str]:
    first, profile = base.row(0, named=True), settings.profile
    return {
        "profile": f"{profile.name}: {profile.summary}",
        "model": first["model"],
        "size": size_in_words(compared.sizes, compared.common_rows),
        "decoding": ", ".join(
            f"{name} {value}" for name, value in profile.rewrites.sampling.model_dump().items()
        ),
        "decoding hash": first["decoding_hash"],
    }
