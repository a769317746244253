"""What the product's verdicts say where there is nothing to find, and where something was planted.

In: a store in which `make pilot` has run. Out: one JSON line with, for each null of `NULLS`, the share of seeded runs
that reject, with its exact interval, and the share that finds a planted effect; progress on stderr, exit code 1 where a
verdict does not keep its level. Texts are generated once, into a journal beside the store; a run only draws among them.

`students`: base's rewrites of held-out news under many sampling seeds, scored by the scales of the comparison. A run
draws news, and for each variant and each student's seed a sampling; `judge_family`, which `student_comparison` takes
its verdicts from, judges all variants against base. Every verdict but "no effect" is false. The planted effect: for
the cells of one variant a share of the rewrites is that of the model with the variant's vectors on.

`pilot` and `heal` draw among the same texts (`null_rewrites`); `dose`, `comparison` and `behaviour` among rows that are
stored (`null_stored`), the last two after `make behaviour`; `multiverse` analyses the headline in every way.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from benchmarks import multiverse, null_rewrites, null_stored
from benchmarks.null_counting import LEVEL, POWER, rate
from benchmarks.null_texts import Texts, tell, texts_of
from steer_pipeline.catalogue.specs import Profile
from steer_pipeline.io.reader import Reader
from steer_pipeline.lab.behaviour.schema import NONE, UP
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.rewrites import Refused
from steer_pipeline.lab.rewrites.comparison import BASE
from steer_pipeline.lab.students.comparison import is_effect, judge_family, persona_of, teachers
from steer_pipeline.lab.students.data import in_keyed_order
from steer_pipeline.lab.students.readout import Readout, fit_readout
from steer_pipeline.lab.students.transfer import read_blocks, states_of
from steer_pipeline.settings import Settings

SHARE = (
    0.5  # of steered rewrites in a planted cell, where the store has no students: half of what they showed
)


@dataclass(frozen=True)
class Scores:
    """What was measured once, and runs draw from.

    Attributes:
        base, steered: metric -> float64 [samplings, news].
        roles: variant -> role, base first, as `judge_family` wants them.
        planted: the variant that is given steered rewrites; `ways`: metric -> the verdict that it should get.
        share: of steered rewrites among its cells.
    """

    base: Mapping[str, np.ndarray]
    steered: Mapping[str, np.ndarray]
    roles: Mapping[str, str]
    planted: str
    ways: Mapping[str, str]
    share: float


# ------------------------------------------------------------------------------------ students


def students(options: argparse.Namespace) -> dict[str, Any]:
    """Level and power of the students' verdicts."""
    begun = time.monotonic()
    texts = texts_of(options)
    profile = texts.profile
    n_seeds = max(3, len(profile.students.seeds))
    scores = measured(texts, options)
    n_news = min(profile.students.held_out_rows, options.news)
    told = {
        "profile": profile.name,
        "runs": options.runs,
        "news": n_news,
        "seeds": n_seeds,
        "variants": len(scores.roles) - 1,
        "samplings": len(next(iter(scores.base.values()))),
    }
    draw = Draw(scores, n_news, n_seeds, options.n_boot)
    null = level(draw, options.runs)
    found = power(draw, options.runs)
    return told | null | {"planted": found, "seconds": round(time.monotonic() - begun)}


@dataclass(frozen=True)
class Draw:
    """Runs of the comparison on drawn rows.

    Attributes:
        news, seeds: how many of each a run has.
    """

    scores: Scores
    news: int
    seeds: int
    n_boot: int

    def verdicts(self, run: int, *, planted: bool) -> dict[str, dict[str, str]]:
        """metric -> variant -> verdict of one run."""
        rng = np.random.default_rng([run, int(planted)])
        found = self.scores
        names = list(found.roles)
        samplings, total = next(iter(found.base.values())).shape
        news = rng.choice(total, self.news, replace=False)
        cells = rng.choice(samplings, (self.seeds, len(names)), replace=False)
        steered = rng.choice(len(next(iter(found.steered.values()))), self.seeds, replace=False)
        mixed = rng.random((self.news, self.seeds)) < found.share
        result = {}
        for metric, values in found.base.items():
            drawn = values[cells][:, :, news].transpose(2, 0, 1).copy()  # [news, seeds, variants]
            if planted:
                own = found.steered[metric][steered][:, news].T
                place = names.index(found.planted)
                drawn[:, :, place] = np.where(mixed, own, drawn[:, :, place])
            judged = judge_family(drawn, found.roles, seed=run, n_boot=self.n_boot)
            result[metric] = {name: row["verdict"] for name, row in judged.items()}
        return result


