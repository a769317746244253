"""Every variant against base, next to what a resample and a random direction show.

In: packs as frames, facts and scorers. Out: `ComparisonTables`: one row a news item and variant, one row a
variant and metric. Differences are paired by row_id. Nothing here reads a store; reports are made from these
tables alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import polars as pl

from steer_pipeline.lab.controls import CONTROL_SCHEMA, Controls, judge_controls, row_noise
from steer_pipeline.lab.evaluation import TraitScorer
from steer_pipeline.lab.quality import (
    OUR_RULES,
    alignment,
    exact_match,
    facts_kept,
    length_ratio,
    multiset_jaccard,
    scan_frame,
    words,
)
from steer_pipeline.lab.rewrites.aims import trait_column
from steer_pipeline.lab.rewrites.axes import STORED_MATRIX
from steer_pipeline.lab.rewrites.band import BAND_TABLE_SCHEMA
from steer_pipeline.lab.rewrites.costs import COMBINED_SCHEMA, COSTS_SCHEMA
from steer_pipeline.lab.rewrites.off_target import OFF_TARGET_SCHEMA
from steer_pipeline.lab.rewrites.steerability import AIM_SCHEMA
from steer_pipeline.lab.stats import (
    Interval,
    detectable,
    holm,
    mean_interval,
    mean_intervals,
    mean_tests,
    sign_flip_test,
)

RANDOM_TERM = "random:"  # of the name of a term whose direction was drawn
BASE, RESAMPLE, RANDOM = "base", "base_resample", "random_direction"
NEEDED = (BASE, RESAMPLE, RANDOM)  # nothing is compared without these
# How alike two texts are makes sense only against another pair: these compare with the resample.
LIKENESS = ("exact_match", "overlap")
METRICS = {
    "exact_match": "share of outputs equal to base's",
    "overlap": "multiset Jaccard of words with base's output",
    "n_words": "words in the output",
    "length_ratio": "words per word of base's output",
    "facts_kept": "share of the lead's facts that the output keeps",
    "suspect": "share of outputs that break a rule of ours",
    "truncated": "share of outputs cut by the token limit",
}
SUMMARY_SCHEMA = {
    "variant": pl.String,
    "role": pl.String,
    "metric": pl.String,
    "n": pl.Int64,
    "mean": pl.Float64,
    "median": pl.Float64,
    "sd": pl.Float64,
    "reference": pl.String,
    "difference": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "detectable": pl.Float64,
    "simultaneous": pl.Boolean,
    "p": pl.Float64,
    "p_holm": pl.Float64,
    "resample_difference": pl.Float64,
    "resample_low": pl.Float64,
    "resample_high": pl.Float64,
    "random_difference": pl.Float64,
    "random_low": pl.Float64,
    "random_high": pl.Float64,
}


@dataclass(frozen=True, eq=False)
class ComparisonTables:
    """What a comparison found. Frames can be stored as they are.

    Attributes:
        rows: one row a variant and news item: row_id, variant, source, output, exact_match, overlap, n_words,
            length_ratio, facts_kept (null without facts), suspects (list), suspect, truncated, nll (null where the
            pack does not say),
            trait_<persona>_<scale>, and hits_<persona>_positive, hits_<persona>_negative (marker counts).
        summary: one row a variant and metric (`SUMMARY_SCHEMA`): mean; paired difference to the reference
            (base; for likeness base_resample) with a 95% interval, the smallest difference that would be found
            with 80% power, p of the mean, and p after Holm over all variants and metrics but the controls; the
            controls' own differences beside it. Trait differences of controls have the intervals of `control_shifts`.
        control_shifts: what controls do to every trait on every scale, judged together (`controls.CONTROL_SCHEMA`).
            A control of several random directions stands on these, not on its rows: it speaks of random directions.
        distances: one row a variant: is it further from base than the resample is? One-sided paired test of
            1 - overlap.
        agreement: one row a news item: distinct outputs among base and the steered variants.
        alignment: one row a variant: rows, and missing, extra and duplicated row ids against base.
        scorers: one row a persona and scale that reports how well it separates held-out texts.
        costs: one row a variant and cost, against base on the same rows (`costs.COSTS_SCHEMA`).
        combined: one row a variant with an aim: trait, facts and fluency in one number (`costs.COMBINED_SCHEMA`).
        matrix, aims: movement of every variant on every axis, and aim and side effects (`axes.side_effects`).
        band: one row a variant and aim, beside the random directions (`band.BAND_TABLE_SCHEMA`).
        off_target: one row a variant with an aim: what moved most beside it (`off_target.OFF_TARGET_SCHEMA`).

    The last six stand on more than packs; `stored.compare_stored` fills them.
    """

    rows: pl.DataFrame
    summary: pl.DataFrame
    distances: pl.DataFrame
    agreement: pl.DataFrame
    alignment: pl.DataFrame
    scorers: pl.DataFrame
    control_shifts: pl.DataFrame = field(default_factory=partial(pl.DataFrame, schema=CONTROL_SCHEMA))
    costs: pl.DataFrame = field(default_factory=partial(pl.DataFrame, schema=COSTS_SCHEMA))
    combined: pl.DataFrame = field(default_factory=partial(pl.DataFrame, schema=COMBINED_SCHEMA))
    matrix: pl.DataFrame = field(default_factory=partial(pl.DataFrame, schema=STORED_MATRIX))
    aims: pl.DataFrame = field(default_factory=partial(pl.DataFrame, schema=AIM_SCHEMA))
    band: pl.DataFrame = field(default_factory=partial(pl.DataFrame, schema=BAND_TABLE_SCHEMA))
    off_target: pl.DataFrame = field(default_factory=partial(pl.DataFrame, schema=OFF_TARGET_SCHEMA))

    @property
    def variants(self) -> list[str]:
        """Names in the order given, base first."""
        return self.alignment["variant"].to_list()

    @cached_property
    def roles(self) -> dict[str, str]:
        """variant -> role: `base`, `steered`, `prompted` (what a prompt achieves), `control` (must show nothing)."""
        return dict(self.summary.select("variant", "role").unique(maintain_order=True).iter_rows())

    @property
    def controls(self) -> list[str]:
        """Variants that must show nothing."""
        return [name for name, role in self.roles.items() if role == "control"]

    def of(self, variant: str, metric: str) -> dict:
        """The summary's row for one variant and metric."""
        rows = self.summary.filter(pl.col("variant") == variant, pl.col("metric") == metric)
        if rows.is_empty():
            raise KeyError(f"no row for variant {variant!r} and metric {metric!r} in the summary")
        return rows.row(0, named=True)


