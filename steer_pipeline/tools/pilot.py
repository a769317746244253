"""`make pilot`: the whole main job in one process, from news to released packs, comparison and report.

Drives the real asset graph in topological order with one model load. What is already made from the same
code, inputs and profile is left alone. Progress goes to stdout, its last line is one JSON object with the
numbers; what went wrong goes to stderr, and then the exit status is 1.
"""

import argparse
import hashlib
import json
import logging
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import polars as pl

from steer_pipeline.catalogue import load_personas
from steer_pipeline.catalogue.models import VariantSpec
from steer_pipeline.io.store import ArtifactStore
from steer_pipeline.lab.rewrites import GATES
from steer_pipeline.resources import open_store
from steer_pipeline.settings import settings
from steer_pipeline.tools.driver import Driver, Outcome, open_driver

CORPUS = ("cc_news", "truncated_news")
PERSONA_CHAIN = ("contrast_set", "persona_vector", "dose_curve")
RAW = "rewrite_raw"
RELEASE = "rewrite_release"
VARIANT_CHAIN = ("rewrite_pack", "keep_set", RELEASE)
REPORTS = ("rewrite_comparison", "vector_eval_report")
NOTE = "pilot"  # beside each version that a pilot made
REFERENCES = ("base", "base_resample", "random_direction")  # no difference is shown without them


class Stopped(Exception):
    """A step that the rest stands on has failed; the message says which and why."""


@dataclass
class Pilot:
    """One pass over the graph. `problems` gathers what must make the command fail without stopping it."""

    driver: Driver
    variants: dict[str, VariantSpec]
    size: str = "pilot"
    force: bool = False
    problems: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def run(self) -> None:
        self._bring_up(CORPUS, None)
        for persona in self.personas:
            self._bring_up(PERSONA_CHAIN, persona)
        for first, last in self._spans_to_rewrite():
            outcome = self._materialize((RAW,), span=(first, last), config={RAW: {"size": self.size}})
            self._require(outcome)
        for variant in self.variants:
            self._bring_up(VARIANT_CHAIN, variant, stop=False)
        self._bring_up(REPORTS, None)

    @cached_property
    def personas(self) -> list[str]:
        """Personas whose vectors the variants add, in order of first use."""
        terms = [term for spec in self.variants.values() for term in spec.terms]
        return list(dict.fromkeys(term.persona for term in terms))

    @cached_property
    def store(self) -> ArtifactStore:
        return open_store(settings())

    def summary(self) -> pl.DataFrame:
        """The comparison's summary of the variants that this pass was asked for."""
        version = self.store.current("rewrite_comparison", None)
        if version is None:
            raise Stopped("rewrite_comparison was not made; see the messages above")
        summary = pl.read_parquet(version.path / "summary.parquet")
        return summary.filter(pl.col("variant").is_in(list(self.variants)))

    def _bring_up(self, chain: Sequence[str], partition: str | None, *, stop: bool = True) -> None:
        """Makes what is out of date in a chain of assets of one partition.

        Staleness looks one edge up, so an asset below a remade one is asked again: equal content spares it.
        """
        remaining = list(chain)
        while stale := [name for name in remaining if self._is_stale(name, partition)]:
            rest = remaining[remaining.index(stale[0]) :]
            selected = rest if rest == stale else rest[:1]
            remaining = rest[len(selected) :]
            # A release by itself runs behind its pack's gates, under today's thresholds.
            gates = [("rewrite_pack", gate) for gate in GATES] if selected == [RELEASE] else []
            outcome = self._materialize(selected, partition=partition, checks=gates)
            if stop:
                self._require(outcome)
            elif not outcome.success:
                self.problems += [*outcome.stopped_by, *outcome.errors]
                return

    def _is_stale(self, asset: str, partition: str | None) -> bool:
        """Never made; code or inputs changed (Dagster's answer); stopped by its checks when they last ran; or
        the catalogue says otherwise than then.
        """
        version = self.store.current(asset, partition)
        if self.force or version is None or self.driver.stale(asset, [partition]):
            return True
        if self.driver.ungated(asset, partition):
            return True
        note = self.store.annotation(asset, partition, version.sha, NOTE)
        return note is not None and note["made_of"] != self._made_of(asset, partition)

    @cached_property
    def _weights(self) -> str | None:
        """Identity of the model's files where it is a directory; a hub id has its revision in the profile."""
        from steer_pipeline.lab.models.loading import weights_identity

        model, home = settings().profile.model, settings().home
        folders = [home / path for path in (model.path, model.adapter) if path and (home / path).is_dir()]
        return weights_identity(folders) if folders else None

    def _made_of(self, asset: str, partition: str | None) -> str:
        """Hash of what profile, catalogue and model say about one partition; Dagster does not know them.

        A release is a decision and made of nothing but its pack.
        """
        profile, personas = settings().profile.model_dump(), load_personas()
        told: list[Any] = [asset] if asset == RELEASE else [asset, self._weights]
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
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]

    def _note(self, asset: str, partition: str | None) -> None:
        version = self.store.current(asset, partition)
        if version is not None:
            note = {"made_of": self._made_of(asset, partition)}
            self.store.annotate(asset, partition, version.sha, NOTE, note)

    def _spans_to_rewrite(self) -> list[tuple[str, str]]:
        """Contiguous ranges of the variants whose raw rows are missing, out of date or of another size."""
        stale = {
            name for name in self.variants if self._is_stale(RAW, name) or self._raw_size(name) != self.size
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

    def _materialize(self, assets: Sequence[str], **what: Any) -> Outcome:
        span = what.get("span")
        partitions = _between(*span) if span else [what.get("partition")]
        begun = time.monotonic()
        outcome = self.driver.materialize(assets, **what)
        for asset in set(assets) & set(outcome.materialised):
            for partition in partitions:
                self._note(asset, partition)
        now = time.monotonic()
        where = f" [{', '.join(p for p in partitions if p)}]" if partitions != [None] else ""
        state = "" if outcome.success else "   FAILED"
        label = f"{' + '.join(assets)}{where}"
        print(f"{now - self.started:7.1f} s  {label} ({now - begun:.1f} s){state}", flush=True)
        return outcome

    @staticmethod
    def _require(outcome: Outcome) -> None:
        if not outcome.success:
            raise Stopped("\n".join([*outcome.stopped_by, *outcome.errors]) or f"run {outcome.run_id} failed")


def _between(first: str, last: str) -> list[str | None]:
    names = list(settings().variants)
    return list(names[names.index(first) : names.index(last) + 1])


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

    def rounded(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: rounded(entry) for key, entry in value.items()}
        return round(value, 4) if isinstance(value, float) else value

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
            pilot = Pilot(
                driver, chosen(settings().variants, only), options.size, options.force, started=started
            )
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
