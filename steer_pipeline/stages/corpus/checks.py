"""What must hold of the corpus tables. All block what follows, but for the number of lines set aside."""

from collections.abc import Iterator
from typing import Any

import dagster as dg
import polars as pl

from steer_pipeline.settings import settings
from steer_pipeline.stages.kit import Claims, must, should

MAX_QUARANTINE_RATE = 0.01
AGAIN = "mend the source of the news, then run the job refresh_news"
NEWS = Claims(
    "cc_news",
    must(
        "news_has_its_schema",
        "Every column of the schema, of its type and without nulls, and at least one row.",
        AGAIN,
    ),
    must(
        "ids_are_unique",
        "No two originals share a row id, no two rows a source index, and marked duplicates name an original.",
        AGAIN,
    ),
    should(
        "few_lines_are_quarantined",
        f"At most {MAX_QUARANTINE_RATE:.0%} of the lines gave no article; above that a warning, with the reasons.",
        "news_quarantine lists each line with its file, number and reason; " + AGAIN,
    ),
    reads=["news_quarantine"],
)
ARTICLES = Claims(
    "truncated_news",
    must(
        "articles_have_their_schema",
        "Every column of the schema, of its type and without nulls, and at least one row.",
        AGAIN,
    ),
    must(
        "token_cap_is_kept",
        "No article has more tokens than the cap, and stored counts are those of a second count.",
        "materialise truncated_news again: the tokenizer or corpus.max_tokens has changed since",
    ),
    must(
        "articles_end_on_a_sentence",
        "The last character of every article closes a sentence.",
        "look at the examples, and set corpus.language if the news are of another one",
    ),
    must(
        "articles_are_aligned_with_cc_news",
        "Each article is part of the original with its row id and source index; each occurs once, in order.",
        "materialise truncated_news again: the news have changed since",
    ),
    reads=["cc_news"],
)


@NEWS.check(ins={name: dg.AssetIn(name) for name in ("cc_news", "news_quarantine")})
def news_checks(cc_news: pl.LazyFrame, news_quarantine: pl.LazyFrame) -> Iterator[dg.AssetCheckResult]:
    """Whether the snapshot is whole, and how much of the source is missing from it."""
    from steer_pipeline.lab.corpus import NEWS_SCHEMA, id_problems, schema_problems, set_aside

    missing = set_aside(cc_news, news_quarantine)
    problems = schema_problems(cc_news, NEWS_SCHEMA, nullable=("duplicate_of", "near_duplicate_of"))
    if problems and missing.quarantined:
        problems = [*problems, missing.sentence()]
    yield _listed(NEWS, "news_has_its_schema", problems)
    sound = {"row_id", "source_index"} <= set(cc_news.collect_schema())
    yield _counted(NEWS, "ids_are_unique", id_problems(cc_news)) if sound else NEWS.unjudged("ids_are_unique")
    yield NEWS.result(
        "few_lines_are_quarantined",
        missing.rate <= MAX_QUARANTINE_RATE,
        f"{missing.sentence()}, limit {MAX_QUARANTINE_RATE:.0%}",
        {
            "quarantine_rate": missing.rate,
            "quarantined": missing.quarantined,
            "reasons": missing.reasons,
        },
    )


@ARTICLES.check(ins={name: dg.AssetIn(name) for name in ("truncated_news", "cc_news")})
def article_checks(truncated_news: pl.LazyFrame, cc_news: pl.LazyFrame) -> Iterator[dg.AssetCheckResult]:
    """Whether the articles are what the model may be given."""
    from steer_pipeline.lab import corpus
    from steer_pipeline.lab.models.loading import load_tokenizer

    profile, home = settings().profile, settings().home
    spec = profile.corpus
    problems = corpus.schema_problems(truncated_news, corpus.TRUNCATED_SCHEMA)
    yield _listed(ARTICLES, "articles_have_their_schema", problems)
    if any("column" in problem for problem in problems):
        yield from map(ARTICLES.unjudged, ARTICLES.names[1:])
        return
    counts = corpus.cap_problems(truncated_news, load_tokenizer(profile.model, home), spec.max_tokens)
    yield _counted(ARTICLES, "token_cap_is_kept", counts, recounted=counts.pop("recounted"))
    open_ends = corpus.open_ends(truncated_news, spec.language)
    examples = dict(open_ends.head(5).rows())
    yield _counted(ARTICLES, "articles_end_on_a_sentence", {"open_ends": open_ends.height}, examples=examples)
    misplaced = corpus.alignment_problems(truncated_news, cc_news)
    yield _counted(ARTICLES, "articles_are_aligned_with_cc_news", misplaced)


def _counted(claims: Claims, name: str, counts: dict[str, int], **more: Any) -> dg.AssetCheckResult:
    """Passes if all counts are zero; they are the metadata either way."""
    broken = [f"{kind.replace('_', ' ')}: {count}" for kind, count in counts.items() if count]
    found = f"{'; '.join(broken)} (limit 0)" if broken else ", ".join(counts).replace("_", " ") + ": none"
    return claims.result(name, not broken, found, {**counts, **more})


def _listed(claims: Claims, name: str, problems: list[str]) -> dg.AssetCheckResult:
    found = "; ".join(problems) or "every column is there, of its type, without nulls"
    return claims.result(name, not problems, found, {"problems": len(problems)})


CHECKS = [news_checks, article_checks]
