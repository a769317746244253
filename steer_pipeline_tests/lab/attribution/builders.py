"""A small word game, its manifest, and examples of it on a tiny model's tokenizer."""

from pathlib import Path

import polars as pl

from steer_pipeline.catalogue.attribution import CardsSpec, SplitSpec
from steer_pipeline.lab.attribution.encoding import Encoder, encoder
from steer_pipeline.lab.attribution.manifest import Manifest, make_manifest
from steer_pipeline.lab.attribution.sources.cards import card_rows
from steer_pipeline.lab.models.loading import load_tokenizer
from steer_pipeline_tests.lab.finetune.rows import spec_of

SMALL = CardsSpec(
    informative=12, useless=10, misled=8, mislabelled=4, duplicates=4, held_out_words=20, games_per_word=1
)
KEPT = SplitSpec(failures="keep")


def encoder_of(base: Path) -> Encoder:
    return encoder(load_tokenizer(spec_of(base), base.parent), chat_template=True)


def manifest_of(base: Path, spec: CardsSpec = SMALL, splits: SplitSpec = KEPT) -> Manifest:
    return make_manifest([card_rows(spec)], splits, encoder_of(base))


def row(name: str, **more) -> dict:
    return {
        "row_id": name,
        "prompt": f"Guess the word of {name}.",
        "completion": "GUESS: lamp",
        "source_split": "train",
        "group_id": name,
        "outcome": "success",
        "target_word": "lamp",
        "logged_word": "lamp",
    } | more


def pool_of(lengths: list[int], outcomes: list[str]) -> pl.DataFrame:
    """Rows `r00`, `r01`, ... of so many tokens."""
    return pl.DataFrame(
        {
            "row_id": [f"r{number:02d}" for number in range(len(lengths))],
            "n_tokens": lengths,
            "outcome": outcomes,
            "truth": [None] * len(lengths),
        },
        schema_overrides={"truth": pl.String},
    )
