"""`steer make pilot`: the whole main job in one process, from news to released packs, comparison and report.

What is fresh is left alone. A persona or a variant that fails is named, and the others go on.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import dagster as dg
import polars as pl

from steer_pipeline.campaigns.campaign import Campaign, Result, carried_out
from steer_pipeline.campaigns.errors import NoSuchName
from steer_pipeline.campaigns.progress import Place
from steer_pipeline.catalogue.specs import VariantSpec
from steer_pipeline.lab.rewrites import GATES
from steer_pipeline.settings import settings

CORPUS = ("cc_news", "truncated_news")
DIAGNOSIS = "model_diagnosis"
PERSONA_CHAIN = ("contrast_set", "persona_vector", "dose_curve")
RAW = "rewrite_raw"
BAND = ("random_band",)
RELEASE = "rewrite_release"
VARIANT_CHAIN = ("rewrite_pack", "keep_set", RELEASE)
REPORTS = ("rewrite_comparison", "vector_eval_report")
# Tables of the comparison, in the object that the command prints.
TOLD = ("summary", "costs", "combined", "band", "off_target", "control_shifts")
REFERENCES = ("base", "base_resample", "random_direction")  # no difference is shown without them


@dataclass
class Pilot(Campaign):
    """One pass over the main job's part of the graph."""

    variants: dict[str, VariantSpec]
    size: str = "pilot"

    def run(self) -> dict[str, Any]:
        """Makes what is out of date; numbers by variant, none if the comparison could not be made.

        A persona or variant that fails is kept in `problems`, and the others go on.

        Raises:
            Stopped: there are no news, or the model does not do the job at all.
        """
        self.driver.observe()
        self.bring_up(CORPUS, None)
        known = not self.is_stale(DIAGNOSIS, None)
        self.bring_up((DIAGNOSIS,), None)
        if not known:
            self.say(self.diagnosed())
        failed = {name for name in self.personas if not self.bring_up(PERSONA_CHAIN, name, stop=False)}
        able = {name: spec for name, spec in self.variants.items() if not failed & set(_personas(spec))}
        self.problems += [
            f"{name} is not made: it needs {', '.join(sorted(failed & set(_personas(spec))))}, which failed"
            for name, spec in self.variants.items()
            if name not in able
        ]
        for first, last in self._spans_to_rewrite(able):
            outcome = self.materialize((RAW,), span=(first, last), config={RAW: {"size": self.size}})
            self.require(outcome)
        for variant in able:
            self.bring_up(VARIANT_CHAIN, variant, stop=False)
        if any(spec.terms for spec in able.values()):
            self.bring_up(BAND, None, stop=False)
        if not self.bring_up(REPORTS, None, stop=False):
            return {}
        self.problems += self.moved_controls(REPORTS[0])
        return self.numbers()

    def places(self) -> list[Place]:
        return [
            *((asset, None) for asset in (*CORPUS, DIAGNOSIS)),
            *((asset, persona) for persona in self.personas for asset in PERSONA_CHAIN),
            *((RAW, variant) for variant in self.variants),
            *((asset, variant) for variant in self.variants for asset in VARIANT_CHAIN),
            *((asset, None) for asset in BAND),
            *((asset, None) for asset in REPORTS),
        ]

    def why(self, asset: str, partition: str | None) -> list[str]:
        why = super().why(asset, partition)
        if not why and asset == RAW and (size := self._raw_size(partition)) != self.size:
            return [f"its rows are of the size {size}"]
        return why

    @cached_property
    def personas(self) -> list[str]:
        """Personas whose vectors the variants add, in order of first use."""
        return list(dict.fromkeys(name for spec in self.variants.values() for name in _personas(spec)))

    def numbers(self) -> dict[str, Any]:
        """What the comparison says of the variants that this pass was asked for."""
        from steer_pipeline.lab.rewrites.headline import pilot_numbers

        folder = self.store.current(REPORTS[0], None).path
        tables = {name: pl.read_parquet(folder / f"{name}.parquet") for name in TOLD}
        asked = {
            name: rows.filter(pl.col(rows.columns[0]).is_in(list(self.variants)))
            for name, rows in tables.items()
        }
        return pilot_numbers(**asked)

    def diagnosed(self) -> str:
        """What the model does at its job, what to expect of time, and what to look at, in a few lines."""
        from steer_pipeline.lab.rewrites.diagnosis import diagnosis_verdicts, load_diagnosis
        from steer_pipeline.lab.rewrites.expected import expected_seconds, lines

        profile = settings().profile
        found = load_diagnosis(self.store.current(DIAGNOSIS, None).path)
        weak = [verdict for verdict in diagnosis_verdicts(found, profile) if not verdict.passed]
        warnings = [f"warning: {verdict.message} -> {verdict.cure}" for verdict in weak]
        told = lines(found, expected_seconds(found, profile, self.variants, self.size))
        return "\n".join(f"{'':11}{line}" for line in [*told, *warnings])

    def gates(self, selected: Sequence[str]) -> list[tuple[str, str]]:
        # A release by itself runs behind its pack's gates, under today's thresholds.
        return [("rewrite_pack", gate) for gate in GATES] if list(selected) == [RELEASE] else []

    def _spans_to_rewrite(self, able: Container[str]) -> list[tuple[str, str]]:
        """Contiguous ranges of the variants whose raw rows are missing, out of date or of another size."""
        stale = {name for name in self.variants if name in able and self.is_stale(RAW, name)}
        self.progress.done((RAW, name) for name in set(self.variants) - stale)
        spans: list[list[str]] = []
        before = None
        for name in settings().variants:  # the order of the partitions
            if name in stale:
                spans[-1].append(name) if before in stale else spans.append([name])
            before = name
        return [(span[0], span[-1]) for span in spans]

    def _raw_size(self, variant: str | None) -> str | None:
        version = self.store.current(RAW, variant)
        if version is None:
            return None
        sizes = pl.scan_parquet(version.path / "data.parquet").select("size").head(1).collect()["size"]
        return sizes[0] if len(sizes) else None


def _personas(spec: VariantSpec) -> list[str]:
    return [term.persona for term in spec.terms]


def chosen(
    variants: Mapping[str, VariantSpec],
    only: Sequence[str],
    broken: Container[str] = (),
    references: Sequence[str] = REFERENCES,
) -> dict[str, VariantSpec]:
    """The sound variants among those named, with the `references` that all are compared with.

    Raises:
        NoSuchName: a name is not in the catalogue.
    """
    if unknown := [name for name in only if name not in variants and name not in broken]:
        raise NoSuchName(f"no variant {', '.join(unknown)}; the catalogue has {', '.join(variants)}")
    return {name: spec for name, spec in variants.items() if not only or name in (*only, *references)}


def make_pilot(
    defs: dg.Definitions,
    size: str,
    only: Sequence[str] = (),
    *,
    force: bool = False,
    dry_run: bool = False,
    **how: Any,
) -> Result:
    """Brings the pilot up to date: its numbers by variant, and what went wrong in sentences.

    Args:
        defs: the code location's.
        only: variants; none for all.
        dry_run: only say what would be made.
        how: `instance` and `say`, see `open_driver` and `Campaign`.

    Raises:
        NoSuchName: a name of `only` is not in the catalogue.
    """
    catalogue = settings()
    broken = catalogue.broken_variants
    asked = [name for name in broken if not only or name in (*only, *REFERENCES)]
    problems = [str(broken[name]) for name in asked]
    variants = chosen(catalogue.variants, only, broken)
    begin = partial(Pilot, variants=variants, size=size, force=force, problems=problems)
    return carried_out(defs, begin, dry_run=dry_run, **how)
