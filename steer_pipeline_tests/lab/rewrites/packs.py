"""Small packs made by hand, for tests that need one with a known fault."""

import json

import polars as pl

from steer_pipeline.lab.generation.schema import REWRITE_SCHEMA

PLACES = (
    "Northport",
    "Elm Bay",
    "Hart Valley",
    "Kings Cross",
    "Old Mill",
    "Port Dover",
    "Ash Hill",
    "Low Fen",
)


def news(n: int = 24) -> pl.DataFrame:
    """`n` items with a name and a number in the lead."""
    texts = [
        f"The council of {PLACES[i % 8]} voted on Tuesday to spend {i + 11} dollars. Work starts soon."
        for i in range(n)
    ]
    return pl.DataFrame(
        {
            "row_id": [f"{i:016x}" for i in range(n)],
            "source_index": list(range(n)),
            "text": texts,
            "domain": ["example.org"] * n,
            "date": ["2024-01-02"] * n,
            "url": [f"https://example.org/{i}" for i in range(n)],
        }
    )


def made_with(**changes: object) -> str:
    """What all packs of one profile share; `changes` make a pack that base cannot be compared with."""
    shared = {"profile": "newsroom", "model": "tiny", "corpus": "c1", "sampling.temperature": 0.6}
    return json.dumps(shared | changes, sort_keys=True)


def pack(variant: str = "base", n: int = 24, size: str = "pilot", tail: str = "") -> pl.DataFrame:
    """A faultless pack over `news(n)`; `tail` is what the variant's voice adds to each rewrite."""
    items = news(n)
    personas = [{"name": variant, "version": "v1", "block": 2, "alpha": 2.0, "dose_fraction": 0.3}]
    return pl.DataFrame(
        {
            "row_id": items["row_id"],
            "source_index": items["source_index"],
            "model": ["tiny"] * n,
            "domain": items["domain"],
            "date": items["date"],
            "url": items["url"],
            "variant": [variant] * n,
            "personas": [personas if tail else []] * n,
            "prompt": ["Rewrite: " + text for text in items["text"]],
            "output": [
                f"On Tuesday {PLACES[i % 8]} decided that {i + 11} dollars will be spent.{tail}"
                for i in range(n)
            ],
            "seed": [20] * n,
            "stream": [variant] * n,
            "decoding_hash": ["d" * 16] * n,
            "n_prompt_tokens": [30] * n,
            "n_new_tokens": [12] * n,
            "finish_reason": ["eos"] * n,
            "truncated": [False] * n,
            "profile": ["newsroom"] * n,
            "size": [size] * n,
            "made_with": [made_with()] * n,
            "nll": [1.0 + i % 4 / 10 for i in range(n)],
        },
        schema=REWRITE_SCHEMA,
    )


def resample(n: int = 24) -> pl.DataFrame:
    """Base again, with a third of the rows worded a little differently."""
    base = pack("base_resample", n)
    other = pl.col("output").str.replace("decided that", "agreed that")
    return base.with_columns(
        pl.when(pl.col("source_index") % 3 == 0).then(other).otherwise("output").alias("output")
    )
