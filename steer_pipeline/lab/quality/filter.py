"""Which rows of a pack are fit to learn from, with every score and reason.

In: a pack, base's pack and the facts. Out: all rows, each with a score per criterion, `keep` and `reasons`.
Nothing is dropped here and nothing is capped or reordered, so whoever reads the set can choose otherwise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from steer_pipeline.lab.quality.facts import facts_kept
from steer_pipeline.lab.quality.suspects import OUR_RULES, scan_frame
from steer_pipeline.lab.quality.text import exact_match, length_ratio, multiset_jaccard

REASONS = {
    "suspect": "A suspect rule of ours hits.",
    "facts_lost": "Fewer of the facts are kept than the threshold asks.",
    "too_short": "Words per word of base's output below the lower bound.",
    "too_long": "Words per word of base's output above the upper bound.",
    "unfinished": "The token limit cut it; the model did not end by itself.",
    "same_as_base": "Equal to base's output, so nothing of the steering could be learnt from it.",
    "perplexity_low": "Perplexity below the lower bound: loops are likely text.",
    "perplexity_high": "Perplexity above the upper bound.",
    "trait_weak": "The targeted trait shows less than the threshold asks.",
}


# Columns beside the pack's own, in this order.
ADDED = (
    "suspects", "facts_kept", "length_ratio", "overlap_with_base", "same_as_base", "perplexity", "trait",
    "reasons", "keep",
)  # fmt: skip


@dataclass(frozen=True)
class KeepCriteria:
    """Thresholds. A criterion that is None is not applied."""

    min_facts_kept: float = 0.6
    min_length_ratio: float = 0.4
    max_length_ratio: float = 2.5
    perplexity_bounds: tuple[float, float] | None = None
    min_trait: float | None = None


def keep_filter(
    pack: pl.DataFrame,
    base: pl.DataFrame | None,
    facts: Mapping[str, Sequence[str]],
    criteria: KeepCriteria = KeepCriteria(),
    *,
    source: str = "prompt",
    perplexity: Sequence[float] | None = None,
    trait: Sequence[float] | None = None,
    special_tokens: Sequence[str] = (),
) -> pl.DataFrame:
    """Judges every row of a pack.

    Args:
        pack: row_id, output, truncated and the `source` column; the order is kept.
        base: base's pack, matched by row_id; None for base itself, which is compared with nothing.
        facts: row_id -> facts. A row without facts has nothing to lose.
        perplexity: one value a row, needed where `criteria.perplexity_bounds` is set.
        trait: one value a row, positive in the wanted direction, needed where `criteria.min_trait` is set.

    Returns:
        The pack with suspects, facts_kept, length_ratio, overlap_with_base, same_as_base, perplexity, trait
        (null where unknown), keep (bool) and reasons (list, keys of `REASONS`).

    Raises:
        ValueError: a row of the pack is not in base, or a threshold is set without its values.
    """
    _check_values(pack, "perplexity", perplexity, criteria.perplexity_bounds)
    _check_values(pack, "trait", trait, criteria.min_trait)
    scanned = scan_frame(pack, source=source, special_tokens=special_tokens)
    scored = _against_base(scanned, base).with_columns(
        _kept(scanned, facts), _column("perplexity", perplexity, pack), _column("trait", trait, pack)
    )
    reasons = pl.concat_list(
        [
            pl.when(hit.fill_null(False)).then(pl.lit(name)).otherwise(pl.lit(None))
            for name, hit in _failures(criteria).items()
        ]
    ).list.drop_nulls()
    judged = scored.with_columns(reasons=reasons).with_columns(keep=pl.col("reasons").list.len() == 0)
    return judged.select(*pack.columns, *ADDED)


def _check_values(pack: pl.DataFrame, name: str, values: Sequence[float] | None, threshold: object) -> None:
    if threshold is not None and values is None:
        raise ValueError(f"keep_filter: a threshold on {name} is set, so pass {name}= with one value a row")
    if values is not None and len(values) != pack.height:
        raise ValueError(f"keep_filter: {len(values)} values of {name} for {pack.height} rows")


def _column(name: str, values: Sequence[float] | None, pack: pl.DataFrame) -> pl.Series:
    nothing: list[None] = [None] * pack.height
    return pl.Series(
        name, nothing if values is None else np.asarray(values, dtype=np.float64), dtype=pl.Float64
    )


def _kept(pack: pl.DataFrame, facts: Mapping[str, Sequence[str]]) -> pl.Series:
    rows = zip(pack["row_id"], pack["output"], strict=True)
    shares = [facts_kept(facts.get(row_id, ()), text) for row_id, text in rows]
    return pl.Series("facts_kept", shares, dtype=pl.Float64).fill_nan(None)


def _against_base(pack: pl.DataFrame, base: pl.DataFrame | None) -> pl.DataFrame:
    """With length_ratio, overlap_with_base and same_as_base; null without a base."""
    reference = None if base is None else _reference(pack, base)
    outputs = pack["output"].to_list()
    return pack.with_columns(
        pl.Series("length_ratio", _against(reference, outputs, length_ratio), dtype=pl.Float64),
        pl.Series("overlap_with_base", _against(reference, outputs, multiset_jaccard), dtype=pl.Float64),
        pl.Series("same_as_base", _against(reference, outputs, exact_match), dtype=pl.Boolean),
    )


def _failures(criteria: KeepCriteria) -> dict[str, pl.Expr]:
    """Reason -> whether it speaks against a row; null where the criterion is unknown."""
    failed = {
        "suspect": pl.col("suspects").list.eval(pl.element().is_in(list(OUR_RULES))).list.any(),
        "facts_lost": pl.col("facts_kept") < criteria.min_facts_kept,
        "too_short": pl.col("length_ratio") < criteria.min_length_ratio,
        "too_long": pl.col("length_ratio") > criteria.max_length_ratio,
        "unfinished": pl.col("truncated"),
        "same_as_base": pl.col("same_as_base"),
    }
    if criteria.perplexity_bounds is not None:
        low, high = criteria.perplexity_bounds
        # Written so that a value that is not a number fails.
        failed["perplexity_low"] = pl.col("perplexity").fill_null(high) < low
        failed["perplexity_high"] = ~(pl.col("perplexity").fill_nan(None) <= high).fill_null(False)
    if criteria.min_trait is not None:
        failed["trait_weak"] = ~(pl.col("trait").fill_nan(None) >= criteria.min_trait).fill_null(False)
    return failed


def _reference(pack: pl.DataFrame, base: pl.DataFrame) -> list[str]:
    outputs = dict(zip(base["row_id"], base["output"], strict=True))
    for row_id in pack["row_id"]:
        if row_id not in outputs:
            raise ValueError(
                f"keep_filter: row_id {row_id} is not in base; make both packs from the same rows"
            )
    return [outputs[row_id] for row_id in pack["row_id"]]


def _against(reference: list[str] | None, outputs: list[str], measure) -> list:
    if reference is None:
        return [None] * len(outputs)
    return [measure(text, other) for text, other in zip(outputs, reference, strict=True)]


def reason_counts(filtered: pl.DataFrame) -> dict[str, int]:
    """Rows per reason; a row with two reasons counts twice. Every reason is named, so keys are stable."""
    return {name: int(filtered["reasons"].list.contains(name).sum()) for name in REASONS}
