"""The verdicts of pilot and heal where all variants are base, and where one of them is steered.

In: `null_texts.Texts`. Out: what each verdict says of one seeded run. A run draws news, and for each variant (and for
each student's seed) a sampling of base; nothing is there to find. Planted: of one variant's rows a share is steered.
"""

import argparse
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from benchmarks.null_counting import counted
from benchmarks.null_texts import Known, Texts, known_scorers, texts_of
from steer_pipeline.catalogue.specs import CoherenceSpec
from steer_pipeline.lab.controls import moved_controls
from steer_pipeline.lab.evaluation import TraitScorer
from steer_pipeline.lab.heal.table import stage_table
from steer_pipeline.lab.heal.verdicts import GOOD
from steer_pipeline.lab.rewrites import gates
from steer_pipeline.lab.rewrites.aims import TRAIT, aims_of, headline_scales, trait_column
from steer_pipeline.lab.rewrites.band import band_table
from steer_pipeline.lab.rewrites.comparison import BASE, RESAMPLE, ComparisonTables, compare_variants
from steer_pipeline.lab.rewrites.costs import cost_table
from steer_pipeline.lab.rewrites.headline import missed_targets
from steer_pipeline.lab.rewrites.random_band import NAME

ALPHA = 0.05
DIRECTIONS = 10
HEAL_SEEDS = 3


def pilot(options: argparse.Namespace) -> dict[str, Any]:
    """Level and power of the pilot's verdicts: controls, targets, gates, costs, tests after Holm."""
    texts = texts_of(options)
    run = Pilot(texts, options.share or 0.5)
    told = {"news": run.n_news, "share": run.share, "variant": texts.planted}
    return told | counted("pilot", run.claims, options.runs)


class Pilot:
    """Runs of the comparison of packs on drawn rows."""

    def __init__(self, texts: Texts, share: float) -> None:
        self.texts, self.share = texts, share
        self.n_news = min(texts.profile.rewrites.pilot_rows, len(texts.news))
        self.scorers: dict[str, dict[str, Known]] = known_scorers(texts)
        self.targets = {name: spec.targets for name, spec in texts.catalogue.variants.items()}

    def claims(self, run: int, planted: bool) -> dict[str, bool]:
        """Verdict -> whether it claims something in one run; of planted runs those that should."""
        rng = np.random.default_rng([run, int(planted)])
        packs, band = self._drawn(rng, planted)
        scorers: Mapping[str, Mapping[str, TraitScorer]] = self.scorers
        tables = compare_variants(packs, {}, scorers, self.texts.roles, seed=run)
        missed = self._missed(tables, band)
        own, level = self.texts.planted, self.texts.profile.gates.alpha
        shown = gates.changed(packs[own], packs[BASE], packs[RESAMPLE], role="steered", level=level, seed=run)
        tested = tables.summary.filter(pl.col("metric").str.starts_with(TRAIT))
        if planted:
            aim = self._aim(tables)
            tested = tested.filter(variant=own, metric=aim)
            return {
                "target": not any(sentence.startswith(f"{own} ") for sentence in missed),
                "something_changed": shown.passed,
                "holm": bool((tested["p_holm"] < ALPHA).any()),
            }
        wanted = sum(len(targets) for targets in self.targets.values())
        costs = cost_table(tables.rows, BASE, CoherenceSpec())
        return {
            "controls": bool(moved_controls(tables.control_shifts)),
            "target": not any(sentence.startswith(f"{own} ") for sentence in missed),
            "any_target": len(missed) < wanted,
            "something_changed": shown.passed,
            "holm": bool((tested["p_holm"] < ALPHA).any()),
            "any_cost": not costs["within"].fill_null(True).all(),
        }

    def _drawn(self, rng: np.random.Generator, planted: bool) -> tuple[dict[str, pl.DataFrame], pl.DataFrame]:
        """Packs by variant, and rows of random directions that do nothing."""
        texts, names = self.texts, list(self.texts.roles)
        news = np.sort(rng.choice(len(texts.news), self.n_news, replace=False))
        drawn = rng.permutation(len(texts.base))[: len(names) + DIRECTIONS]
        samplings = [texts.by_sampling[texts.base[place]][news] for place in drawn]
        packs = {
            name: own.with_columns(variant=pl.lit(name)) for name, own in zip(names, samplings, strict=False)
        }
        if planted:
            steered = texts.by_sampling[rng.choice(list(texts.steered))][news]
            mixed = pl.Series(rng.random(self.n_news) < self.share)
            own = packs[texts.planted]
            packs[texts.planted] = own.with_columns(
                pl.when(mixed).then(steered[name]).otherwise(own[name]).alias(name)
                for name in own.columns
                if name not in ("variant", "row_id", "prompt")
            )
        rows = texts.profile.rewrites.band_rows
        band = [
            own.head(rows).with_columns(variant=pl.lit(NAME.format(place)))
            for place, own in enumerate(samplings[len(names) :])
        ]
        return packs, pl.concat(band)

    def _missed(self, tables: ComparisonTables, band: pl.DataFrame) -> list[str]:
        scales = headline_scales(tables.rows.columns)
        placed = band_table(tables.rows, band, BASE, aims_of(self.texts.catalogue.variants, scales))
        return missed_targets(tables.summary, self.targets, placed)

    def _aim(self, tables: ComparisonTables) -> str:
        """The metric on which the planted variant's target is told."""
        return trait_column(self.texts.persona, headline_scales(tables.rows.columns)[self.texts.persona])


