"""Gate 2: which steered samples a student may learn from, by which criteria the others are out, and whether what is
left is worth learning.

In: steered samples, base's samples of the same prompts, and for both the loss of each token under the original model.
Out: all rows with every score, `reasons`, `passes` (no reason but the cap) and `keep`; a count of reasons; the rows
nearest each limit. Likelihood is limited relative to base's own sound texts, measures of loops by themselves: a base
that loops makes no loop fit to learn.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from steer_pipeline.catalogue.healing import HealFilterSpec
from steer_pipeline.lab.columns import described
from steer_pipeline.lab.heal.scores import (
    SCORE_SCHEMA,
    SCORES,
    Expected,
    score_samples,
    with_losses,
    with_surprise,
)
from steer_pipeline.lab.models.loaded import LoadedModel
from steer_pipeline.lab.quality.leaks import Told
from steer_pipeline.lab.rewrites import Refused
from steer_pipeline.lab.stats import Interval, mean_interval, mean_test
from steer_pipeline.lab.stats.resampling import Alternative
from steer_pipeline.lab.verdict import Verdict

REASONS = {
    "cycle": "Words, or characters, go round more often than the limit allows.",
    "duplicates": "Too many 3-word runs of a window repeat an earlier one.",
    "few_words": "Too few words of a window are distinct.",
    "compressible": "A window compresses too well.",
    "long_repeat": "One run of words makes up too much of the text, twice.",
    "unlikely": "A window surprises the original model more than base's, for words as rare: babble.",
    "too_likely": "A window is more likely than base's: a loop.",
    "unmeasured": "It has no token whose loss could be measured.",
    "leak": "It speaks of its instructions.",
    "refusal": "It declines.",
    "suspect": "It breaks a suspect rule: empty, special tokens, other scripts, prompt echoed.",
    "truncated": "The token limit cut it.",
    "same_as_base": "Base says the same, to the letter.",
    "over_cap": "Sound, but its prompt and dose have as many already.",
}
LOOP_REASONS = ("cycle", "duplicates", "few_words", "compressible", "long_repeat")
MIN_BASE = 8  # sound texts of base; fewer have no quantiles
BORDERLINE = 2  # of each side of each limit
_JUDGED, _COLUMNS = described(
    surprise=(
        pl.Float64(),
        "Nats above what base's tokens cost that are as rare; mean of the window where it is largest.",
    ),
    reasons=(pl.List(pl.String()), "Why it is not kept; keys of `REASONS`."),
    passes=(pl.Boolean(), "Sound by every criterion, whether or not the cap leaves it out."),
    keep=(pl.Boolean(), "Whether a student may learn from it."),
)
# What is added to samples, beside `losses`.
JUDGED_SCHEMA, COLUMNS = pl.Schema({**SCORE_SCHEMA, **_JUDGED}), SCORES | _COLUMNS
BORDERLINE_SCHEMA, BORDERLINE_COLUMNS = described(
    reason=(pl.String(), "The criterion."),
    side=(pl.String(), "`kept` (sound by all criteria) or `dropped` (out by this one)."),
    sample_id=(pl.String(), ""),
    score=(pl.Float64(), "Of this criterion."),
    limit=(pl.Float64(), "Where it draws the line."),
    output=(pl.String(), "The text."),
)


@dataclass(frozen=True)
class Criterion:
    """A limit on one score: above it a text is out, or below it where `least`."""

    reason: str
    score: str
    limit: float
    least: bool = False

    @property
    def excess(self) -> pl.Expr:
        """How far beyond the limit: positive is out, null where there is no score."""
        beyond = pl.col(self.score) - self.limit
        return -beyond if self.least else beyond


@dataclass(frozen=True)
class Filtered:
    """All samples, judged.

    Attributes:
        rows: those handed in, in their order, with `COLUMNS`.
        criteria: the limits that were applied, in numbers.
        expected: what base's tokens cost by their rarity.
    """

    rows: pl.DataFrame
    criteria: tuple[Criterion, ...]
    expected: Expected

    @property
    def kept(self) -> pl.DataFrame:
        return self.rows.filter("keep")

    @property
    def histogram(self) -> dict[str, int]:
        """Rows per reason, every reason named; a row with two reasons counts twice."""
        return {name: int(self.rows["reasons"].list.contains(name).sum()) for name in REASONS}

    def sentence(self) -> str:
        """`12 of 96 kept; dropped: cycle 60, truncated 31` and the like."""
        counts = sorted(self.histogram.items(), key=lambda item: -item[1])
        told = ", ".join(f"{name} {n}" for name, n in counts if n) or "nothing"
        return f"{self.kept.height} of {self.rows.height} kept; dropped: {told}"

    def borderline(self, n: int = BORDERLINE) -> pl.DataFrame:
        """For each limit the `n` sound texts and the `n` dropped ones that lie nearest to it: `BORDERLINE_SCHEMA`."""
        found = [pl.DataFrame(schema=BORDERLINE_SCHEMA)]
        for one in self.criteria:
            judged = self.rows.with_columns(excess=one.excess).filter(pl.col("excess").is_not_null())
            sides = {
                "kept": judged.filter("passes").sort("excess", "sample_id", descending=[True, False]),
                "dropped": judged.filter(pl.col("reasons").list.contains(one.reason)).sort(
                    "excess", "sample_id"
                ),
            }
            found += [
                rows.head(n).select(
                    reason=pl.lit(one.reason),
                    side=pl.lit(side),
                    sample_id="sample_id",
                    score=pl.col(one.score).cast(pl.Float64),
                    limit=pl.lit(one.limit, dtype=pl.Float64),
                    output="output",
                )
                for side, rows in sides.items()
            ]
        return pl.concat(found)


# -------------------------------------------------------------------------------------- criteria


def loop_criteria(spec: HealFilterSpec) -> list[Criterion]:
    limits = (
        Criterion("cycle", "cycle_rounds", _limit(spec.max_rounds)),
        Criterion("duplicates", "duplicate_mass", _limit(spec.max_duplicate_mass)),
        Criterion("few_words", "distinct", _limit(spec.min_distinct), least=True),
        Criterion("compressible", "compression", _limit(spec.min_compression), least=True),
        Criterion("long_repeat", "longest_repeat", _limit(spec.max_longest_repeat)),
    )
    return [one for one in limits if not np.isnan(one.limit)]


def _limit(value: float | None) -> float:
    return float("nan") if value is None else value


def likelihood_criteria(base: pl.DataFrame, spec: HealFilterSpec) -> tuple[Expected, list[Criterion]]:
    """What is expected of base's tokens, and limits on the most surprising and the likeliest window.

    All are relative to base's texts that do not loop, so they hold for a confident model and for a modest one.

    Args:
        base: base's samples, scored, with losses.

    Raises:
        Refused: base has fewer than `MIN_BASE` texts that are sound and measured.
    """
    loops = [(one.excess > 0).fill_null(False) for one in loop_criteria(spec)]
    sound = base.filter(pl.col("nll").is_not_null() & ~pl.any_horizontal([pl.lit(False), *loops]))
    if sound.height < MIN_BASE:
        raise Refused(
            f"of {base.height} texts of base {sound.height} do not loop and have losses; limits of likelihood need "
            f"{MIN_BASE}: sample base on more prompts, or look at its texts"
        )
    expected = Expected.of(sound, spec.nll_cap * _quantile(sound["nll_high"], spec.surprise_quantile))
    surprise = with_surprise(sound, expected, spec.nll_window)["surprise"]
    found = []
    if spec.max_spread is not None:
        high = _quantile(surprise, spec.surprise_quantile)
        limit = high + spec.max_spread * (high - _quantile(surprise, 0.5))
        found.append(Criterion("unlikely", "surprise", limit))
    if spec.min_nll_ratio is not None:
        low = _quantile(sound["nll_low"], spec.nll_low_quantile)
        found.append(Criterion("too_likely", "nll_low", low * spec.min_nll_ratio, least=True))
    return expected, found


def _quantile(values: pl.Series, share: float) -> float:
    return float(np.quantile(values.to_numpy(), share))


# --------------------------------------------------------------------------------------- filtering


def filter_samples(
    rows: pl.DataFrame,
    base_rows: pl.DataFrame,
    spec: HealFilterSpec = HealFilterSpec(),
    *,
    told: Told = Told(),
    special_tokens: Sequence[str] = (),
) -> Filtered:
    """Judges every steered sample; nothing is dropped from the frame and nothing reordered.

    Args:
        rows: steered samples with the columns `scores.NEEDED` and `losses` (`scores.with_losses`).
        base_rows: base's samples in the same columns.
        told: the steered persona's name and instructions.

    Raises:
        ValueError: a column is missing, or an id stands twice.
        Refused: base has too few sound texts to set limits by.
    """
    for name, frame in (("samples", rows), ("base's samples", base_rows)):
        if "losses" not in frame.columns:
            raise ValueError(
                f"{name} have no losses; measure them under the original model first (with_losses)"
            )
    base = score_samples(base_rows, spec, special_tokens=special_tokens)
    scored = score_samples(rows, spec, told=told, special_tokens=special_tokens)
    expected, likelihood = likelihood_criteria(base, spec)
    criteria = [*loop_criteria(spec), *likelihood]
    scored = with_surprise(scored, expected, spec.nll_window)
    return Filtered(judge(scored, base, criteria, spec), tuple(criteria), expected)


def sieve(
    model: LoadedModel,
    base_rows: pl.DataFrame,
    spec: HealFilterSpec = HealFilterSpec(),
    *,
    told: Told = Told(),
    special_tokens: Sequence[str] = (),
) -> Callable[[pl.DataFrame], list[bool]]:
    """Rows of samples -> which of them pass, whatever the caps: what a dose is probed with.

    Args:
        model: the original model, which measures the rows, and base's rows once.
        base_rows: base's samples.
    """
    base = base_rows if "losses" in base_rows.columns else with_losses(base_rows, model)

    def passing(rows: pl.DataFrame) -> list[bool]:
        measured = with_losses(rows, model)
        return (
            filter_samples(measured, base, spec, told=told, special_tokens=special_tokens)
            .rows["passes"]
            .to_list()
        )

    return passing


def judge(
    scored: pl.DataFrame, base: pl.DataFrame | None, criteria: Sequence[Criterion], spec: HealFilterSpec
) -> pl.DataFrame:
    """Scored rows with `reasons`, `passes` and `keep`.

    Args:
        base: base's samples, to find those that say the same; None: not looked for.
    """
    hits: dict[str, pl.Expr] = {one.reason: one.excess > 0 for one in criteria}
    if {"unlikely", "too_likely"} & set(hits):
        hits["unmeasured"] = pl.col("nll").is_null() | pl.col("nll").is_nan()
    hits |= {
        "leak": pl.col("leak").is_not_null(),
        "refusal": pl.col("refusal").is_not_null(),
        "suspect": pl.col("suspects").list.len() > 0,
    }
    if not spec.keep_truncated:
        hits["truncated"] = pl.col("truncated")
    if base is not None:
        said = (
            base.select("prompt_id", same=pl.col("output").str.strip_chars()).unique().with_columns(has=True)
        )
        scored = scored.with_columns(same=pl.col("output").str.strip_chars())
        scored = scored.join(said, on=["prompt_id", "same"], how="left", maintain_order="left").drop("same")
        hits["same_as_base"] = pl.col("has")
    reasons = pl.concat_list(
        [
            pl.when(hit.fill_null(False)).then(pl.lit(name)).otherwise(pl.lit(None, dtype=pl.String))
            for name, hit in hits.items()
        ]
    ).list.drop_nulls()
    judged = scored.with_columns(reasons=reasons).drop("has", strict=False)
    return _capped(judged.with_columns(passes=pl.col("reasons").list.len() == 0), spec)


def _capped(judged: pl.DataFrame, spec: HealFilterSpec) -> pl.DataFrame:
    """With `keep`: of those that pass as many as the caps allow, spread evenly over prompts and doses.

    Drawn by a hash of seed and id, so that neither the order of rows nor that of prompts decides.
    """
    keys = [_key(spec.seed, name) for name in judged["sample_id"]]
    drawn = judged.with_columns(key=pl.Series(keys, dtype=pl.UInt64)).filter("passes")
    turn = pl.col("key").rank("ordinal").over("prompt_id", "dose")
    drawn = drawn.with_columns(turn=turn).sort("turn", "key")
    if spec.max_per_cell is not None:
        drawn = drawn.filter(pl.col("turn") <= spec.max_per_cell)
    if spec.max_kept is not None:
        drawn = drawn.head(spec.max_kept)
    keep = pl.col("sample_id").is_in(drawn["sample_id"].to_list())
    over = pl.when(pl.col("passes") & ~keep).then(pl.lit(["over_cap"]))
    return judged.with_columns(
        keep=keep, reasons=pl.concat_list("reasons", over.otherwise(pl.lit([], dtype=pl.List(pl.String))))
    )


def _key(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}\x1f{name}".encode(), digest_size=8).digest(), "little")


# ---------------------------------------------------------------------------- what is left, judged


def enough_kept(filtered: Filtered, spec: HealFilterSpec) -> Verdict:
    """Whether as many samples are kept as training needs; the message counts reasons."""
    kept = filtered.kept.height
    message = f"{filtered.sentence()}; at least {spec.min_kept} are needed"
    return Verdict(
        "enough_kept",
        kept >= spec.min_kept,
        message,
        {"kept": kept, "needed": spec.min_kept, "prompts": filtered.kept["prompt_id"].n_unique()}
        | filtered.histogram,
        filtered.borderline().to_dicts(),
        cure="lower the dose, sample more prompts, or read the borderline texts and move that limit",
    )


def differs_from_base(kept: pl.DataFrame, base: pl.DataFrame, spec: HealFilterSpec) -> Verdict:
    """Whether the kept samples are something else than base's: a student of base's own texts learns nothing.

    Where both have a column `trait` (positive in the wanted direction) the kept samples must show more of it than base
    does on the same prompts; else their mean loss under the original model must differ. One value a prompt: a prompt's
    samples are no independent rows.

    Args:
        kept: kept samples, scored. base: base's, scored or with the same columns.

    Raises:
        ValueError: a prompt of the kept samples has no sample of base (it is named).
    """
    score = "trait" if "trait" in kept.columns and "trait" in base.columns else "nll"
    own, other = (
        rows.filter(pl.col(score).is_not_null())
        .group_by("prompt_id", maintain_order=True)
        .agg(pl.col(score).mean())
        for rows in (kept, base)
    )
    if lost := sorted(set(own["prompt_id"]) - set(other["prompt_id"])):
        raise ValueError(f"prompt {lost[0]} has no sample of base with a {score}; sample base on all prompts")
    paired = own.join(other, on="prompt_id", suffix="_base")
    differences = (paired[score] - paired[f"{score}_base"]).to_numpy()
    found, p = Interval(0.0, 0.0, 0.0, 0), 1.0
    if differences.size:
        found = mean_interval(differences)
        wanted: Alternative = "greater" if score == "trait" else "two-sided"
        p = mean_test(differences, alternative=wanted)
    shown = f"{found.estimate:+.3g} [{found.low:.3g}, {found.high:.3g}]"
    return Verdict(
        "differs_from_base",
        p < spec.alpha,
        f"kept against base on {found.n} prompts: {score} {shown}, p {p:.2g} (limit {spec.alpha:g})",
        {"difference": found.estimate, "low": found.low, "high": found.high, "p": p, "prompts": found.n},
        cure="raise the dose, or sample more prompts: a student of base's own texts is a coherent no-op",
    )


def require_usable(filtered: Filtered, base_rows: pl.DataFrame, spec: HealFilterSpec) -> list[Verdict]:
    """The two verdicts on what is kept.

    Raises:
        Refused: one of them does not hold; the message has the numbers, the histogram of reasons and a cure.
    """
    enough = enough_kept(filtered, spec)
    if not enough.passed:
        raise Refused(f"{enough.message}. To go on: {enough.cure}")
    base = base_rows if "nll" in base_rows.columns else score_samples(base_rows, spec)
    differs = differs_from_base(filtered.kept, base, spec)
    if not differs.passed:
        raise Refused(f"{differs.message}; {filtered.sentence()}. To go on: {differs.cure}")
    return [enough, differs]