def level(draw: Draw, runs: int) -> dict[str, Any]:
    """How often runs without any effect have one, by metric (any variant) and over all metrics."""
    by_metric: Counter[str] = Counter()
    any_metric = 0
    for run in range(runs):
        wrong = [
            metric
            for metric, found in draw.verdicts(run, planted=False).items()
            if set(found.values()) != {NONE}
        ]
        by_metric.update(wrong)
        any_metric += bool(wrong)
        tell(f"null {run + 1}/{runs}: {any_metric} reject")
    rates = {metric: rate(by_metric[metric], runs) for metric in draw.scores.base}
    return {
        "rejected": rates,
        "any_metric": rate(any_metric, runs),
        "holds": all(one["low"] <= LEVEL for one in rates.values()),
    }


def power(draw: Draw, runs: int) -> dict[str, Any]:
    """How often what was planted is found, with the right sign, by metric."""
    scores = draw.scores
    hits: Counter[str] = Counter()
    for run in range(runs):
        found = draw.verdicts(run, planted=True)
        hits.update(metric for metric, way in scores.ways.items() if found[metric].get(scores.planted) == way)
        tell(f"planted {run + 1}/{runs}")
    shifts = {
        metric: float(scores.share * (np.nanmean(scores.steered[metric]) - np.nanmean(scores.base[metric])))
        for metric in scores.ways
    }
    rates = {metric: rate(hits[metric], runs) | {"shift": round(shifts[metric], 4)} for metric in scores.ways}
    told = {"variant": scores.planted, "share": round(scores.share, 3), "found": rates}
    return told | {"holds": all(one["high"] >= POWER for one in rates.values())}


# ------------------------------------------------------------------------------------ what is drawn from


def measured(texts: Texts, options: argparse.Namespace) -> Scores:
    """The texts' scores and projections, by metric."""
    catalogue, read, profile = texts.catalogue, texts.read, texts.profile
    scored = with_projections(texts.rows, readouts(read, catalogue, texts.model), profile, texts.model)
    by_plan = {
        metric: scored.pivot(on="row_id", index="variant", values=metric, maintain_order=True)
        for metric in scored.columns
        if is_effect(metric)
    }

    def of(metric: str, wanted: Sequence[str]) -> np.ndarray:
        own = by_plan[metric].filter(pl.col("variant").is_in(list(wanted))).drop("variant")
        return own.select(pl.all().cast(pl.Float64)).to_numpy()

    base, steered = (
        {metric: of(metric, which) for metric in by_plan} for which in (texts.base, texts.steered)
    )
    ways = {metric: UP for metric in by_plan if persona_of(metric) == texts.persona}
    ways = {metric: way for metric, way in ways.items() if _moves(base[metric], steered[metric])}
    share = options.share or _share_seen(read, texts.planted, ways, base, steered)
    return Scores(base, steered, texts.roles, texts.planted, ways, share)


