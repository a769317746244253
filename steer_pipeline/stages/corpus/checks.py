"""What must hold of the corpus tables. All block what follows, but for the number of lines set aside."""

from typing import Any

import dagster as dg
import polars as pl

from steer_pipeline.settings import settings

MAX_QUARANTINE_RATE = 0.01
AGAIN = "To go on: mend the source of the news, then run the job refresh_news"


@dg.asset_check(asset="cc_news", blocking=True)
def news_has_its_schema(cc_news: pl.LazyFrame) -> dg.AssetCheckResult:
    """Every column of the schema, of its type and without nulls, and at least one row."""
    from steer_pipeline.lab.corpus import NEWS_SCHEMA, schema_problems

    problems = schema_problems(cc_news, NEWS_SCHEMA, nullable=("duplicate_of", "near_duplicate_of"))
    return _listed(problems)


@dg.asset_check(asset="cc_news", blocking=True)
def ids_are_unique(cc_news: pl.LazyFrame) -> dg.AssetCheckResult:
    """No two originals share a row id, no two rows a source index, and marked duplicates name an original."""
    from steer_pipeline.lab.corpus import id_problems

    return _counted(id_problems(cc_news))


@dg.asset_check(asset="cc_news", additional_ins={"news_quarantine": dg.AssetIn("news_quarantine")})
def few_lines_are_quarantined(cc_news: pl.LazyFrame, news_quarantine: pl.LazyFrame) -> dg.AssetCheckResult:
    """At most 1% of the lines gave no article; above that a warning, with the reasons."""
    n_rows = cc_news.select(pl.len()).collect().item()
    reason = pl.col("reason").str.split(":").list.first()
    reasons = news_quarantine.group_by(reason).len().sort("len", "reason", descending=[True, False]).collect()
    n_quarantined = int(reasons["len"].sum())
    rate = n_quarantined / max(1, n_rows + n_quarantined)
    return dg.AssetCheckResult(
        passed=rate <= MAX_QUARANTINE_RATE,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{n_quarantined} of {n_rows + n_quarantined} lines gave no article ({rate:.1%}), limit "
        f"{MAX_QUARANTINE_RATE:.0%}",
        metadata={"quarantine_rate": rate, "quarantined": n_quarantined, "reasons": dict(reasons.rows())},
    )


@dg.asset_check(asset="truncated_news", blocking=True)
def articles_have_their_schema(truncated_news: pl.LazyFrame) -> dg.AssetCheckResult:
    """Every column of the schema, of its type and without nulls, and at least one row."""
    from steer_pipeline.lab.corpus import TRUNCATED_SCHEMA, schema_problems

    return _listed(schema_problems(truncated_news, TRUNCATED_SCHEMA))


@dg.asset_check(asset="truncated_news", blocking=True)
def token_cap_is_kept(truncated_news: pl.LazyFrame) -> dg.AssetCheckResult:
    """No article has more tokens than the cap, and stored counts are those of a second count."""
    from steer_pipeline.lab.corpus import cap_problems
    from steer_pipeline.lab.models.loading import load_tokenizer

    now = settings()
    tokenizer = load_tokenizer(now.profile.model, now.home)
    counts = cap_problems(truncated_news, tokenizer, now.profile.corpus.max_tokens)
    return _counted(counts, recounted=counts.pop("recounted"))


@dg.asset_check(asset="truncated_news", blocking=True)
def articles_end_on_a_sentence(truncated_news: pl.LazyFrame) -> dg.AssetCheckResult:
    """The last character of every article closes a sentence."""
    from steer_pipeline.lab.corpus import open_ends

    found = open_ends(truncated_news, settings().profile.corpus.language)
    return _counted({"open_ends": found.height}, examples=dict(found.head(5).rows()))


@dg.asset_check(asset="truncated_news", blocking=True, additional_ins={"cc_news": dg.AssetIn("cc_news")})
def articles_are_aligned_with_cc_news(
    truncated_news: pl.LazyFrame, cc_news: pl.LazyFrame
) -> dg.AssetCheckResult:
    """Each article is part of the original with its row id and source index; each occurs once, in order."""
    from steer_pipeline.lab.corpus import alignment_problems

    return _counted(alignment_problems(truncated_news, cc_news))


def _counted(counts: dict[str, int], **more: Any) -> dg.AssetCheckResult:
    """Passes if all counts are zero; they are the metadata either way."""
    broken = [f"{name.replace('_', ' ')}: {count}" for name, count in counts.items() if count]
    told = f"{'; '.join(broken)} (limit 0). {AGAIN}" if broken else None
    return dg.AssetCheckResult(passed=not broken, description=told, metadata={**counts, **more})


def _listed(problems: list[str]) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        passed=not problems, description="; ".join(problems) or None, metadata={"problems": len(problems)}
    )


CHECKS = [
    news_has_its_schema,
    ids_are_unique,
    few_lines_are_quarantined,
    articles_have_their_schema,
    token_cap_is_kept,
    articles_end_on_a_sentence,
    articles_are_aligned_with_cc_news,
]
