"""All variants next to base, its resample and the other controls: scores a row, then intervals.

In: packs as frames, the news and its facts, one scorer a trait and scale. Out: `score_rows` gives one row
for each variant and news item; `summarise` gives one row for each variant and measure, every difference
paired by row id. Intervals of control variants are simultaneous over controls x traits of one scale.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import polars as pl

from steer_pipeline.catalogue.models import VariantSpec
from steer_pipeline.lab.quality import multiset_jaccard, words
from steer_pipeline.lab.rewrites.gates import is_suspect
from steer_pipeline.lab.stats import Interval, paired_difference, sign_flip_test, simultaneous_intervals

BASE, RESAMPLE = "base", "base_resample"
Score = Callable[[Sequence[str]], Sequence[float]]

SCORE_COLUMNS = {
    "variant": "Name in the catalogue.",
    "row_id": "The news item.",
    "source_index": "Its position in the corpus.",
    "output": "The rewrite.",
    "words": "Words in the rewrite.",
    "exact_match": "1 where the rewrite equals base's, character for character.",
    "overlap": "Multiset Jaccard of its words with base's.",
    "facts_kept": "Share of the lead's facts that the rewrite keeps; null where the lead has none.",
    "suspect": "1 where a suspect rule hits.",
    "suspect_rules": "The rules that hit.",
    "truncated": "1 where the token limit cut the rewrite.",
}
# Measures that compare with base already; their reference is what the resample shows.
AGAINST_BASE = ("exact_match", "overlap")


def score_rows(
    packs: Mapping[str, pl.DataFrame],
    suspects: Mapping[str, Sequence[Sequence[str]]],
    facts: Mapping[str, Sequence[float | None]],
    scorers: Mapping[str, Score],
) -> pl.DataFrame:
    """One row for each variant and news item.

    Args:
        packs: variant -> pack; `base` must be among them.
        suspects, facts: variant -> rules hit and share of facts kept, in the pack's row order.
        scorers: column (`lexicon_paranoid`, `minilm_paranoid`, ...) -> texts to signed scores in [-1, 1].

    Returns:
        Columns of `SCORE_COLUMNS`, then one float column a scorer.
    """
    if BASE not in packs:
        raise ValueError("there is no base pack to compare with: materialise rewrite_pack, partition base")
    base = dict(zip(packs[BASE]["row_id"], packs[BASE]["output"], strict=True))
    frames = []
    for variant, pack in packs.items():
        texts = pack["output"].to_list()
        reference = [base.get(row_id) for row_id in pack["row_id"]]
        pairs = list(zip(texts, reference, strict=True))
        frames.append(
            pl.DataFrame(
                {
                    "variant": [variant] * pack.height,
                    "row_id": pack["row_id"],
                    "source_index": pack["source_index"],
                    "output": texts,
                    "words": [float(len(words(text))) for text in texts],
                    "exact_match": [None if b is None else float(a == b) for a, b in pairs],
                    "overlap": [None if b is None else float(multiset_jaccard(a, b)) for a, b in pairs],
                    "facts_kept": pl.Series(list(facts[variant]), dtype=pl.Float64),
                    "suspect": [float(is_suspect(rules)) for rules in suspects[variant]],
                    "suspect_rules": pl.Series(
                        [list(r) for r in suspects[variant]], dtype=pl.List(pl.String)
                    ),
                    "truncated": pack["truncated"].cast(pl.Float64),
                }
                | {name: pl.Series(list(score(texts)), dtype=pl.Float64) for name, score in scorers.items()}
            )
        )
    return pl.concat(frames)


def measures(scores: pl.DataFrame) -> list[str]:
    """The columns of `score_rows` that are averaged and compared."""
    return [name for name, dtype in scores.schema.items() if dtype == pl.Float64]


def summarise(scores: pl.DataFrame, variants: Mapping[str, VariantSpec], *, seed: int) -> pl.DataFrame:
    """One row for each variant and measure.

    Columns: variant, role, measure, n, mean, reference (variant compared with), reference_mean, shift, low,
    high (95%), p (two-sided sign-flip), interval (`paired`, or `simultaneous` over the family of controls),
    wanted (`up`, `down` or null: what the catalogue says of this variant and trait).
    """
    present = [name for name in variants if name in set(scores["variant"])]
    wide = {measure: _wide(scores, measure) for measure in measures(scores)}
    families = _control_intervals(wide, [n for n in present if variants[n].role == "control"], seed)
    rows = []
    for name in present:
        for measure, table in wide.items():
            reference = _reference(measure, name, present)
            pairs = table.select(own=name, other=reference).drop_nulls() if reference else None
            own = table[name].drop_nulls()
            interval = p_value = None
            if pairs is not None and pairs.height:
                a, b = pairs["own"].to_numpy(), pairs["other"].to_numpy()
                interval = families.get((name, measure)) or paired_difference(a, b, seed=seed)
                p_value = sign_flip_test(a - b, seed=seed)
            persona = measure.partition("_")[2]
            rows.append(
                {
                    "variant": name,
                    "role": variants[name].role,
                    "measure": measure,
                    "n": interval.n if interval else own.len(),
                    "mean": own.mean(),
                    "reference": reference,
                    "reference_mean": pairs["other"].mean() if pairs is not None and pairs.height else None,
                    "shift": interval.estimate if interval else None,
                    "low": interval.low if interval else None,
                    "high": interval.high if interval else None,
                    "p": p_value,
                    "interval": "simultaneous" if (name, measure) in families else "paired",
                    "wanted": variants[name].targets.get(persona) if _is_trait(measure) else None,
                }
            )
    return pl.DataFrame(rows, schema=SUMMARY_SCHEMA)


SUMMARY_SCHEMA = {
    "variant": pl.String,
    "role": pl.String,
    "measure": pl.String,
    "n": pl.Int64,
    "mean": pl.Float64,
    "reference": pl.String,
    "reference_mean": pl.Float64,
    "shift": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "p": pl.Float64,
    "interval": pl.String,
    "wanted": pl.String,
}


def pilot_numbers(summary: pl.DataFrame, scale: str = "lexicon") -> dict[str, dict]:
    """What `make pilot` prints for each variant: rows, suspect_rate, facts_kept and the trait shifts to base."""
    result: dict[str, dict] = {}
    for row in summary.iter_rows(named=True):
        entry = result.setdefault(
            row["variant"], {"rows": 0, "suspect_rate": None, "facts_kept": None, "trait": {}}
        )
        if row["measure"] == "suspect":
            entry |= {"rows": row["n"], "suspect_rate": row["mean"]}
        elif row["measure"] == "facts_kept":
            entry["facts_kept"] = row["mean"]
        elif row["measure"].startswith(f"{scale}_"):
            trait = row["measure"].removeprefix(f"{scale}_")
            entry["trait"][trait] = {key: row[key] for key in ("shift", "low", "high")}
    return result


def broken_controls(
    summary: pl.DataFrame, variants: Mapping[str, VariantSpec], scale: str = "lexicon"
) -> list[str]:
    """Sentences about controls that must show nothing and whose interval leaves zero out.

    Those are the unprompted controls; a prompted one is there to show what a prompt achieves.
    """
    silent = [name for name, spec in variants.items() if spec.role == "control" and not spec.prompted_by]
    rows = summary.filter(
        pl.col("variant").is_in(silent)
        & pl.col("measure").str.starts_with(f"{scale}_")
        & ((pl.col("low") > 0) | (pl.col("high") < 0))
    )
    return [
        f"control {row['variant']} moves {row['measure'].removeprefix(f'{scale}_')} by {row['shift']:+.3f} "
        f"[{row['low']:+.3f}, {row['high']:+.3f}]; a control must include zero"
        for row in rows.iter_rows(named=True)
    ]


def _is_trait(measure: str) -> bool:
    return measure.startswith(("lexicon_", "minilm_"))


def _wide(scores: pl.DataFrame, measure: str) -> pl.DataFrame:
    """row_id and one column a variant."""
    return scores.pivot(on="variant", index="row_id", values=measure, maintain_order=True)


def _reference(measure: str, name: str, present: Sequence[str]) -> str | None:
    if measure not in AGAINST_BASE:
        return BASE
    return RESAMPLE if RESAMPLE in present and name not in (BASE, RESAMPLE) else None


def _control_intervals(
    wide: Mapping[str, pl.DataFrame], controls: Sequence[str], seed: int
) -> dict[tuple[str, str], Interval]:
    """Max-t intervals over controls x traits, one family a scale, on the rows that all of them have."""
    result: dict[tuple[str, str], Interval] = {}
    for scale in ("lexicon_", "minilm_"):
        members = [(name, measure) for measure in wide if measure.startswith(scale) for name in controls]
        if not members:
            continue
        joined = None
        for name, measure in members:
            column = wide[measure].select("row_id", (pl.col(name) - pl.col(BASE)).alias(f"{name}|{measure}"))
            joined = column if joined is None else joined.join(column, on="row_id", how="inner")
        matrix = joined.drop("row_id").drop_nulls().to_numpy().astype(np.float64)
        if len(matrix):
            result |= dict(zip(members, simultaneous_intervals(matrix, seed=seed), strict=True))
    return result
