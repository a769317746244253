"""Diagnosis: what the unsteered model does with the rewrite prompt, its speed and what it needs.

Nothing is made of it: its speed is never the same twice, and no result depends on it. `steer make pilot` makes it
first and stops where its check does.
"""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import polars as pl

from steer_pipeline.lineage import MODEL, made_of
from steer_pipeline.resources import LanguageModelResource
from steer_pipeline.settings import settings
from steer_pipeline.stages.diagnosis import metadata
from steer_pipeline.stages.kit import folder, gpu, user_errors

PROMPTING = ("model.chat_template", "rewrites.system", "rewrites.prompt", "rewrites.sampling")
JUDGED_BY = ("diagnosis", "gates.max_suspect_rate", "model.batch_tokens")


@dg.asset(
    deps=["model_weights", "tokenizer", "chat_template", "news_facts"],
    code_version=made_of("1", *MODEL, *PROMPTING, *JUDGED_BY),
    **gpu("diagnosis", io_manager_key="bundle_io", kinds={"pytorch", "parquet"}),
)
def model_diagnosis(
    truncated_news: pl.LazyFrame, language_model: LanguageModelResource
) -> Iterator[dg.Output[Path]]:
    """What base makes of a few news items, decoded as the packs are; tokens per second; memory.

    `diagnosis.json`: facts kept, suspects, rewrites that end by themselves or only copy, whether the chat template
    takes a system turn, speed of prefill and decoding, bytes of weights and cache. `rows.parquet`: the rewrites.
    """
    from steer_pipeline.lab.generation.jobs import BrokenLogits, OutOfMemory
    from steer_pipeline.lab.rewrites.diagnosis import LOOKED_AT, diagnose, save_diagnosis
    from steer_pipeline.lab.rewrites.source import KNOWN_FACTS

    with user_errors(BrokenLogits, OutOfMemory), folder("model_diagnosis") as made:
        news = truncated_news.head(LOOKED_AT).collect()
        known_facts = settings().shipped / KNOWN_FACTS
        found, rows = diagnose(language_model.load(), settings().profile, news, known_facts)
        save_diagnosis(found, rows, made)
        yield dg.Output(made, metadata=metadata.of_diagnosis(found, rows))


ASSETS = [model_diagnosis]