def heal(options: argparse.Namespace) -> dict[str, Any]:
    """Level and power of the heal stage's verdicts on texts: controls, and an arm that is called good."""
    texts = texts_of(options)
    share = options.share or 0.5
    return {"share": share, "seeds": HEAL_SEEDS} | counted(
        "heal", lambda run, planted: _heal_claims(texts, share, run, planted), options.runs
    )


def _heal_claims(texts: Texts, share: float, run: int, planted: bool) -> dict[str, bool]:
    rng = np.random.default_rng([run, int(planted), 1])
    scales = headline_scales(texts.traits)
    target = trait_column(texts.persona, scales[texts.persona])
    others = {
        trait_column(name, scale): f"off_target_{name}"
        for name, scale in scales.items()
        if name != texts.persona
    }
    news = np.sort(
        rng.choice(len(texts.news), min(texts.profile.heal.pool.n_held_out, len(texts.news)), replace=False)
    )
    samplings = [texts.by_sampling[texts.base[place]][news] for place in rng.permutation(len(texts.base))]
    steered = [texts.by_sampling[texts.steered[place]][news] for place in rng.permutation(len(texts.steered))]

    def arm(name: str, own: pl.DataFrame, seed: int | None) -> pl.DataFrame:
        return own.select(
            "row_id", arm=pl.lit(name), seed=pl.lit(seed, dtype=pl.Int64), made_with=pl.lit("null"),
            target=pl.col(target), **{off: pl.col(name) for name, off in others.items()},
        )  # fmt: skip

    frames = [arm(BASE, samplings.pop(), None), arm("steered", steered.pop(), None)]
    for seed in range(HEAL_SEEDS):
        frames += [arm(name, samplings.pop(), seed) for name in ("random_direction", "base_text_sft")]
        own = arm("nll", samplings.pop(), seed)
        if planted:
            taught = arm("nll", steered[seed % len(steered)], seed)
            mixed = pl.Series(rng.random(len(news)) < share)
            own = own.with_columns(pl.when(mixed).then(taught["target"]).otherwise("target").alias("target"))
        frames.append(own)
    table = stage_table({"texts": pl.concat(frames)}, seed=run, n_boot=2_000)
    good = table.row("nll")["verdict"] == GOOD
    return {"arm": good} if planted else {"controls": bool(moved_controls(table.control_shifts)), "arm": good}