def compare_variants(
    packs: Mapping[str, pl.DataFrame],
    facts: Mapping[str, Sequence[str]],
    scorers: Mapping[str, Mapping[str, TraitScorer]],
    roles: Mapping[str, str],
    seed: int,
    *,
    sources: Mapping[str, str] | None = None,
    special_tokens: Sequence[str] = (),
) -> ComparisonTables:
    """Scores every row of every pack and compares the variants with base and the controls.

    Args:
        packs: variant -> frame with row_id, prompt, output, truncated. base, base_resample and
            random_direction must be there: a difference without its controls means nothing.
        facts: row_id -> facts of the news item.
        scorers: persona -> scale (`lexicon`, `minilm`, ...) -> scorer of signed scores in [-1, 1].
        roles: variant -> its role in the catalogue; see `ComparisonTables.roles`.
        seed: of all resampling; the same packs and seed give the same tables.
        sources: row_id -> news text, which suspect rules compare with; default: the row's prompt.
        special_tokens: special strings of the tokenizer.

    Raises:
        ValueError: a pack or column is missing, a row id occurs twice, or a variant shares no row with base.
    """
    _check_packs(packs)
    order = [BASE, *(name for name in packs if name != BASE)]
    base = packs[BASE]
    aligned = [_alignment_row(name, packs[name], base) for name in order]
    common = set(base["row_id"])
    scoring = _Scoring(base, facts, scorers, sources, special_tokens)
    rows = pl.concat(
        [scoring.rows(name, packs[name].filter(pl.col("row_id").is_in(common))) for name in order]
    )
    traits = [trait_column(persona, scale) for persona, scales in scorers.items() for scale in scales]
    control_shifts = _control_shifts(packs, rows, traits, [n for n in order if roles[n] == "control"], seed)
    return ComparisonTables(
        rows=rows,
        summary=_summarise(rows, order, traits, roles, control_shifts, seed),
        distances=_distances(rows, order, seed),
        agreement=_agreement(rows, [name for name in order if roles[name] in ("base", "steered")]),
        alignment=pl.DataFrame(aligned),
        scorers=_scorer_reports(scorers),
        control_shifts=control_shifts,
    )


