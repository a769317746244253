"""`make pilot`: the whole main job in one process, from news to released packs, comparison and report.

What is already made from the same code, inputs and profile is left alone. Progress goes to stdout, its last
line is one JSON object with the numbers; what went wrong goes to stderr, and then the exit status is 1.
"""

import argparse
import json
import logging
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import polars as pl

from steer_pipeline.catalogue import load_personas
from steer_pipeline.catalogue.models import Profile, VariantSpec
from steer_pipeline.lab.rewrites import GATES
from steer_pipeline.settings import settings
from steer_pipeline.tools.campaign import Campaign, Stopped, rounded
from steer_pipeline.tools.driver import open_driver

CORPUS = ("cc_news", "truncated_news")
PERSONA_CHAIN = ("contrast_set", "persona_vector", "dose_curve")
RAW = "rewrite_raw"
RELEASE = "rewrite_release"
VARIANT_CHAIN = ("rewrite_pack", "keep_set", RELEASE)
REPORTS = ("rewrite_comparison", "vector_eval_report")
REFERENCES = ("base", "base_resample", "random_direction")  # no difference is shown without them


@dataclass
class Pilot(Campaign):
    """One pass over the main job's part of the graph."""

    variants: dict[str, VariantSpec]
    size: str = "pilot"

    def run(self) -> None:
        self.bring_up(CORPUS, None)
        for persona in self.personas:
            self.bring_up(PERSONA_CHAIN, persona)
        for first, last in self._spans_to_rewrite():
            outcome = self.materialize((RAW,), span=(first, last), config={RAW: {"size": self.size}})
            self.require(outcome)
        for variant in self.variants:
            self.bring_up(VARIANT_CHAIN, variant, stop=False)
        self.bring_up(REPORTS, None)

    @cached_property
    def personas(self) -> list[str]:
        """Personas whose vectors the variants add, in order of first use."""
        terms = [term for spec in self.variants.values() for term in spec.terms]
        return list(dict.fromkeys(term.persona for term in terms))

    def summary(self) -> pl.DataFrame:
        """The comparison's summary of the variants that this pass was asked for."""
        version = self.store.current("rewrite_comparison", None)
        if version is None:
            raise Stopped("rewrite_comparison was not made; see the messages above")
        summary = pl.read_parquet(version.path / "summary.parquet")
        return summary.filter(pl.col("variant").is_in(list(self.variants)))

    def gates(self, selected: Sequence[str]) -> list[tuple[str, str]]:
        # A release by itself runs behind its pack's gates, under today's thresholds.
        return [("rewrite_pack", gate) for gate in GATES] if list(selected) == [RELEASE] else []

    def says(self, asset: str, partition: str | None) -> list[Any]:
        """A release is a decision and made of nothing but its pack."""
        profile, personas = _of_rewrites(settings().profile), load_personas()
        told: list[Any] = [] if asset == RELEASE else [self.weights]
        if asset in CORPUS:
            told += [profile["corpus"], profile["model"]["path"]]
        elif asset in PERSONA_CHAIN:
            told += [{**profile, "gates": None, "variants": None}, personas[str(partition)].model_dump()]
        elif asset in REPORTS:
            told += [profile, [spec.model_dump() for spec in settings().variants.values()]]
            told += [persona.model_dump() for persona in personas.values()]
        elif asset != RELEASE:
            variant = settings().variants[str(partition)]
            told += [profile, variant.model_dump()]
            told += [personas[variant.prompted_by].model_dump()] if variant.prompted_by else []
        return told

    def _spans_to_rewrite(self) -> list[tuple[str, str]]:
        """Contiguous ranges of the variants whose raw rows are missing, out of date or of another size."""
        stale = {
            name for name in self.variants if self.is_stale(RAW, name) or self._raw_size(name) != self.size
        }
        spans: list[list[str]] = []
        before = None
        for name in settings().variants:  # the order of the partitions
            if name in stale:
                spans[-1].append(name) if before in stale else spans.append([name])
            before = name
        return [(span[0], span[-1]) for span in spans]

    def _raw_size(self, variant: str) -> str | None:
        version = self.store.current(RAW, variant)
        if version is None:
            return None
        return pl.scan_parquet(version.path / "data.parquet").select("size").head(1).collect().item()


def _of_rewrites(profile: Profile) -> dict[str, Any]:
    """The profile without the sections of the behaviour lab."""
    return profile.model_dump(exclude={"behaviour", "training", "rollouts", "judge"})


def chosen(variants: dict[str, VariantSpec], only: Sequence[str]) -> dict[str, VariantSpec]:
    """The variants named, with the two that all are compared with.

    Raises:
        Stopped: a name is not in the catalogue.
    """
    if unknown := [name for name in only if name not in variants]:
        raise Stopped(f"--only: no variant {', '.join(unknown)}; the catalogue has {', '.join(variants)}")
    return {name: spec for name, spec in variants.items() if not only or name in (*only, *REFERENCES)}


def line(seconds: float, numbers: dict[str, dict]) -> str:
    """The last line of stdout, its numbers to four digits."""

    return json.dumps({"seconds": round(seconds, 1), "variants": rounded(numbers)}, allow_nan=False)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m steer_pipeline.tools.pilot", description=__doc__)
    parser.add_argument("--size", choices=("pilot", "full"), default="pilot", help="rows of the packs")
    parser.add_argument("--only", default="", help="variants, separated by commas; default: all")
    parser.add_argument("--force", action="store_true", help="make everything again, fresh or not")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    warnings.filterwarnings("ignore")
    logging.getLogger("dagster").setLevel(logging.CRITICAL)

    from steer_pipeline.definitions import defs
    from steer_pipeline.lab.rewrites.headline import moved_controls, pilot_numbers

    numbers: dict[str, dict] = {}
    try:
        only = [name.strip() for name in options.only.split(",") if name.strip()]
        with open_driver(defs, settings().home) as driver:
            variants = chosen(settings().variants, only)
            pilot = Pilot(driver, variants, options.size, force=options.force, started=started)
            pilot.run()
            summary = pilot.summary()
        numbers = pilot_numbers(summary)
        problems = pilot.problems + moved_controls(summary)
    except Stopped as error:
        problems = [str(error)]
    for problem in problems:
        print(f"FAILED: {problem}", file=sys.stderr, flush=True)
    print(line(time.monotonic() - started, numbers), flush=True)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