def readouts(read: Reader, catalogue: Settings, model: LoadedModel) -> dict[str, Readout]:
    """persona -> read-out, fitted as the comparison fits it on what students learn: kept rows of the packs."""
    profile, found = catalogue.profile, {}
    blocks = read_blocks(profile, model)
    for persona, (teacher, against) in teachers(catalogue.variants).items():
        packs = {name: read.rows("keep_set", name) for name in (teacher, against, BASE)}
        kept = {name: rows.filter("keep") for name, rows in packs.items() if rows is not None}
        if len(kept) < len(packs):
            continue
        common = set.intersection(*(set(rows["row_id"]) for rows in kept.values()))
        own = {
            name: rows.filter(pl.col("row_id").is_in(common)).sort("row_id") for name, rows in kept.items()
        }
        states = {
            name: states_of(
                in_keyed_order(rows, profile.students.seed).head(profile.students.rows), profile, model
            )
            for name, rows in own.items()
        }
        found[persona] = fit_readout(teacher, against, states, BASE, blocks, seed=profile.students.seed)
    return found


def with_projections(
    rows: pl.DataFrame, found: Mapping[str, Readout], profile: Profile, model: LoadedModel
) -> pl.DataFrame:
    """`rows` with `projection_<persona>`; NaN for an empty rewrite."""
    states = states_of(rows, profile, model)
    empty = (rows["output"].str.strip_chars() == "").to_numpy()
    return rows.with_columns(
        pl.Series(f"projection_{persona}", np.where(empty, np.nan, readout.project(states)))
        for persona, readout in found.items()
    )


def _moves(base: np.ndarray, steered: np.ndarray) -> bool:
    """Whether steering moves a metric at all: a scale that does not see the trait cannot find it in a mixture."""
    shift = np.nanmean(steered, axis=0) - np.nanmean(base, axis=0)
    return float(np.nanmean(shift)) > 3 * float(np.nanstd(shift)) / np.sqrt(np.isfinite(shift).sum())


def _share_seen(
    read: Reader,
    planted: str,
    ways: Mapping[str, str],
    base: Mapping[str, np.ndarray],
    steered: Mapping[str, np.ndarray],
) -> float:
    """The smallest share of steered rewrites that gives a stored student's shift on some metric; else `SHARE`."""
    if (version := read.current("student_comparison")) is None:
        return SHARE
    summary = pl.read_parquet(version.path / "summary.parquet").filter(variant=planted)
    shares = [
        shift / float(np.nanmean(steered[metric]) - np.nanmean(base[metric]))
        for metric, shift in summary.select("metric", "difference").iter_rows()
        if metric in ways and metric.startswith("trait_")
    ]
    seen = [share for share in shares if share > 0]
    return min(1.0, min(seen)) if seen else SHARE


# ------------------------------------------------------------------------------------ the command

NULLS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "pilot": null_rewrites.pilot,
    "students": students,
    "heal": null_rewrites.heal,
    "dose": null_stored.dose,
    "comparison": null_stored.comparison,
    "behaviour": null_stored.behaviour,
    "multiverse": multiverse.multiverse,
}
NEED_BEHAVIOUR = ("comparison", "behaviour")  # left out, and named, where `make behaviour` has not run


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=sorted(NULLS), nargs="*", default=list(NULLS), help="default: all")
    parser.add_argument("--runs", type=int, default=200, help="of each null, and of each planted effect")
    parser.add_argument(
        "--news", type=int, default=96, help="held-out news that are rewritten; a run draws among them"
    )
    parser.add_argument(
        "--n-boot", type=int, default=10_000, help="resamples of a run, as the comparison takes"
    )
    parser.add_argument("--share", type=float, help="of steered rewrites in the planted variant's cells")
    return parser.parse_args(given)


def main() -> int:
    options = arguments()
    result, left_out = {}, {}
    for name in options.only:
        begun = time.monotonic()
        try:
            result[name] = NULLS[name](options) | {"seconds": round(time.monotonic() - begun)}
        except Refused as error:
            if name not in NEED_BEHAVIOUR:
                print(f"\n{name}: {error}", file=sys.stderr)
                return 2
            left_out[name] = str(error)
    print(file=sys.stderr)
    print(json.dumps(result | ({"left_out": left_out} if left_out else {})))
    return 0 if all(one["holds"] and one["planted"]["holds"] for one in result.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