def difference_from_base(
    variant: pl.DataFrame, base: pl.DataFrame, resample: pl.DataFrame, seed: int
) -> dict[str, float | int]:
    """Whether a variant differs from base more than base's resample does, on the rows that all three have.

    Returns:
        n, distance and resample_distance (mean 1 - overlap with base), difference with 95% interval
        (low, high), and the one-sided paired sign-flip p that the variant is no further than the resample.
    """
    joined = (
        base.select("row_id", base="output")
        .join(variant.select("row_id", variant="output"), on="row_id")
        .join(resample.select("row_id", resample="output"), on="row_id")
    )
    if joined.is_empty():
        raise ValueError("variant, base and resample share no row_id; make them from the same rows")
    own = [1 - multiset_jaccard(a, b) for a, b in zip(joined["variant"], joined["base"], strict=True)]
    other = [1 - multiset_jaccard(a, b) for a, b in zip(joined["resample"], joined["base"], strict=True)]
    return _distance_test(np.array(own), np.array(other), seed)


# -------------------------------------------------------------------------------------------- rows


def _check_packs(packs: Mapping[str, pl.DataFrame]) -> None:
    for name in NEEDED:
        if name not in packs:
            raise ValueError(
                f"compare_variants: pack {name} is missing; make it first: no difference without it"
            )
    for name, pack in packs.items():
        for column in ("row_id", "prompt", "output", "truncated"):
            if column not in pack.columns:
                raise ValueError(f"compare_variants: pack {name} has no column {column!r}")
        if pack["row_id"].is_duplicated().any():
            row_id = pack.filter(pack["row_id"].is_duplicated())["row_id"][0]
            raise ValueError(f"compare_variants: pack {name}: row_id {row_id} occurs twice; see its gates")


def _alignment_row(name: str, pack: pl.DataFrame, base: pl.DataFrame) -> dict[str, str | int]:
    ids = alignment(pack, base)
    if len(ids.extra) == pack.height:
        raise ValueError(
            f"compare_variants: pack {name} shares no row_id with base; they are of different news"
        )
    return {
        "variant": name,
        "rows": pack.height,
        "missing": len(ids.missing),
        "extra": len(ids.extra),
        "duplicated": len(ids.duplicated),
    }


@dataclass(frozen=True)
class _Scoring:
    """What every row of every pack is held against; arguments as those of `compare_variants`."""

    base: pl.DataFrame
    facts: Mapping[str, Sequence[str]]
    scorers: Mapping[str, Mapping[str, TraitScorer]]
    sources: Mapping[str, str] | None
    special_tokens: Sequence[str]

    def rows(self, name: str, pack: pl.DataFrame) -> pl.DataFrame:
        """One pack as rows of `ComparisonTables`."""
        frame = scan_frame(self._texts(name, pack), source="source", special_tokens=self.special_tokens)
        ours = pl.col("suspects").list.eval(pl.element().is_in(list(OUR_RULES))).list.any()
        frame = frame.with_columns(suspect=ours.fill_null(False))
        for persona, scales in self.scorers.items():
            for scale, scorer in scales.items():
                frame = frame.with_columns(_trait_columns(persona, scale, scorer, frame["output"].to_list()))
        return frame

    def _texts(self, name: str, pack: pl.DataFrame) -> pl.DataFrame:
        """Outputs beside their news and base's outputs, with what tells them apart."""
        ids, outputs = pack["row_id"].to_list(), pack["output"].to_list()
        reference = dict(zip(self.base["row_id"], self.base["output"], strict=True))
        pairs = [(text, reference[row_id]) for row_id, text in zip(ids, outputs, strict=True)]
        sources = self.sources
        kept = [
            facts_kept(self.facts.get(row_id, ()), text) for row_id, text in zip(ids, outputs, strict=True)
        ]
        return pl.DataFrame(
            {
                "row_id": ids,
                "variant": [name] * len(ids),
                "source": pack["prompt"] if sources is None else [sources[row_id] for row_id in ids],
                "output": outputs,
                "exact_match": [exact_match(a, b) for a, b in pairs],
                "overlap": [multiset_jaccard(a, b) for a, b in pairs],
                "n_words": [len(words(text)) for text in outputs],
                "length_ratio": [length_ratio(a, b) for a, b in pairs],
                "facts_kept": pl.Series(kept, dtype=pl.Float64).fill_nan(None),
                "truncated": pack["truncated"],
                "nll": pack["nll"]
                if "nll" in pack.columns
                else pl.Series([None] * len(ids), dtype=pl.Float64),
            }
        )


def _trait_columns(persona: str, scale: str, scorer: TraitScorer, outputs: list[str]) -> Iterator[pl.Series]:
    """The scores, and of a scorer that counts markers their numbers."""
    yield pl.Series(trait_column(persona, scale), np.asarray(scorer.score_many(outputs), dtype=np.float64))
    if hits := getattr(scorer, "hits", None):
        marked = [hits(text) for text in outputs]
        for side in ("positive", "negative"):
            counts = [len(getattr(one, side)) for one in marked]
            yield pl.Series(f"hits_{persona}_{side}", counts, dtype=pl.Int64)


# ----------------------------------------------------------------------------------------- summary


def _summarise(
    rows: pl.DataFrame,
    order: Sequence[str],
    traits: Sequence[str],
    roles: Mapping[str, str],
    control_shifts: pl.DataFrame,
    seed: int,
) -> pl.DataFrame:
    controls = [name for name in order if roles[name] == "control"]
    values = {metric: _wide(rows, metric, order) for metric in [*METRICS, *traits]}
    tests = _paired_tests(values, order, controls, seed)
    families = {
        (row["control"], row["metric"]): Interval(row["difference"], row["low"], row["high"], row["n"])
        for row in control_shifts.iter_rows(named=True)
    }
    table = [
        {"variant": variant, "role": roles[variant], "metric": metric}
        | _described(values[metric][:, place])
        | _against_reference(variant, metric, tests, families)
        for metric in values
        for place, variant in enumerate(order)
    ]
    return pl.DataFrame(table, schema=SUMMARY_SCHEMA).with_columns(pl.col(pl.Float64).fill_nan(None))


@dataclass(frozen=True)
class _Test:
    """A paired difference to a reference; `p_holm` is None of controls."""

    interval: Interval
    detectable: float
    p: float
    p_holm: float | None


# (variant, metric, reference)
_Pair = tuple[str, str, str]


def _paired_tests(
    values: Mapping[str, np.ndarray], order: Sequence[str], controls: Sequence[str], seed: int
) -> dict[_Pair, _Test]:
    """Each variant against its reference in each metric, `values` as `_wide` gives them."""
    keys: list[_Pair] = []
    columns: list[np.ndarray] = []
    for metric, wide in values.items():
        for place, variant in enumerate(order):
            if (reference := _reference(variant, metric)) is not None:
                keys.append((variant, metric, reference))
                columns.append(wide[:, place] - wide[:, order.index(reference)])
    differences = np.column_stack(columns)
    differences[~np.isfinite(differences)] = np.nan
    intervals = mean_intervals(differences)
    found = detectable(differences).tolist()
    ps = dict(zip(keys, mean_tests(differences).tolist(), strict=True))
    tested = [key for key in keys if key[0] not in controls]
    adjusted = dict(zip(tested, holm([ps[key] for key in tested]).tolist(), strict=True))
    return {
        key: _Test(interval, size, ps[key], adjusted.get(key))
        for key, interval, size in zip(keys, intervals, found, strict=True)
    }


def _described(values: np.ndarray) -> dict[str, Any]:
    own = values[np.isfinite(values)]
    return {
        "n": len(own),
        "mean": float(own.mean()) if len(own) else None,
        "median": float(np.median(own)) if len(own) else None,
        "sd": float(own.std(ddof=1)) if len(own) > 1 else None,
    }


def _against_reference(
    variant: str,
    metric: str,
    tests: Mapping[_Pair, _Test],
    families: Mapping[tuple[str, str], Interval],
) -> dict[str, Any]:
    """The difference to the reference with its tests, and what both controls show there; empty without a reference."""
    reference = _reference(variant, metric)
    if reference is None:
        return {}
    test = tests[variant, metric, reference]
    interval = families.get((variant, metric), test.interval)
    row: dict[str, Any] = {"n": test.interval.n, "reference": reference, "difference": interval.estimate}
    row |= {"low": interval.low, "high": interval.high, "p": test.p, "p_holm": test.p_holm}
    row["detectable"] = test.detectable
    row["simultaneous"] = (variant, metric) in families
    for name, control in (("resample", RESAMPLE), ("random", RANDOM)):
        beside = families.get((control, metric))
        if beside is None and (control, metric, reference) in tests:
            beside = tests[control, metric, reference].interval
        if beside is not None:
            row |= {f"{name}_difference": beside.estimate}
            row |= {f"{name}_low": beside.low, f"{name}_high": beside.high}
    return row


def _wide(rows: pl.DataFrame, metric: str, order: Sequence[str]) -> np.ndarray:
    """Values of a metric, news items by variants, NaN where a variant lacks the item: float64 [n, k]."""
    table = rows.select("row_id", "variant", pl.col(metric).cast(pl.Float64)).pivot(
        on="variant", index="row_id", values=metric, maintain_order=True
    )
    return table.select(pl.col(order).fill_null(float("nan"))).to_numpy().astype(np.float64)


def _reference(variant: str, metric: str) -> str | None:
    """What a variant's metric is compared with; None where there is nothing to compare."""
    if variant == BASE:
        return None
    if metric in LIKENESS:
        return None if variant == RESAMPLE else RESAMPLE
    return BASE


# ------------------------------------------------------------------------------------- the controls


def _control_shifts(
    packs: Mapping[str, pl.DataFrame],
    rows: pl.DataFrame,
    traits: Sequence[str],
    controls: Sequence[str],
    seed: int,
) -> pl.DataFrame:
    """`CONTROL_SCHEMA` of all controls on every trait and scale."""
    if not traits:
        return pl.DataFrame(schema=CONTROL_SCHEMA)
    noise = row_noise(_to_base(rows, RESAMPLE, traits)[:, None])
    blocks = []
    for control in controls:
        differences = _to_base(rows, control, traits)
        drawn = directions_of(packs[control], rows.filter(variant=control)["row_id"].to_list())
        several = len(set(drawn)) > 1
        if several:
            differences = _by_direction(differences, drawn)
        names = [(control, "", trait) for trait in traits]
        blocks.append(Controls(names, differences[:, None], noise, directions=0 if several else None))
    return judge_controls(blocks, seed=seed)


def _to_base(rows: pl.DataFrame, variant: str, traits: Sequence[str]) -> np.ndarray:
    """Paired differences to base: float64 [rows of the variant, traits]."""
    base = rows.filter(variant=BASE).select(
        "row_id", *(pl.col(name).alias(f"base {name}") for name in traits)
    )
    both = rows.filter(variant=variant).join(base, on="row_id", maintain_order="left")
    differences = both.select((pl.col(name) - pl.col(f"base {name}")).alias(name) for name in traits)
    return differences.cast(pl.Float64).fill_null(float("nan")).to_numpy()


def _by_direction(differences: np.ndarray, drawn: Sequence[str]) -> np.ndarray:
    """Means over the rows of each direction: float64 [directions, traits]."""
    keys = np.asarray(drawn)
    return np.stack([np.nanmean(differences[keys == one], axis=0) for one in dict.fromkeys(drawn)])


def directions_of(pack: pl.DataFrame, row_ids: Sequence[str]) -> list[str]:
    """What was added to each row, where it was a random direction, as its versions say; else the same for all."""
    if "personas" not in pack.columns:
        return [""] * len(row_ids)
    drawn = {
        row_id: " ".join(str(term["version"]) for term in terms or () if term["name"].startswith(RANDOM_TERM))
        for row_id, terms in pack.select("row_id", "personas").iter_rows()
    }
    return [drawn[row_id] for row_id in row_ids]


# -------------------------------------------------------------------------------------- the others


def _distance_test(own: np.ndarray, other: np.ndarray, seed: int) -> dict[str, float | int]:
    interval = mean_interval(own - other)
    return {
        "n": interval.n,
        "distance": float(own.mean()),
        "resample_distance": float(other.mean()),
        "difference": interval.estimate,
        "low": interval.low,
        "high": interval.high,
        "p": sign_flip_test(own - other, seed=seed, alternative="greater"),
    }


def _distances(rows: pl.DataFrame, order: Sequence[str], seed: int) -> pl.DataFrame:
    overlap = _wide(rows, "overlap", order)
    resample = overlap[:, order.index(RESAMPLE)]
    table = []
    for place, variant in enumerate(order):
        both = np.isfinite(overlap[:, place]) & np.isfinite(resample)
        if variant in (BASE, RESAMPLE) or not both.any():
            continue
        table.append(
            {"variant": variant} | _distance_test(1 - overlap[both, place], 1 - resample[both], seed)
        )
    return pl.DataFrame(table).with_columns(p_holm=holm([row["p"] for row in table]))


def _agreement(rows: pl.DataFrame, compared: Sequence[str]) -> pl.DataFrame:
    return (
        rows.filter(pl.col("variant").is_in(compared))
        .group_by("row_id", maintain_order=True)
        .agg(n_variants=pl.len(), n_distinct=pl.col("output").str.strip_chars().n_unique())
        .with_columns(all_differ=pl.col("n_distinct") == pl.col("n_variants"))
    )


def _scorer_reports(scorers: Mapping[str, Mapping[str, TraitScorer]]) -> pl.DataFrame:
    reports = [
        {"persona": persona, "scale": scale} | report.as_dict()
        for persona, scales in scorers.items()
        for scale, scorer in scales.items()
        if (report := getattr(scorer, "report", None)) is not None
    ]
    names = ("auc", "auc_low", "auc_high", "shuffled_mean", "shuffled_high", "length_auc")
    schema = {"persona": pl.String, "scale": pl.String} | dict.fromkeys(names, pl.Float64)
    return pl.DataFrame(reports, schema=schema | {"n_texts": pl.Int64, "n_contexts": pl.Int64})
